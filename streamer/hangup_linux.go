package streamer

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// hangups notices clients that close their connection: one epoll for all streams, in
// place of a reading goroutine for each.
type hangups struct {
	epoll int
	wake  int // an eventfd that ends run

	mu   sync.Mutex // guards what is below
	last uint64
	// byID, not by descriptor: the kernel gives a closed one to the next client, who
	// must not inherit an event that was on its way.
	byID map[uint64]*subscription
}

func newHangups() (*hangups, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), unix.Close(epoll))
	}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		return nil, errors.Join(os.NewSyscallError("epoll_ctl", err), unix.Close(wake), unix.Close(epoll))
	}
	return &hangups{epoll: epoll, wake: wake, byID: make(map[uint64]*subscription)}, nil
}

// watch ends s when its client hangs up. forget ends the watch.
func (h *hangups) watch(s *subscription) error {
	if s.conn.raw == nil {
		return nil // noticed by a failed write
	}
	var ctlErr error
	err := s.conn.raw.Control(func(fd uintptr) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.last++ // 0 is the wake-up
		s.watchID = h.last
		h.byID[s.watchID] = s
		// The event's 64 bits of ours are two fields here.
		ctlErr = unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{
			Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT,
			Fd:     int32(uint32(s.watchID)), Pad: int32(s.watchID >> 32),
		})
	})
	if err := errors.Join(err, os.NewSyscallError("epoll_ctl", ctlErr)); err != nil {
		return fmt.Errorf("watch for hang-up: %w", err)
	}
	return nil
}

// forget ends the watch; the kernel takes the descriptor out when it is closed.
func (h *hangups) forget(s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byID, s.watchID)
}

// run tells subscriptions of hang-ups until stop is called.
func (h *hangups) run() {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(h.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		for _, e := range events[:max(n, 0)] {
			id := uint64(uint32(e.Fd)) | uint64(e.Pad)<<32
			if id == 0 {
				return
			}
			h.mu.Lock()
			s := h.byID[id]
			h.mu.Unlock()
			if s != nil {
				s.end(errHungUp)
			}
		}
	}
}

// stop ends run. close releases the descriptors, after run has returned.
func (h *hangups) stop() error {
	_, err := unix.Write(h.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return os.NewSyscallError("eventfd", err)
}

func (h *hangups) close() error {
	return errors.Join(unix.Close(h.wake), unix.Close(h.epoll))
}
