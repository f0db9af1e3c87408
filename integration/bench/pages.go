package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// pageSize is the largest page of the dev workspace's plan.
const pageSize = 100

// measurePages measures history pages of a large table.
func (b *bench) measurePages(ctx context.Context) error {
	z := b.size
	t := b.report.section("History pages",
		"A table of %s rows: %s sessions of %s events and one of %s, appended alternately, payload %d B. Pages of %d, without payloads unless said; %d of each kind by 1 client on a kept connection. "+
			"The server was started anew after the filling.",
		number(float64(z.rows)), number(shortSessions), number(float64((z.rows-z.rows/longPart)/shortSessions)), number(float64(z.rows/longPart)), payloadBytes, pageSize, z.pages)
	s, err := b.filledServer(ctx)
	if err != nil {
		return err
	}
	rows := float64(b.size.rows)
	t.add("filling the table: appends, 8 connections, up to 500 events each", "events/s", rows/b.filling.appended.Seconds())
	t.add("filling the table: until all of it is materialised", "rows/s", rows/b.filling.materialised.Seconds())
	for run := range b.cfg.runs {
		b.logf("run %d", run+1)
		if err := b.pageRun(ctx, t, s, run); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) pageRun(ctx context.Context, t *table, s *server, run int) (err error) {
	if err := s.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	c, err := dial(s.addr)
	if err != nil {
		return err
	}
	defer c.close()
	long := "/v1/sessions/" + longSession + "/events?pageSize=100"
	// The first question of a partition waits for its tape: that is part of the start.
	for i := range sessionsPerConn {
		if _, err := c.get("/v1/sessions/" + shortSession(i) + "/events"); err != nil {
			return err
		}
	}
	newest, err := readPage(c, long+"&order=desc")
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(5, uint64(run)))
	unseen := random.Perm(shortSessions - sessionsPerConn)
	kinds := []struct {
		name string
		path func(i int) string
	}{
		{"long session, first page", func(int) string { return long }},
		{"long session, last page, by its cursor", func(int) string { return long + "&cursor=" + newest.Data[len(newest.Data)-1].EventID }},
		{"long session, last page, order=desc", func(int) string { return long + "&order=desc" }},
		{"long session, first page with payloads", func(int) string { return long + "&include=payload" }},
		{"a short session for the first time", func(i int) string {
			return "/v1/sessions/" + shortSession(sessionsPerConn+unseen[i%len(unseen)]) + "/events"
		}},
		{"a short session again", func(i int) string {
			return "/v1/sessions/" + shortSession(sessionsPerConn+unseen[i%len(unseen)]) + "/events"
		}},
	}
	for _, kind := range kinds {
		var times latencies
		for i := range b.size.pages {
			asked := time.Now()
			if _, err := c.get(kind.path(i)); err != nil {
				return err
			}
			times = append(times, time.Since(asked))
		}
		t.addLatencies(kind.name, times).goal("below 50 ms")
		b.logf("%s: p50 %s ms, p99 %s ms", kind.name, number(times.quantile(0.5)), number(times.quantile(0.99)))
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	before, err := s.usage()
	if err != nil {
		return err
	}
	if err := b.pagesAtOnce(t, s); err != nil {
		return err
	}
	after, err := s.usage()
	if err != nil {
		return err
	}
	used := after.since(before)
	perPage := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.size.pages) }
	t.add("the same, server CPU a page", "ms", perPage(used.server))
	t.add("the same, engine CPU a page", "ms", perPage(used.engine))
	return nil
}

// pagesAtOnce has 8 clients ask for pages of different sessions.
func (b *bench) pagesAtOnce(t *table, s *server) error {
	const clients = 8
	var mu sync.Mutex
	var times latencies
	var group errgroup.Group
	begun := time.Now()
	for w := range clients {
		group.Go(func() error {
			c, err := dial(s.addr)
			if err != nil {
				return err
			}
			defer c.close()
			for i := w; i < b.size.pages; i += clients {
				asked := time.Now()
				if _, err := c.get("/v1/sessions/" + shortSession(i%shortSessions) + "/events"); err != nil {
					return err
				}
				mu.Lock()
				times = append(times, time.Since(asked))
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	name := fmt.Sprintf("short sessions, %d clients", clients)
	t.add(name, "pages/s", float64(len(times))/time.Since(begun).Seconds())
	t.addLatencies(name, times)
	return nil
}

// historyPage is the part of a page that is used here.
type historyPage struct {
	Data []struct {
		EventID string `json:"eventId"`
	} `json:"data"`
}

// readPage reads a page, which must be full.
func readPage(c *conn, path string) (historyPage, error) {
	var p historyPage
	body, err := c.get(path)
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return p, fmt.Errorf("GET %s: %w", path, err)
	}
	if len(p.Data) != pageSize {
		return p, fmt.Errorf("GET %s: %d events, want %d", path, len(p.Data), pageSize)
	}
	return p, nil
}
