package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// poller says which of many descriptors can be read.
type poller struct {
	epoll  int
	wake   int // an eventfd that ends wait
	events []unix.EpollEvent
}

// errPollerStopped is wait's after stop.
var errPollerStopped = errors.New("poller was stopped")

func newPoller() (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), unix.Close(epoll))
	}
	p := &poller{epoll: epoll, wake: wake, events: make([]unix.EpollEvent, 256)}
	if err := p.add(wake); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// add watches a descriptor until it is closed.
func (p *poller) add(fd int) error {
	err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	return os.NewSyscallError("epoll_ctl", err)
}

// wait appends to ready those that can be read now, and waits until there is one. It is
// for one goroutine.
func (p *poller) wait(ready []int) ([]int, error) {
	n, err := unix.EpollWait(p.epoll, p.events, -1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return ready, os.NewSyscallError("epoll_wait", err)
	}
	for _, e := range p.events[:max(n, 0)] {
		if int(e.Fd) == p.wake {
			return ready, errPollerStopped
		}
		ready = append(ready, int(e.Fd))
	}
	return ready, nil
}

// stop ends wait. close releases the descriptors, once nobody waits.
func (p *poller) stop() error {
	_, err := unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return os.NewSyscallError("eventfd", err)
}

func (p *poller) close() error { return errors.Join(unix.Close(p.wake), unix.Close(p.epoll)) }
