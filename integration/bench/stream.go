package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// openStream asks for a session's stream and returns the connection once the answer's
// head has been read, with what came behind it.
func openStream(addr, session, query string) (nc net.Conn, rest []byte, err error) {
	nc, err = net.DialTimeout("tcp", addr, 30*time.Second)
	if err != nil {
		return nil, nil, fmt.Errorf("open stream: %w", err)
	}
	defer func() {
		if err != nil {
			_ = nc.Close()
		}
	}()
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, nil, fmt.Errorf("open stream: %w", err)
	}
	if _, err := fmt.Fprintf(nc, "GET /v1/sessions/%s/events/stream%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n",
		session, query, addr, benchKey); err != nil {
		return nil, nil, fmt.Errorf("open stream: %w", err)
	}
	buf := make([]byte, 0, 4096)
	for {
		n, err := nc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if head, rest, ok := bytes.Cut(buf, []byte("\r\n\r\n")); ok {
			if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
				return nil, nil, fmt.Errorf("open stream of %s: %s", session, buf)
			}
			return nc, rest, nc.SetDeadline(time.Time{})
		}
		if err != nil {
			return nil, nil, fmt.Errorf("open stream of %s: %w", session, err)
		}
		if len(buf) == cap(buf) {
			return nil, nil, fmt.Errorf("open stream of %s: endless head", session)
		}
	}
}

// counter counts the events of a stream, however its bytes are cut into reads. Comments
// end with one newline, events with two.
type counter struct{ newline bool } // the last byte was one, and ends no event

func (c *counter) feed(b []byte) (events int) {
	if len(b) == 0 {
		return 0
	}
	if c.newline && b[0] == '\n' {
		events++
		b = b[1:]
		c.newline = false
		if len(b) == 0 {
			return events
		}
	}
	pairs := bytes.Count(b, []byte("\n\n"))
	c.newline = b[len(b)-1] == '\n' && !bytes.HasSuffix(b, []byte("\n\n"))
	return events + pairs
}

// stamps finds the times that events of a stream were made at, however its bytes are cut
// into reads.
type stamps struct{ rest []byte }

func (s *stamps) feed(b []byte, found func(unixNano int64)) {
	marker := []byte(`"at":`)
	if len(s.rest) > 0 {
		s.rest = append(s.rest, b...)
		b = s.rest
	}
	for {
		at := bytes.Index(b, marker)
		if at < 0 {
			b = b[max(0, len(b)-len(marker)+1):]
			break
		}
		b = b[at:]
		if len(b) < len(marker)+stampDigits {
			break
		}
		ns, err := strconv.ParseInt(string(b[len(marker):len(marker)+stampDigits]), 10, 64)
		if err == nil {
			found(ns)
		}
		b = b[len(marker)+stampDigits:]
	}
	s.rest = append(s.rest[:0], b...)
}

// audience are the listeners of one session.
type audience struct {
	conns    []net.Conn
	received atomic.Int64 // events, by all
	wg       sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	delays  latencies  // from making an event to its arrival, if it is stamped
	dropped bool       // somebody was told of a loss
	failed  error
}

// gather opens n streams of a session. With timed it looks for stamps, otherwise it only
// counts. The caller ends it by leave or hangUp.
func gather(addr, session string, n int, timed bool) (*audience, error) {
	a := &audience{}
	for range n {
		nc, rest, err := openStream(addr, session, "")
		if err != nil {
			a.hangUp()
			return nil, err
		}
		a.conns = append(a.conns, nc)
		a.wg.Go(func() { a.listen(nc, rest, timed) })
	}
	return a, nil
}

// listen reads a stream until it is closed.
func (a *audience) listen(nc net.Conn, rest []byte, timed bool) {
	var (
		count  counter
		stamp  stamps
		delays latencies
		lost   bool
		buf    = make([]byte, 64<<10)
		err    error
	)
	take := func(b []byte) {
		if timed {
			now, before := time.Now().UnixNano(), len(delays)
			stamp.feed(b, func(ns int64) { delays = append(delays, time.Duration(now-ns)) })
			a.received.Add(int64(len(delays) - before))
		} else {
			a.received.Add(int64(count.feed(b)))
		}
		lost = lost || bytes.Contains(b[:min(len(b), 64)], []byte(": dropped ")) // it begins a write
	}
	take(rest)
	for err == nil {
		var n int
		n, err = nc.Read(buf)
		take(buf[:n])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.delays = append(a.delays, delays...)
	a.dropped = a.dropped || lost
	if !errors.Is(err, net.ErrClosed) {
		a.failed = errors.Join(a.failed, fmt.Errorf("stream: %w", err))
	}
}

// await waits until the listeners together have received n events.
func (a *audience) await(ctx context.Context, n int64) error {
	err := until(ctx, time.Minute, fmt.Sprintf("%d events have arrived", n), func() (bool, error) {
		return a.received.Load() >= n, nil
	})
	if err != nil {
		return fmt.Errorf("%w; %d have", err, a.received.Load())
	}
	return nil
}

// hangUp closes the streams and waits for the listeners. It may be called again.
func (a *audience) hangUp() {
	for _, nc := range a.conns {
		_ = nc.Close()
	}
	a.wg.Wait()
}

// leave hangs up and returns what the listeners saw.
func (a *audience) leave() (delays latencies, err error) {
	a.hangUp()
	if a.dropped {
		a.failed = errors.Join(a.failed, errors.New("a listener was told that it has lost events"))
	}
	return a.delays, a.failed
}
