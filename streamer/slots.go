package streamer

import (
	"context"
	"slices"
	"sync"
)

// slots bounds how many do something at once, and shares that out between workspaces: the
// next slot goes to the one that holds the fewest, of several such to the one that was served
// longest ago, and within a workspace to who waits longest. So one workspace may have all
// slots while nobody else wants one, and no number of its replays delays another's by more
// than one turn for each workspace that waits.
type slots struct {
	mu     sync.Mutex
	free   int
	held   map[string]int             // slots by workspace; absent if none
	queues map[string][]chan struct{} // who waits, longest first; absent if nobody does
	turns  []string                   // the keys of queues, the one served longest ago first
}

func newSlots(n int) *slots {
	return &slots{free: n, held: make(map[string]int), queues: make(map[string][]chan struct{})}
}

// take waits for a slot of a workspace, or for ctx, whose cause it returns. while, if not
// nil, is called each time wake fires; its error ends the wait.
func (s *slots) take(ctx context.Context, workspace string, wake <-chan struct{}, while func() error) error {
	granted := s.queue(workspace)
	if granted == nil {
		return nil
	}
	for {
		var err error
		select {
		case <-granted:
			return nil
		case <-wake:
			if err = while(); err == nil {
				continue
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		s.leave(workspace, granted)
		return err
	}
}

// queue takes a slot that is free, or returns what is closed once there is one.
func (s *slots) queue(workspace string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free > 0 { // then nobody waits
		s.free--
		s.held[workspace]++
		return nil
	}
	granted := make(chan struct{})
	if s.queues[workspace] == nil {
		s.turns = append(s.turns, workspace)
	}
	s.queues[workspace] = append(s.queues[workspace], granted)
	return granted
}

// leave ends a wait. A slot that was granted in the same moment is given back.
func (s *slots) leave(workspace string, granted chan struct{}) {
	s.mu.Lock()
	i := slices.Index(s.queues[workspace], granted)
	if i >= 0 {
		s.dequeue(workspace, i)
	}
	s.mu.Unlock()
	if i < 0 {
		s.give(workspace)
	}
}

// dequeue takes the i-th out of a workspace's queue. s.mu is held.
func (s *slots) dequeue(workspace string, i int) {
	if s.queues[workspace] = slices.Delete(s.queues[workspace], i, i+1); len(s.queues[workspace]) == 0 {
		delete(s.queues, workspace)
		s.turns = slices.DeleteFunc(s.turns, func(w string) bool { return w == workspace })
	}
}

// give returns a workspace's slot, which goes to who is next.
func (s *slots) give(workspace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[workspace]--; s.held[workspace] == 0 {
		delete(s.held, workspace)
	}
	if len(s.turns) == 0 {
		s.free++
		return
	}
	next := slices.MinFunc(s.turns, func(a, b string) int { return s.held[a] - s.held[b] })
	close(s.queues[next][0])
	s.held[next]++
	s.dequeue(next, 0)
	if s.queues[next] != nil { // to the end of the round
		s.turns = append(slices.DeleteFunc(s.turns, func(w string) bool { return w == next }), next)
	}
}

// contended reports whether somebody waits.
func (s *slots) contended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.turns) > 0
}

// idle returns how many slots nobody has.
func (s *slots) idle() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.free
}
