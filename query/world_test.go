package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/schema"
)

// world is one partition of the log with everything that reads it: a list of records
// stands for Kafka and the tape; ClickHouse is the real engine.
type world struct {
	t          testing.TB
	r          *rand.Rand
	epoch      uint8
	at         uint16 // its partition, of
	partitions int
	rule       schema.DedupeRule
	history    *History
	insert     func([]*schema.Event)

	old     []*schema.Event // rows of epochs before this one, which Kafka has forgotten
	log     []*schema.Event // all records of this epoch, repeats included
	repeat  []bool          // which of them repeat an earlier one
	windows *schema.Window
	end     int64 // high watermark

	start     int64 // log start offset
	committed int64
	rows      int64 // what the materialiser has inserted, beyond committed in doubt
	tapeStart int64
	warmAt    int64 // the tape judges repeats from here on

	stateAway bool // the tape cannot fold states: only ClickHouse holds their beginning
}

var errGone = errors.New("gone")

func (w *world) Open(context.Context, uint16) (Tape, error) { return worldTape{w}, nil }

func (w *world) Get(uint16) int64 { return w.committed }

func (w *world) Bounds(context.Context, uint16) (int64, int64, error) { return w.start, w.end, nil }

func (w *world) HighWatermark(context.Context, uint16) (int64, error) { return w.end, nil }

func (w *world) OffsetForTime(_ context.Context, _ uint16, ms int64) (int64, error) {
	for _, e := range w.log {
		if e.ID.Offset >= w.start && e.ID.TimeMs >= ms {
			return e.ID.Offset, nil
		}
	}
	return w.end, nil
}

func (w *world) Read(ctx context.Context, _ uint16, from, to int64, fn func(*kgo.Record) error) (int64, error) {
	if from < w.start {
		return from, fmt.Errorf("offset %d is out of range", from)
	}
	for _, e := range w.log {
		if e.ID.Offset < from || e.ID.Offset >= to {
			continue
		}
		rec := &kgo.Record{
			Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, "x"), Value: e.Payload,
			Offset: e.ID.Offset, Timestamp: e.Time(),
		}
		if err := fn(rec); err != nil {
			return e.ID.Offset, err
		}
	}
	return to, ctx.Err()
}

type worldTape struct{ *world }

func (t worldTape) WaitFor(context.Context, int64) error { return nil }

func (t worldTape) ScopeEvents(scope schema.Scope, from int64, limit int) (events []*schema.Event, start, next int64) {
	return t.records(scope, from, limit, false)
}

func (t worldTape) ScopeRecords(scope schema.Scope, from int64, limit int) (events []*schema.Event, start, next int64) {
	return t.records(scope, from, limit, true)
}

func (t worldTape) records(scope schema.Scope, from int64, limit int, hidden bool) (events []*schema.Event, start, next int64) {
	for i, e := range t.log {
		if e.ID.Offset >= max(from, t.tapeStart) && len(events) < limit && !t.repeat[i] && (hidden || !e.Hidden()) && scope.Holds(e) {
			events = append(events, e)
		}
	}
	return events, t.tapeStart, t.end
}

func (t worldTape) Session(_ context.Context, workspace, session string) (schema.Session, error) {
	if t.stateAway {
		return schema.Session{}, fmt.Errorf("fold: %w", &UnavailableError{RetryAfter: 1, Cause: errGone})
	}
	s := schema.NewSession()
	for _, e := range t.visible(true) {
		if e.Workspace == workspace && e.Session == session {
			s.Apply(e)
		}
	}
	return s, nil
}

func (t worldTape) Repeats(e *schema.Event) (repeats, known bool) {
	if e.ID.Offset < t.warmAt {
		return false, false
	}
	i, _ := slices.BinarySearchFunc(t.log, e.ID.Offset, func(e *schema.Event, o int64) int { return cmp.Compare(e.ID.Offset, o) })
	return t.repeat[i], true
}

// visible lists what anybody may ever see, in log order.
func (w *world) visible(hidden bool) []*schema.Event {
	var out []*schema.Event
	for _, e := range w.old {
		if hidden || !e.Hidden() {
			out = append(out, e)
		}
	}
	for i, e := range w.log {
		if !w.repeat[i] && (hidden || !e.Hidden()) {
			out = append(out, e)
		}
	}
	return out
}

// append adds a record to the log.
func (w *world) append(e *schema.Event) {
	w.log = append(w.log, e)
	_, repeats := w.windows.Observe(e)
	w.repeat = append(w.repeat, repeats)
	w.end = e.ID.Offset + 1
}

// grow appends n random records.
func (w *world) grow(workspace string, n int) {
	ms := int64(testStartMs)
	if len(w.log) > 0 {
		ms = w.log[len(w.log)-1].ID.TimeMs
	}
	for range n {
		pos := schema.Position{Epoch: w.epoch, Partition: w.at, Offset: w.end + pick[int64](w.r, 0, 0, 0, 1, 3)}
		ms += w.r.Int64N(40) - 3
		in := pick(w.r, workspace, workspace, workspace+"x")
		w.append(randomEvent(w.r, in, w.session(in, pick(w.r, "s1", "s1", "s2")), pos, ms))
	}
}

// session returns the name of a session that lies in the world's partition: name itself, if
// the log has no other.
func (w *world) session(workspace, name string) string {
	place := schema.Placement{Partitions: w.partitions, Shards: w.partitions}
	for session, i := name, 0; ; session, i = fmt.Sprint(name, "-", i), i+1 {
		if place.Partition(workspace, session) == w.at {
			return session
		}
	}
}

// materialise inserts the rows of records below to, as the materialiser would.
func (w *world) materialise(to int64) {
	var rows []*schema.Event
	for i, e := range w.log {
		if e.ID.Offset < w.rows || e.ID.Offset >= to {
			continue
		}
		if w.repeat[i] {
			e = &schema.Event{ID: e.ID, Workspace: e.Workspace, Session: e.Session, Type: schema.TypeDuplicate, ContentType: schema.DefaultContentType}
		}
		rows = append(rows, e)
	}
	if len(rows) > 0 {
		w.insert(rows)
	}
	w.rows = max(w.rows, to)
}

// move lets time pass: rows are inserted and committed, the tape and the log move on.
func (w *world) move() {
	between := func(lo, hi int64) int64 {
		if hi <= lo {
			return lo
		}
		return lo + w.r.Int64N(hi-lo+1)
	}
	w.materialise(between(w.committed, w.end))
	w.committed = between(w.committed, min(w.rows, w.end))
	// Kafka keeps more than the dedupe rule looks back, below what is not materialised.
	w.start = between(w.start, w.committed-w.rule.Offsets-1)
	if w.r.IntN(3) == 0 {
		w.tapeStart = between(max(w.tapeStart, w.start), w.end)
	}
	w.warmAt = between(w.start, w.tapeStart)
}

func newWorld(t testing.TB, r *rand.Rand, h *History, insert func([]*schema.Event), workspace string) *world {
	return newWorldOf(t, r, h, insert, workspace, pick[uint8](r, 1, 1, 2), 0, 1)
}

// newWorldOf is newWorld for one of the partitions of a log in its given epoch.
func newWorldOf(t testing.TB, r *rand.Rand, h *History, insert func([]*schema.Event), workspace string, epoch uint8, partition uint16, partitions int) *world {
	w := &world{
		t: t, r: r, epoch: epoch, at: partition, partitions: partitions, history: h, insert: insert,
		rule: schema.DedupeRule{Offsets: 60, Age: 1500 * 1e6}, // 1.5 s
	}
	w.windows = schema.NewWindow(w.rule)
	if w.epoch == 2 {
		pos, ms := schema.Position{Epoch: 1, Partition: 3 + w.at}, int64(testStartMs)-100_000
		for range r.IntN(60) {
			w.old = append(w.old, randomEvent(r, workspace, pick(r, "s1", "s2"), pos, ms))
			pos.Offset += 1 + r.Int64N(4)
			ms += 10
		}
		if len(w.old) > 0 {
			insert(w.old)
		}
	}
	w.grow(workspace, r.IntN(300))
	return w
}

// api returns the paths over the world.
func (w *world) api(cfg Config) *API {
	return NewAPI(cfg, Deps{
		History: w.history, Tapes: w, Log: w, Committed: w,
		Placement: func(string) schema.Placement { return schema.Placement{Partitions: 1, Shards: 1} },
		PageSize:  func(string) int { return 100 },
		Epoch:     w.epoch, Dedupe: w.rule, Logger: newTestLog(w.t), Metrics: NewMetrics(nil),
	})
}

var everyKey = control.Principal{Scopes: control.AllScopes}
