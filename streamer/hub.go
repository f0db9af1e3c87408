package streamer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"time"

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

	queue   chan *subscription // those with something to do, each at most once
	replays chan struct{}      // a slot for each replay that may run
	hangups *hangups

	mu      sync.Mutex
	subs    map[*subscription]struct{}
	slots   int // streams open or about to be
	closing bool
	empty   chan struct{} // closed when closing and no subscription is left

	stop chan struct{}  // closed to end workers and wheel
	wg   sync.WaitGroup // workers, wheel, hang-up watch, drains, replays
}

// StartHub returns a running hub. The caller ends it by Close.
func StartHub(cfg Config, tapes *tape.Tapes, past *Past, m *Metrics, logger *slog.Logger) (*Hub, error) {
	hangups, err := newHangups()
	if err != nil {
		return nil, fmt.Errorf("streamer: %w", err)
	}
	h := &Hub{
		cfg: cfg, tapes: tapes, past: past, metrics: m, logger: logger,
		queue:   make(chan *subscription, cfg.MaxStreams),
		replays: make(chan struct{}, cfg.MaxReplays),
		hangups: hangups,
		subs:    make(map[*subscription]struct{}),
		empty:   make(chan struct{}),
		stop:    make(chan struct{}),
	}
	workers := cfg.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	for range workers {
		h.wg.Go(h.work)
	}
	h.wg.Go(h.turnWheel)
	h.wg.Go(hangups.run)
	return h, nil
}

// Reserve takes a slot for a stream. It returns ErrTooManyStreams or, once Close has
// begun, errShutdown. Every success is followed by Adopt or Release.
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

// Adopt takes over a connection in a reserved slot and serves req on it until the
// client leaves or Close. head is written first. It returns at once; the connection is
// the hub's from here on.
func (h *Hub) Adopt(nc net.Conn, head []byte, t *tape.Tape, req Request) {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &subscription{
		hub: h, req: req, conn: newConn(nc), ctx: ctx, cancel: cancel, tape: t, pos: req.From,
		bucket: rand.IntN(wheelBuckets),
	}
	s.sched.Store(running)
	h.mu.Lock()
	h.subs[s] = struct{}{}
	closing := h.closing
	h.mu.Unlock()
	h.metrics.streams.Inc()
	if closing {
		s.end(errShutdown)
	}
	if err := h.hangups.watch(s); err != nil {
		s.end(err)
	}
	s.pending = head
	n, err := s.conn.tryWrite(head)
	if err != nil {
		s.end(err)
	}
	s.pending = s.pending[n:]
	if len(s.pending) > 0 {
		h.wg.Go(s.drain)
		return
	}
	s.pending = nil
	h.queue <- s
}

// worker is the scratch space of one working goroutine.
type worker struct {
	entries []*tape.Entry
	out     []byte
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
	if !s.attached && !s.ending.Load() && (s.req.CloseAtEnd || !s.attach()) {
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

// takeDown ends a subscription for good. Its state stays running: nobody runs it again.
func (h *Hub) takeDown(s *subscription) {
	reason := context.Cause(s.ctx)
	s.detach()
	h.hangups.forget(s)
	if errors.Is(reason, errShutdown) && !s.conn.torn {
		// A goodbye, if the socket takes it: when to come back, spread out.
		_, _ = s.conn.tryWrite(fmt.Appendf(nil, "retry: %d\n\n", 500+rand.IntN(2500)))
	}
	_ = s.conn.Close() // the client is gone or told; nothing is left to do about an error
	h.metrics.ended(reason)
	h.metrics.streams.Dec()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, s)
	h.releaseLocked()
}

func (s *subscription) attach() bool {
	if s.pos.Epoch == s.tape.Epoch() {
		_, s.attached = s.tape.Attach(s, s.req.Workspace, s.req.Session, s.pos.Offset)
	}
	return s.attached
}

func (s *subscription) detach() {
	if s.attached {
		s.tape.Detach(s, s.req.Workspace, s.req.Session)
		s.attached = false
	}
}

// wheelBuckets spreads the keep-alives of many streams over their period.
const wheelBuckets = 64

// turnWheel sends each stream a comment once a KeepAlive.
func (h *Hub) turnWheel() {
	tick := time.NewTicker(h.cfg.KeepAlive / wheelBuckets)
	defer tick.Stop()
	for bucket := 0; ; bucket = (bucket + 1) % wheelBuckets {
		select {
		case <-tick.C:
		case <-h.stop:
			return
		}
		for _, s := range h.inBucket(bucket) {
			s.keepAlive.Store(true)
			s.Wake()
		}
	}
}

func (h *Hub) inBucket(bucket int) []*subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*subscription
	for s := range h.subs {
		if s.bucket == bucket {
			out = append(out, s)
		}
	}
	return out
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
	for s := range h.subs {
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
	for s := range h.subs {
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
