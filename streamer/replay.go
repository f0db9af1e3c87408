package streamer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// replay sends what lies between the position and the tapes, and leaves the subscription
// to the workers at their edge.
//
// Why no event is lost or sent twice at the seams: the position is the only state. A chunk
// is read from it, sent, and moves it beyond what was sent. ClickHouse is read below the
// watermark, where every row is final; Kafka from there; and a leg gets its seat on the
// tape only while that still covers the position.
func (s *subscription) replay() {
	h := s.hub
	defer func() { h.queue <- s }()
	nudge := make(chan struct{}, 1)
	s.nudge.Store(&nudge)
	defer s.nudge.Store(nil)
	h.metrics.replaying.Inc()
	defer h.metrics.replaying.Dec()
	r := newReplay(s, nudge)
	defer r.close()
	err := r.run()
	s.pending = append(s.pending[:0], r.buf...)
	if err != nil && s.ctx.Err() == nil {
		if errors.Is(err, errHistoryAway) || errors.Is(err, errLogAway) {
			h.logger.Warn("replay needs what cannot be read", "stream", s.id, "error", err)
		}
		s.end(err)
	}
}

// replay is the work of one replay: its legs' readers, merged by time.
type replay struct {
	sub     *subscription
	nudge   <-chan struct{} // the subscription was woken
	readers []*reader
	slot    bool      // it holds one of the hub's slots
	since   time.Time // when it took the slot
	burst   bool      // it holds one of the hub's bursts, and is not to wait for anything else
	moves   int       // how often what was read ahead was thrown away
	bytes   int       // how much to read at a time, of all legs together

	buf         []byte // frames not yet sent
	frame, tail []byte // scratch
	counts      map[string]int
}

// reader reads one leg ahead of what is sent.
type reader struct {
	leg    *leg
	source source
	chunk  chunk // being sent
	sent   int   // of chunk.events

	ahead  chan fetched // the next chunk, being read; nil: none is
	cancel context.CancelFunc

	quiet time.Time // until then there is no point in looking for more
}

type fetched struct {
	chunk chunk
	err   error
}

func newReplay(s *subscription, nudge <-chan struct{}) *replay {
	r := &replay{sub: s, nudge: nudge, bytes: s.hub.cfg.ReplayBytes, counts: make(map[string]int)}
	for i := range s.legs {
		l := &s.legs[i]
		r.readers = append(r.readers, &reader{leg: l, source: newSource(s.hub, &s.req, l.tape)})
	}
	return r
}

// run replays until every leg has its seat, or something ends it.
func (r *replay) run() error {
	s := r.sub
	if err := s.write(s.pending); err != nil {
		return err
	}
	s.pending = nil
	for {
		if err := r.errands(); err != nil {
			return err
		}
		if s.paused {
			r.releaseSlot()
			if err := r.wait(0); err != nil {
				return err
			}
			continue
		}
		head, edge, err := r.head()
		switch {
		case err != nil:
			return err
		case head != nil:
			if err := r.send(head); err != nil {
				return err
			}
		case edge && s.attach():
			if err := r.flush(); err != nil {
				return err
			}
			return r.arrived()
		case edge:
			r.lookAgain()
		}
	}
}

// lookAgain has all that wait for more at an edge read on: a tape has failed there, or has
// shed what was still to be had of it.
func (r *replay) lookAgain() {
	if r.sub.pace != nil {
		r.sub.detach() // or the one that waits would hold up the others' events
	}
	for _, rd := range r.readers {
		rd.quiet = time.Time{}
	}
}

// errands does what is due beside events: commands, a heartbeat, a loss to be told.
func (r *replay) errands() error {
	s := r.sub
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if s.mail.Load() {
		r.drop() // a command may change what is read, and how
		r.buf = s.obey(r.buf)
	}
	r.buf = s.appendDropped(r.buf)
	if s.beatDue.Swap(false) {
		r.buf = s.wire.heartbeat(r.buf, s)
		if s.req.Notices {
			r.buf = s.wire.position(r.buf, s)
		}
		return r.flush()
	}
	return nil
}

// drop throws away what was read ahead. The position knows nothing of it.
func (r *replay) drop() {
	r.endBurst()
	r.moves++
	for _, rd := range r.readers {
		rd.drop()
	}
}

// head returns the reader whose next event is the earliest by time. It returns nil if
// there is none, with edge, or if it has to be asked again. The order between sessions is
// that of their append times as far as each partition's log allows it.
func (r *replay) head() (first *reader, edge bool, err error) {
	moves := r.moves
	for _, rd := range r.readers {
		has, err := r.fill(rd)
		if err != nil {
			return nil, false, err
		}
		if r.moves != moves {
			return nil, false, nil
		}
		if has && (first == nil || rd.event().ID.TimeMs < first.event().ID.TimeMs) {
			first = rd
		}
	}
	return first, first == nil, nil
}

func (rd *reader) event() *schema.Event { return rd.chunk.events[rd.sent] }

// fill reports whether the reader has an event, reading on if it must.
func (r *replay) fill(rd *reader) (bool, error) {
	for {
		if rd.sent < len(rd.chunk.events) {
			if rd.skipErased(r.sub.hub.past.Erased) {
				continue
			}
			return true, nil
		}
		if rd.leg.seat != nil || rd.ahead == nil && time.Now().Before(rd.quiet) {
			return false, nil
		}
		if rd.ahead == nil {
			if err := r.begin(rd); err != nil || rd.leg.seat != nil {
				return false, err
			}
		}
		moves := r.moves
		c, err := r.await(rd)
		if err != nil {
			return false, err
		}
		if r.moves != moves {
			return false, nil
		}
		rd.chunk, rd.sent = c, 0
		if c.lost != nil {
			r.buf = r.sub.wire.gap(r.buf, c.lost.from, c.lost.to)
			rd.leg.pos = c.lost.to.Position
		}
		if len(c.events) > 0 {
			if c.source != "tape" && !r.overdue() {
				r.fetch(rd, c.next)
			}
			continue
		}
		rd.leg.pos = c.next
		if c.edge {
			if r.sub.pace == nil {
				continue // and take the seat
			}
			rd.quiet = time.Now().Add(edgePause)
			return false, nil
		}
		if err := r.errands(); err != nil { // a long stretch of others' events
			return false, err
		}
		if r.moves != moves {
			return false, nil
		}
	}
}

// edgePause is how long a paced replay leaves a partition alone that has nothing more,
// while others have.
const edgePause = 50 * time.Millisecond

// slice is how long a replay keeps its slot while others wait for one.
const slice = time.Second

// begin has the reader read on from its position, if its tape does not cover that.
func (r *replay) begin(rd *reader) error {
	if rd.leg.tape.Err() != nil {
		if err := r.reopen(rd); err != nil {
			return err
		}
	}
	if r.sub.pace == nil && rd.leg.attach() {
		return nil
	}
	if r.overdue() {
		r.yield()
	}
	if err := r.takeSlot(); err != nil {
		return err
	}
	r.fetch(rd, rd.leg.pos)
	return nil
}

// overdue reports whether it is another replay's turn.
func (r *replay) overdue() bool {
	return r.slot && r.sub.hub.replays.contended() && time.Since(r.since) > slice
}

// yield gives the slot to whoever waits for it, and the memory with it.
func (r *replay) yield() {
	r.drop()
	r.releaseSlot()
}

// fetch begins to read the chunk at pos.
func (r *replay) fetch(rd *reader, pos schema.Position) {
	h := r.sub.hub
	ctx, cancel := context.WithCancel(r.sub.ctx)
	ahead := make(chan fetched, 1)
	rd.ahead, rd.cancel = ahead, cancel
	rd.source.unhurried = r.sub.pace != nil || r.sub.rate != nil
	t, bytes := rd.leg.tape, r.bytes
	if rd.source.unhurried {
		bytes = min(bytes, unhurriedBytes) // it is held for long, and without a slot
	}
	bytes /= len(r.readers)
	workspace := r.sub.req.Scope.Workspace
	h.wg.Go(func() { // ended by drop, which waits for its answer
		var f fetched
		if f.err = h.reads.take(ctx, workspace, nil, nil); f.err == nil {
			f.chunk, f.err = rd.source.read(ctx, t, pos, bytes)
			h.reads.give(workspace)
		}
		ahead <- f
	})
}

// unhurriedBytes is how much a replay reads at a time that waits between events.
const unhurriedBytes = 256 << 10

// await waits for the chunk that is being read, doing errands meanwhile.
func (r *replay) await(rd *reader) (chunk, error) {
	moves := r.moves
	if len(rd.ahead) == 0 { // there will be a wait: what is ready goes first
		if err := r.flush(); err != nil || r.moves != moves {
			return chunk{}, err
		}
	}
	for {
		select {
		case f := <-rd.ahead:
			rd.ahead = nil
			rd.cancel()
			if errors.Is(f.err, errTapeFailed) {
				return chunk{next: rd.leg.pos}, nil // begin gets another one
			}
			return f.chunk, f.err
		case <-r.nudge:
			if err := r.errands(); err != nil || r.moves != moves {
				return chunk{}, err
			}
		case <-r.sub.ctx.Done():
			return chunk{}, context.Cause(r.sub.ctx)
		}
	}
}

// reopen gets a tape in place of one whose reader has given up.
func (r *replay) reopen(rd *reader) error {
	if err := r.flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.sub.ctx, openTimeout)
	defer cancel()
	t, _, err := r.sub.hub.tapes.Current(ctx, rd.leg.tape.Partition())
	if err != nil {
		return fmt.Errorf("%w: %w", errTapeFailed, err)
	}
	rd.leg.tape = t
	rd.source = newSource(r.sub.hub, &r.sub.req, t)
	return nil
}

// drop ends what is being read ahead and forgets what was read.
func (rd *reader) drop() {
	if rd.ahead != nil {
		rd.cancel()
		<-rd.ahead
		rd.ahead = nil
	}
	rd.chunk, rd.sent = chunk{}, 0
	rd.source.forget()
	rd.quiet = time.Time{}
}

// send takes the reader's next event when it is due, and sends what has gathered if that
// is enough.
func (r *replay) send(rd *reader) error {
	s, e := r.sub, rd.event()
	if wait := r.untilDue(e); wait > 0 {
		r.releaseSlot()
		return r.wait(wait) // and look again: a command may have changed everything
	}
	if s.rate != nil {
		wait, tell := s.rate.take(time.Now())
		if tell {
			r.buf = s.wire.failure(r.buf, s, rateLimited(wait))
		}
		if wait > 0 {
			r.releaseSlot()
			return r.wait(wait)
		}
	}
	if err := r.beginBurst(); err != nil {
		return err
	}
	r.tail = s.appendTail(r.tail[:0], rd.leg)
	var f tape.Frame
	f.Bytes, f.Cut = s.req.View.Frame(r.frame[:0], e)
	r.frame = f.Bytes
	r.buf = s.wire.event(r.buf, f, e, r.tail)
	r.counts[rd.chunk.source]++
	if rd.advance(); rd.chunk.events == nil {
		r.bytes = min(2*r.bytes, s.hub.cfg.ReplayBytes)
	}
	if len(r.buf) < sendBytes {
		return nil
	}
	return r.flush()
}

// sendBytes is how much a replay gathers before it sends.
const sendBytes = 128 << 10

// untilDue returns how long an event has to wait for its time.
func (r *replay) untilDue(e *schema.Event) time.Duration {
	s := r.sub
	if s.pace == nil {
		return 0
	}
	ms := e.ID.TimeMs
	if s.req.Scope.Session != "" {
		ms = e.TMs
	}
	now := time.Now()
	return s.pace.due(ms, now).Sub(now)
}

// wait sends what is ready and waits for the subscription to be woken, or for d; 0 is for
// as long as it takes.
func (r *replay) wait(d time.Duration) error {
	if err := r.flush(); err != nil {
		return err
	}
	var timeout <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-r.nudge:
		return nil
	case <-timeout:
		return nil
	case <-r.sub.ctx.Done():
		return context.Cause(r.sub.ctx)
	}
}

// patience is how long a replay that others wait for keeps its slot while its client takes
// nothing.
const patience = 20 * time.Millisecond

// push sends what the socket did not take at once. A client that lets others wait gives up
// its slot to them, and reads less at a time when it has one again.
func (r *replay) push(b []byte) error {
	s := r.sub
	for last := time.Now(); r.slot && len(b) > 0; {
		n, err := s.conn.writeFor(s.ctx, b, patience)
		if err != nil {
			return err
		}
		b = b[n:]
		now := time.Now()
		switch {
		case n > 0:
			last = now
		case now.Sub(last) >= s.hub.cfg.WriteTimeout:
			return fmt.Errorf("write: %w", os.ErrDeadlineExceeded)
		}
		if len(b) > 0 && s.hub.replays.contended() {
			r.bytes = max(min(unhurriedBytes, r.bytes), r.bytes/4)
			r.yield()
		}
	}
	return s.write(b)
}

// beginBurst waits until the replay may encode and send what fills its buffer. Without that
// bound the replays of many fast clients would have all processors most of the time, and
// live streams would have to wait for each of them.
func (r *replay) beginBurst() error {
	if r.burst {
		return nil
	}
	if err := r.sub.hub.bursts.take(r.sub.ctx, r.sub.req.Scope.Workspace, nil, nil); err != nil {
		return err
	}
	r.burst = true
	return nil
}

func (r *replay) endBurst() {
	if r.burst {
		r.burst = false
		r.sub.hub.bursts.give(r.sub.req.Scope.Workspace)
	}
}

// flush sends the buffer. A client that does not take it at once gives up its slot to
// whoever waits for one.
func (r *replay) flush() error {
	s := r.sub
	if len(r.buf) == 0 {
		r.endBurst()
		return nil
	}
	n, err := s.conn.tryWrite(r.buf)
	r.endBurst()
	if err != nil {
		return err
	}
	if rest := r.buf[n:]; len(rest) > 0 {
		if err := r.push(rest); err != nil {
			return err
		}
	}
	r.buf = r.buf[:0]
	for source, n := range r.counts {
		s.hub.metrics.replayed.WithLabelValues(source).Add(float64(n))
		delete(r.counts, source)
	}
	runtime.Gosched() // live streams go first
	return nil
}

// takeSlot waits for one of the hub's slots, doing errands meanwhile.
func (r *replay) takeSlot() error {
	if r.slot {
		return nil
	}
	if err := r.flush(); err != nil {
		return err
	}
	err := r.sub.hub.replays.take(r.sub.ctx, r.sub.req.Scope.Workspace, r.nudge, func() error {
		if err := r.errands(); err != nil {
			return err
		}
		return r.flush()
	})
	r.slot, r.since = err == nil, time.Now()
	return err
}

func (r *replay) releaseSlot() {
	if r.slot {
		r.slot = false
		r.sub.hub.replays.give(r.sub.req.Scope.Workspace)
	}
}

// close ends what is being read and gives the slot back.
func (r *replay) close() {
	r.drop()
	r.releaseSlot()
}

// arrived does what is left to do at the seam between replay and live.
func (r *replay) arrived() error {
	s := r.sub
	if !s.req.CloseAtEnd || s.req.Scope.Session == "" {
		return nil
	}
	// The tape may have forgotten the session since the request: have it know whether it
	// has ended. It stays known as long as somebody is attached.
	if _, err := s.legs[0].tape.Session(s.ctx, s.req.Scope.Workspace, s.req.Scope.Session); err != nil {
		return fmt.Errorf("%w: %w", errHistoryAway, err)
	}
	return nil
}
