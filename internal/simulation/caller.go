package simulation

import (
	"context"
	"sync"
)

// Caller is one of several within a process who make calls at the same time. Each has streams
// of its own, so that who comes first in an instant decides nothing.
type Caller struct {
	w    *World
	name string

	mu      sync.Mutex // guards streams
	streams map[uint16]*Stream
}

// NewCaller returns a caller. A name is used once.
func NewCaller(w *World, name string) *Caller {
	return &Caller{w: w, name: name, streams: make(map[uint16]*Stream)}
}

type callerKey struct{}

// Context returns a context whose calls are the caller's.
func (c *Caller) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// StreamOf returns the stream that decides on a call about a partition: that of ctx's caller,
// or usual if there is none.
func StreamOf(ctx context.Context, partition uint16, usual *Stream) *Stream {
	c, ok := ctx.Value(callerKey{}).(*Caller)
	if !ok {
		return usual
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[partition]
	if s == nil {
		s = c.w.Stream("%s/calls%d", c.name, partition)
		c.streams[partition] = s
	}
	return s
}
