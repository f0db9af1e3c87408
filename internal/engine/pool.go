package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// pool shares a bounded number of sessions among requests. A session is opened when first needed, keeps its
// settings from one request to the next, and is thrown away when a statement may have changed it.
type pool struct {
	lib  *library
	args []string // that booted the engine; a later session repeats the path
	base map[string]string
	log  *slog.Logger

	slots   chan *slot
	waiting atomic.Int64
	maxWait int64

	// control runs what must not wait behind other statements: kills. It also keeps the engine up while
	// no other session is open.
	control   *session
	controlMu sync.Mutex // guards control; a leaf in the lock order

	mu      sync.Mutex // guards running; a leaf in the lock order
	running map[string]*run
}

// slot is the right to run a statement, and the session to run it on.
type slot struct {
	tag      string
	session  *session          // nil: to be opened
	applied  map[string]string // settings beyond base
	database string
}

func newPool(lib *library, args []string, base map[string]string, size, maxWait int, log *slog.Logger) (*pool, error) {
	control, err := lib.connect(args)
	if err != nil {
		return nil, err
	}
	p := &pool{
		lib: lib, args: args, base: base, log: log, control: control,
		slots: make(chan *slot, size), maxWait: int64(maxWait), running: map[string]*run{},
	}
	for i := range size {
		p.slots <- &slot{tag: fmt.Sprintf("playhead-%d ", i)}
	}
	return p, nil
}

// close ends the sessions once every slot is back, or gives up when ctx ends.
func (p *pool) close(ctx context.Context) error {
	for range cap(p.slots) {
		select {
		case s := <-p.slots:
			s.discard()
		case <-ctx.Done():
			return fmt.Errorf("close engine sessions: %w", context.Cause(ctx))
		}
	}
	p.controlMu.Lock()
	defer p.controlMu.Unlock()
	p.control.close()
	return nil
}

// tryAcquire takes a slot if one is free, or returns nil.
func (p *pool) tryAcquire() *slot {
	select {
	case s := <-p.slots:
		return s
	default:
		return nil
	}
}

// acquire waits for a slot.
func (p *pool) acquire(ctx context.Context) (*slot, error) {
	if s := p.tryAcquire(); s != nil {
		return s, nil
	}
	if p.waiting.Add(1) > p.maxWait {
		p.waiting.Add(-1)
		return nil, newException(codeTooManyQueries, "TOO_MANY_SIMULTANEOUS_QUERIES", "Too many simultaneous queries: %d run and %d wait", cap(p.slots), p.maxWait)
	}
	defer p.waiting.Add(-1)
	select {
	case s := <-p.slots:
		return s, nil
	case <-ctx.Done():
		return nil, cancelled(ctx)
	}
}

func (p *pool) release(s *slot) { p.slots <- s }

func (s *slot) discard() {
	if s.session != nil {
		s.session.close()
		s.session, s.applied, s.database = nil, nil, ""
	}
}

// prepare brings the slot's session into the state a request asks for: its settings, no others, and its
// current database.
func (p *pool) prepare(s *slot, database string, settings map[string]string) error {
	fresh := s.session == nil
	err := p.tryPrepare(s, database, settings)
	if err != nil {
		s.discard()
		// A session may refuse for its own past (readonly=1); a new one has none.
		if !fresh {
			if err = p.tryPrepare(s, database, settings); err != nil {
				s.discard()
			}
		}
	}
	return err
}

func (p *pool) tryPrepare(s *slot, database string, settings map[string]string) error {
	want := maps.Clone(p.base)
	maps.Copy(want, settings)
	want[tagSetting] = s.tag + settings[tagSetting]
	if s.session == nil {
		session, err := p.lib.connect(p.args)
		if err != nil {
			return err
		}
		s.session, s.applied, s.database = session, map[string]string{}, "default"
	}
	var changes []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if old, ok := s.applied[name]; !ok || old != want[name] {
			changes = append(changes, name+"="+quote(want[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.applied)) {
		if _, ok := want[name]; !ok {
			changes = append(changes, name+"=DEFAULT")
		}
	}
	if len(changes) > 0 {
		if _, err := s.session.query("SET "+strings.Join(changes, ", "), "Null", nil); err != nil {
			return err
		}
		s.applied = want
	}
	if database != s.database {
		if _, err := s.session.query("USE "+quoteName(database), "Null", nil); err != nil {
			return err
		}
		s.database = database
	}
	return nil
}

// tagSetting carries the slot's tag into system.processes: the library gives every statement a query id of
// its own making, so this is how a running statement is found.
const tagSetting = "log_comment"

// run is a request's statement from the moment its query id is known, waiting and reading its body included.
type run struct {
	id     string
	text   atomic.Pointer[string] // nil until the statement was read
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed by end
	pool   *pool
}

var errKilled = errors.New("killed by its query id")

// begin registers a statement. A second one of the same id is refused while the first lasts, as ClickHouse
// does: so a repeated INSERT can never overlap the attempt it repeats.
func (p *pool) begin(ctx context.Context, id string) (*run, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &run{id: id, ctx: ctx, cancel: cancel, done: make(chan struct{}), pool: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[id] != nil {
		cancel(nil)
		return nil, newException(codeQueryIDRunning, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING", "Query with id = %s is already running", id)
	}
	p.running[id] = r
	return r, nil
}

func (r *run) setText(text string) { r.text.Store(&text) }

func (r *run) getText() string {
	if text := r.text.Load(); text != nil {
		return *text
	}
	return ""
}

// end is the last thing a statement does: nothing of it can be stored or sent afterwards.
func (r *run) end() {
	r.cancel(nil)
	r.pool.mu.Lock()
	delete(r.pool.running, r.id)
	r.pool.mu.Unlock()
	close(r.done)
}

// kill cancels the statement with that id and returns it, or nil if there is none but the killer itself.
func (p *pool) kill(id string, self *run) *run {
	p.mu.Lock()
	r := p.running[id]
	p.mu.Unlock()
	if r == self {
		return nil
	}
	if r != nil {
		r.cancel(errKilled)
	}
	return r
}

// guard makes the end of r's context reach the engine while r runs on s. The function it returns must be
// called before s is used for anything else.
func (r *run) guard(s *slot) (release func()) {
	finished, stopped := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(r.ctx, func() {
		defer close(stopped)
		// Again and again, since the statement may not have reached the engine's process list yet.
		for {
			r.pool.killTag(s.tag)
			select {
			case <-finished:
				return
			case <-time.After(killInterval):
			}
		}
	})
	return func() {
		close(finished)
		if !stop() {
			<-stopped
		}
	}
}

const killInterval = 50 * time.Millisecond

func (p *pool) killTag(tag string) {
	_, err := p.onControl("KILL QUERY WHERE startsWith(Settings["+quote(tagSetting)+"], "+quote(tag)+") ASYNC", "Null", nil)
	if err != nil {
		p.log.Warn("kill a cancelled statement", "error", err)
	}
}

// onControl runs a short statement without waiting for a slot.
func (p *pool) onControl(text, format string, args params) ([]byte, error) {
	p.controlMu.Lock()
	defer p.controlMu.Unlock()
	return p.control.query(text, format, args)
}

// cancelled words the end of a context as ClickHouse words a cancelled query.
func cancelled(ctx context.Context) *exception {
	return newException(codeQueryCancelled, "QUERY_WAS_CANCELLED", "Query was cancelled: %s", context.Cause(ctx))
}
