package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// historyMeter measures questions.
type historyMeter struct {
	bench  *bench
	server *server
	conn   *conn // of the one client
	engine *straight
}

// answers is what came back to requests of one kind.
type answers struct {
	times   latencies
	events  int         // on all pages
	short   int         // pages that were cut for taking long
	refused map[int]int // requests by their status, if that was not 200
}

// take adds an answer. It returns an error for a page that is not full, and should be.
func (a *answers) take(status int, body []byte, took time.Duration, full bool) error {
	if status != http.StatusOK {
		if a.refused == nil {
			a.refused = make(map[int]int)
		}
		a.refused[status]++
		return nil
	}
	var p struct {
		Data    []json.RawMessage `json:"data"`
		Partial bool              `json:"partial"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if full && !p.Partial && len(p.Data) != pageSize {
		return fmt.Errorf("a page has %d events, want %d", len(p.Data), pageSize)
	}
	a.times = append(a.times, took)
	a.events += len(p.Data)
	if p.Partial {
		a.short++
	}
	return nil
}

// measure measures one kind: pages by one client by turns with the statements of other
// such pages, then both with several clients.
func (m *historyMeter) measure(ctx context.Context, c *comparison, kind *question, recorded [][]asked, random *rand.Rand) error {
	var pages answers
	var engine latencies
	for range historyWarmUp {
		if _, _, err := m.conn.do(http.MethodGet, kind.ask(random), nil); err != nil {
			return err
		}
	}
	asks, failed := m.bench.cfg.history.asks, 0
	begun := time.Now()
	for i := 0; i < asks && (time.Since(begun) < 2*historyPatience || i < historyWarmUp); i++ {
		path := kind.ask(random)
		sent := time.Now()
		status, body, err := m.conn.do(http.MethodGet, path, nil)
		took := time.Since(sent)
		if err == nil {
			err = pages.take(status, body, took, kind.full)
		}
		if err != nil {
			return fmt.Errorf("GET %s: %w", path, err)
		}
		sent = time.Now()
		if _, err := m.engine.ask(ctx, recorded[i%len(recorded)]); err != nil {
			failed++
		} else {
			engine = append(engine, time.Since(sent))
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	pages4, err := m.pagesAtOnce(ctx, kind, random)
	if err != nil {
		return err
	}
	engine4, failed4, err := m.enginesAtOnce(ctx, recorded)
	if err != nil {
		return err
	}
	m.record(c, kind, &pages, pages4, engine, engine4, recorded)
	if failed+failed4 > 0 {
		c.note("%s: %d of the statements failed straight to the engine, and are not counted.", kind.name, failed+failed4)
	}
	return nil
}

// pagesAtOnce has several clients ask, and returns all answers.
func (m *historyMeter) pagesAtOnce(ctx context.Context, kind *question, random *rand.Rand) (*answers, error) {
	paths := make([]string, m.bench.cfg.history.asks)
	for i := range paths {
		paths[i] = kind.ask(random)
	}
	var mu sync.Mutex
	all := &answers{}
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	begun := time.Now()
	for range historyClients {
		group.Go(func() error {
			c, err := dial(m.server.addr)
			if err != nil {
				return err
			}
			defer c.close()
			for i := next.Add(1) - 1; i < int64(len(paths)) && time.Since(begun) < historyPatience && ctx.Err() == nil; i = next.Add(1) - 1 {
				sent := time.Now()
				status, body, err := c.do(http.MethodGet, paths[i], nil)
				took := time.Since(sent)
				if err != nil {
					return err
				}
				mu.Lock()
				err = all.take(status, body, took, kind.full)
				mu.Unlock()
				if err != nil {
					return fmt.Errorf("GET %s: %w", paths[i], err)
				}
			}
			return nil
		})
	}
	return all, group.Wait()
}

// enginesAtOnce has several clients send recorded statements, from the last page on: the
// others have been sent before.
func (m *historyMeter) enginesAtOnce(ctx context.Context, recorded [][]asked) (times latencies, failed int, err error) {
	var mu sync.Mutex // guards times and failed
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	begun := time.Now()
	for range historyClients {
		group.Go(func() error {
			for time.Since(begun) < historyPatience && ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= int64(m.bench.cfg.history.asks) {
					break
				}
				sent := time.Now()
				_, err := m.engine.ask(ctx, recorded[len(recorded)-1-int(i)%len(recorded)])
				took := time.Since(sent)
				mu.Lock()
				if err != nil {
					failed++
				} else {
					times = append(times, took)
				}
				mu.Unlock()
			}
			return ctx.Err()
		})
	}
	err = group.Wait()
	return times, failed, err
}

// record writes a kind's figures into its table.
func (m *historyMeter) record(c *comparison, kind *question, pages, pages4 *answers, engine, engine4 latencies, recorded [][]asked) {
	statements := 0
	for _, p := range recorded {
		statements += len(p)
	}
	if len(pages.times) > 0 {
		name := kind.name
		if pages.events > 0 {
			name += fmt.Sprintf(", %s events", number(float64(pages.events)/float64(len(pages.times))))
		}
		name += fmt.Sprintf(", %s statements", number(float64(statements)/float64(len(recorded))))
		ratios{c, byPage, byEngine, ratio}.add(name, kind.goal, pages.times, engine)
		ratios{c, byPage4, byEngine4, ratio4}.add(name, kind.goal, pages4.times, engine4)
		m.bench.logf("%s: p50 %s p99 %s ms, engine %s %s; 4 at once %s %s, engine %s %s", name,
			number(pages.times.quantile(0.5)), number(pages.times.quantile(0.99)), number(engine.quantile(0.5)), number(engine.quantile(0.99)),
			number(pages4.times.quantile(0.5)), number(pages4.times.quantile(0.99)), number(engine4.quantile(0.5)), number(engine4.quantile(0.99)))
	}
	if n := len(pages.times); n < m.bench.cfg.history.asks {
		c.note("%s: %d requests by 1 client, %d by %d, as they took long.", kind.name, n, len(pages4.times), historyClients)
	}
	if pages.short+pages4.short > 0 {
		c.note("%s: %d of %d pages were cut short.", kind.name, pages.short+pages4.short, len(pages.times)+len(pages4.times))
	}
	for _, a := range []*answers{pages, pages4} {
		for status, n := range a.refused {
			c.note("%s: %d requests were answered %d, and are not counted.", kind.name, n, status)
		}
	}
}

// ratios adds figures of pages and engine to a table, and what one is to the other.
type ratios struct {
	c                   *comparison
	page, engine, ratio string
}

func (r ratios) add(name, goal string, pages, engine latencies) {
	if len(pages) == 0 {
		return
	}
	r.c.addLatencies(r.page, name, pages).goal(goal)
	const least = 0.01 // ms; a page without statements has nothing to be compared with
	if engine.sort(); len(engine) == 0 || engine.quantile(0.5) < least {
		return
	}
	r.c.addLatencies(r.engine, name, engine)
	r.c.add(r.ratio, name+", p50", "ms", pages.quantile(0.50)/engine.quantile(0.50))
	r.c.add(r.ratio, name+", p99", "ms", pages.quantile(0.99)/engine.quantile(0.99))
}
