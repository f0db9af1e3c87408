package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// measureMaterialiser measures how fast the log gets into ClickHouse and how soon an
// event can be seen there.
func (b *bench) measureMaterialiser(ctx context.Context) (err error) {
	z := b.size
	t := b.report.section("Materialiser",
		"Catching up: the engine is paused, %s events (payload %d B) are appended, the engine resumed; from there to the last commit, nothing else going on. "+
			"Visible: an append with ack=materialised, from sending to the answer; in a trickle of 20 appends of 50 events a second, for %v, and as a probe every 100 ms beside 8 connections that append flat out.",
		number(float64(z.backlog)), payloadBytes, z.trickleFor)
	s, err := b.freshServer(ctx)
	if err != nil {
		return err
	}
	defer s.stopInto(&err)
	k, err := openBroker(s)
	if err != nil {
		return err
	}
	defer k.close()
	for run := range b.cfg.runs {
		if err := b.catchUp(ctx, t, s, k, run); err != nil {
			return err
		}
		if err := s.settle(ctx, k); err != nil {
			return err
		}
		trickle, err := b.visible(ctx, s, fmt.Sprintf("trickle%d", run), 50*time.Millisecond, 50)
		if err != nil {
			return err
		}
		trickle.sort()
		t.add("visible in a trickle, p50", "ms", trickle.quantile(0.50))
		t.add("visible in a trickle, p95", "ms", trickle.quantile(0.95)).goal("below 3,000 ms")
		if err := s.settle(ctx, k); err != nil {
			return err
		}
		loaded, l, err := b.visibleUnderLoad(ctx, s, run)
		if err != nil {
			return err
		}
		loaded.sort()
		t.add("visible under flat-out appends, p50", "ms", loaded.quantile(0.50))
		t.add("visible under flat-out appends, p95", "ms", loaded.quantile(0.95)).goal("below 3,000 ms")
		t.add("the flat-out appends meanwhile", "events/s", l.rate())
		b.logf("visible p95: trickle %s ms, under load %s ms", number(trickle.quantile(0.95)), number(loaded.quantile(0.95)))
	}
	return nil
}

// catchUp measures the materialiser alone.
func (b *bench) catchUp(ctx context.Context, t *table, s *server, k *broker, run int) error {
	const conns = 8
	a, err := newAppender(s, b.payload, fmt.Sprintf("backlog%d", run), conns)
	if err != nil {
		return err
	}
	defer a.close()
	if err := s.settle(ctx, k); err != nil {
		return err
	}
	if err := s.pauseEngine(); err != nil {
		return err
	}
	defer s.resumeEngine()
	var group errgroup.Group
	for w := range conns {
		group.Go(func() error {
			for range b.size.backlog / batchEvents / conns {
				if err := a.append(w); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := pause(ctx, time.Second); err != nil { // what has been fetched is decoded
		return err
	}
	rows, err := k.unmaterialised(ctx)
	if err != nil {
		return err
	}
	before, err := s.usage()
	if err != nil {
		return err
	}
	begun := time.Now()
	s.resumeEngine()
	if err := k.awaitMaterialised(ctx, 5*time.Minute); err != nil {
		return err
	}
	took := time.Since(begun)
	after, err := s.usage()
	if err != nil {
		return err
	}
	used := after.since(before)
	b.logf("caught up on %d rows in %v", rows, took.Round(time.Millisecond))
	t.add("catching up", "rows/s", float64(rows)/took.Seconds())
	t.add("catching up, rows per second of CPU, server and engine", "rows", float64(rows)/(used.server+used.engine).Seconds()).goal("100,000 a core")
	t.add("catching up, server CPU a row", "µs", float64(used.server.Microseconds())/float64(rows))
	t.add("catching up, engine CPU a row", "µs", float64(used.engine.Microseconds())/float64(rows))
	return nil
}

// visible appends n events every interval, whether or not the earlier appends have been
// answered, each waiting to be materialised.
func (b *bench) visible(ctx context.Context, s *server, prefix string, interval time.Duration, n int) (latencies, error) {
	var mu sync.Mutex
	var times latencies
	var group errgroup.Group
	begun := time.Now()
	for i := range int(b.size.trickleFor / interval) {
		if err := pause(ctx, time.Until(begun.Add(time.Duration(i)*interval))); err != nil {
			return nil, err
		}
		group.Go(func() error {
			c, err := dial(s.addr)
			if err != nil {
				return err
			}
			defer c.close()
			session := fmt.Sprintf("%s-%d", prefix, i%sessionsPerConn)
			body := b.payload.body(nil, session, i*n, n)
			sent := time.Now()
			if err := c.append("/v1/sessions/"+session+"/events?ack=materialised", body, n); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Since(sent))
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return times, nil
}

// visibleUnderLoad probes while 8 connections append flat out.
func (b *bench) visibleUnderLoad(ctx context.Context, s *server, run int) (times latencies, l load, err error) {
	a, err := newAppender(s, b.payload, fmt.Sprintf("flat%d", run), 8)
	if err != nil {
		return nil, l, err
	}
	defer a.close()
	var group errgroup.Group
	group.Go(func() (err error) {
		l, err = a.run(ctx, b.size.trickleFor)
		return err
	})
	times, err = b.visible(ctx, s, fmt.Sprintf("probe%d", run), 100*time.Millisecond, 1)
	if lerr := group.Wait(); err == nil {
		err = lerr
	}
	return times, l, err
}
