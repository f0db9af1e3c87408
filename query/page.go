package query

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// errNotInKafka reports that ClickHouse is unavailable and Kafka does not hold all that
// the page wants.
var errNotInKafka = errors.New("the log does not reach back far enough")

// page is a page of events, as read.
type page struct {
	items    []pageItem
	more     bool // there are events beyond, in the page's direction, or there may be (partial)
	partial  bool // it took too long: it is short, and goes on at its cursor
	degraded bool // ClickHouse was unavailable; Kafka stood in
}

// pageItem is one event. Its payload is empty unless the page was asked for payloads;
// its size is right all the same.
type pageItem struct {
	event       *schema.Event
	payloadSize int
	size        int // in memory
}

// pageReader reads one page of a scope: it merges the scope's partitions by append time. Of
// each partition the events come in offset order, so a page is a prefix of every partition
// and its cursor the next offsets: nothing that is appended later can shift it. Where clocks
// of nodes differ, time may run back within a partition, and the page with it.
type pageReader struct {
	api   *API
	scope schema.Scope
	views []*view // of the scope's partitions
	req   *pageRequest

	// state is the session's, which is read while the page is: nobody looks at it but after
	// known. Other scopes have none, and stated is nil.
	stated   chan struct{} // closed once state and stateErr are set
	state    schema.Session
	stateErr error

	epoch uint8              // that the legs are of; of a session the current one
	old   map[uint8][]window // what a workspace has in earlier epochs
	legs  []*leg
	page  page
	bytes int

	until  time.Time // when to stop looking for more
	looked bool      // into at least one window
	window int64     // length of the next windows; 0 until it is known
	pace   pace
	scans  map[uint16]*logScan
	why    error // why Kafka does not reach, if a leg was cut
}

// known waits for the session's state and reports whether it could be had: not where only
// ClickHouse holds the session's beginning, and is away.
func (r *pageReader) known() bool {
	if r.stated == nil {
		return false
	}
	<-r.stated
	return r.stateErr == nil
}

// beginning is the first position there can be: epochs count from 1.
var beginning = schema.Position{Epoch: 1}

// read reads the page. Its legs have been set.
func (r *pageReader) read(ctx context.Context) (page, error) {
	r.until = time.Now().Add(r.api.cfg.QueryTimeout / 2)
	r.scans = make(map[uint16]*logScan)
	for {
		switch err := r.fill(ctx); {
		case errors.Is(err, errPageLate):
			r.page.partial, r.page.more = true, true
			return r.page, nil
		case err != nil:
			return page{}, err
		}
		if slices.ContainsFunc(r.legs, func(l *leg) bool { return l.cut && len(l.items) == 0 }) {
			if len(r.page.items) == 0 {
				return page{}, r.why
			}
			r.page.more = true
			return r.page, nil
		}
		l := r.first()
		if l == nil {
			if !r.nextEpoch() {
				return r.page, nil
			}
			continue
		}
		if r.full(l.items[0]) {
			r.page.more = true
			return r.page, nil
		}
		r.page.items = append(r.page.items, l.items[0])
		r.bytes += l.items[0].size
		l.bytes -= l.items[0].size
		l.items = l.items[1:]
	}
}

func (r *pageReader) full(next pageItem) bool {
	n := len(r.page.items)
	return n == r.req.limit || n > 0 && r.bytes+next.size > r.api.cfg.MaxPageBytes
}

// first returns the leg whose next event comes first in the page's direction, nil if none
// has any.
func (r *pageReader) first() *leg {
	var first *leg
	for _, l := range r.legs {
		if len(l.items) == 0 {
			continue
		}
		if first == nil {
			first = l
			continue
		}
		a, b := l.items[0].event.ID, first.items[0].event.ID
		order := cmp.Or(cmp.Compare(a.TimeMs, b.TimeMs), cmp.Compare(a.Partition, b.Partition))
		if r.req.descending {
			order = -order
		}
		if order < 0 {
			first = l
		}
	}
	return first
}

// beginSession sets the leg of a page of one session.
func (r *pageReader) beginSession() error {
	v := r.views[0]
	at, err := v.position(r.req)
	if err != nil {
		return err
	}
	l := &leg{view: v, partition: v.partition, at: at, rows: v.at(v.committed), far: v.at(v.end)}
	if r.req.descending {
		l.far = beginning
	}
	switch {
	case !at.IsZero():
	case r.req.descending:
		l.at = v.at(v.end)
	default:
		l.at = beginning
	}
	r.legs = []*leg{l}
	r.epoch = v.epoch
	return nil
}

// beginScope sets the legs of a page of a workflow or a workspace.
func (r *pageReader) beginScope(ctx context.Context) error {
	now, c := r.api.deps.Epoch, r.req.cursor
	if c.ID.Epoch > now {
		return invalidCursor("The cursor is of a log that does not exist yet.")
	}
	// A page that goes up from a position of this epoch is not of an earlier one.
	if now > 1 && (r.req.descending || c.ID.Epoch < now) {
		var err error
		if r.old, err = r.api.deps.History.oldWindows(ctx, r.scope.Workspace, now); err != nil {
			return err
		}
	}
	first := now
	if !r.req.descending {
		for epoch := range r.old {
			first = min(first, epoch)
		}
	}
	if !c.IsZero() {
		first = c.ID.Epoch
	}
	r.setEpoch(first)
	if c.IsZero() {
		if bound := r.timeBound(); bound != nil {
			return r.locate(ctx, r.legs, *bound)
		}
		return nil
	}
	var unknown []*leg
	for _, l := range r.legs {
		next, ok := c.Next(l.partition)
		switch {
		case !ok:
			unknown = append(unknown, l)
			continue
		case l.view != nil && next > l.view.end:
			return invalidCursor("The cursor lies beyond the end of the log.")
		case r.req.descending && c.Filter == 0 && l.partition == c.ID.Partition:
			next = c.ID.Offset // an event's own id, not a page's cursor: what lies below it
		}
		l.at.Offset = next
	}
	if len(unknown) == 0 {
		return nil
	}
	return r.locate(ctx, unknown, c.ID.TimeMs)
}

// timeBound is the filter's bound on the side where the page begins.
func (r *pageReader) timeBound() *int64 {
	if r.req.descending {
		return r.req.filter.UntilMs
	}
	return r.req.filter.SinceMs
}

// setEpoch sets the legs to all that the scope has in an epoch.
func (r *pageReader) setEpoch(epoch uint8) {
	r.epoch, r.legs, r.window = epoch, nil, 0
	add := func(v *view, partition uint16, first, rows, end int64) {
		at := func(offset int64) schema.Position {
			return schema.Position{Epoch: epoch, Partition: partition, Offset: offset}
		}
		l := &leg{view: v, partition: partition, at: at(first), rows: at(rows), far: at(end)}
		if r.req.descending {
			l.at, l.far = l.far, l.at
		}
		r.legs = append(r.legs, l)
	}
	if epoch == r.api.deps.Epoch {
		for _, v := range r.views {
			add(v, v.partition, 0, v.committed, v.end)
		}
		return
	}
	for _, w := range r.old[epoch] {
		add(nil, w.partition, w.from, w.to, w.to)
	}
}

// nextEpoch goes on to the next epoch in the page's direction, if there is one. A session's
// leg is of all epochs.
func (r *pageReader) nextEpoch() bool {
	if r.scope.Session != "" {
		return false
	}
	step := 1
	if r.req.descending {
		step = -1
	}
	for epoch := int(r.epoch) + step; epoch >= 1 && epoch <= int(r.api.deps.Epoch); epoch += step {
		if r.setEpoch(uint8(epoch)); len(r.legs) > 0 {
			return true
		}
	}
	return false
}

// locate moves legs to where a time lies: so that a page of last week does not begin with a
// look at all the years before it.
func (r *pageReader) locate(ctx context.Context, legs []*leg, ms int64) error {
	var in []window
	for _, l := range legs {
		if w := (window{partition: l.partition, to: l.rows.Offset}); w.to > 0 {
			in = append(in, w)
		}
	}
	edges := map[uint16]int64{}
	if len(in) > 0 {
		var err error
		edges, err = r.api.deps.History.edgesAt(ctx, r.scope, r.epoch, in, ms, r.req.descending)
		if err != nil && !errors.Is(err, ErrUnavailable) {
			return err
		}
		if err != nil {
			edges = nil // Kafka knows, as far as it reaches
		}
	}
	for _, l := range legs {
		if err := r.locateLeg(ctx, l, edges, ms); err != nil {
			return err
		}
	}
	return nil
}

func (r *pageReader) locateLeg(ctx context.Context, l *leg, edges map[uint16]int64, ms int64) error {
	edge, inRows := edges[l.partition]
	switch {
	case r.req.descending && edges != nil: // without a row old enough the edge is 0
		enter := l.rows
		enter.Offset = edge
		l.enter = &enter
		return nil
	case r.req.descending:
		return nil // the filter leaves out what is too young
	case inRows:
		l.at.Offset = edge
		return nil
	case l.view == nil:
		l.at = l.far
		return nil
	}
	offset, err := r.api.deps.Log.OffsetForTime(ctx, l.partition, ms)
	if err != nil {
		return httpapi.LogUnavailable(err)
	}
	if edges == nil {
		start, _, err := r.api.deps.Log.Bounds(ctx, l.partition)
		if err != nil {
			return httpapi.LogUnavailable(err)
		}
		if offset <= start {
			return nil // it may lie further back
		}
		l.at.Offset = min(offset, l.view.end)
		return nil
	}
	l.at.Offset = min(max(offset, l.rows.Offset), l.view.end)
	return nil
}
