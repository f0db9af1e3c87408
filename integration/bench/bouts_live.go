package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

func (z peerSize) fanoutShape() string {
	return fmt.Sprintf("%d SSE listeners of one channel, one event of %d B a publish call, %d calls a second on one connection for %v. A delivery's time runs from before the "+
		"call to the moment the listener has read the event. CPU is user and system time of all the server's processes; *less publishing* takes off what the same calls cost "+
		"without listeners. The load generator reads all streams in one goroutine with epoll; its own CPU, publishing included, is the last row.",
		z.listeners, shortPayload, z.rate, z.pacedFor)
}

func (b *bench) matchFanout(ctx context.Context, m *match) error {
	z := m.size
	silent, err := m.paced(ctx, "silent", 0, z.liveFor)
	if err != nil {
		return err
	}
	paced, err := m.paced(ctx, "paced", z.listeners, z.pacedFor)
	if err != nil {
		return err
	}
	deliveries := float64(paced.published * z.listeners)
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) }
	silentCall := micros(silent.used.target) / float64(silent.published)
	m.addLatencies("delivery", paced.delays).goal("below Nchan")
	m.addLatencies("publish, until acknowledged", paced.acks)
	m.add("server CPU a delivery", "µs", micros(paced.used.target)/deliveries).goal("below Nchan")
	m.add("server CPU a delivery, less publishing", "µs", (micros(paced.used.target)-silentCall*float64(paced.published))/deliveries)
	m.add("server CPU a publish call without listeners", "µs", silentCall)
	if paced.engine > 0 {
		m.add("of the CPU a delivery, ClickHouse's (it stores)", "µs", micros(paced.engine)/deliveries)
	}
	m.add("load generator's CPU a delivery", "µs", micros(paced.used.own)/deliveries)
	if want := z.pacedFor.Seconds() * float64(z.rate); float64(paced.published) < 0.98*want {
		m.table.note("%s, run %d: %d publish calls in place of %.0f, each waiting for the one before", m.name, m.run+1, paced.published, want)
	}
	return nil
}

// pacing is what paced delivery to a crowd came to.
type pacing struct {
	delays    latencies
	acks      latencies
	published int
	used      costs
	engine    time.Duration // processor time of Playhead's ClickHouse
}

// paced publishes to a new channel with that many listeners.
func (m *match) paced(ctx context.Context, channel string, listeners int, d time.Duration) (p pacing, err error) {
	f, err := newFeed(m, channel, shortPayload)
	if err != nil {
		return p, err
	}
	defer f.close()
	c, err := m.gather(channel, listeners, true)
	if err != nil {
		return p, err
	}
	defer m.dismiss(c, &err)
	if err := pause(ctx, time.Second); err != nil { // what opening them left to do
		return p, err
	}
	begun := time.Now()
	before, err := m.costs()
	if err != nil {
		return p, err
	}
	engine, err := m.engineCPU()
	if err != nil {
		return p, err
	}
	if p.acks, err = f.pace(ctx, m.size.rate, d); err != nil {
		return p, err
	}
	p.published = f.published()
	if err := m.delivered(ctx, c, f, listeners); err != nil {
		return p, err
	}
	after, err := m.costs()
	if err != nil {
		return p, err
	}
	if p.engine, err = m.engineCPU(); err != nil {
		return p, err
	}
	p.engine -= engine
	p.used = after.since(before)
	p.delays = c.arrived(begun, time.Now())
	return p, nil
}

// engineCPU is the processor time that Playhead's ClickHouse has used; 0 of the others.
func (m *match) engineCPU() (time.Duration, error) {
	p, ok := m.target.(*playhead)
	if !ok {
		return 0, nil
	}
	u, err := p.usage()
	return u.engine, err
}

func (z peerSize) floodShape() string {
	return fmt.Sprintf("%d listeners of one channel, events of %d B in batches of %d, published for %v as fast as the listeners get them: at most %d events ahead of the average one. "+
		"Until the last listener has the last event.", z.listeners, shortPayload, batchEvents, z.floodFor, floodAhead)
}

// floodAhead is how far a flood stays ahead of the average listener: enough to keep the
// server busy, and little enough that nobody loses what is buffered for him.
const floodAhead = 2000

func (b *bench) matchFlood(ctx context.Context, m *match) (err error) {
	z := m.size
	f, err := newFeed(m, "flood", shortPayload)
	if err != nil {
		return err
	}
	defer f.close()
	c, err := m.gather("flood", z.listeners, false)
	if err != nil {
		return err
	}
	defer m.dismiss(c, &err)
	before, err := m.costs()
	if err != nil {
		return err
	}
	begun := time.Now()
	for time.Since(begun) < z.floodFor {
		if f.published()-int(c.received.Load())/z.listeners > floodAhead {
			if err := pause(ctx, 200*time.Microsecond); err != nil {
				return err
			}
			continue
		}
		if _, err := f.send(ctx, batchEvents); err != nil {
			return err
		}
	}
	if err := m.delivered(ctx, c, f, z.listeners); err != nil {
		return err
	}
	took := time.Since(begun)
	after, err := m.costs()
	if err != nil {
		return err
	}
	used, deliveries := after.since(before), float64(f.published()*z.listeners)
	rate := deliveries / took.Seconds()
	m.add("deliveries", "1/s", rate).goal("above 150,000")
	m.add("server CPU a delivery", "µs", float64(used.target.Microseconds())/deliveries)
	m.add("load generator's CPU a delivery", "µs", float64(used.own.Microseconds())/deliveries)
	b.logf("%s: %s deliveries/s", m.name, number(rate))
	return nil
}

func (z peerSize) slowShape() string {
	return fmt.Sprintf("%d listeners of one channel, events of %d B, %d a second for %v: without and then with one more that reads %s B/s through a receive buffer of %d B.",
		z.listeners-1, slowEventBytes, z.rate, 2*z.liveFor, number(float64(z.slowRate)), slowReceiveBuffer)
}

const (
	slowEventBytes    = 1000
	slowReceiveBuffer = 4096 // the kernel doubles it (socket(7))
)

func (b *bench) matchSlow(ctx context.Context, m *match) (err error) {
	z := m.size
	f, err := newFeed(m, "slow", slowEventBytes)
	if err != nil {
		return err
	}
	defer f.close()
	c, err := m.gather("slow", z.listeners-1, true)
	if err != nil {
		return err
	}
	defer m.dismiss(c, &err)
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	without, err := m.pacedTo(ctx, c, f, z.listeners-1)
	if err != nil {
		return err
	}
	s, err := subscribeSlowly(m, "slow", fromNow, slowReceiveBuffer)
	if err != nil {
		return err
	}
	reading, stop := context.WithCancel(ctx)
	var group errgroup.Group
	var slowErr error
	var slowBytes int
	group.Go(func() error { // ends with the stream
		slowBytes, slowErr = trickle(reading, s, z.slowRate)
		return nil
	})
	with, err := m.pacedTo(ctx, c, f, z.listeners-1)
	stop()
	s.close()
	_ = group.Wait() // it returns no error
	if err != nil {
		return err
	}
	if slowErr != nil {
		m.table.note("%s, run %d: the slow reader had %s B when its stream broke: %v", m.name, m.run+1, number(float64(slowBytes)), slowErr)
	}
	m.addLatencies("the others, without it", without)
	m.addLatencies("the others, with it", with).goal("unmoved")
	return nil
}

// pacedTo publishes for twice liveFor to a crowd that is there, and returns the times of
// the deliveries.
func (m *match) pacedTo(ctx context.Context, c *crowd, f *feed, listeners int) (latencies, error) {
	begun := time.Now()
	if _, err := f.pace(ctx, m.size.rate, 2*m.size.liveFor); err != nil {
		return nil, err
	}
	if err := m.delivered(ctx, c, f, listeners); err != nil {
		return nil, err
	}
	return c.arrived(begun, time.Now()), nil
}

// open opens n streams of a channel, 32 at a time.
func (m *match) open(channel string, n int) ([]*stream, error) {
	streams := make([]*stream, n)
	var group errgroup.Group
	group.SetLimit(32)
	for i := range n {
		group.Go(func() (err error) {
			streams[i], err = subscribe(m, channel, fromNow)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		for _, s := range streams {
			if s != nil {
				s.close()
			}
		}
		return nil, err
	}
	return streams, nil
}
