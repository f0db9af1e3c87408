package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

// measureIdle measures the memory of streams on which nothing happens.
func (b *bench) measureIdle(ctx context.Context) error {
	n := b.size.idleStreams
	t := b.report.section("Idle streams",
		"%s SSE streams, opened 32 at a time on a server that has just started; resident memory of the server's process (VmRSS, the embedded broker in it included) %v after the last was opened, "+
			"less what it was before the first, divided by their number. All on one session, and each on a session of its own with one event.",
		number(float64(n)), b.size.idleFor)
	for range b.cfg.runs {
		for _, shape := range []struct {
			name     string
			sessions int
			goal     string
		}{{"on one session", 1, "below 3 KB"}, {"each on its own session", n, ""}} {
			perStream, err := b.idleMemory(ctx, shape.sessions)
			if err != nil {
				return err
			}
			b.logf("%s: %.0f B a stream", shape.name, perStream)
			t.add("memory a stream, "+shape.name, "KB", perStream/1000).goal(shape.goal)
		}
	}
	return nil
}

func (b *bench) idleMemory(ctx context.Context, sessions int) (perStream float64, err error) {
	s, err := b.freshServer(ctx)
	if err != nil {
		return 0, err
	}
	defer s.stopInto(&err)
	c, err := dial(s.addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	for i := range sessions {
		name := fmt.Sprintf("idle%d", i)
		if err := c.append("/v1/sessions/"+name+"/events", b.payload.body(nil, name, 0, 1), 1); err != nil {
			return 0, err
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	if err := pause(ctx, 5*time.Second); err != nil { // materialised, and the start over
		return 0, err
	}
	before, err := residentBytes(s.pid())
	if err != nil {
		return 0, err
	}
	streams := make([]net.Conn, b.size.idleStreams)
	defer func() {
		for _, nc := range streams {
			if nc != nil {
				_ = nc.Close()
			}
		}
	}()
	var group errgroup.Group
	group.SetLimit(32)
	for i := range streams {
		group.Go(func() (err error) {
			streams[i], _, err = openStream(s.addr, fmt.Sprintf("idle%d", i%sessions), "")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	if err := pause(ctx, b.size.idleFor); err != nil {
		return 0, err
	}
	m, err := s.metrics()
	if err != nil {
		return 0, err
	}
	if got := m[`playhead_streams{view="session"}`]; int(got) != len(streams) {
		return 0, fmt.Errorf("%v streams are open, want %d", got, len(streams))
	}
	after, err := residentBytes(s.pid())
	if err != nil {
		return 0, err
	}
	return float64(after-before) / float64(len(streams)), nil
}
