package streamer

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// simConn is the server's end of a listener's connection in a simulation. Its descriptor is
// that of a pipe, so that a stream finds it full, and writes part of what it has, as it does
// with a socket: what is not waited for goes by the descriptor (conn.tryWrite), what is by
// Write, which waits in virtual time.
type simConn struct {
	read, write int // descriptors

	data chan struct{} // the listener is to read
	room chan struct{} // the listener has read

	mu       sync.Mutex // guards what follows
	closed   bool       // by the server
	gone     bool       // the listener has hung up
	deadline time.Time
	moved    chan struct{} // closed when the deadline is set, or the connection ends
}

var (
	_ net.Conn     = (*simConn)(nil)
	_ syscall.Conn = (*simConn)(nil)
)

// newSimConn returns a connection that holds so many bytes that nobody has read; it is made a
// few pages.
func newSimConn(bytes int) (*simConn, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, bytes); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return &simConn{
		read: fds[0], write: fds[1], data: make(chan struct{}, 1), room: make(chan struct{}, 1), moved: make(chan struct{}),
	}, nil
}

func knockOn(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it will look
	}
}

// Write is part of net.Conn.
func (c *simConn) Write(b []byte) (n int, err error) {
	for n < len(b) {
		m, wait, err := c.writeSome(b[n:])
		n += m
		if err != nil {
			return n, err
		}
		if wait == nil {
			continue
		}
		if err := c.wait(wait); err != nil {
			return n, err
		}
	}
	return n, nil
}

// writeSome writes what the pipe takes; wait is closed when something has changed that may
// let more in, or end the wait.
func (c *simConn) writeSome(b []byte) (n int, wait <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return 0, nil, net.ErrClosed
	case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		return 0, nil, os.ErrDeadlineExceeded
	}
	n, err = syscall.Write(c.write, b)
	switch {
	case err == nil:
		knockOn(c.data)
		return n, nil, nil
	case errors.Is(err, syscall.EAGAIN):
		return 0, c.moved, nil
	case errors.Is(err, syscall.EINTR):
		return 0, nil, nil
	default:
		return 0, nil, os.NewSyscallError("write", err)
	}
}

func (c *simConn) wait(moved <-chan struct{}) error {
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-c.room:
	case <-moved:
	case <-timeout:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close is part of net.Conn: the server ends the connection.
func (c *simConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.move()
	knockOn(c.data)
	return os.NewSyscallError("close", unix.Close(c.write))
}

// move wakes who waits in Write. mu is held.
func (c *simConn) move() {
	close(c.moved)
	c.moved = make(chan struct{})
}

// SetWriteDeadline is part of net.Conn.
func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	c.move()
	return nil
}

// SyscallConn is part of syscall.Conn.
func (c *simConn) SyscallConn() (syscall.RawConn, error) { return simRawConn{c}, nil }

type simRawConn struct{ *simConn }

// Control is part of syscall.RawConn.
func (c simRawConn) Control(f func(fd uintptr)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	f(uintptr(c.write))
	knockOn(c.data)
	return nil
}

func (simRawConn) Read(func(fd uintptr) bool) error  { return errors.ErrUnsupported }
func (simRawConn) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }

// take is the listener's: it returns what is there to read, and whether that is the end.
func (c *simConn) take() (b []byte, end bool) {
	buf := make([]byte, 8<<10)
	for {
		n, err := syscall.Read(c.read, buf)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return b, false
		case err != nil || n == 0:
			return b, true
		default:
			b = append(b, buf[:n]...)
			knockOn(c.room)
		}
	}
}

// hangUp is the listener's: it reads no more.
func (c *simConn) hangUp() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil
	}
	c.gone = true
	c.move()
	return os.NewSyscallError("close", unix.Close(c.read))
}

func (*simConn) Read([]byte) (int, error)        { return 0, errors.ErrUnsupported }
func (*simConn) LocalAddr() net.Addr             { return nil }
func (*simConn) RemoteAddr() net.Addr            { return nil }
func (*simConn) SetDeadline(time.Time) error     { return errors.ErrUnsupported }
func (*simConn) SetReadDeadline(time.Time) error { return errors.ErrUnsupported }
