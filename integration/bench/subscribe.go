package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stream is an open stream of a target, its answer's head read.
type stream struct {
	nc      net.Conn
	rest    []byte // came behind the head
	chunked bool
}

func (s *stream) close() { _ = s.nc.Close() }

// scanner returns one for the stream, with what came behind the head not fed yet.
func (s *stream) scanner(ids mark) *scanner {
	sc := &scanner{ids: ids}
	if s.chunked {
		sc.chunks = &dechunker{}
	}
	return sc
}

// refusal is a target's answer to a request for a stream that it does not serve now.
type refusal struct {
	status int
	after  time.Duration // Retry-After, 0 without one
	body   string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("open stream: %d, retry after %v: %s", r.status, r.after, r.body)
}

// later reports whether the same request may succeed in a while.
func (r *refusal) later() bool {
	return r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable
}

// subscribe opens a channel's stream. A target that refuses it is a *refusal.
func subscribe(t target, channel string, from position) (*stream, error) {
	return subscribeSlowly(t, channel, from, 0)
}

// subscribeSlowly is subscribe by a client whose socket takes in no more than
// receiveBuffer bytes, if that is not 0.
func subscribeSlowly(t target, channel string, from position, receiveBuffer int) (s *stream, err error) {
	d := net.Dialer{Timeout: 30 * time.Second}
	if receiveBuffer > 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error { // before the window is told to the other side
			var err error
			return errors.Join(c.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer)
			}), err)
		}
	}
	nc, err := d.Dial("tcp", t.addr())
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	defer func() {
		if err != nil {
			_ = nc.Close()
		}
	}()
	if err := nc.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	req := t.stream(channel, from)
	if _, err := fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nAccept: text/event-stream\r\n%s\r\n",
		req.path, t.addr(), benchKey, req.header); err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	r := bufio.NewReaderSize(nc, 4096)
	status, header, err := readHead(r)
	if err != nil {
		return nil, fmt.Errorf("open stream of %s: %w", channel, err)
	}
	if status != http.StatusOK {
		seconds, _ := strconv.Atoi(header.Get("Retry-After")) // 0 if there is none
		body := make([]byte, 300)
		n, _ := r.Read(body) // it is only said
		return nil, &refusal{status: status, after: time.Duration(seconds) * time.Second, body: string(body[:n])}
	}
	rest, err := r.Peek(r.Buffered())
	if err != nil {
		return nil, fmt.Errorf("open stream of %s: %w", channel, err)
	}
	s = &stream{nc: nc, rest: rest, chunked: strings.EqualFold(header.Get("Transfer-Encoding"), "chunked")}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return s, nil
}

// readHead reads an answer's head and nothing behind it: a body that does not end is no
// work for net/http's client.
func readHead(r *bufio.Reader) (status int, header textproto.MIMEHeader, err error) {
	tp := textproto.NewReader(r)
	line, err := tp.ReadLine()
	if err != nil {
		return 0, nil, fmt.Errorf("read status: %w", err)
	}
	if _, err := fmt.Sscanf(line, "HTTP/1.1 %d", &status); err != nil {
		return 0, nil, fmt.Errorf("status line %q: %w", line, err)
	}
	if header, err = tp.ReadMIMEHeader(); err != nil {
		return 0, nil, fmt.Errorf("read header: %w", err)
	}
	return status, header, nil
}

// tries are what it took to be let in.
type tries struct {
	refused int // 429 or 503
	broken  int // connections that were reset or timed out
}

// afterBreak is how soon a client whose connection broke tries again; EventSource waits a
// few seconds (HTML standard, 9.2.2).
const afterBreak = time.Second

// insist subscribes, and again after each refusal that says it may, as long after as it
// says, and after each connection that broke; with some jitter, until ctx is done.
func insist(ctx context.Context, t target, channel string, from position) (s *stream, n tries, err error) {
	for {
		s, err = subscribe(t, channel, from)
		if err == nil {
			return s, n, nil
		}
		wait := afterBreak
		if r := (*refusal)(nil); !errors.As(err, &r) {
			n.broken++
		} else if r.later() {
			n.refused++
			wait = max(r.after, 100*time.Millisecond)
		} else {
			return nil, n, err
		}
		if perr := pause(ctx, wait+rand.N(wait/4)); perr != nil {
			return nil, n, errors.Join(err, perr)
		}
	}
}

// readEvents reads a channel's stream from its start until n events have come.
func readEvents(t target, channel string, n int) error {
	s, err := subscribe(t, channel, fromStart)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.nc.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	sc := s.scanner(mark{})
	if err := sc.feed(s.rest, nil); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	buf := make([]byte, 256<<10)
	for sc.events < n {
		read, err := s.nc.Read(buf)
		if ferr := sc.feed(buf[:read], nil); ferr != nil {
			return fmt.Errorf("replay: %w", ferr)
		}
		if err != nil && sc.events < n {
			return fmt.Errorf("replay: %d of %d events: %w", sc.events, n, err)
		}
	}
	if sc.missing > 0 || sc.last != firstNumber+int64(n) {
		return fmt.Errorf("replay: %d events are missing, the last is number %d", sc.missing, sc.last-firstNumber)
	}
	return nil
}

// trickle reads a stream at bytesPerSecond until it is closed, and returns how much came.
func trickle(ctx context.Context, s *stream, bytesPerSecond int) (int, error) {
	const steps = 10 // a second
	buf := make([]byte, bytesPerSecond/steps)
	total := len(s.rest)
	for {
		n, err := s.nc.Read(buf)
		total += n
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return total, nil
			}
			return total, fmt.Errorf("slow stream: %w", err)
		}
		if pause(ctx, time.Second/steps) != nil {
			return total, nil
		}
	}
}
