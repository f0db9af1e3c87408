package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/playhead-dev/playhead/integration/cluster"
)

// finishWithin is how long clients may take, with nothing broken any more, to be
// acknowledged and to get everything.
const finishWithin = 90 * time.Second

// campaign runs rounds until the time or the faults are used up.
func campaign(ctx context.Context, cfg config, progress io.Writer) (*report, error) {
	r := newReport(cfg)
	if cfg.clock {
		dir, err := os.MkdirTemp(cfg.dir, "playhead-clock-")
		if err != nil {
			return r, fmt.Errorf("a clock to step: %w", err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // it is a temporary directory
		if cfg.server, err = buildClocked(ctx, cfg.source, dir); err != nil {
			return r, err
		}
	}
	began := time.Now()
	for i := uint64(0); ; i++ {
		length := cfg.round
		if cfg.duration > 0 {
			length = min(length, cfg.duration-time.Since(began))
		}
		faults := cfg.faults - r.Faults
		if length < time.Second || cfg.faults > 0 && faults <= 0 {
			return r, nil
		}
		one, err := newRound(cfg, cfg.seed+i, faults).run(ctx, length)
		r.add(one)
		fmt.Fprintf(progress, "round %d, seed %d: %d faults, %d kill points: %s\n", i+1, one.Seed, one.Faults, one.KillPoints, one.Outcome())
		if err != nil {
			return r, fmt.Errorf("round of seed %d: %w", one.Seed, err)
		}
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
	}
}

// round is one cluster, from its start to its audit.
type round struct {
	cfg    config
	left   atomic.Int64 // faults, if they are counted
	counts bool
	report *roundReport

	cluster *cluster.Cluster
	load    *cluster.Load
	disks   []*disk
	diskUse sync.Mutex   // held by who does something to a disk
	power   sync.RWMutex // held by who takes a machine's power away, shared by who starts its processes

	mu sync.Mutex // guards report's tallies
}

// newRound prepares a round of at most that many faults; 0: any number.
func newRound(cfg config, seed uint64, faults int) *round {
	r := &round{cfg: cfg, counts: cfg.faults > 0, report: newRoundReport(seed)}
	r.left.Store(int64(faults))
	return r
}

// run breaks things for that long.
func (r *round) run(ctx context.Context, length time.Duration) (report *roundReport, err error) {
	dir, err := os.MkdirTemp(r.cfg.dir, fmt.Sprintf("playhead-chaos-%d-", r.report.Seed))
	if err != nil {
		return r.report, fmt.Errorf("directory of the round: %w", err)
	}
	defer func() {
		if err == nil && r.report.OK() && !r.cfg.keep {
			err = os.RemoveAll(dir)
		} else {
			r.report.Dir = dir
		}
	}()
	r.makeDisks(ctx, dir)
	defer func() { err = errors.Join(err, r.removeDisks()) }()
	r.cluster, err = cluster.Start(ctx, cluster.Config{Dir: dir, Binary: r.cfg.server, Library: r.cfg.library, Self: r.cfg.self})
	if err != nil {
		return r.report, err
	}
	defer func() { err = errors.Join(err, r.cluster.Close()) }()
	if _, err = r.cluster.Join(ctx, make([]string, r.cfg.nodes)...); err != nil {
		return r.report, err
	}
	if err = r.cluster.Unlimit(ctx); err != nil {
		return r.report, err
	}
	r.load = cluster.StartLoad(r.cluster, cluster.DefaultLoad(r.report.Seed))
	r.breakThings(ctx, length)
	return r.report, r.judge(ctx)
}

// breakThings has three hands at work: two break processes, one networks, disks and clocks.
func (r *round) breakThings(ctx context.Context, length time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	processes := append(processFaults(), powerCuts(r)...)
	others := append(networkFaults(), diskFaults(r)...)
	if r.cfg.clock {
		others = append(others, clockFaults()...)
	}
	began := time.Now()
	var hands sync.WaitGroup
	for i, menu := range [][]fault{processes, processes, others} {
		hands.Go(func() {
			newHand(r, i, menu).work(ctx)
		})
	}
	hands.Wait()
	r.report.Seconds = time.Since(began).Seconds()
}

// judge puts everything back and audits.
func (r *round) judge(ctx context.Context) error {
	if err := r.cluster.Calm(ctx); err != nil {
		r.report.Broken = append(r.report.Broken, "the cluster does not recover: "+err.Error())
	}
	if err := r.load.Finish(ctx, finishWithin); err != nil {
		r.report.Broken = append(r.report.Broken, "clients are not done: "+err.Error())
	}
	v, err := r.cluster.Audit(ctx, r.load)
	r.report.Verdict = v
	for _, n := range r.cluster.Nodes {
		r.report.EndedByThemselves += n.EndedByItself()
	}
	for _, mark := range cluster.Marks() {
		for _, out := range r.cluster.Outputs() {
			if n := out.Count(mark); n > 0 {
				r.report.Marks[mark] += n
			}
		}
	}
	return err
}

// hand does one thing after the other from its menu.
type hand struct {
	round  *round
	random *rand.Rand
	menu   []fault
}

// newHand makes hand i of a round.
func newHand(r *round, i int, menu []fault) *hand {
	return &hand{round: r, random: rand.New(rand.NewPCG(r.report.Seed, uint64(i))), menu: menu}
}

// fault is one thing to do. do returns when it is over; if it has killed, it says where.
type fault struct {
	name   string
	weight int
	do     func(ctx context.Context, h *hand) (kill string)
}

// pick picks from the menu by the weights.
func (h *hand) pick() fault {
	total := 0
	for _, f := range h.menu {
		total += f.weight
	}
	n := h.random.IntN(total)
	for _, f := range h.menu {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	panic("chaos: weights do not add up")
}

// work breaks and waits, in turn, until ctx ends or the faults are used up.
func (h *hand) work(ctx context.Context) {
	for ctx.Err() == nil {
		if h.round.counts && h.round.left.Add(-1) < 0 {
			return
		}
		f := h.pick()
		began := h.round.load.Journal.Now()
		kill := f.do(ctx, h)
		h.round.count(f.name, kill, began)
		h.wait(ctx, 50*time.Millisecond, 500*time.Millisecond) // for the cluster to do some work
	}
}

// count notes a fault, and where it killed, if it did.
func (r *round) count(name, kill string, began time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Timeline = append(r.report.Timeline, fmt.Sprintf("%7.2f to %7.2f %s %s", began.Seconds(), r.load.Journal.Now().Seconds(), name, kill))
	r.report.Faults++
	r.report.ByFault[name]++
	if kill != "" {
		r.report.KillPoints++
		r.report.ByKillPoint[kill]++
	}
}

// wait waits for a time in a range, chosen at random.
func (h *hand) wait(ctx context.Context, least, most time.Duration) {
	timer := time.NewTimer(h.between(least, most))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (h *hand) between(least, most time.Duration) time.Duration {
	return least + time.Duration(h.random.Int64N(int64(most-least)+1))
}

// node picks a node.
func (h *hand) node() *cluster.Node {
	return h.round.cluster.Nodes[h.random.IntN(len(h.round.cluster.Nodes))]
}

// broker picks a broker.
func (h *hand) broker() cluster.Broker {
	all := h.round.cluster.Log.Brokers()
	return all[h.random.IntN(len(all))]
}

// again starts a process; one that cannot be started is found by the audit.
func (h *hand) again(p interface{ Up() error }) {
	h.round.power.RLock()
	defer h.round.power.RUnlock()
	if err := p.Up(); err != nil {
		h.round.mu.Lock()
		h.round.report.Broken = append(h.round.report.Broken, err.Error())
		h.round.mu.Unlock()
	}
}
