package tape

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/schema"
)

// Tape is the recent past of one Kafka partition. It covers the offsets from Start
// (inclusive) to Next (exclusive): every event of those offsets that is no repeat and not
// erased is on it. All methods are safe for concurrent use.
type Tape struct {
	partition uint16
	cfg       Config
	past      Past
	metrics   *Metrics
	erased    schema.ErasedBelow

	mu        sync.RWMutex
	window    *schema.Window
	entries   ring
	bytes     int
	start     int64
	next      int64
	lastMs    int64 // append time of the last record, for positions without an event
	maxMs     int64 // latest append time of all events; times may run back
	epoch     uint8
	sessions  map[sessionKey]*session
	groups    map[schema.Scope]*index // workflows and workspaces that have entries or listeners
	listening int                     // audiences there are
	recent    list.List               // of *session, in the order of their last records or first questions
	waiters   map[*waiter]struct{}
	failed    error // the reader has given up; nil while it follows

	// judgedFrom is the first offset that the tape judges as every other reader does: the
	// window has seen all that a record there could repeat. Records below it only warm the
	// window up; they are neither on the tape nor in a session's state.
	judgedFrom int64

	// foldedFrom is the offset from which on every session's records are folded into its
	// state: a session that is not in the index has none there. At least judgedFrom.
	foldedFrom int64

	warmAt int64 // the end the partition had when the tape was opened

	used      atomic.Bool // it was asked for since the last look
	idleSince time.Time   // when a look last found it in use; the reader's
}

// Past tells what a tape does not reach back to.
type Past interface {
	// SessionBase folds all records of the session below to. It returns an error if the
	// past cannot be had now; a session without a past is the zero state.
	SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error)
}

type waiter struct {
	next int64
	done chan struct{} // closed by append or fail
}

// newTape returns an empty tape whose reader starts at offset from, to warm up, and
// which covers the log from offset start on.
func newTape(cfg Config, epoch uint8, partition uint16, from, start int64, past Past, m *Metrics) *Tape {
	return &Tape{
		partition: partition, epoch: epoch, cfg: cfg, past: past, metrics: m,
		window: schema.NewWindow(cfg.Rule()),
		next:   from, start: start, judgedFrom: start, foldedFrom: start,
		sessions: make(map[sessionKey]*session),
		groups:   make(map[schema.Scope]*index),
		waiters:  make(map[*waiter]struct{}),
	}
}

// idle reports whether at now the tape has not been used for the given time.
func (t *Tape) idle(now time.Time, after time.Duration) bool {
	if t.used.Swap(false) || t.idleSince.IsZero() || t.listenedTo() {
		t.idleSince = now
	}
	return now.Sub(t.idleSince) >= after
}

// listenedTo reports whether somebody waits for what is to come.
func (t *Tape) listenedTo() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.listening > 0 || len(t.waiters) > 0
}

// Partition returns the Kafka partition the tape follows.
func (t *Tape) Partition() uint16 { return t.partition }

// Epoch returns the log epoch of the tape's offsets.
func (t *Tape) Epoch() uint8 { return t.epoch }

// Next returns the first offset that is not yet on the tape.
func (t *Tape) Next() int64 {
	t.used.Store(true)
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.next
}

// Start returns the first offset that the tape covers.
func (t *Tape) Start() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.start
}

// End returns the position of the last record the tape has passed, as the id of an
// event there. It is zero if the log has no record.
func (t *Tape) End() schema.EventID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.next == 0 {
		return schema.EventID{}
	}
	return schema.EventID{
		Position: schema.Position{Epoch: t.epoch, Partition: t.partition, Offset: t.next - 1},
		TimeMs:   t.lastMs,
	}
}

// WaitFor blocks until Next is at least next, the reader fails, or ctx is done.
func (t *Tape) WaitFor(ctx context.Context, next int64) error {
	t.used.Store(true)
	t.mu.Lock()
	if t.failed != nil || t.next >= next {
		err := t.failed
		t.mu.Unlock()
		return err
	}
	w := &waiter{next: next, done: make(chan struct{})}
	t.waiters[w] = struct{}{}
	t.mu.Unlock()
	select {
	case <-w.done:
		t.mu.RLock()
		defer t.mu.RUnlock()
		return t.failed
	case <-ctx.Done():
		t.mu.Lock()
		delete(t.waiters, w)
		t.mu.Unlock()
		return fmt.Errorf("wait for offset %d of partition %d: %w", next, t.partition, context.Cause(ctx))
	}
}

// Duplicate reports whether an event with this key, appended now at the log's end,
// would repeat an earlier one, and the id of the first of them. nowMs is Unix ms.
func (t *Tape) Duplicate(key xxh3.Uint128, nowMs int64) (schema.EventID, bool) {
	t.used.Store(true)
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.window.Lookup(key, schema.EventID{
		Position: schema.Position{Epoch: t.epoch, Partition: t.partition, Offset: t.next},
		TimeMs:   nowMs,
	})
}

// record is what the reader hands to the tape: a decoded event, or nil for a record
// that takes an offset and is no event (a transaction marker, a poison record).
type record struct {
	offset int64
	timeMs int64
	event  *Entry
}

// append puts records, in offset order, onto the tape and wakes who waits for them.
// nowMs is the wall clock in Unix ms.
func (t *Tape) append(records []record, nowMs int64) {
	if len(records) == 0 {
		return
	}
	var woken []*index
	t.mu.Lock()
	for _, r := range records {
		if r.offset < t.next {
			continue // fetched again after a leader move
		}
		t.next, t.lastMs = r.offset+1, r.timeMs
		if r.event == nil {
			continue // a time of no event says nothing about what the window still holds
		}
		t.maxMs = max(t.maxMs, r.timeMs)
		_, duplicate := t.window.Observe(&r.event.Event)
		if r.offset < t.judgedFrom {
			continue
		}
		if duplicate {
			t.metrics.duplicates.Inc()
			continue
		}
		// Under the lock, so that erase takes away what came before it was known.
		if t.erased.Erased(&r.event.Event) {
			continue
		}
		woken = t.put(r.event, nowMs, woken)
	}
	t.trim(nowMs)
	t.releaseWaiters()
	var due [][]Listener
	for _, x := range woken {
		due = x.due(due)
	}
	t.mu.Unlock()
	wake(due)
}

// wake wakes listeners, without the tape's lock.
func wake(all [][]Listener) {
	for _, listeners := range all {
		for _, l := range listeners {
			l.Wake()
		}
	}
}

// put indexes one event; mu is held. It appends to woken the indexes somebody listens to
// who wants the event, and which are not there yet.
func (t *Tape) put(e *Entry, nowMs int64, woken []*index) []*index {
	s := t.session(e.Workspace, e.Session)
	s.last = e.ID.Offset
	t.recent.MoveToBack(s.recency)
	e.session = s
	e.Workspace, e.Session = s.scope.Workspace, s.scope.Session // share the index's strings
	e.heldSinceMs = nowMs
	if e.ID.Offset < t.warmAt { // it came before the tape was opened
		e.heldSinceMs = min(e.ID.TimeMs, nowMs)
	}
	s.state.Apply(&e.Event)
	t.entries.push(e)
	t.bytes += e.Size()
	woken = s.push(e, woken)
	e.workspace = t.group(schema.Scope{Workspace: e.Workspace})
	woken = e.workspace.push(e, woken)
	if e.Workflow != "" {
		e.workflow = t.group(schema.Scope{Workspace: e.Workspace, Workflow: e.Workflow})
		e.Workflow = e.workflow.scope.Workflow
		woken = e.workflow.push(e, woken)
	}
	return woken
}

// group returns the index of a workflow or a workspace, made if there is none; mu is held.
func (t *Tape) group(scope schema.Scope) *index {
	x := t.groups[scope]
	if x == nil {
		// Had an entry on the tape been the scope's, the index would be there.
		x = &index{tape: t, scope: scope, evicted: t.start}
		t.groups[scope] = x
	}
	return x
}

// trim drops what is too old or too much; mu is held.
func (t *Tape) trim(nowMs int64) {
	oldest := nowMs - t.cfg.MaxAge.Milliseconds()
	for t.entries.len() > 0 && (t.bytes > t.cfg.MaxBytes || t.entries.at(0).heldSinceMs < oldest) {
		e := t.entries.pop()
		t.bytes -= e.Size()
		t.start = e.ID.Offset + 1
		e.session.pop(t.start)
		e.workspace.pop(t.start)
		e.workspace.forget()
		if e.workflow != nil {
			e.workflow.pop(t.start)
			e.workflow.forget()
		}
	}
	if t.entries.len() == 0 {
		t.start = max(t.start, t.next) // while it warms up, next is behind
	}
	t.forgetSessions(0)
}

func (t *Tape) releaseWaiters() {
	for w := range t.waiters {
		if w.next <= t.next {
			close(w.done)
			delete(t.waiters, w)
		}
	}
}

// fail ends the tape: whoever waits gets err, listeners are woken to find it.
func (t *Tape) fail(err error) {
	t.mu.Lock()
	t.failed = err
	for w := range t.waiters {
		close(w.done)
		delete(t.waiters, w)
	}
	var all [][]Listener
	for _, s := range t.sessions {
		all = s.everybody(all)
	}
	for _, x := range t.groups {
		all = x.everybody(all)
	}
	t.mu.Unlock()
	wake(all)
}

// Err returns why the reader has given up, or nil while it follows.
func (t *Tape) Err() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.failed
}
