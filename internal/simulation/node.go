package simulation

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrDead is what a process gets that was killed, from whatever it calls: it cannot change
// the world any more.
var ErrDead = errors.New("simulation: the process is dead")

// Node is one life of a process, which may be stopped for a while (as by SIGSTOP) and
// killed. Everything it does in the world goes through Step. It is safe for concurrent use.
type Node struct {
	Name string

	mu      sync.Mutex    // guards what follows
	stopped chan struct{} // closed by Resume; nil while the process runs
	dead    bool
	skew    time.Duration
}

// NewNode returns a process that runs.
func NewNode(name string) *Node { return &Node{Name: name} }

// Pause stops the process: it does nothing until Resume.
func (n *Node) Pause() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped == nil {
		n.stopped = make(chan struct{})
	}
}

// Resume has a stopped process go on where it was.
func (n *Node) Resume() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped != nil {
		close(n.stopped)
		n.stopped = nil
	}
}

// Paused reports whether the process is stopped.
func (n *Node) Paused() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopped != nil
}

// Kill ends the process as kill -9 does.
func (n *Node) Kill() {
	n.mu.Lock()
	n.dead = true
	n.mu.Unlock()
	n.Resume()
}

// Dead reports whether the process was killed.
func (n *Node) Dead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead
}

// SetSkew sets how far the process's clock is from the world's.
func (n *Node) SetSkew(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.skew = d
}

// Now is the process's clock.
func (n *Node) Now() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Add(n.skew)
}

// Gate waits while the process is stopped, and returns ErrDead if it was killed. A stopped
// process does not see that its contexts end, so none ends the wait. What was stopped
// together goes on in an order that the streams decide.
func (n *Node) Gate(s *Stream) error {
	for {
		n.mu.Lock()
		stopped, dead := n.stopped, n.dead
		n.mu.Unlock()
		switch {
		case dead:
			return ErrDead
		case stopped == nil:
			return nil
		}
		<-stopped
		s.Rest(0, time.Millisecond)
	}
}

// Step is what stands before everything a process does: it takes its time, from the stream,
// and may find the process stopped or dead.
func (n *Node) Step(ctx context.Context, s *Stream, low, high time.Duration) error {
	if err := s.Sleep(ctx, low, high); err != nil {
		return err
	}
	if err := n.Gate(s); err != nil {
		return err
	}
	return context.Cause(ctx)
}
