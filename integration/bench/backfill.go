package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Shape of the backfill that live appends are measured beside: that of `playhead import`.
const (
	backfillConns  = 4
	backfillEvents = 1000 // of a request
	backfillPause  = 100 * time.Millisecond
)

// measureBackfill measures live appends and their delivery alone, beside a backfill on the
// lane of live appends, and beside one on its own lane.
func (b *bench) measureBackfill(ctx context.Context) (err error) {
	const listeners = 20
	t := b.report.section("Backfill",
		"One event an append, %d a second for %v, payload %d B, %d SSE listeners; beside it a backfill into the same workspace, of %d connections, "+
			"each appending %d events of %d B a request without a pause, materialised meanwhile. `lane=live` is what a backfill would be without a lane of its own.",
		b.size.eventRate, b.size.pacedFor, shortPayload, listeners, backfillConns, backfillEvents, payloadBytes)
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
		b.logf("run %d", run+1)
		p99 := make(map[string]float64)
		for _, lane := range []string{"", "live", "backfill"} {
			if err := s.settle(ctx, k); err != nil {
				return err
			}
			name := "alone"
			if lane != "" {
				name = "beside lane=" + lane
			}
			flood := &flood{s: s, payload: b.payload, lane: lane, prefix: fmt.Sprintf("flood%s%d", lane, run)}
			d, err := flood.beside(ctx, func() (delivery, error) {
				return b.pacedDelivery(ctx, s, fmt.Sprintf("live%s%d", lane, run), listeners)
			})
			if err != nil {
				return err
			}
			t.addLatencies("live append's ack, "+name, d.acks)
			t.addLatencies("live delivery, "+name, d.delays)
			p99[lane] = d.acks.quantile(0.99)
			b.logf("%s: ack p50 %s p99 %s ms, delivery p99 %s ms; %s events/s backfilled, %d refusals", name,
				number(d.acks.quantile(0.5)), number(p99[lane]), number(d.delays.quantile(0.99)), number(flood.rate()), flood.refused.Load())
			if lane != "" {
				t.add("backfilled meanwhile, lane="+lane, "events/s", flood.rate())
				t.add("live append's ack p99, beside lane="+lane+" to alone", "×", p99[lane]/p99[""])
			}
		}
	}
	return nil
}

// flood is a backfill without a pause.
type flood struct {
	s       *server
	payload *payloads
	lane    string // none: no backfill at all
	prefix  string

	events  atomic.Int64
	refused atomic.Int64
	took    time.Duration
}

func (f *flood) rate() float64 { return float64(f.events.Load()) / f.took.Seconds() }

// beside runs f's backfill for as long as measure takes.
func (f *flood) beside(ctx context.Context, measure func() (delivery, error)) (delivery, error) {
	if f.lane == "" {
		return measure()
	}
	busy, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	for w := range backfillConns {
		group.Go(func() error { return f.write(busy, w) })
	}
	begun := time.Now()
	d, err := measure()
	stop()
	if ferr := group.Wait(); err == nil {
		err = ferr
	}
	f.took = time.Since(begun)
	return d, err
}

// write appends by one connection until ctx ends.
func (f *flood) write(ctx context.Context, w int) error {
	c, err := dial(f.s.addr)
	if err != nil {
		return err
	}
	defer c.close()
	var body []byte
	for i := 0; ctx.Err() == nil; i++ {
		session := fmt.Sprintf("%s-%d-%d", f.prefix, w, i%sessionsPerConn)
		body = f.payload.body(body[:0], session, i*backfillEvents, backfillEvents)
		path := "/v1/sessions/" + session + "/events?dedupe=history&lane=" + f.lane
		for {
			status, answer, err := c.do(http.MethodPost, path, body)
			if err != nil {
				return err
			}
			if status == http.StatusOK {
				f.events.Add(backfillEvents)
				break
			}
			if status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests {
				return fmt.Errorf("POST %s: %d %s", path, status, bytes.TrimSpace(answer[:min(len(answer), 500)]))
			}
			f.refused.Add(1)
			if pause(ctx, backfillPause) != nil {
				return nil
			}
		}
	}
	return nil
}
