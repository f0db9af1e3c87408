package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// bout is one comparison: the same measurement of every target, a fresh server each.
type bout struct {
	name    string
	title   string
	shape   func(z peerSize) string
	measure func(*bench, context.Context, *match) error
}

// bouts lists them in the order they run.
func bouts() []bout {
	return []bout{
		{"fanout", "Fan-out, paced", (peerSize).fanoutShape, (*bench).matchFanout},
		{"flood", "Fan-out, flat out", (peerSize).floodShape, (*bench).matchFlood},
		{"replay", "Replay", (peerSize).replayShape, (*bench).matchReplay},
		{"idle", "Memory of idle streams", (peerSize).idleShape, (*bench).matchIdle},
		{"storm", "A reconnect storm", (peerSize).stormShape, (*bench).matchStorm},
		{"slow", "One slow reader", (peerSize).slowShape, (*bench).matchSlow},
	}
}

func boutNames() []string {
	var names []string
	for _, m := range bouts() {
		names = append(names, m.name)
	}
	return names
}

// peerSize is how much of everything is done to each target.
type peerSize struct {
	listeners int
	rate      int // events/s, paced
	pacedFor  time.Duration
	floodFor  time.Duration

	replayEvents  int
	replayClients int
	replayRepeats int           // replays by one client
	liveFor       time.Duration // paced delivery, alone and beside something

	idleStreams int
	settleFor   time.Duration

	stormStreams int
	missedEvents int

	slowRate int // bytes/s of the slow reader
}

func fullPeerSize() peerSize {
	return peerSize{
		listeners: 200, rate: 100, pacedFor: 20 * time.Second, floodFor: 10 * time.Second,
		replayEvents: 10_000, replayClients: 20, replayRepeats: 10, liveFor: 6 * time.Second,
		idleStreams: 3000, settleFor: 10 * time.Second,
		stormStreams: 1000, missedEvents: 50,
		slowRate: 10_000,
	}
}

func quickPeerSize() peerSize {
	return peerSize{
		listeners: 50, rate: 100, pacedFor: 2 * time.Second, floodFor: time.Second,
		replayEvents: 2000, replayClients: 5, replayRepeats: 2, liveFor: time.Second,
		idleStreams: 200, settleFor: time.Second,
		stormStreams: 100, missedEvents: 20,
		slowRate: 10_000,
	}
}

// match is one target in one run of a bout, started.
type match struct {
	target
	name  string
	run   int
	size  peerSize
	table *comparison
	lost  int64 // events that listeners passed over
}

// boutTimeout bounds one target's share of a bout's run.
const boutTimeout = 90 * time.Second

// comparePeers runs the bouts. A target that cannot be had is left out, and one that
// breaks is noted: the others are compared all the same.
func (b *bench) comparePeers(ctx context.Context) error {
	// Readers wait for the kernel to run them, as readers in processes of their own would,
	// not behind each other: a replay must not look as if it delayed a live delivery.
	runtime.GOMAXPROCS(8 * runtime.NumCPU())
	z := fullPeerSize()
	if b.cfg.quick {
		z = quickPeerSize()
	}
	entrants, err := b.entrants()
	if err != nil {
		return err
	}
	var names []string
	for _, c := range entrants {
		names = append(names, c.name)
		b.report.About.Targets = append(b.report.About.Targets, c.name+": "+c.what)
	}
	for _, m := range bouts() {
		if len(b.cfg.only) > 0 && !slices.Contains(b.cfg.only, m.name) {
			continue
		}
		b.logf("== %s", m.name)
		t := b.report.comparison(m.title, names, "%s", m.shape(z))
		for run := range b.cfg.runs {
			for _, c := range entrants {
				err := b.meet(ctx, m, c, &match{name: c.name, run: run, size: z, table: t})
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					b.logf("%s: %v", c.name, err)
					t.note("%s, run %d: %v", c.name, run+1, err)
				}
			}
		}
	}
	return nil
}

// entrants are the contestants that were asked for and can be had.
func (b *bench) entrants() ([]contestant, error) {
	var out []contestant
	for _, c := range contestants() {
		if len(b.cfg.targets) > 0 && !slices.Contains(b.cfg.targets, c.name) {
			continue
		}
		dir, err := b.tempDir()
		if err != nil {
			return nil, err
		}
		if _, err := c.enter(b, dir); err != nil {
			b.logf("without %s: %v", c.name, err)
			b.report.About.Absent = append(b.report.About.Absent, fmt.Sprintf("%s: %v", c.name, err))
			continue
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("none of the targets can be had")
	}
	return out, nil
}

// meet starts a contestant, measures it and stops it.
func (b *bench) meet(ctx context.Context, m bout, c contestant, at *match) (err error) {
	dir, err := b.tempDir()
	if err != nil {
		return err
	}
	if at.target, err = c.enter(b, dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, boutTimeout, fmt.Errorf("not through after %v", boutTimeout))
	defer cancel()
	b.logf("%s", c.name)
	if err := at.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, at.stop()) }()
	if err := m.measure(b, ctx, at); err != nil {
		return err
	}
	if at.lost > 0 {
		at.table.note("%s, run %d: %d events were never delivered to somebody who should have had them", c.name, at.run+1, at.lost)
	}
	return nil
}

// add records a value of the match's target.
func (m *match) add(name, unit string, value float64) *compared {
	return m.table.add(m.name, name, unit, value)
}

func (m *match) addLatencies(name string, l latencies) *compared {
	return m.table.addLatencies(m.name, name, l)
}

// gather opens n streams of a channel, some at a time, and has a crowd read them.
func (m *match) gather(channel string, n int, timed bool) (*crowd, error) {
	c, err := newCrowd(m.ids(), timed)
	if err != nil {
		return nil, err
	}
	streams, err := m.open(channel, n)
	if err == nil {
		err = c.join(streams...)
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// dismiss closes a crowd and keeps account of what it has lost.
func (m *match) dismiss(c *crowd, err *error) {
	f, ferr := c.faults()
	m.lost += f.missing
	if f.gone > 0 {
		m.table.note("%s, run %d: %d streams were ended by the server", m.name, m.run+1, f.gone)
	}
	if f.repeated > 0 {
		m.table.note("%s, run %d: %d events were delivered twice", m.name, m.run+1, f.repeated)
	}
	*err = errors.Join(*err, ferr, c.close())
}

// costs are the processor times of a target and of this process.
type costs struct{ target, own time.Duration }

func (m *match) costs() (c costs, err error) {
	if c.target, err = treeCPU(m.target); err != nil {
		return c, err
	}
	c.own, err = ownCPU()
	return c, err
}

func (c costs) since(before costs) costs {
	return costs{target: c.target - before.target, own: c.own - before.own}
}

// delivered waits until a crowd of n has received all events of its feed.
func (m *match) delivered(ctx context.Context, c *crowd, f *feed, n int) error {
	want := int64(f.published()) * int64(n)
	err := until(ctx, 20*time.Second, fmt.Sprintf("%d events have arrived", want), func() (bool, error) {
		return c.received.Load() >= want, nil
	})
	if err != nil {
		return fmt.Errorf("%w; %d have", err, c.received.Load())
	}
	return nil
}

func (a about) contestants(b *strings.Builder) {
	for _, t := range a.Targets {
		fmt.Fprintf(b, "- %s\n", t)
	}
	for _, t := range a.Absent {
		fmt.Fprintf(b, "- not here: %s\n", t)
	}
}
