package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer"
)

// Bounds of the replays of a week.
const (
	replayDays     = 7
	replayPatience = 20 * time.Second // then what has been read counts
)

// replayHistory measures how fast weeks of the workspace are read for replays, and what
// pages take meanwhile.
func (b *bench) replayHistory(ctx context.Context, s *server, dsn string, d *historyData) (err error) {
	c := b.report.comparison("History: replays of the workspace", []string{"alone", "1 replay", "4 replays"},
		"A week of the workspace, read chunk by chunk (%d MiB, a chunk of each partition in turn) by the product's own ReadChunk in the load generator, without sending it; at most %v. "+
			"Several replays read weeks that begin at different days. Pages: the first of a call and one anywhere in the workspace, alternately, by 1 client of the server.",
		streamer.DefaultConfig().ReplayBytes>>20, replayPatience)
	conn, err := openClickHouse(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	for i, column := range []struct {
		name    string
		replays int
	}{{"alone", 0}, {"1 replay", 1}, {"4 replays", 4}} {
		h := query.NewHistory(conn, query.DefaultConfig(), slog.New(slog.DiscardHandler), query.NewMetrics(nil))
		var events atomic.Int64
		group, reading := errgroup.WithContext(ctx)
		begun := time.Now()
		for r := range column.replays {
			group.Go(func() error { return d.replayWeek(reading, h, r, begun.Add(replayPatience), &events) })
		}
		var took time.Duration
		ended := make(chan error, 1)
		go func() { // ends with the replays, which is waited for
			err := group.Wait()
			took = time.Since(begun)
			ended <- err
		}()
		pages, err := b.pagesUntil(ctx, s, d, i, func() bool {
			if column.replays == 0 {
				return time.Since(begun) > replayPatience/2
			}
			return reading.Err() != nil // errgroup cancels at the end, too
		})
		if err := errors.Join(err, <-ended); err != nil {
			return err
		}
		c.addLatencies(column.name, "pages meanwhile", pages).goal(historyGoal)
		if column.replays > 0 {
			c.add(column.name, "all replays", "events/s", float64(events.Load())/took.Seconds())
			c.add(column.name, "read", "events", float64(events.Load()))
		}
		b.logf("%s: %s events/s; pages p50 %s p99 %s ms", column.name, number(float64(events.Load())/took.Seconds()),
			number(pages.quantile(0.5)), number(pages.quantile(0.99)))
	}
	return nil
}

// replayWeek reads a week until a deadline, and counts its events as it goes.
func (d *historyData) replayWeek(ctx context.Context, h *query.History, number int, until time.Time, events *atomic.Int64) error {
	day := d.perPartition / historyDays
	begin := (1 + 3*int64(number)) * day // at the latest 10 days in: a week fits
	end := begin + replayDays*day
	maxBytes := streamer.DefaultConfig().ReplayBytes
	scope := schema.Scope{Workspace: d.workspace}
	next := make([]schema.Position, len(d.partitions))
	for shard := range next {
		next[shard] = d.eventID(shard, begin).Position
	}
	for left := len(next); left > 0; {
		left = 0
		for shard, p := range d.partitions {
			to := d.eventID(shard, end).Position
			if next[shard].Compare(to) >= 0 {
				continue
			}
			chunk, after, err := h.ReadChunk(ctx, scope, p, next[shard], to, nil, maxBytes)
			if err != nil {
				return fmt.Errorf("replay: %w", err)
			}
			events.Add(int64(len(chunk)))
			next[shard] = after
			left++
			if time.Now().After(until) {
				return nil
			}
		}
	}
	return nil
}

// pagesUntil asks for pages, one after the other, until done.
func (b *bench) pagesUntil(ctx context.Context, s *server, d *historyData, use int, done func() bool) (latencies, error) {
	c, err := dial(s.addr)
	if err != nil {
		return nil, err
	}
	defer c.close()
	random := historyRandom(1<<8, 0, use)
	call := d.sessionPages().kinds[0]
	var times answers
	for i := 0; !done(); i++ {
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
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return nil, err
		}
	}
	times.times.sort()
	return times.times, nil
}
