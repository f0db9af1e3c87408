package main

import (
	"context"
	"fmt"
	"time"
)

// measureAppends compares appends over HTTP with a producer that speaks to the same
// broker directly, turn by turn.
func (b *bench) measureAppends(ctx context.Context) (err error) {
	t := b.report.section("Appends",
		"Batches of %d events, payload %d B, with message ids; %d sessions a connection; %v each. "+
			"Raw is a franz-go producer in the load generator: idempotent, acks=all, the same linger and payloads, each of 8 or 1 goroutines "+
			"handing over a batch and waiting for it. Broker writes are synced to disk.",
		batchEvents, payloadBytes, sessionsPerConn, b.size.appendFor)
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
	if err := k.createRawTopic(ctx); err != nil {
		return err
	}
	for run := range b.cfg.runs {
		b.logf("run %d", run+1)
		if err := b.appendRun(ctx, t, s, k, run); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) appendRun(ctx context.Context, t *table, s *server, k *broker, run int) error {
	raw := func(name string, headers bool, writers int) (load, error) {
		if err := s.settle(ctx, k); err != nil {
			return load{}, err
		}
		records := &rawRecords{payload: b.payload, headers: headers, session: fmt.Sprintf("raw%d", run)}
		var l load
		var err error
		if writers == 0 {
			l, err = k.produceFlatOut(ctx, records, b.size.appendFor)
		} else {
			l, err = k.produceBatches(ctx, records, writers, b.size.appendFor)
		}
		if err == nil {
			b.logf("%s: %s events/s", name, number(l.rate()))
			t.add(name, "events/s", l.rate())
		}
		return l, err
	}
	http := func(name string, conns int, paused bool) (load, error) {
		l, used, err := b.appendOnce(ctx, s, k, fmt.Sprintf("s%d-%d-%v", run, conns, paused), conns, paused)
		if err != nil {
			return l, err
		}
		b.logf("%s: %s events/s", name, number(l.rate()))
		t.add(name, "events/s", l.rate())
		t.addLatencies(name+", ack", l.acks).goal("below 50 ms")
		perEvent := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(l.events) }
		t.add(name+", server CPU an event", "µs", perEvent(used.server))
		if !paused {
			t.add(name+", engine CPU an event", "µs", perEvent(used.engine))
		} else {
			t.add(name+", events per second of server CPU", "events", float64(l.events)/used.server.Seconds()).goal("60,000 a core")
		}
		return l, nil
	}

	raw8, err := raw("raw, 8 goroutines", false, 8)
	if err != nil {
		return err
	}
	same8, err := raw("raw, 8 goroutines, with Playhead's headers", true, 8)
	if err != nil {
		return err
	}
	if _, err := raw("raw, flat out, not waiting", false, 0); err != nil {
		return err
	}
	alone8, err := http("HTTP, 8 connections, engine paused", 8, true)
	if err != nil {
		return err
	}
	http8, err := http("HTTP, 8 connections, materialising meanwhile", 8, false)
	if err != nil {
		return err
	}
	raw1, err := raw("raw, 1 goroutine", false, 1)
	if err != nil {
		return err
	}
	http1, err := http("HTTP, 1 connection, materialising meanwhile", 1, false)
	if err != nil {
		return err
	}
	t.add("HTTP to raw, 8, engine paused", "×", alone8.rate()/raw8.rate()).goal("at least 0.5")
	t.add("HTTP to raw with the same headers, 8, engine paused", "×", alone8.rate()/same8.rate())
	t.add("HTTP to raw, 8, materialising meanwhile", "×", http8.rate()/raw8.rate())
	t.add("HTTP to raw, 1, materialising meanwhile", "×", http1.rate()/raw1.rate())
	return nil
}

// appendOnce appends from a number of connections, with the engine at rest if paused.
func (b *bench) appendOnce(ctx context.Context, s *server, k *broker, prefix string, conns int, paused bool) (l load, used usage, err error) {
	a, err := newAppender(s, b.payload, prefix, conns)
	if err != nil {
		return l, used, err
	}
	defer a.close()
	if err := s.settle(ctx, k); err != nil {
		return l, used, err
	}
	if paused {
		if err := s.pauseEngine(); err != nil {
			return l, used, err
		}
		defer s.resumeEngine()
	}
	before, err := s.usage()
	if err != nil {
		return l, used, err
	}
	if l, err = a.run(ctx, b.size.appendFor); err != nil {
		return l, used, err
	}
	after, err := s.usage()
	return l, after.since(before), err
}
