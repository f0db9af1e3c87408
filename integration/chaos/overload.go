package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/playhead-dev/playhead/integration/cluster"
)

// Over-load: the way to Kafka is made narrow, so that what one node can sustain is little
// enough for one machine to offer ten times as much of it.

const (
	overloadFactor = 10
	narrowBytes    = 200_000 // a second, each way of each connection to Kafka

	// recoverWithin is how long a node may take, once the flood is over, to take an event
	// and show it within answersWithin.
	recoverWithin = time.Minute
	answersWithin = time.Second
)

// overloadSettings bound what a node holds of appends to what it sustains in some seconds,
// which is then how long it takes to recover.
const overloadSettings = `ingest:
  max_batch_bytes: 2097152
  max_batch_events: 1000
  max_in_flight_bytes: 8388608
  max_in_flight_events: 8000
`

// overloadReport is what a flood came to.
type overloadReport struct {
	Sustained int                 `json:"sustained_events_per_second"`
	Offered   int                 `json:"offered_events_per_second"`
	Seconds   float64             `json:"seconds"`
	Counts    cluster.FloodCounts `json:"counts"`
	Idle      int64               `json:"idle_resident_bytes"`
	Most      int64               `json:"most_resident_bytes"`
	Bound     int64               `json:"bound_resident_bytes"`
	Recovered float64             `json:"recovered_seconds"`
	Verdict   *cluster.Verdict    `json:"verdict"`
	Broken    []string            `json:"broken,omitempty"`
	Streams   int                 `json:"streams"`
	Stuck     int                 `json:"stuck"`
}

// OK reports whether every promise was kept.
func (r *overloadReport) OK() bool { return len(r.Broken) == 0 && r.Verdict.OK() }

func (r *overloadReport) print(w io.Writer) {
	c := r.Counts
	const mib = 1 << 20
	fmt.Fprintf(w, "\nover-load: %d events/s sustained, %d events/s offered for %.0f s, with %d streams, %d of them stuck\n", r.Sustained, r.Offered, r.Seconds, r.Streams, r.Stuck)
	fmt.Fprintf(w, "appends: %d events offered, %d acknowledged, %d requests refused, %d unanswered (%d events not offered for want of connections)\n",
		c.Offered, c.Acknowledged, c.Refused, c.Unanswered, c.NotOffered)
	fmt.Fprintf(w, "pages: %d, %d refused; streams: %d opened, %d cut, %d events delivered, %d told as dropped\n", c.Pages, c.PagesRefused, c.Streams, c.StreamsCut, c.Delivered, c.Dropped)
	fmt.Fprintf(w, "resident: %d MiB before, %d MiB at most, bound %d MiB; recovered after %.1f s\n%s\n", r.Idle/mib, r.Most/mib, r.Bound/mib, r.Recovered, r.Verdict)
	for _, b := range r.Broken {
		fmt.Fprintf(w, "  %s\n", b)
	}
	for _, f := range r.Verdict.Findings {
		fmt.Fprintf(w, "  %s: %s\n", f.Where, f.What)
	}
}

func (r *overloadReport) broke(format string, args ...any) {
	r.Broken = append(r.Broken, fmt.Sprintf(format, args...))
}

// overload measures what a node sustains, floods it, and looks what is left.
func overload(ctx context.Context, cfg config, progress io.Writer) (r *overloadReport, err error) {
	r = &overloadReport{Verdict: &cluster.Verdict{}, Bound: int64(cfg.resident) << 20, Streams: cfg.streams, Stuck: cfg.streams / 2}
	dir, err := os.MkdirTemp(cfg.dir, "playhead-overload-")
	if err != nil {
		return r, fmt.Errorf("directory of the over-load: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := cluster.Start(ctx, cluster.Config{Dir: dir, Binary: cfg.server, Library: cfg.library, Self: cfg.self, Settings: overloadSettings})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	nodes, err := c.Join(ctx, "")
	if err != nil {
		return r, err
	}
	if err := c.Unlimit(ctx); err != nil {
		return r, err
	}
	n := nodes[0]
	for _, l := range c.Log.Links() {
		l.Set(cluster.Everybody, cluster.Fault{BytesPerSecond: narrowBytes})
	}
	if r.Sustained, err = sustained(ctx, n, cfg.seed); err != nil {
		return r, err
	}
	fmt.Fprintf(progress, "sustained: %d events/s\n", r.Sustained)
	r.Idle = n.ResidentBytes()
	r.Offered = overloadFactor * r.Sustained
	f, err := cluster.StartFlood(ctx, n, cluster.FloodConfig{
		Seed: cfg.seed + 1, Sessions: 50, Batch: 50, Bytes: 200, Rate: r.Offered, Appends: 2000,
		Streams: cfg.streams, Stuck: r.Stuck, Pagers: 64,
	})
	if err != nil {
		return r, err
	}
	r.watch(ctx, n, cfg.duration)
	r.Counts = f.Counts()
	f.Ease()
	r.recover(ctx, f)
	if err := c.Calm(ctx); err != nil {
		r.broke("the cluster does not recover: %v", err)
	}
	if err := f.AwaitHeard(ctx, c, finishWithin); err != nil {
		r.broke("%v", err)
	}
	f.Stop()
	r.Verdict, err = c.AuditFlood(ctx, f)
	r.judge()
	return r, err
}

// sustained is what the node takes of appends one after the other, a second.
func sustained(ctx context.Context, n *cluster.Node, seed uint64) (int, error) {
	const measured = 5 * time.Second
	f, err := cluster.StartFlood(ctx, n, cluster.FloodConfig{Seed: seed, Sessions: 8, Batch: 50, Bytes: 200, Appends: 8})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-time.After(measured):
	case <-ctx.Done():
	}
	rate := float64(f.Counts().Acknowledged) / time.Since(began).Seconds()
	f.Stop()
	return int(math.Round(rate)), context.Cause(ctx)
}

// watch notes how much memory the node takes, for that long.
func (r *overloadReport) watch(ctx context.Context, n *cluster.Node, length time.Duration) {
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for time.Since(began) < length {
		select {
		case <-tick.C:
			r.Most = max(r.Most, n.ResidentBytes())
		case <-ctx.Done():
			return
		}
	}
	r.Seconds = time.Since(began).Seconds()
}

// recover waits until the node is as it was: the way to Kafka stays narrow.
func (r *overloadReport) recover(ctx context.Context, f *cluster.Flood) {
	began := time.Now()
	for {
		took, err := f.Answers(ctx)
		r.Recovered = time.Since(began).Seconds()
		if err == nil && took < answersWithin {
			return
		}
		if time.Since(began) > recoverWithin {
			r.broke("%v after the flood an event and its page take %v (%v)", recoverWithin, took, err)
			return
		}
		select {
		case <-time.After(50 * time.Millisecond): // between two looks at the condition
		case <-ctx.Done():
			return
		}
	}
}

// judge adds what the audit cannot know.
func (r *overloadReport) judge() {
	if r.Most > r.Bound {
		r.broke("the node took %d MiB of memory; the bound is %d MiB", r.Most>>20, r.Bound>>20)
	}
	if r.Counts.Refused == 0 && r.Counts.NotOffered == 0 {
		r.broke("no append was refused, and none kept waiting: that was no over-load")
	}
	if int(r.Counts.Streams) < r.Streams {
		r.broke("%d of %d streams were opened", r.Counts.Streams, r.Streams)
	}
}
