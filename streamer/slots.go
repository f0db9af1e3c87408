package streamer

import (
	"context"
	"sync/atomic"
)

// slots bounds how many do something at once. Who waits longest is next.
type slots struct {
	free    chan struct{}
	waiting atomic.Int32
}

func newSlots(n int) *slots {
	s := &slots{free: make(chan struct{}, n)}
	for range n {
		s.free <- struct{}{}
	}
	return s
}

// take waits for a slot, or for ctx, whose cause it returns. while, if not nil, is called
// each time it fires; its error ends the wait.
func (s *slots) take(ctx context.Context, wake <-chan struct{}, while func() error) error {
	select {
	case <-s.free:
		return nil
	default:
	}
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	for {
		select {
		case <-s.free:
			return nil
		case <-wake:
			if err := while(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *slots) give() { s.free <- struct{}{} }

// contended reports whether somebody waits.
func (s *slots) contended() bool { return s.waiting.Load() > 0 }
