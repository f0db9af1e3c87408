package streamer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Why a subscription ended. The reasons count in metrics; how they are told is the wire's.
var (
	errHungUp        = errors.New("client hung up")
	errShutdown      = errors.New("node is shutting down")
	errSessionEnded  = errors.New("session ended")
	errSessionErased = errors.New("session was erased")
	errTapeFailed    = errors.New("tape failed")
	errKeyEnded      = errors.New("key was revoked or has expired")
)

// cancelledError ends a stream on somebody's order.
type cancelledError struct {
	byServer bool
	reason   string
}

func (e *cancelledError) Error() string { return "cancelled: " + e.reason }

// States of subscription.sched. A subscription is run by one goroutine at a time: a
// worker, the drain of a full socket, or a replay. Whoever wakes it while it runs
// leaves a mark, and it looks once more before it rests.
const (
	resting = iota
	running // or queued to run
	marked  // running, and woken meanwhile
)

// subscription is one stream: a position in the log, a filter and a connection. The
// fields below sched belong to whichever goroutine runs it.
type subscription struct {
	hub     *Hub
	id      string
	req     Request
	wire    wire
	conn    *conn
	watchID uint64 // set by hangups
	slot    int    // of the wheel; the hub's lock guards it
	ctx     context.Context
	cancel  context.CancelCauseFunc // ends replay and drain
	release func()                  // gives back what its opening took
	finish  func()                  // ends the connection once the goodbye is written
	expiry  *time.Timer             // ends it with its key; nil if that never ends

	sched   atomic.Int32
	beatDue atomic.Bool  // a sign of life is due
	dropped atomic.Int64 // matching events evicted while lagging, not yet told
	ending  atomic.Bool  // ctx is cancelled; cheaper to ask
	mail    atomic.Bool  // inbox is not empty
	timed   atomic.Bool  // Hub.later is to wake it
	nudge   atomic.Pointer[chan struct{}]

	inboxMu sync.Mutex // guards inbox and asked
	inbox   []command
	asked   *Request // req with the filter of the last command; nil: there was none

	filterKey string // of req.Filter
	legs      []leg
	one       [1]leg // legs, if there is one
	turn      int    // the leg that goes first
	pace      *pacer // nil unless a speed was asked for
	rate      *throttle
	paused    bool
	caughtUp  bool   // the notice was sent
	pending   []byte // what the socket did not take
}

// end asks the subscription to end for the given reason; the first one counts.
func (s *subscription) end(reason error) {
	s.cancel(reason) // before ending is set: who finds it set asks for the cause
	if s.ending.Swap(true) {
		return
	}
	_ = s.conn.SetWriteDeadline(time.Now()) // frees whoever waits for the socket
	s.Wake()
}

// request returns what the stream is of, for who is not running it: the filter is the one
// that was asked for last.
func (s *subscription) request() Request {
	s.inboxMu.Lock()
	defer s.inboxMu.Unlock()
	if s.asked == nil {
		return s.req // nobody has changed it, nor can while the lock is held
	}
	return *s.asked
}

// Wake has the subscription looked after by a worker, now or when it is done with
// what it is doing.
func (s *subscription) Wake() {
	for {
		switch state := s.sched.Load(); state {
		case resting:
			if s.sched.CompareAndSwap(resting, running) {
				s.hub.queue <- s // has room for every subscription, each at most once
				return
			}
		case running:
			if s.sched.CompareAndSwap(running, marked) {
				s.knock()
				return
			}
		default:
			s.knock()
			return
		}
	}
}

// knock wakes a replay that waits for an event to be due.
func (s *subscription) knock() {
	if c := s.nudge.Load(); c != nil {
		select {
		case *c <- struct{}{}:
		default: // it will look
		}
	}
}

// outcome is what a turn of pump came to.
type outcome int

const (
	idle     outcome = iota // nothing left to send
	more                    // the turn is over, there is more to send
	full                    // the socket is full, pending holds the rest
	below                   // events at a position have left the tape, or the tape is gone
	finished                // the subscription is to be taken down
)

// Bounds of one turn, so that one stream's backlog does not hold up the others.
const (
	turnEvents = 64
	turnBytes  = 64 << 10
)

// pump sends what the tapes have from the position on, for one turn.
func (s *subscription) pump(w *worker) outcome {
	out := s.obey(w.out[:0])
	if s.ending.Load() {
		// Behind what a replay has left: the goodbye's cursor counts that as sent.
		s.pending = append(s.pending, out...)
		return finished
	}
	if !s.attached() {
		s.pending = append(s.pending[:0], out...)
		return below // a command has moved the position
	}
	beat := s.beatDue.Swap(false)
	t := turn{w: w, out: out, look: beat || !s.caughtUp}
	if !s.paused {
		for i := range s.legs {
			if !s.pumpLeg(&s.legs[(s.turn+i)%len(s.legs)], &t) {
				break
			}
		}
		s.turn++
	}
	if t.failed || t.below {
		s.pending = append(s.pending[:0], t.out...)
		return below
	}
	if beat {
		t.out = s.wire.heartbeat(t.out, s)
	}
	if !t.more && !t.held && !s.paused {
		t.out = s.appendNotices(t.out, beat)
	}
	w.out = t.out
	s.hub.metrics.delivered.Add(float64(t.sent))
	n, err := s.conn.tryWrite(t.out)
	switch {
	case err != nil:
		s.end(err)
		return finished
	case n < len(t.out):
		s.pending = append(s.pending[:0], t.out[n:]...)
		return full
	case t.more:
		return more
	case t.ended:
		s.end(errSessionEnded)
		return finished
	default:
		return idle
	}
}

// turn is what one pump comes to.
type turn struct {
	w    *worker
	out  []byte
	sent int
	look bool // at every leg, whether or not there is news

	more, below, failed, ended bool
	held                       bool // there is more, which may not be sent yet
}

// pumpLeg sends what one leg has. It reports whether the turn goes on.
func (s *subscription) pumpLeg(l *leg, t *turn) bool {
	if !l.fresh.Swap(false) && !t.look {
		return true
	}
	entries, span := l.seat.Read(t.w.entries[:0], l.pos.Offset, turnEvents)
	defer clear(entries) // the worker's slice must not keep events alive
	switch {
	case span.Failed != nil:
		t.failed = true
		return false
	case l.pos.Offset < span.Evicted:
		t.below = true
		return false
	}
	t.out = s.appendDropped(t.out)
	t.w.tail = t.w.tail[:0]
	if len(entries) > 0 {
		t.w.tail = s.appendTail(t.w.tail, l)
	}
	for _, e := range entries {
		if !e.Hidden() {
			if !s.allow(t) {
				l.fresh.Store(true)
				return false
			}
			f := e.Frame(s.req.View.slot, s.req.View.frame)
			t.out = s.wire.event(t.out, f, &e.Event, t.w.tail)
			t.sent++
		}
		l.pos.Offset = e.ID.Offset + 1
		if len(t.out) >= turnBytes {
			span.More = true
			break
		}
	}
	if span.More {
		l.fresh.Store(true)
		t.more = true
		return len(t.out) < turnBytes
	}
	// What lies up to Next is others'. Never back: history may be ahead of the tape.
	l.pos.Offset = max(l.pos.Offset, span.Next)
	t.ended = t.ended || s.req.CloseAtEnd && span.EndedAt >= 0 && l.pos.Offset > span.EndedAt
	return true
}

// allow takes an event's place in the stream's rate, or says that there is none now.
func (s *subscription) allow(t *turn) bool {
	if s.rate == nil {
		return true
	}
	wait, tell := s.rate.take(time.Now())
	if wait == 0 {
		return true
	}
	if tell {
		t.out = s.wire.failure(t.out, s, rateLimited(wait))
	}
	s.hub.later(s, wait)
	t.held = true
	return false
}

// appendNotices appends what a client that asked for notices is told once all that
// there was is sent: that it has caught up, once; and its position with each heartbeat,
// as an id without data, so that a filter that rarely matches advances all the same.
func (s *subscription) appendNotices(dst []byte, beat bool) []byte {
	if !s.caughtUp {
		s.caughtUp = true
		if s.req.Notices {
			dst = s.wire.caughtUp(dst, s)
		}
	}
	if beat && s.req.Notices {
		dst = s.wire.position(dst, s)
	}
	return dst
}

// drain waits for a full socket. While it waits the subscription lags: evictions from
// the tape are counted, or made up for by replay.
func (s *subscription) drain() {
	h := s.hub
	defer func() { h.queue <- s }()
	uncounted := false
	for i := range s.legs {
		if l := &s.legs[i]; l.seat != nil {
			uncounted = l.pos.Offset < l.seat.SetLagging(l, true) || uncounted // left before anybody counted
		}
	}
	h.metrics.slow.Inc()
	err := s.write(s.pending)
	h.metrics.slow.Dec()
	s.pending = nil
	if err != nil {
		s.end(err)
	}
	for i := range s.legs {
		l := &s.legs[i]
		if l.seat == nil {
			continue
		}
		evicted := l.seat.SetLagging(l, false)
		if l.pos.Offset < evicted && !uncounted && !s.req.ReplayWhenSlow && s.rate == nil {
			l.pos.Offset = evicted // skip; pump tells how much
		}
	}
	s.refresh()
	if uncounted || s.req.ReplayWhenSlow || s.rate != nil {
		s.dropped.Store(0) // replay brings them
	}
}

// appendDropped appends the notice of what was lost, if anything was.
func (s *subscription) appendDropped(dst []byte) []byte {
	n := s.dropped.Swap(0)
	if n == 0 {
		return dst
	}
	s.hub.metrics.dropped.Add(float64(n))
	return s.wire.dropped(dst, n)
}

// write writes b, waiting for the socket with the configured deadline.
func (s *subscription) write(b []byte) error {
	return s.conn.writeAll(s.ctx, b, s.hub.cfg.WriteTimeout)
}
