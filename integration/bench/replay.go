package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

// tapeAge is the age at which events have left the tape for sure (30 s by default, shed
// once a second).
const tapeAge = 32 * time.Second

// measureReplay reads a session from its start, out of each place that it can come from.
func (b *bench) measureReplay(ctx context.Context) (err error) {
	z := b.size
	t := b.report.section("Replay",
		"A session of %s events, payload %d B, from its first to its last, connecting included; 1 client, and %d at once (all their events by the time the last is through). "+
			"From the tape: appended just before. From ClickHouse: materialised, and more than 30 s old, so the tape has let go. "+
			"From Kafka: the same age on a server whose ClickHouse cannot be reached, so that nothing is materialised. "+
			"The session has its Kafka partition and the table nearly to itself. Which source served is checked by playhead_stream_replayed_events_total.",
		number(float64(z.replayEvents)), payloadBytes, z.replayClients)

	log, err := b.freshServer(ctx, "--clickhouse-dsn", noClickHouse)
	if err != nil {
		return err
	}
	defer log.stopInto(&err)
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
	for _, server := range []*server{log, s} {
		if err := b.appendSession(server, "old", z.replayEvents); err != nil {
			return err
		}
	}
	old := time.Now()

	for run := range b.cfg.runs {
		session := fmt.Sprintf("fresh%d", run)
		if err := b.appendSession(s, session, z.replayEvents); err != nil {
			return err
		}
		if err := b.replayFrom(ctx, t, s, session, "tape", "above 263,000 (Centrifugo, memory)", "above 630,000 (Centrifugo, memory)"); err != nil {
			return err
		}
	}
	if err := s.settle(ctx, k); err != nil {
		return err
	}
	if err := pause(ctx, tapeAge-time.Since(old)); err != nil {
		return err
	}
	for range b.cfg.runs {
		if err := b.replayFrom(ctx, t, s, "old", "clickhouse", "above 200,000", "above 200,000"); err != nil {
			return err
		}
		if err := b.replayFrom(ctx, t, log, "old", "kafka", "", ""); err != nil {
			return err
		}
	}
	for run := range b.cfg.runs {
		if err := b.liveBesideReplay(ctx, t, s, run); err != nil {
			return err
		}
	}
	return nil
}

// appendSession appends a new session of n events.
func (b *bench) appendSession(s *server, session string, n int) error {
	c, err := dial(s.addr)
	if err != nil {
		return err
	}
	defer c.close()
	for from := 0; from < n; from += 1000 {
		size := min(1000, n-from)
		if err := c.append("/v1/sessions/"+session+"/events", b.payload.body(nil, session, from, size), size); err != nil {
			return err
		}
	}
	return nil
}

// replayFrom replays a session and makes sure that it came from the source.
func (b *bench) replayFrom(ctx context.Context, t *table, s *server, session, source, goalOne, goalMany string) error {
	before, err := s.metrics()
	if err != nil {
		return err
	}
	var one []float64
	for range b.size.replayRepeats {
		rate, err := replays(ctx, s, session, b.size.replayEvents, 1)
		if err != nil {
			return err
		}
		one = append(one, rate)
	}
	usageBefore, err := s.usage()
	if err != nil {
		return err
	}
	many, err := replays(ctx, s, session, b.size.replayEvents, b.size.replayClients)
	if err != nil {
		return err
	}
	usageAfter, err := s.usage()
	if err != nil {
		return err
	}
	after, err := s.metrics()
	if err != nil {
		return err
	}
	counter := fmt.Sprintf(`playhead_stream_replayed_events_total{source=%q}`, source)
	if source == "tape" {
		counter = "playhead_stream_events_total"
	}
	events := float64(b.size.replayEvents * (b.size.replayRepeats + b.size.replayClients))
	if got := after.since(before, counter); got < events*0.99 { // the last of a chunk may be counted a moment later
		return fmt.Errorf("%s grew by %.0f, want %.0f: the replay came from somewhere else", counter, got, events)
	}
	b.logf("%s: %s events/s, %d at once %s", source, number(median(one)), b.size.replayClients, number(many))
	t.add("from "+source+", 1 client", "events/s", median(one)).goal(goalOne)
	name := fmt.Sprintf("from %s, %d at once", source, b.size.replayClients)
	t.add(name, "events/s", many).goal(goalMany)
	used := usageAfter.since(usageBefore)
	perEvent := func(d time.Duration) float64 {
		return float64(d.Microseconds()) / float64(b.size.replayEvents*b.size.replayClients)
	}
	t.add(name+", server CPU an event", "µs", perEvent(used.server))
	if source == "clickhouse" {
		t.add(name+", engine CPU an event", "µs", perEvent(used.engine))
	}
	return nil
}

// replays has a number of clients read n events of a session from its start, at once,
// and returns the events a second of all together.
func replays(ctx context.Context, s *server, session string, n, clients int) (float64, error) {
	var group errgroup.Group
	begun := time.Now()
	for range clients {
		group.Go(func() error { return replay(s, session, n) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return float64(n*clients) / time.Since(begun).Seconds(), nil
}

// replay reads n events of a session from its start.
func replay(s *server, session string, n int) error {
	nc, rest, err := openStream(s.addr, session, "?from=start")
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := nc.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return countEvents(nc, rest, n)
}

func countEvents(nc net.Conn, rest []byte, n int) error {
	var c counter
	buf := make([]byte, 256<<10)
	for events := c.feed(rest); events < n; {
		read, err := nc.Read(buf)
		events += c.feed(buf[:read])
		if err != nil && events < n {
			return fmt.Errorf("replay: %d of %d events: %w", events, n, err)
		}
	}
	return nil
}

// liveBesideReplay measures live delivery alone, and while others replay from ClickHouse
// without a pause.
func (b *bench) liveBesideReplay(ctx context.Context, t *table, s *server, run int) error {
	const listeners = 20
	alone, err := b.pacedDelivery(ctx, s, fmt.Sprintf("alone%d", run), listeners)
	if err != nil {
		return err
	}
	busy, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	for range b.size.replayClients {
		group.Go(func() error {
			for busy.Err() == nil {
				if err := replay(s, "old", b.size.replayEvents); err != nil {
					return err
				}
			}
			return nil
		})
	}
	beside, err := b.pacedDelivery(ctx, s, fmt.Sprintf("beside%d", run), listeners)
	stop()
	if rerr := group.Wait(); rerr != nil {
		return rerr
	}
	if err != nil {
		return err
	}
	what := fmt.Sprintf("live delivery to %d listeners", listeners)
	t.addLatencies(what+", alone", alone.delays)
	t.addLatencies(what+", alone, append's ack", alone.acks)
	what = fmt.Sprintf("%s, while %d clients replay from clickhouse without a pause", what, b.size.replayClients)
	t.addLatencies(what, beside.delays).goal("unmoved")
	t.addLatencies(what+", append's ack", beside.acks)
	return nil
}
