package streamer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// conn is a client's connection, taken over from the HTTP server. It has one writer at
// a time.
type conn struct {
	net.Conn
	raw syscall.RawConn // nil if the connection has no descriptor of its own (TLS)

	// torn says that the last write did not go out whole: whatever follows but its rest
	// would be taken for the rest of a frame.
	torn bool

	// took is called whenever a socket that was full has taken some of what it was sent;
	// nil: nobody asks.
	took func()

	// The next three belong to the write in progress; kept here so that a write
	// allocates nothing.
	buf     []byte
	n       int
	err     error
	attempt func(fd uintptr)
}

func newConn(nc net.Conn) *conn {
	// The server wraps what it hands over; the wrapper's reader is not ours to keep.
	if w, ok := nc.(interface{ UnsafeConn() net.Conn }); ok {
		nc = w.UnsafeConn()
	}
	c := &conn{Conn: nc}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			limitUnsent(raw)
		}
	}
	c.attempt = c.writeOnce
	return c
}

// tryWrite writes what the socket takes without waiting and returns how much that was;
// fewer bytes than given without an error means that the socket is full.
func (c *conn) tryWrite(b []byte) (int, error) {
	if c.raw == nil || len(b) == 0 {
		return 0, nil
	}
	c.buf, c.n, c.err = b, 0, nil
	// Control, not Write: Write obeys the write deadline, and the one that writeAll set
	// last may be long over.
	err := c.raw.Control(c.attempt)
	if err == nil {
		err = c.err
	}
	c.buf = nil
	c.torn = c.n < len(b)
	if err != nil {
		return c.n, fmt.Errorf("write: %w", err)
	}
	return c.n, nil
}

// writeOnce is one non-blocking pass at the descriptor.
func (c *conn) writeOnce(fd uintptr) {
	for c.n < len(c.buf) {
		n, err := syscall.Write(int(fd), c.buf[c.n:])
		switch err {
		case nil:
			c.n += n
		case syscall.EINTR:
		case syscall.EAGAIN:
			return
		default:
			c.err = err
			return
		}
	}
}

// writeAll writes b, waiting at most timeout for each piece the socket takes. Who ends
// it early cancels ctx first and sets a deadline in the past then; the check between the
// two calls here sees to it that one of them is noticed.
func (c *conn) writeAll(ctx context.Context, b []byte, timeout time.Duration) error {
	if len(b) == 0 {
		return nil
	}
	c.torn = true
	for len(b) > 0 {
		if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		piece := b[:min(len(b), writePiece)]
		if _, err := c.Write(piece); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b = b[len(piece):]
		if c.took != nil {
			c.took()
		}
	}
	c.torn = false
	return nil
}

// writeFor writes what the socket takes of b within d, and returns how much that was; fewer
// bytes than given without an error means that the time is over. It is ended early as
// writeAll is.
func (c *conn) writeFor(ctx context.Context, b []byte, d time.Duration) (int, error) {
	c.torn = true
	if err := c.SetWriteDeadline(time.Now().Add(d)); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	n, err := c.Write(b)
	c.torn = n < len(b)
	if n > 0 && c.took != nil {
		c.took()
	}
	switch {
	case err == nil, ctx.Err() == nil && errors.Is(err, os.ErrDeadlineExceeded):
		return n, nil
	case ctx.Err() != nil:
		return n, context.Cause(ctx)
	default:
		return n, fmt.Errorf("write: %w", err)
	}
}

// writePiece is how much a socket has to take within one timeout.
const writePiece = 16 << 10
