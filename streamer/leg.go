package streamer

import (
	"sync/atomic"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// leg is a subscription's part in one Kafka partition: a position there, and while it is
// live a seat on the tape. It is the tape's Listener.
type leg struct {
	sub  *subscription
	tape *tape.Tape
	seat *tape.Audience // nil while what lies at pos has to be read elsewhere
	pos  schema.Position

	fresh atomic.Bool // the tape may have something at pos
}

var _ tape.Listener = (*leg)(nil)

// Wake is part of tape.Listener.
func (l *leg) Wake() {
	l.fresh.Store(true)
	l.sub.Wake()
}

// Evicted counts an event that leaves the tape before a slow client has had it. The
// position stands still while a client lags, so it may be read here.
func (l *leg) Evicted(e *tape.Entry) {
	if e.ID.Offset >= l.pos.Offset && !e.Hidden() { // and the filter takes it, or we were not told
		l.sub.dropped.Add(1)
	}
}

// attach takes a seat, if the tape covers the position.
func (l *leg) attach() bool {
	if l.seat != nil {
		return true
	}
	s := l.sub
	if l.pos.Epoch != l.tape.Epoch() {
		return false
	}
	seat, ok := l.tape.Attach(l, s.req.Scope, s.filterKey, &s.req.Filter, l.pos.Offset)
	if !ok {
		return false
	}
	l.seat = seat
	l.fresh.Store(true)
	return true
}

func (l *leg) detach() {
	if l.seat != nil {
		l.seat.Detach(l)
		l.seat = nil
	}
}

// attach takes the seats that are missing, and reports whether there is one to every leg.
func (s *subscription) attach() bool {
	all := true
	for i := range s.legs {
		all = s.legs[i].attach() && all
	}
	return all
}

func (s *subscription) attached() bool {
	for i := range s.legs {
		if s.legs[i].seat == nil {
			return false
		}
	}
	return true
}

// refresh has every leg look at its tape again.
func (s *subscription) refresh() {
	for i := range s.legs {
		s.legs[i].fresh.Store(true)
	}
}

func (s *subscription) detach() {
	for i := range s.legs {
		s.legs[i].detach()
	}
}

// cursor returns the position of the whole subscription: what a client needs to go on
// exactly here. It is zero while a leg is in an earlier epoch of the log.
func (s *subscription) cursor(nowMs int64) schema.Cursor {
	next := make([]schema.NextOffset, len(s.legs))
	for i := range s.legs {
		l := &s.legs[i]
		if l.pos.Epoch != l.tape.Epoch() {
			return schema.Cursor{}
		}
		next[i] = schema.NextOffset{Partition: l.pos.Partition, Offset: l.pos.Offset}
	}
	return schema.CursorAt(s.legs[0].pos.Epoch, next, nowMs)
}

// appendTail appends what has to follow the id of an event of leg own so that the two
// are the subscription's cursor: nothing if the id says it all.
func (s *subscription) appendTail(dst []byte, own *leg) []byte {
	if len(s.legs) == 1 {
		return dst
	}
	var buf [16]schema.NextOffset
	others := buf[:0]
	for i := range s.legs {
		if l := &s.legs[i]; l != own {
			if l.pos.Epoch != own.pos.Epoch {
				return dst
			}
			others = append(others, schema.NextOffset{Partition: l.pos.Partition, Offset: l.pos.Offset})
		}
	}
	return schema.AppendOthers(dst, others)
}
