package kafka

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// pipeBytes is how much one direction of a pipe holds before its writer waits.
const pipeBytes = 256 << 10

// newPipe returns the two ends of a connection within this process. It is net.Pipe with
// a buffer: a small request costs its writer no waiting and both sides no system call.
// addr is what both ends give as their addresses.
//
// As with TCP, what was written before Close can still be read by the other end, and
// deadlines may be set from any goroutine, also while a call waits.
func newPipe(addr net.Addr) (client, server net.Conn) {
	there, back := newPipeHalf(), newPipeHalf()
	return &pipeEnd{in: back, out: there, addr: addr}, &pipeEnd{in: there, out: back, addr: addr}
}

// pipeEnd is one end of a pipe. At most one goroutine reads and one writes at a time,
// which is how Kafka's clients and brokers use a connection.
type pipeEnd struct {
	in, out *pipeHalf
	addr    net.Addr
}

func (e *pipeEnd) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *pipeEnd) Write(p []byte) (int, error) { return e.out.write(p) }

// Close may be called several times.
func (e *pipeEnd) Close() error {
	e.in.closeReader()
	e.out.closeWriter()
	return nil
}

func (e *pipeEnd) LocalAddr() net.Addr  { return e.addr }
func (e *pipeEnd) RemoteAddr() net.Addr { return e.addr }

func (e *pipeEnd) SetDeadline(t time.Time) error {
	e.in.reader.setDeadline(t)
	e.out.writer.setDeadline(t)
	return nil
}

func (e *pipeEnd) SetReadDeadline(t time.Time) error {
	e.in.reader.setDeadline(t)
	return nil
}

func (e *pipeEnd) SetWriteDeadline(t time.Time) error {
	e.out.writer.setDeadline(t)
	return nil
}

// pipeHalf is one direction of a pipe.
type pipeHalf struct {
	mu     sync.Mutex // guards all that follows, and the fields of reader and writer
	data   []byte     // written and not yet read, from taken on
	taken  int
	into   []byte // where a waiting reader wants its bytes; data is empty then
	direct int    // how many bytes it was given there
	reader pipeSide
	writer pipeSide
}

func newPipeHalf() *pipeHalf {
	h := &pipeHalf{}
	h.reader.init(&h.mu)
	h.writer.init(&h.mu)
	return h
}

func (h *pipeHalf) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.direct > 0:
			n := h.direct
			h.direct = 0
			return n, nil
		case h.reader.closed:
			return 0, net.ErrClosed
		case h.taken < len(h.data):
			n := copy(p, h.data[h.taken:])
			h.taken += n
			if h.taken == len(h.data) {
				h.empty()
			}
			h.writer.changed.Signal()
			return n, nil
		case h.writer.closed:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		case h.reader.expired():
			return 0, os.ErrDeadlineExceeded
		}
		h.into = p
		h.reader.wait()
		h.into = nil
	}
}

// keptPipeBytes is the buffer an idle pipe keeps: a large fetch should not stay in the
// memory of every connection that once brought one.
const keptPipeBytes = 16 << 10

func (h *pipeHalf) empty() {
	h.data, h.taken = h.data[:0], 0
	if cap(h.data) > keptPipeBytes {
		h.data = nil
	}
}

func (h *pipeHalf) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		room := pipeBytes - (len(h.data) - h.taken)
		switch {
		case h.writer.closed:
			return n, net.ErrClosed
		case h.reader.closed:
			return n, &net.OpError{Op: "write", Net: "pipe", Err: os.NewSyscallError("write", syscall.EPIPE)}
		case h.writer.expired():
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		case room > 0:
			took := h.take(p[:min(room, len(p))])
			n, p = n+took, p[took:]
			h.reader.changed.Signal()
			continue
		}
		h.writer.wait()
	}
}

// take passes bytes on: straight to a reader that waits, or else to the buffer, which
// has room for them.
func (h *pipeHalf) take(p []byte) int {
	if h.into != nil {
		h.direct = copy(h.into, p)
		h.into = nil
		return h.direct
	}
	h.shift(len(p))
	h.data = append(h.data, p...)
	return len(p)
}

// shift moves what is unread to the front if n more bytes would not fit behind it.
func (h *pipeHalf) shift(n int) {
	if h.taken > 0 && len(h.data)+n > cap(h.data) {
		h.data = h.data[:copy(h.data, h.data[h.taken:])]
		h.taken = 0
	}
}

func (h *pipeHalf) closeReader() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reader.closed = true
	h.data, h.taken = nil, 0
	h.wakeBoth()
}

func (h *pipeHalf) closeWriter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writer.closed = true
	h.wakeBoth()
}

func (h *pipeHalf) wakeBoth() {
	h.reader.stop()
	h.writer.stop()
	h.reader.changed.Broadcast()
	h.writer.changed.Broadcast()
}

// pipeSide is who reads or writes a direction: whether it has hung up, until when it
// waits, and how it is woken.
type pipeSide struct {
	changed  *sync.Cond
	closed   bool
	deadline time.Time
	timer    *time.Timer // wakes the side at its deadline; made by the first wait that has one
}

func (s *pipeSide) init(mu *sync.Mutex) { s.changed = sync.NewCond(mu) }

// setDeadline costs no timer: a side that need not wait never looks at its deadline.
func (s *pipeSide) setDeadline(t time.Time) {
	s.changed.L.Lock()
	defer s.changed.L.Unlock()
	s.deadline = t
	s.changed.Broadcast()
}

func (s *pipeSide) expired() bool { return !s.deadline.IsZero() && !time.Now().Before(s.deadline) }

// wait returns at the next change, or soon after the deadline.
func (s *pipeSide) wait() {
	if !s.deadline.IsZero() {
		left := time.Until(s.deadline)
		if s.timer == nil {
			s.timer = time.AfterFunc(left, s.wake)
		} else {
			s.timer.Reset(left)
		}
	}
	s.changed.Wait()
	s.stop()
}

func (s *pipeSide) wake() {
	s.changed.L.Lock()
	defer s.changed.L.Unlock()
	s.changed.Broadcast()
}

func (s *pipeSide) stop() {
	if s.timer != nil {
		s.timer.Stop()
	}
}
