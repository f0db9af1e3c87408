package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// load is what a number of writers got done.
type load struct {
	events int
	took   time.Duration // until the last writer was through
	acks   latencies     // of batches
}

func (l load) rate() float64 { return float64(l.events) / l.took.Seconds() }

// drive runs writers side by side for d. Each calls write over and over, which writes
// one batch of batchEvents and returns when it is acknowledged; i counts a writer's
// batches.
func drive(ctx context.Context, writers int, d time.Duration, write func(writer, i int) error) (load, error) {
	acks := make([]latencies, writers)
	var group errgroup.Group
	begun := time.Now()
	for w := range writers {
		group.Go(func() error {
			for i := 0; time.Since(begun) < d; i++ {
				sent := time.Now()
				if err := write(w, i); err != nil {
					return err
				}
				acks[w] = append(acks[w], time.Since(sent))
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return load{}, err
	}
	l := load{took: time.Since(begun)}
	for _, a := range acks {
		l.acks = append(l.acks, a...)
	}
	l.events = len(l.acks) * batchEvents
	return l, nil
}

// appender appends batches over HTTP from a number of connections, each in turn to some
// sessions of its own.
type appender struct {
	payload *payloads
	prefix  string
	conns   []*conn
	bodies  [][]byte
	batches []int // appended so far, by connection
}

// sessionsPerConn is how many sessions a connection appends to in turn: enough that all
// of a workspace's partitions are in use.
const sessionsPerConn = 16

// newAppender connects and appends one batch to each session, so that later ones find
// the session known.
func newAppender(s *server, p *payloads, prefix string, conns int) (*appender, error) {
	a := &appender{payload: p, prefix: prefix, bodies: make([][]byte, conns), batches: make([]int, conns)}
	for range conns {
		c, err := dial(s.addr)
		if err != nil {
			a.close()
			return nil, err
		}
		a.conns = append(a.conns, c)
	}
	for w := range conns {
		for range sessionsPerConn {
			if err := a.append(w); err != nil {
				a.close()
				return nil, err
			}
		}
	}
	return a, nil
}

// append appends one batch by connection w.
func (a *appender) append(w int) error {
	i := a.batches[w]
	a.batches[w]++
	session := fmt.Sprintf("%s-%d-%d", a.prefix, w, i%sessionsPerConn)
	a.bodies[w] = a.payload.body(a.bodies[w][:0], session, i*batchEvents, batchEvents)
	return a.conns[w].append("/v1/sessions/"+session+"/events", a.bodies[w], batchEvents)
}

func (a *appender) close() {
	for _, c := range a.conns {
		c.close()
	}
}

// run appends from all connections for d.
func (a *appender) run(ctx context.Context, d time.Duration) (load, error) {
	return drive(ctx, len(a.conns), d, func(w, _ int) error { return a.append(w) })
}
