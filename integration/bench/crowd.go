package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// crowd are many listeners, read by one goroutine with a poller of its own: what the
// reading costs, the servers on the same machine do not get.
type crowd struct {
	ids   mark
	timed bool // keep each arrival

	poller   *poller
	wg       sync.WaitGroup
	received atomic.Int64 // events, by all; repeated ones too

	mu        sync.Mutex // guards what is below; held while a read is looked at
	listeners map[int]*listener
	arrivals  []arrival
	gone      int // listeners whose stream the server ended
	failed    error
}

// listener is one of a crowd.
type listener struct {
	fd   int
	scan *scanner
}

// arrival is one event at one listener.
type arrival struct {
	at    int64         // its stamp
	delay time.Duration // from the stamp to the reading
}

// newCrowd returns a crowd that has begun to read. The caller ends it by close.
func newCrowd(ids mark, timed bool) (*crowd, error) {
	p, err := newPoller()
	if err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	c := &crowd{ids: ids, timed: timed, poller: p, listeners: make(map[int]*listener)}
	c.wg.Go(c.run)
	return c, nil
}

// join takes streams over.
func (c *crowd) join(streams ...*stream) error {
	for _, s := range streams {
		if err := c.joinBehind(s, 0); err != nil {
			return err
		}
	}
	return nil
}

// joinBehind takes over a stream that goes on behind event number last, if that is not 0.
func (c *crowd) joinBehind(s *stream, last int64) error {
	// A descriptor of our own: Go's poller would wake for every read otherwise.
	defer s.close()
	raw, err := s.nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return fmt.Errorf("join stream: %w", err)
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || dupErr != nil {
		return fmt.Errorf("join stream: %w", errors.Join(err, dupErr))
	}
	l := &listener{fd: fd, scan: s.scanner(c.ids)}
	l.scan.last = last
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners[fd] = l
	c.take(l, s.rest)
	if err := c.poller.add(fd); err != nil {
		return fmt.Errorf("join stream: %w", err)
	}
	return nil
}

// run reads until close.
func (c *crowd) run() {
	buf := make([]byte, 256<<10)
	var ready []int
	for {
		var err error
		ready, err = c.poller.wait(ready[:0])
		c.mu.Lock()
		if err != nil {
			if !errors.Is(err, errPollerStopped) {
				c.failed = errors.Join(c.failed, err)
			}
			c.mu.Unlock()
			return
		}
		for _, fd := range ready {
			// One that was cut meanwhile is not there; a new one with its number has
			// nothing to read yet, or has.
			if l := c.listeners[fd]; l != nil {
				c.read(l, buf)
			}
		}
		c.mu.Unlock()
	}
}

// read reads once from a listener that has something. The caller holds mu.
func (c *crowd) read(l *listener, buf []byte) {
	n, err := unix.Read(l.fd, buf)
	switch {
	case n > 0:
		c.take(l, buf[:n])
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
	default: // its end, or a reset
		c.gone++
		c.forget(l)
	}
}

func (c *crowd) take(l *listener, b []byte) {
	before := l.scan.events
	var found func(at int64)
	if c.timed {
		now := time.Now().UnixNano()
		found = func(at int64) { c.arrivals = append(c.arrivals, arrival{at: at, delay: time.Duration(now - at)}) }
	}
	if err := l.scan.feed(b, found); err != nil {
		c.failed = errors.Join(c.failed, err)
	}
	c.received.Add(int64(l.scan.events - before))
}

// forget closes a listener's descriptor, which takes it out of the poller.
func (c *crowd) forget(l *listener) {
	delete(c.listeners, l.fd)
	_ = unix.Close(l.fd) // nothing was written
}

// left is what a listener had when it was cut.
type left struct {
	position position
	last     int64 // number of its newest event, 0 without one
}

// cut closes all streams at once and returns what each had.
func (c *crowd) cut() []left {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]left, 0, len(c.listeners))
	for _, l := range c.listeners {
		all = append(all, left{position: position(l.scan.position), last: l.scan.last})
		c.forget(l)
	}
	return all
}

// having counts the listeners that have event number or a later one.
func (c *crowd) having(number int64) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.listeners {
		if l.scan.last >= number {
			n++
		}
	}
	return n
}

// faults are what went wrong at the listeners that are there.
type faults struct {
	missing  int64 // events that were passed over
	repeated int   // events that came twice
	gone     int   // streams that the server ended
}

func (c *crowd) faults() (f faults, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.listeners {
		f.missing += l.scan.missing
		f.repeated += l.scan.repeated
	}
	f.gone = c.gone
	return f, c.failed
}

// arrived returns the arrivals so far of events stamped from <= at < to.
func (c *crowd) arrived(from, to time.Time) latencies {
	c.mu.Lock()
	defer c.mu.Unlock()
	var l latencies
	for _, a := range c.arrivals {
		if from.UnixNano() <= a.at && a.at < to.UnixNano() {
			l = append(l, a.delay)
		}
	}
	return l
}

// close hangs up for all and waits for run.
func (c *crowd) close() error {
	err := c.poller.stop()
	c.wg.Wait()
	c.cut()
	return errors.Join(err, c.poller.close())
}
