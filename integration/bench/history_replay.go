package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// replayHistory measures what replays of the workspace do to pages and live listeners, and
// how fast they come.
func (b *bench) replayHistory(ctx context.Context, s *server, d *historyData) error {
	c := b.report.comparison("History: replays of the workspace", []string{"alone", "1 replay", "4 replays"},
		"Streams of the workspace over SSE, each `since=` a day of the first ten until it has caught up with the log, and then again. Meanwhile, in each column: pages, the first of a call and one anywhere in the workspace, "+
			"alternately, by 1 client; and %d events a second, appended one by one to a session of the workspace that has %d SSE listeners, for %v.",
		b.size.eventRate, liveListeners, b.size.pacedFor)
	for i, column := range []struct {
		name    string
		replays int
	}{{"alone", 0}, {"1 replay", 1}, {"4 replays", 4}} {
		m, err := b.besideReplays(ctx, s, d, i, column.replays)
		if err != nil {
			return err
		}
		c.addLatencies(column.name, "pages", m.pages).goal("unmoved")
		c.addLatencies(column.name, "live delivery", m.live.delays).goal("unmoved")
		c.addLatencies(column.name, "live append's ack", m.live.acks)
		if column.replays > 0 {
			c.add(column.name, "all replays", "events/s", m.replayed)
		}
		b.logf("%s: %s events/s; pages p50 %s p99 %s ms, live p50 %s p99 %s ms", column.name, number(m.replayed),
			number(m.pages.quantile(0.5)), number(m.pages.quantile(0.99)), number(m.live.delays.quantile(0.5)), number(m.live.delays.quantile(0.99)))
	}
	return nil
}

// besideReplay is what was measured beside replays.
type besideReplay struct {
	pages    latencies
	live     delivery
	replayed float64 // events a second, of all replays
}

func (b *bench) besideReplays(ctx context.Context, s *server, d *historyData, use, replays int) (m besideReplay, err error) {
	busy, stop := context.WithCancel(ctx)
	defer stop()
	group, busy := errgroup.WithContext(busy)
	var events atomic.Int64
	begun := time.Now()
	for r := range replays {
		group.Go(func() error { return d.replayAgainAndAgain(busy, s, r, &events) })
	}
	group.Go(func() (err error) {
		m.pages, err = b.pagesUntil(busy, s, d, use)
		return err
	})
	m.live, err = b.pacedDelivery(ctx, s, fmt.Sprintf("beside-%d-%d", replays, begun.UnixMilli()), liveListeners)
	stop()
	if err := errors.Join(err, group.Wait()); err != nil {
		return m, err
	}
	m.replayed = float64(events.Load()) / time.Since(begun).Seconds()
	return m, nil
}

// replayAgainAndAgain replays the workspace from a day on until it has caught up, and
// again, until ctx ends. It counts the events as they come.
func (d *historyData) replayAgainAndAgain(ctx context.Context, s *server, number int, events *atomic.Int64) error {
	since := d.timeMs((1 + 3*int64(number)%10) * (d.perPartition / historyDays))
	for ctx.Err() == nil {
		if err := replayUntilCaughtUp(ctx, s.addr, since, events); err != nil && ctx.Err() == nil {
			return fmt.Errorf("replay: %w", err)
		}
	}
	return nil
}

func replayUntilCaughtUp(ctx context.Context, addr string, sinceMs int64, events *atomic.Int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/v1/stream?since=%d&notices=1", addr, sinceMs), http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+benchKey)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return fmt.Errorf("GET /v1/stream: %s: %s", resp.Status, body)
	}
	caughtUp := []byte("\nevent: playhead.caught_up\n")
	var count counter
	buf := make([]byte, 256<<10)
	kept := 0 // of the read before, in which the notice may have begun
	for {
		n, err := resp.Body.Read(buf[kept:])
		events.Add(int64(count.feed(buf[kept : kept+n])))
		if err != nil {
			return err
		}
		if bytes.Contains(buf[:kept+n], caughtUp) {
			return nil
		}
		kept = copy(buf, buf[max(kept+n-len(caughtUp)+1, 0):kept+n])
	}
}

// pagesUntil asks for pages, one after the other, until ctx ends.
func (b *bench) pagesUntil(ctx context.Context, s *server, d *historyData, use int) (latencies, error) {
	c, err := dial(s.addr)
	if err != nil {
		return nil, err
	}
	defer c.close()
	random := historyRandom(1<<8, 0, use)
	call := d.sessionPages().kinds[0]
	var times answers
	for i := 0; ctx.Err() == nil; i++ {
		path := call.ask(random)
		if i%2 == 1 {
			path = workspacePage(d.anywhere(random))
		}
		sent := time.Now()
		status, body, err := c.do(http.MethodGet, path, nil)
		if err == nil {
			err = times.take(status, body, time.Since(sent), true)
		}
		if err != nil {
			return nil, fmt.Errorf("GET %s: %w", path, err)
		}
		_ = pause(ctx, 5*time.Millisecond)
	}
	times.times.sort()
	return times.times, nil
}
