package cluster

import (
	"bytes"
	"encoding/binary"
)

// Moment is where in a request and its answer a Tripwire strikes.
type Moment int

// The moments, in their order.
const (
	BeforeRequest Moment = iota // the server has nothing of it
	MidRequest                  // the server has the beginning, some bytes of it
	AfterRequest                // the server has what was sent so far, which may be all
	BeforeAnswer                // the server has answered, the client does not know
	AfterAnswer                 // the client has the answer
)

func (m Moment) String() string {
	return [...]string{"before the request", "within the request", "after the request", "before the answer", "after the answer"}[m]
}

// Tripwire strikes once, at a request that it knows.
type Tripwire struct {
	Match Match
	Label string // of the connection; Everybody takes any
	At    Moment
	Bytes int // of MidRequest: how many go through behind what was matched

	// Strike is called while the bytes wait. It gets the connection's label. Whatever it
	// does, the bytes then go on, unless it returns false: then the connection is reset.
	Strike func(label string) (goOn bool)

	hit chan struct{} // closed when it strikes
}

// Match finds a request in a piece of what a client sends: where what it knows it by ends,
// or -1.
type Match func(piece []byte) (end int)

// Saying matches requests with that text in them, which must not be compressed.
func Saying(text string) Match {
	return func(piece []byte) int {
		i := bytes.Index(piece, []byte(text))
		if i < 0 {
			return -1
		}
		return i + len(text)
	}
}

// Kinds of requests to Kafka (kafka.apache.org/protocol, "Api Keys").
const (
	KafkaProduce      = 0
	KafkaOffsetCommit = 8
	KafkaJoinGroup    = 11
	KafkaSyncGroup    = 14
)

// ToKafka matches requests of a kind that also match the other, if that is not nil.
func ToKafka(kind uint16, also Match) Match {
	const head = 4 + 2 // length and kind
	return func(piece []byte) int {
		switch {
		case len(piece) < head || binary.BigEndian.Uint16(piece[4:]) != kind:
			return -1
		case also == nil:
			return head
		default:
			return also(piece)
		}
	}
}

// strike is a Tripwire that a flow's request has touched.
type strike struct {
	wire *Tripwire
	left int // bytes to let through first
}

// Lay has the wire wait for its request.
func (l *Link) Lay(w *Tripwire) {
	w.hit = make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wires[w] = struct{}{}
}

// Lift takes a wire away and reports true, unless its request has come: then Done is about
// to be closed.
func (l *Link) Lift(w *Tripwire) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, waits := l.wires[w]
	delete(l.wires, w)
	return waits
}

// Done is closed when the wire has struck and its Strike has returned, or when its
// request's connection has ended before the moment came.
func (w *Tripwire) Done() <-chan struct{} { return w.hit }

// touch arms the first wire that the bytes of a request touch.
func (f *flow) touch(b []byte) {
	label := f.name()
	f.link.mu.Lock()
	var s *strike
	for w := range f.link.wires {
		if w.Label != Everybody && w.Label != label {
			continue
		}
		if end := w.Match(b); end >= 0 {
			s = &strike{wire: w, left: end + w.Bytes}
			delete(f.link.wires, w)
			break
		}
	}
	f.link.mu.Unlock()
	if s == nil {
		return
	}
	f.mu.Lock()
	before := f.armed
	f.armed = s
	f.mu.Unlock()
	if before != nil { // its request had no such moment
		close(before.wire.hit)
	}
}

// disarm lets go of a wire whose moment has not come.
func (f *flow) disarm() {
	f.mu.Lock()
	s := f.armed
	f.armed = nil
	f.mu.Unlock()
	if s != nil {
		close(s.wire.hit)
	}
}

// cut divides a piece into what goes before the strike and what goes after it.
func (f *flow) cut(d Direction, b []byte) (before, after []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.armed == nil {
		return b, nil
	}
	switch at := f.armed.wire.At; {
	case d == Up && at == BeforeRequest, d == Down && (at == BeforeAnswer || at == MidRequest):
		return nil, b
	case d == Up && at == MidRequest:
		n := min(f.armed.left, len(b))
		f.armed.left -= n
		return b[:n], b[n:]
	default:
		return b, nil
	}
}

// strikeNow strikes if the moment has come. It reports whether what is left of the piece
// goes on.
func (f *flow) strikeNow(d Direction) bool {
	f.mu.Lock()
	s := f.armed
	if s == nil {
		f.mu.Unlock()
		return true
	}
	at := s.wire.At
	due := d == Up && (at == BeforeRequest || at == AfterRequest || at == MidRequest && s.left == 0) ||
		d == Down && (at == BeforeAnswer || at == AfterAnswer || at == MidRequest) // a request shorter than that
	if !due {
		f.mu.Unlock()
		return true
	}
	f.armed = nil
	label := f.label
	f.mu.Unlock()
	goOn := s.wire.Strike(label)
	close(s.wire.hit)
	if !goOn {
		f.end()
	}
	return goOn
}
