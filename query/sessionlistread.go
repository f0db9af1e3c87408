package query

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/schema"
)

// listReader reads one page of the list of sessions. It merges two sources of places where
// a session may stand, in the list's order: the hours of the table (listRows), and what lies
// above the committed offsets (hot). It asks for the states of the sessions it comes by, and
// lists a session once nothing that is still unseen can stand before it.
//
// Why a session is found: by start it stands at the time of its first record, which is the
// place of its first hour or, if no row of it is final, that of its hot part. By recency it
// stands at the time of its last record, which is that of an hour or of its hot part; the
// table may hold later rows of it than the page sees, and then the place comes earlier than
// the session, which waits. Other places of a session are harmless.
type listReader struct {
	api       *API
	workspace string
	views     []*view
	req       *listRequest
	until     time.Time // when to stop looking for more
	bounds    listBounds

	hot      map[string]schema.Session // of each session, what lies above the committed offset of its partition
	hotKeys  []listKey                 // its places that are still to come, in order
	rows     *listRows                 // nil if ClickHouse is unavailable
	degraded bool

	at      listKey         // all places up to it have been looked at
	known   map[string]bool // sessions whose states were looked at
	waiting []listItem      // those that are on the list, in order
	listed  []listItem
	bytes   int
	more    bool
	partial bool // it took too long, and goes on behind at
}

// listItem is a session of the list.
type listItem struct {
	key   listKey
	state schema.Session
}

// order compares places in the list's direction.
func (r *listReader) order(a, b listKey) int {
	if r.req.descending {
		return b.compare(a)
	}
	return a.compare(b)
}

// begin returns the place that the page begins behind.
func (r *listReader) begin() listKey {
	switch {
	case !r.req.cursor.isZero():
		return r.req.cursor
	case !r.req.descending && r.req.after != nil:
		return listKey{ms: *r.req.after}
	case !r.req.descending:
		return listKey{}
	case r.req.orderBy == orderStart && r.req.before != nil:
		return listKey{ms: *r.req.before}
	default:
		return listKey{ms: schema.MaxTimeMs}
	}
}

// read reads the page.
func (r *listReader) read(ctx context.Context) error {
	err := r.readFrom(ctx)
	if !errors.Is(err, ErrUnavailable) {
		return err
	}
	// The log alone can answer if it is all there: then all of it is hot.
	why := err
	r.degraded = true
	if err := r.readFrom(ctx); err != nil {
		return errors.Join(err, why)
	}
	return nil
}

func (r *listReader) readFrom(ctx context.Context) error {
	r.at = r.begin()
	r.known, r.waiting, r.listed, r.bytes, r.rows = make(map[string]bool), nil, nil, 0, nil
	if !r.degraded {
		r.rows = newListRows(r.api.deps.History, r.bounds, r.workspace, r.req, r.at)
	}
	if err := r.readHot(ctx); err != nil {
		return err
	}
	for size := r.req.limit + 1; ; size = maxBaseBatch {
		batch, done, err := r.next(ctx, min(size, maxBaseBatch))
		if err != nil {
			return err
		}
		if err := r.look(ctx, batch); err != nil {
			return err
		}
		late := r.partial || time.Now().After(r.until)
		switch full := r.list(done && !r.partial); {
		case full:
			r.more, r.partial = true, false
			return nil
		case done && !r.partial:
			return nil
		case late:
			r.more, r.partial = true, len(r.listed) < r.req.limit
			return nil
		}
	}
}

// next moves on over places until it has come by n sessions that are new to the page. done
// says that there are no more, or that time is over (partial).
func (r *listReader) next(ctx context.Context, n int) (batch []string, done bool, err error) {
	for len(batch) < n {
		row, ok, err := r.peekRow(ctx)
		late := errors.Is(err, errPageLate)
		if err != nil && !late {
			return nil, false, err
		}
		// If it is late, the table's next place is not known, but that it lies behind at.
		switch {
		case len(r.hotKeys) > 0 && (!ok && !late || late && r.order(r.hotKeys[0], r.rows.at) <= 0 || ok && r.order(r.hotKeys[0], row) <= 0):
			r.at, r.hotKeys = r.hotKeys[0], r.hotKeys[1:]
		case late:
			r.at, r.partial = r.rows.at, true
			return batch, true, nil
		case ok:
			r.at = row
			r.rows.places = r.rows.places[1:]
		default:
			return batch, true, nil
		}
		if id := r.at.id; !r.known[id] {
			r.known[id] = true
			batch = append(batch, id)
		}
	}
	return batch, false, nil
}

func (r *listReader) peekRow(ctx context.Context) (listKey, bool, error) {
	if r.rows == nil {
		return listKey{}, false, nil
	}
	if err := r.rows.fill(ctx, r.until); err != nil || len(r.rows.places) == 0 {
		return listKey{}, false, err
	}
	return r.rows.places[0], true, nil
}

// look reads the states of sessions, and has those that are on the list behind the cursor
// wait for their turn.
func (r *listReader) look(ctx context.Context, batch []string) error {
	if len(batch) == 0 {
		return nil
	}
	bases, err := r.bases(ctx, batch)
	if err != nil {
		return err
	}
	begin := r.begin()
	for _, id := range batch {
		state, ok := bases[id]
		if later, hot := r.hot[id]; hot && ok {
			state = state.Merge(later)
		} else if hot {
			state = later
		}
		key := r.req.key(id, &state)
		if r.req.takes(&state) && r.order(begin, key) < 0 {
			r.waiting = append(r.waiting, listItem{key, state})
		}
	}
	slices.SortFunc(r.waiting, func(a, b listItem) int { return r.order(a.key, b.key) })
	return nil
}

// bases reads the states that the final rows leave sessions in. Sessions of many rows may be
// more than a statement can read: then it asks for half of them at a time.
func (r *listReader) bases(ctx context.Context, sessions []string) (map[string]schema.Session, error) {
	if r.rows == nil {
		return nil, nil
	}
	placement := r.api.deps.Placement(r.workspace)
	windows := make([]window, len(r.views))
	for i, v := range r.views {
		windows[i] = window{partition: v.partition, to: v.committed}
	}
	partition := func(session string) uint16 { return placement.Partition(r.workspace, session) }
	bases, err := r.api.deps.History.SessionBases(ctx, r.workspace, r.api.deps.Epoch, windows, partition, sessions)
	if !errors.Is(err, ErrScanTooLarge) || len(sessions) == 1 {
		return bases, err
	}
	half := len(sessions) / 2
	bases, err = r.bases(ctx, sessions[:half])
	if err != nil {
		return nil, err
	}
	rest, err := r.bases(ctx, sessions[half:])
	for id, s := range rest {
		bases[id] = s
	}
	return bases, err
}

// list moves sessions onto the page that nothing unseen can stand before: all that wait, if
// everything has been seen. It reports whether the page is full and there is more.
func (r *listReader) list(all bool) (full bool) {
	for len(r.waiting) > 0 {
		item := r.waiting[0]
		if !all && r.order(r.at, item.key) < 0 {
			return false
		}
		size := stateSize(&item.state)
		if n := len(r.listed); n == r.req.limit || n > 0 && r.bytes+size > r.api.cfg.MaxPageBytes {
			return true
		}
		r.listed = append(r.listed, item)
		r.bytes += size
		r.waiting = r.waiting[1:]
	}
	return false
}

// stateSize estimates what a state holds.
func stateSize(s *schema.Session) int {
	n := 512
	for k, v := range s.Metadata {
		n += len(k) + len(v)
	}
	for t := range s.CountsByType {
		n += len(t) + 16
	}
	return n
}

// readOne reads the page of a key that sees one session.
func (r *listReader) readOne(ctx context.Context, who control.Principal, id string) error {
	state, err := r.views[0].tape.Session(ctx, r.workspace, id)
	if err != nil {
		return err
	}
	key := r.req.key(id, &state)
	if r.req.takes(&state) && who.MaySee(id, state.Workflow) && r.order(r.begin(), key) < 0 {
		r.listed = []listItem{{key, state}}
	}
	return nil
}

// readHot folds what lies above the committed offsets or, without ClickHouse, all there is.
func (r *listReader) readHot(ctx context.Context) error {
	each := make([]map[string]schema.Session, len(r.views))
	group, ctx := errgroup.WithContext(ctx)
	for i, v := range r.views {
		group.Go(func() (err error) {
			each[i], err = r.fold(ctx, v)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	r.hot, r.hotKeys = make(map[string]schema.Session), nil
	for _, sessions := range each {
		for id, s := range sessions {
			if !s.Exists() {
				continue
			}
			r.hot[id] = s
			if r.rows != nil && s.Workflow != "" && s.Workflow == r.req.workflow {
				r.rows.hot = append(r.rows.hot, id)
			}
			if key := r.req.key(id, &s); r.order(r.at, key) < 0 {
				r.hotKeys = append(r.hotKeys, key)
			}
		}
	}
	slices.SortFunc(r.hotKeys, r.order)
	return nil
}

// foldStep is how many records are taken from the tape at a time.
const foldStep = 4096

// fold folds the hot part of a partition: what the tape covers from the tape, what lies
// below from Kafka, within the bounds of LogScanConfig.
func (r *listReader) fold(ctx context.Context, v *view) (map[string]schema.Session, error) {
	scope := schema.Scope{Workspace: r.workspace}
	from, reason := v.committed, "lag"
	var scan *logScan
	open := func() (err error) {
		if scan == nil {
			scan, err = r.api.newLogScan(ctx, v, scope, reason)
		}
		return err
	}
	if r.degraded {
		from, reason = 0, "degraded"
		if err := open(); err != nil {
			return nil, err
		}
		if v.epoch != 1 || scan.start > 0 {
			return nil, errNotInKafka
		}
	}
	folded := make(map[string]schema.Session)
	apply := func(e *schema.Event) error {
		s, ok := folded[e.Session]
		if !ok {
			s = schema.NewSession()
		}
		s.Apply(e)
		folded[e.Session] = s
		return nil
	}
	for from < v.end {
		events, start, next := v.tape.ScopeRecords(scope, from, foldStep)
		if start > from {
			if err := open(); err != nil {
				return nil, err
			}
			to := min(start, v.end)
			if err := scan.readAll(ctx, from, to, apply); err != nil {
				return nil, err
			}
			from = to
			continue
		}
		for _, e := range events {
			if e.ID.Offset < v.end {
				_ = apply(e) // never fails
			}
		}
		if len(events) == foldStep {
			next = events[len(events)-1].ID.Offset + 1
		}
		from = max(next, from+1)
	}
	return folded, nil
}
