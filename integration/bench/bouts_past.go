package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

func (z peerSize) replayShape() string {
	return fmt.Sprintf("A channel of %s events of %d B, from its first to its last, connecting included; 1 client (the median of %d), and %d at once (all events by the time the last is through). "+
		"Playhead: from its tape, the events just published; and from ClickHouse, the events older than the tape, checked by its own counters. Live: %d listeners of another channel, "+
		"%d events a second for %v, alone and while %[4]d clients replay, each again a second after it began or as soon as it is through.",
		number(float64(z.replayEvents)), shortPayload, z.replayRepeats, z.replayClients, liveListeners, z.rate, z.liveFor)
}

// liveListeners are those whose deliveries are measured beside something else.
const liveListeners = 20

func (b *bench) matchReplay(ctx context.Context, m *match) error {
	f, err := newFeed(m, "stored", shortPayload)
	if err != nil {
		return err
	}
	defer f.close()
	if err := f.fill(ctx, m.size.replayEvents); err != nil {
		return err
	}
	filled := time.Now()
	if err := m.replayFrom(ctx, "", "tape"); err != nil {
		return err
	}
	alone, err := m.paced(ctx, "alone", liveListeners, m.size.liveFor)
	if err != nil {
		return err
	}
	m.addLatencies("live, alone", alone.delays)
	if err := m.liveBesideReplay(ctx, "live, beside the replays", "beside"); err != nil {
		return err
	}
	p, ok := m.target.(*playhead)
	if !ok {
		return nil
	}
	k, err := openBroker(p.server)
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.awaitMaterialised(ctx, time.Minute); err != nil {
		return err
	}
	if err := pause(ctx, tapeAge-time.Since(filled)); err != nil {
		return err
	}
	if err := m.replayFrom(ctx, ", from ClickHouse", "clickhouse"); err != nil {
		return err
	}
	return m.liveBesideReplay(ctx, "live, beside the replays from ClickHouse", "beside2")
}

// replayFrom measures replays of the stored channel. source is Playhead's, and checked.
func (m *match) replayFrom(ctx context.Context, suffix, source string) error {
	z := m.size
	replayed, err := m.replayedFrom(source)
	if err != nil {
		return err
	}
	var one []float64
	for range z.replayRepeats {
		rate, err := m.replays(ctx, 1)
		if err != nil {
			return err
		}
		one = append(one, rate)
	}
	before, err := m.costs()
	if err != nil {
		return err
	}
	many, err := m.replays(ctx, z.replayClients)
	if err != nil {
		return err
	}
	after, err := m.costs()
	if err != nil {
		return err
	}
	goal := "above the best peer"
	if suffix != "" {
		goal = "above 200,000"
	}
	m.add("1 client"+suffix, "events/s", median(one)).goal(goal)
	m.add(fmt.Sprintf("%d at once%s", z.replayClients, suffix), "events/s", many).goal(goal)
	used, events := after.since(before), float64(z.replayEvents*z.replayClients)
	m.add(fmt.Sprintf("%d at once%s, server CPU an event", z.replayClients, suffix), "µs", float64(used.target.Microseconds())/events)
	now, err := m.replayedFrom(source)
	if err != nil {
		return err
	}
	if want := float64(z.replayEvents * (z.replayRepeats + z.replayClients)); now >= 0 && now-replayed < 0.99*want {
		m.table.note("%s, run %d: of %.0f replayed events only %.0f came from the %s", m.name, m.run+1, want, now-replayed, source)
	}
	return nil
}

// replayedFrom is how many events Playhead says it has replayed from a source, those from
// the tape being what no other source counts; -1 if the target counts none.
func (m *match) replayedFrom(source string) (float64, error) {
	p, ok := m.target.(*playhead)
	if !ok {
		return -1, nil
	}
	all, err := p.metrics()
	if err != nil {
		return 0, err
	}
	const replayed = "playhead_stream_replayed_events_total"
	if source != "tape" {
		return all[fmt.Sprintf("%s{source=%q}", replayed, source)], nil
	}
	n := all["playhead_stream_events_total"]
	for name, v := range all {
		if strings.HasPrefix(name, replayed) {
			n -= v
		}
	}
	return n, nil
}

// replays has a number of clients read the stored channel at once, and returns the events
// a second of all together.
func (m *match) replays(ctx context.Context, clients int) (float64, error) {
	var group errgroup.Group
	begun := time.Now()
	for range clients {
		group.Go(func() error { return readEvents(m, "stored", m.size.replayEvents) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return float64(m.size.replayEvents*clients) / time.Since(begun).Seconds(), nil
}

// replayEvery is how often each client replays beside live delivery. Without a pause, the
// fastest server would have the most to do, and the load generator with it.
const replayEvery = time.Second

// liveBesideReplay measures live delivery while others replay.
func (m *match) liveBesideReplay(ctx context.Context, name, channel string) error {
	busy, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	var replays atomic.Int64
	begun := time.Now()
	for i := range m.size.replayClients {
		group.Go(func() error {
			due := begun.Add(time.Duration(i) * replayEvery / time.Duration(m.size.replayClients))
			for pause(busy, time.Until(due)) == nil {
				due = time.Now().Add(replayEvery)
				if err := readEvents(m, "stored", m.size.replayEvents); err != nil {
					return err
				}
				replays.Add(1)
			}
			return nil
		})
	}
	beside, err := m.paced(ctx, channel, liveListeners, m.size.liveFor)
	stop()
	if err := errors.Join(err, group.Wait()); err != nil {
		return err
	}
	m.addLatencies(name, beside.delays).goal("unmoved")
	m.add(name+": replayed meanwhile", "events/s", float64(replays.Load())*float64(m.size.replayEvents)/time.Since(begun).Seconds())
	return nil
}

func (z peerSize) idleShape() string {
	return fmt.Sprintf("%s SSE streams of one channel, opened 32 at a time on a server that has just started; memory of all its processes %v after the last was opened, less what it was before "+
		"the first, divided by their number. Pss counts a page that several processes share once, VmRSS once for each.", number(float64(z.idleStreams)), z.settleFor)
}

func (b *bench) matchIdle(ctx context.Context, m *match) (err error) {
	z := m.size
	f, err := newFeed(m, "idle", shortPayload)
	if err != nil {
		return err
	}
	defer f.close()
	if _, err := f.send(ctx, 1); err != nil {
		return err
	}
	if err := pause(ctx, z.settleFor/2); err != nil { // stored, and the start over
		return err
	}
	before, err := treeMemory(m.target)
	if err != nil {
		return err
	}
	roots, err := memoryOf(m.processes())
	if err != nil {
		return err
	}
	c, err := m.gather("idle", z.idleStreams, false)
	if err != nil {
		return err
	}
	defer m.dismiss(c, &err)
	if err := pause(ctx, z.settleFor); err != nil {
		return err
	}
	after, err := treeMemory(m.target)
	if err != nil {
		return err
	}
	rootsAfter, err := memoryOf(m.processes())
	if err != nil {
		return err
	}
	perStream := func(before, after int64) float64 { return float64(after-before) / float64(z.idleStreams) / 1000 }
	m.add("memory a stream (VmRSS)", "KB", perStream(before.resident, after.resident))
	m.add("memory a stream (Pss)", "KB", perStream(before.proportional, after.proportional))
	if _, ok := m.target.(*playhead); ok { // its child is ClickHouse, whose memory comes and goes by the megabyte
		m.add("memory a stream (VmRSS), the process that has them", "KB", perStream(roots.resident, rootsAfter.resident)).goal("below 3")
	}
	m.add("all of the server before (Pss)", "MB", float64(before.proportional)/1e6)
	// They are all there: the next event reaches each.
	if _, err := f.send(ctx, 1); err != nil {
		return err
	}
	return m.reached(ctx, c, f, z.idleStreams)
}

// reached waits until n listeners have the newest event of a feed.
func (m *match) reached(ctx context.Context, c *crowd, f *feed, n int) error {
	have := 0
	err := until(ctx, 20*time.Second, fmt.Sprintf("%d listeners have the newest event", n), func() (bool, error) {
		have = c.having(f.number)
		return have == n, nil
	})
	if err != nil {
		return fmt.Errorf("%w; %d have", err, have)
	}
	return nil
}
