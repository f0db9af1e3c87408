package streamer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// Why a subscription ended. The reasons count in metrics; clients see the end of the
// stream and resume.
var (
	errHungUp       = errors.New("client hung up")
	errShutdown     = errors.New("node is shutting down")
	errSessionEnded = errors.New("session ended")
	errTapeFailed   = errors.New("tape failed")
)

// Request is what a client asked for.
type Request struct {
	Workspace string
	Session   string
	View      *View
	Filter    schema.Filter
	From      schema.Position // the first record to deliver, if it exists and matches

	// CloseAtEnd ends the stream once the session has ended and all of it is sent.
	CloseAtEnd bool
	// ReplayWhenSlow moves a client that has fallen off the tape to replay, so that it
	// loses nothing; otherwise it skips what it missed and is told how much.
	ReplayWhenSlow bool
	// Notices adds an event at the seam between replay and live.
	Notices bool
}

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
	req     Request
	conn    *conn
	watchID uint64 // set by hangups
	bucket  int    // of the keep-alive wheel
	ctx     context.Context
	cancel  context.CancelCauseFunc // ends replay and drain

	sched     atomic.Int32
	keepAlive atomic.Bool  // a comment is due
	dropped   atomic.Int64 // matching events evicted while lagging, not yet told
	ending    atomic.Bool  // ctx is cancelled; cheaper to ask

	tape     *tape.Tape
	pos      schema.Position // next to read
	attached bool
	caughtUp bool   // the notice was sent
	pending  []byte // what the socket did not take
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
				return
			}
		default:
			return
		}
	}
}

// Evicted counts an event that leaves the tape before a slow client has had it. The
// position stands still while a client lags, so it may be read here.
func (s *subscription) Evicted(e *tape.Entry) {
	if e.ID.Offset >= s.pos.Offset && s.wants(&e.Event) {
		s.dropped.Add(1)
	}
}

func (s *subscription) wants(e *schema.Event) bool {
	return !e.Hidden() && s.req.Filter.Match(e)
}

// outcome is what a turn of pump came to.
type outcome int

const (
	idle     outcome = iota // nothing left to send
	more                    // the turn is over, there is more to send
	full                    // the socket is full, pending holds the rest
	below                   // events at the position have left the tape
	finished                // the subscription is to be taken down
)

// Bounds of one turn, so that one stream's backlog does not hold up the others.
const (
	turnEvents = 64
	turnBytes  = 64 << 10
)

// pump sends what the tape has from the position on, for one turn.
func (s *subscription) pump(w *worker) outcome {
	if s.ending.Load() {
		return finished
	}
	entries, span := s.tape.ReadSession(w.entries[:0], s.req.Workspace, s.req.Session, s.pos.Offset, turnEvents)
	defer clear(entries) // the worker's slice must not keep events alive
	if span.Failed != nil {
		s.end(fmt.Errorf("%w: %w", errTapeFailed, span.Failed))
		return finished
	}
	if s.pos.Offset < span.Evicted {
		return below
	}
	out := s.appendDropped(w.out[:0])
	keepAlive := s.keepAlive.Swap(false)
	if keepAlive {
		out = append(out, s.req.View.KeepAlive...)
	}
	sent := 0
	for _, e := range entries {
		s.pos.Offset = e.ID.Offset + 1
		if s.wants(&e.Event) {
			out = append(out, e.Frame(s.req.View.Slot, s.req.View.frame)...)
			sent++
		}
		if len(out) >= turnBytes {
			span.More = true
			break
		}
	}
	if !span.More {
		// What lies up to Next is others'. Never back: history may be ahead of the tape.
		s.pos.Offset = max(s.pos.Offset, span.Next)
		out = s.appendNotices(out, keepAlive)
	}
	w.out = out
	s.hub.metrics.delivered.Add(float64(sent))
	n, err := s.conn.tryWrite(out)
	switch {
	case err != nil:
		s.end(err)
		return finished
	case n < len(out):
		s.pending = append(s.pending[:0], out[n:]...)
		return full
	case span.More:
		return more
	case s.req.CloseAtEnd && span.EndedAt >= 0 && s.pos.Offset > span.EndedAt:
		s.end(errSessionEnded)
		return finished
	default:
		return idle
	}
}

// appendNotices appends what a client that asked for notices is told once all that
// there was is sent: that it has caught up, once; and its position with each keep-alive,
// as an id without data, so that a filter that rarely matches advances all the same.
func (s *subscription) appendNotices(dst []byte, keepAlive bool) []byte {
	if !s.req.Notices {
		return dst
	}
	if !s.caughtUp {
		s.caughtUp = true
		dst = append(dst, "event: playhead.caught_up\ndata: {}\n\n"...)
	}
	if keepAlive && s.pos.Offset > 0 {
		at := schema.EventID{Position: s.pos, TimeMs: time.Now().UnixMilli()}
		at.Offset--
		dst = append(dst, "id: "...)
		dst = at.AppendText(dst)
		dst = append(dst, "\n\n"...)
	}
	return dst
}

// drain waits for a full socket. While it waits the subscription lags: evictions from
// the tape are counted, or made up for by replay.
func (s *subscription) drain() {
	h := s.hub
	defer func() { h.queue <- s }()
	if !s.attached {
		if err := s.write(s.pending); err != nil {
			s.end(err)
		}
		s.pending = nil
		return
	}
	evicted := s.tape.SetLagging(s, s.req.Workspace, s.req.Session, true)
	uncounted := s.pos.Offset < evicted // left the tape before anybody counted
	h.metrics.slow.Inc()
	err := s.write(s.pending)
	h.metrics.slow.Dec()
	evicted = s.tape.SetLagging(s, s.req.Workspace, s.req.Session, false)
	s.pending = nil
	switch {
	case err != nil:
		s.end(err)
	case s.pos.Offset >= evicted:
	case uncounted || s.req.ReplayWhenSlow:
		s.dropped.Store(0) // replay brings them
	default:
		s.pos.Offset = evicted // skip; pump tells how much
	}
}

// appendDropped appends the notice of what was lost, if anything was.
func (s *subscription) appendDropped(dst []byte) []byte {
	n := s.dropped.Swap(0)
	if n == 0 {
		return dst
	}
	s.hub.metrics.dropped.Add(float64(n))
	return fmt.Appendf(dst, ": dropped %d\n", n)
}

// write writes b, waiting for the socket with the configured deadline.
func (s *subscription) write(b []byte) error {
	return s.conn.writeAll(s.ctx, b, s.hub.cfg.WriteTimeout)
}
