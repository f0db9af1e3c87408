package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// counter counts the events of a scope. What is final comes from ClickHouse, as sums of
// hours where these answer the question, else row by row; what lies above comes from Kafka
// and the tape, as for a page.
type counter struct {
	api   *API
	scope schema.Scope
	req   *countRequest
	views []*view
	final []window // of the views: [0, committed)

	state schema.Session // of a session
	known bool           // whether state could be had

	tally    *tally
	degraded bool
}

// countAnswer is what a count or a histogram says.
type countAnswer struct {
	tally    *tally
	position schema.Cursor // behind everything that was counted
	degraded bool
}

// count counts what req asks for.
func (a *API) count(ctx context.Context, who control.Principal, scope schema.Scope, req *countRequest) (countAnswer, error) {
	c := counter{api: a, scope: scope, req: req, tally: newTally(req.interval.Milliseconds(), req.untyped)}
	var err error
	if c.views, err = a.open(ctx, scope); err != nil { // before a place is taken: it may wait
		return countAnswer{}, httpapi.LogUnavailable(err)
	}
	for _, v := range c.views {
		c.final = append(c.final, window{partition: v.partition, to: v.committed})
	}
	hours, summed := c.hours()
	gate := a.admission.scans
	if summed {
		gate = a.admission.pages
	}
	leave, err := gate.enter(ctx, who.Workspace)
	if err != nil {
		return countAnswer{}, err
	}
	defer func() { leave() }() // of the last gate
	ctx, cancel := context.WithTimeout(ctx, 2*a.cfg.QueryTimeout+a.cfg.LogScan.Timeout+answerGrace)
	defer cancel()
	if err := c.checkSession(ctx, who); err != nil {
		return countAnswer{}, historyError(err)
	}
	source := "rows"
	if summed {
		source = "hours"
		err = c.addHours(ctx, hours)
	}
	if !summed || errors.Is(err, errTooManyDoubts) {
		if summed {
			source = "rows"
			leave()
			if leave, err = a.admission.scans.enter(ctx, who.Workspace); err != nil {
				leave = func() {}
				return countAnswer{}, err
			}
		}
		c.tally.reset()
		err = c.addRows(ctx, nil)
	}
	if errors.Is(err, ErrUnavailable) {
		c.tally.reset()
		source, c.degraded = sourceDegraded, true
		err = c.addHot(ctx, err)
	} else if err == nil {
		err = c.addHot(ctx, nil)
	}
	if err != nil {
		return countAnswer{}, c.answerFor(err)
	}
	a.metrics.counts.WithLabelValues(source).Inc()
	return countAnswer{tally: c.tally, position: c.position(), degraded: c.degraded}, nil
}

// answerFor is historyError, and names the parameter where the answer is too large.
func (c *counter) answerFor(err error) error {
	switch {
	case !errors.Is(err, errTallyFull):
		return historyError(err)
	case c.req.interval > 0:
		return httpapi.InvalidParameter("interval",
			"Parameter interval gives more than %d buckets, or %d counts by type; take a longer one, a shorter time or group_by=none.", maxBuckets, maxTallyCells)
	default:
		return httpapi.InvalidParameter("type", "There are events of more than %d types; name some of them in the parameter type, or take group_by=none.", maxTallyCells)
	}
}

// checkSession returns an error unless the session exists and the caller may see it.
func (c *counter) checkSession(ctx context.Context, who control.Principal) error {
	if c.scope.Session == "" {
		return nil
	}
	var err error
	if c.state, err = c.views[0].tape.Session(ctx, c.scope.Workspace, c.scope.Session); err != nil {
		return err // with what is missing, whether the session exists cannot be told
	}
	if c.known = true; !c.state.Exists() || !who.MaySee(c.scope.Session, c.state.Workflow) {
		return errNoSession()
	}
	return nil
}

// position is a cursor behind all that was counted.
func (c *counter) position() schema.Cursor {
	next := make([]schema.NextOffset, len(c.views))
	for i, v := range c.views {
		next[i] = schema.NextOffset{Partition: v.partition, Offset: v.end}
	}
	return cursorAt(c.api.deps.Epoch, next, time.Now().UnixMilli())
}

// nothingFinal reports that ClickHouse need not be asked.
func (c *counter) nothingFinal() bool {
	return c.api.deps.Epoch == 1 && !slices.ContainsFunc(c.final, func(w window) bool { return w.to > 0 })
}

// wholeHours are the hours of a question that by_hour has sums of, and the times beside them.
type wholeHours struct {
	hours span
	edges []span // at most two, without the hours
}

// hours returns the whole hours of the question; false if sums of hours do not answer it: it
// is about more than types and times, or less than a workspace, buckets cut through hours, or
// there are rows that must not count.
func (c *counter) hours() (wholeHours, bool) {
	f := &c.req.filter
	plain := f.ConfidenceGTE == nil && f.FromTMs == nil && f.ToTMs == nil && f.FrameID == "" && len(f.Metadata) == 0
	if !plain || c.scope.Session != "" || c.scope.Workflow != "" || c.req.interval%time.Hour != 0 {
		return wholeHours{}, false
	}
	if erased := c.api.deps.History.erased; erased != nil && len(erased.PendingErasures(c.scope.Workspace)) > 0 {
		return wholeHours{}, false
	}
	return splitHours(f.SinceMs, f.UntilMs)
}

// splitHours splits the times from since to until, both included, nil being without end, into
// whole hours and the rest; false if there is no whole hour.
func splitHours(since, until *int64) (wholeHours, bool) {
	w := wholeHours{hours: span{0, schema.MaxEventTimeMs + 1}}
	if since != nil {
		if w.hours.from = (*since + sumMs - 1) / sumMs * sumMs; w.hours.from > *since {
			w.edges = append(w.edges, span{*since, w.hours.from})
		}
	}
	if until != nil {
		if w.hours.to = (*until + 1) / sumMs * sumMs; w.hours.to <= *until {
			w.edges = append(w.edges, span{w.hours.to, *until + 1})
		}
	}
	return w, w.hours.from < w.hours.to
}

// errTooManyDoubts reports that too many groups of by_hour are not final yet.
var errTooManyDoubts = errors.New("too many hours are not final")

// addHours counts final rows by the sums of whole hours: those that are not final yet, and
// what lies beside whole hours, row by row.
func (c *counter) addHours(ctx context.Context, w wholeHours) error {
	if c.nothingFinal() {
		return nil
	}
	h := c.api.deps.History
	q := hoursQuery{
		workspace: c.scope.Workspace, epoch: c.api.deps.Epoch, final: c.final, filter: &c.req.filter,
		hours: w.hours, width: c.tally.width,
	}
	doubts := make(map[hourGroup]int64)
	var full error // ends the reading; no failure of ClickHouse
	err := h.ask(ctx, "hours", func(ctx context.Context) error {
		c.tally.reset()
		clear(doubts)
		full = nil
		query, args := q.statement()
		return h.rows(ctx, query, settingsByHour, args, func(rows driver.Rows) error {
			var bucket int64
			var kind string
			var doubt uint8
			var at uint32
			var partition uint16
			var first, n uint64
			if err := rows.Scan(&bucket, &kind, &doubt, &at, &partition, &first, &n); err != nil {
				return err
			}
			switch {
			case doubt == 0:
				full = c.tally.add(bucket, kind, n)
			case len(doubts) == maxDoubts:
				full = errTooManyDoubts
			default:
				doubts[hourGroup{hour: int64(at) * 1000, partition: partition, kind: kind}] = int64(first)
			}
			if full != nil {
				return errEnough
			}
			return nil
		})
	})
	if err = cmp.Or(err, full); err != nil {
		return fmt.Errorf("count by hours: %w", err)
	}
	if err := c.addDoubts(ctx, doubts); err != nil {
		return err
	}
	if w.edges == nil {
		return nil
	}
	return c.addRows(ctx, w.edges)
}

// addDoubts counts the final rows of groups of by_hour that hold others as well.
func (c *counter) addDoubts(ctx context.Context, doubts map[hourGroup]int64) error {
	if len(doubts) == 0 {
		return nil
	}
	h := c.api.deps.History
	q := doubtsQuery{workspace: c.scope.Workspace, epoch: c.api.deps.Epoch, filter: &c.req.filter, groups: doubts, final: c.final}
	counts := make(map[hourGroup]uint64)
	err := h.ask(ctx, "doubts", func(ctx context.Context) error {
		clear(counts)
		query, args := q.statement()
		return h.rows(ctx, query, settingsByLog, args, func(rows driver.Rows) error {
			var g hourGroup
			var n uint64
			if err := rows.Scan(&g.hour, &g.partition, &g.kind, &n); err != nil {
				return err
			}
			if _, ok := doubts[g]; ok {
				counts[g] = n
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("count hours that are not final: %w", err)
	}
	for g, n := range counts {
		if err := c.tally.add(c.tally.bucketOf(g.hour), g.kind, n); err != nil {
			return err
		}
	}
	return nil
}

// addRows counts final rows by looking at them: those of the spans, or all if it is nil.
func (c *counter) addRows(ctx context.Context, spans []span) error {
	if c.nothingFinal() {
		return nil
	}
	q := scanQuery{
		scope: c.scope, epoch: c.api.deps.Epoch, final: c.final, filter: &c.req.filter, spans: spans,
		width: c.tally.width, untyped: c.req.untyped, erased: c.api.deps.History.erased,
	}
	rows, err := c.api.guardCount(ctx, &q)
	if err != nil {
		return err
	}
	type count struct {
		bucket int64
		kind   string
		n      uint64
	}
	var counts []count
	h := c.api.deps.History
	err = h.ask(ctx, "count", func(ctx context.Context) error {
		counts = counts[:0]
		query, args := q.statement()
		return h.rows(ctx, query, q.settings(), args, func(rows driver.Rows) error {
			var n count
			if err := rows.Scan(&n.bucket, &n.kind, &n.n); err != nil {
				return err
			}
			counts = append(counts, n)
			return nil
		})
	})
	switch {
	case errors.Is(err, ErrScanTooLarge): // it took longer than was thought
		return c.api.refuseCount(ctx, &q, rows, max(rows/2, 1), err)
	case err != nil:
		return fmt.Errorf("count rows: %w", err)
	}
	for _, n := range counts {
		if err := c.tally.add(n.bucket, n.kind, n.n); err != nil {
			return err
		}
	}
	return nil
}

// addHot counts what lies above the final rows or, if why says why ClickHouse does not
// answer, everything, as far as Kafka holds it.
func (c *counter) addHot(ctx context.Context, why error) error {
	req := pageRequest{filter: c.req.filter, limit: math.MaxInt, payloads: true} // a MaxPageBytes at a time
	r := pageReader{
		api: c.api, scope: c.scope, views: c.views, req: &req, state: c.state,
		scans: make(map[uint16]*logScan), epoch: c.api.deps.Epoch,
	}
	if c.known {
		r.stated = make(chan struct{})
		close(r.stated)
	}
	for _, v := range c.views {
		l := &leg{view: v, partition: v.partition, at: v.at(v.committed), rows: v.at(v.committed), far: v.at(v.end)}
		if why != nil {
			r.page.degraded = true
			l.at = beginning
			if err := r.standIn(ctx, l, why); err != nil {
				return err
			}
		}
		for !r.done(l) {
			if err := r.fillHot(ctx, l); err != nil {
				return err
			}
			for _, item := range l.items {
				if err := c.tally.add(c.tally.bucketOf(item.event.ID.TimeMs), item.event.Type, 1); err != nil {
					return err
				}
			}
			clear(l.items)
			l.items, l.bytes = l.items[:0], 0
		}
	}
	return nil
}
