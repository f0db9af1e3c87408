package streamer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/presence"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// ErrTooManyStreams is returned when the node holds as many streams as it may.
var ErrTooManyStreams = errors.New("too many streams on this node")

// Hub owns the streams of one node: it takes connections over, runs their
// subscriptions on a few workers, keeps idle ones alive and ends them all at the stop.
type Hub struct {
	cfg     Config
	tapes   *tape.Tapes
	past    *Past
	metrics *Metrics
	logger  *slog.Logger

	limits   func(workspace string) control.Limits
	types    func(workspace string) schema.TypeTable
	counts   Counts
	live     func(keyID string) bool
	appender Appender
	relay    func(ctx context.Context, message []byte) error
	views    []*View

	queue    chan *subscription // those with something to do, each at most once
	openings *slots             // one for each stream that may be opened at once
	replays  *slots             // one for each replay that may run
	reads    *slots             // one for each read of history or log that may run
	bursts   *slots             // one for each replay that may encode and send at once
	hangups  *hangups
	node     string // part of the ids of its connections

	mu      sync.Mutex               // guards what follows
	subs    map[string]*subscription // by id
	wheel   *wheel
	slots   int // streams open or about to be
	closing bool
	// deliveries are the commands from other nodes that are under way.
	deliveries int
	empty      chan struct{} // closed when closing and no subscription is left

	burst  atomic.Int64 // streams opened since memory was last given back
	settle *time.Timer  // when the burst is over

	stop chan struct{}  // closed to end workers and wheel
	wg   sync.WaitGroup // workers, wheel, hang-up watch, drains, replays
}

// Deps are the parts a Hub works with.
type Deps struct {
	Tapes   *tape.Tapes
	Past    *Past
	Metrics *Metrics
	Logger  *slog.Logger

	// Limits are those of a workspace; nil: there are none.
	Limits func(workspace string) control.Limits
	// Types are the codes of a workspace's event types; nil: the built-in ones.
	Types func(workspace string) schema.TypeTable
	// Counts counts the open streams of all nodes; nil: nobody does.
	Counts Counts
	// Live reports whether a key is neither revoked nor expired; nil: all are live. It is
	// asked about a stream's key once EndKey would find the stream, so that a key revoked
	// while its stream was being opened leaves none behind.
	Live func(keyID string) bool
	// Appender takes the events that come in on sockets; nil: they are refused.
	Appender Appender
	// Relay takes a command to the other nodes, whose hubs are to Deliver it; nil: there are
	// none. It may be lost.
	Relay func(ctx context.Context, message []byte) error
}

// Counts counts the open streams of all nodes.
type Counts interface {
	// Acquire counts a stream, or returns a *presence.LimitError. release uncounts it.
	Acquire(workspace, key, class string, limits presence.Limits) (release func(), err error)
}

// Appender makes events durable that clients send on their streams.
type Appender interface {
	// AppendJSON appends one event, in the form in which POST /v1/events takes it, on
	// behalf of who. The result is that of the API; an error is a *httpapi.Error.
	AppendJSON(ctx context.Context, who control.Principal, event []byte) (result []byte, err error)
}

// StartHub returns a running hub. The caller ends it by Close.
func StartHub(cfg Config, d Deps) (*Hub, error) {
	h, err := newHub(cfg, d)
	if err != nil {
		return nil, err
	}
	workers := cfg.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	for range workers {
		h.wg.Go(h.work)
	}
	h.wg.Go(h.turnWheel)
	h.wg.Go(h.hangups.run)
	return h, nil
}

// newHub returns a hub of which nothing runs.
func newHub(cfg Config, d Deps) (*Hub, error) {
	hangups, err := newHangups()
	if err != nil {
		return nil, fmt.Errorf("streamer: %w", err)
	}
	h := &Hub{
		cfg: cfg, tapes: d.Tapes, past: d.Past, metrics: d.Metrics, logger: d.Logger,
		limits: d.Limits, types: d.Types, counts: d.Counts, live: d.Live, appender: d.Appender, relay: d.Relay,
		views:    views(),
		queue:    make(chan *subscription, cfg.MaxStreams),
		openings: newSlots(cfg.MaxOpenings),
		replays:  newSlots(cfg.MaxReplays),
		reads:    newSlots(cfg.replayReads()),
		bursts:   newSlots(cfg.replayReads()),
		hangups:  hangups,
		node:     newNodeID(),
		subs:     make(map[string]*subscription),
		wheel:    newWheel(cfg.KeepAlive, max(maxHeartbeat, maxBeat*cfg.KeepAlive)),
		empty:    make(chan struct{}),
		stop:     make(chan struct{}),
	}
	h.settle = time.AfterFunc(burstPause, h.giveBack)
	return h, nil
}

// Reserve takes a slot for a stream. It returns ErrTooManyStreams or, once Close has
// begun, errShutdown. Every success is followed by adopt or Release.
func (h *Hub) Reserve() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closing:
		return errShutdown
	case h.slots >= h.cfg.MaxStreams:
		return ErrTooManyStreams
	}
	h.slots++
	return nil
}

// Release gives back a slot that was not used.
func (h *Hub) Release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.releaseLocked()
}

func (h *Hub) releaseLocked() {
	h.slots--
	if h.closing && h.slots == 0 {
		close(h.empty)
	}
}

// opening is a stream about to begin.
type opening struct {
	ctx     context.Context // that of all it waits for, beside its own end; nil: the background
	id      string
	req     Request
	legs    []place
	wire    wire
	head    []byte          // written first
	erased  schema.Position // Hub.erasedBelow before the session was looked up
	release func()          // gives back what was taken for it; called once it is over
	alive   func()          // called when a client that was slow has taken something; nil: nobody asks
	finish  func()          // ends the connection once the goodbye is written; nil closes it
}

// place is where one leg begins.
type place struct {
	tape *tape.Tape
	from schema.Position
}

// adopt takes over a connection in a reserved slot and serves o on it until the client
// leaves or Close. It returns at once; the connection is the hub's from here on.
func (h *Hub) adopt(nc net.Conn, o opening) *subscription {
	if o.ctx == nil {
		o.ctx = context.Background()
	}
	ctx, cancel := context.WithCancelCause(o.ctx)
	s := &subscription{
		hub: h, id: o.id, req: o.req, wire: o.wire, conn: newConn(nc), ctx: ctx, cancel: cancel,
		release: o.release, finish: o.finish, filterKey: o.req.Filter.Key(),
	}
	s.conn.took = o.alive
	if s.finish == nil {
		s.finish = func() { _ = s.conn.Close() } // the client is gone or told
	}
	s.legs = s.one[:]
	if len(o.legs) > 1 {
		s.legs = make([]leg, len(o.legs))
	}
	for i, p := range o.legs {
		l := &s.legs[i]
		l.sub, l.tape, l.pos = s, p.tape, p.from
	}
	if o.req.Speed > 0 {
		s.pace = &pacer{speed: o.req.Speed}
	}
	if o.req.EventsPerMinute > 0 {
		s.rate = newThrottle(o.req.EventsPerMinute)
	}
	s.sched.Store(running)
	h.mu.Lock()
	h.subs[s.id] = s
	h.wheel.add(s)
	closing := h.closing
	h.mu.Unlock()
	h.metrics.opened(s.req.View)
	if h.burst.Add(1) >= burstStreams {
		h.settle.Reset(burstPause)
	}
	if closing {
		s.end(errShutdown)
	}
	if h.erasedBelow(s.req.Scope) != o.erased {
		s.end(errSessionErased)
	}
	if h.live != nil && !h.live(s.req.KeyID) {
		s.end(errKeyEnded)
	}
	if !s.req.Expires.IsZero() {
		s.expiry = time.AfterFunc(time.Until(s.req.Expires), func() { s.end(errKeyEnded) })
	}
	if !s.req.View.WebSocket { // the reader of a WebSocket notices
		if err := h.hangups.watch(s); err != nil {
			s.end(err)
		}
	}
	n, err := s.conn.tryWrite(o.head)
	if err != nil {
		s.end(err)
	}
	s.pending = o.head[n:]
	if len(s.pending) > 0 {
		h.wg.Go(s.drain)
		return s
	}
	s.pending = nil
	h.queue <- s
	return s
}

// Opening a stream leaves some kilobytes of garbage behind, more than the stream needs
// afterwards. When many were opened and no more come, the memory is given back at once: the
// runtime by itself takes minutes. It costs one collection.
const (
	burstStreams = 500
	burstPause   = 3 * time.Second
)

func (h *Hub) giveBack() {
	if h.burst.Swap(0) >= burstStreams {
		debug.FreeOSMemory()
	}
}

// worker is the scratch space of one working goroutine.
type worker struct {
	entries []*tape.Entry
	out     []byte
	tail    []byte
}

// work serves subscriptions that have something to do.
func (h *Hub) work() {
	w := &worker{entries: make([]*tape.Entry, 0, turnEvents), out: make([]byte, 0, 2*turnBytes)}
	for {
		select {
		case s := <-h.queue:
			h.serve(w, s)
		case <-h.stop:
			return
		}
	}
}

// serve gives a subscription one turn and decides who runs it next.
func (h *Hub) serve(w *worker, s *subscription) {
	if !s.ending.Load() && !s.attached() && (s.pace != nil || s.req.CloseAtEnd || !s.attach()) {
		h.wg.Go(s.replay)
		return
	}
	switch s.pump(w) {
	case idle:
		if !s.sched.CompareAndSwap(running, resting) {
			s.sched.Store(running) // woken meanwhile: look again
			h.queue <- s
		}
	case more:
		h.queue <- s
	case full:
		h.wg.Go(s.drain)
	case below:
		s.detach()
		h.wg.Go(s.replay)
	case finished:
		h.takeDown(s)
	}
	if cap(w.out) > 4*turnBytes {
		w.out = make([]byte, 0, 2*turnBytes) // one huge event need not be remembered
	}
}

// later wakes s after a while, as if there were news. While it is to be woken already, it
// does nothing: a stream that may not send is asked again at every event that comes.
func (h *Hub) later(s *subscription, d time.Duration) {
	if s.timed.Swap(true) {
		return
	}
	time.AfterFunc(d, func() { // ends by itself; waking a stream that has ended does nothing
		s.timed.Store(false)
		s.refresh()
		s.Wake()
	})
}

// takeDown ends a subscription for good. Its state stays running: nobody runs it again.
func (h *Hub) takeDown(s *subscription) {
	reason := context.Cause(s.ctx)
	s.detach()
	if s.expiry != nil {
		s.expiry.Stop()
	}
	if s.watchID != 0 {
		h.hangups.forget(s)
	}
	if !s.conn.torn { // or it would be taken for the rest of a frame
		_, _ = s.conn.tryWrite(s.wire.goodbye(s.pending, s, reason))
	}
	s.finish()
	h.metrics.ended(s.req.View, reason)
	s.release()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, s.id)
	h.wheel.remove(s)
	h.releaseLocked()
}

// Close ends all streams with a goodbye, refuses new ones, and waits for everything
// the hub has started. It gives up waiting for slow sockets when ctx is done: they are
// cut then.
func (h *Hub) Close(ctx context.Context) error {
	h.mu.Lock()
	if h.closing {
		h.mu.Unlock()
		return nil
	}
	h.closing = true
	if h.slots == 0 {
		close(h.empty)
	}
	subs := make([]*subscription, 0, len(h.subs))
	for _, s := range h.subs {
		subs = append(subs, s)
	}
	h.mu.Unlock()
	for _, s := range subs {
		s.end(errShutdown)
	}
	var err error
	select {
	case <-h.empty:
	case <-ctx.Done():
		err = fmt.Errorf("end streams: %w", context.Cause(ctx))
	}
	close(h.stop)
	h.settle.Stop()
	err = errors.Join(err, h.hangups.stop())
	if h.wait(ctx) {
		err = errors.Join(err, h.hangups.close())
	}
	h.cut()
	return err
}

// cut closes the connections of subscriptions that nobody took down in time.
func (h *Hub) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		_ = s.conn.Close()
	}
}

// wait waits for the hub's goroutines, or for ctx.
func (h *Hub) wait(ctx context.Context) bool {
	done := make(chan struct{})
	go func() { // ends with the goroutines it waits for
		h.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
