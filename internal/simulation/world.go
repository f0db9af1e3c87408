package simulation

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// World is one run of a simulation: its seed, what is decided by it, and what was found
// wrong. It is safe for concurrent use.
type World struct {
	Seed uint64

	began   time.Time
	calm    atomic.Bool
	tracing bool
	wg      sync.WaitGroup // what Go has started

	mu       sync.Mutex // guards what follows
	found    []string
	lines    []string
	digest   uint64
	steps    int
	overflow bool
}

// Bounds of what a run remembers.
const (
	maxFound = 20
	maxLines = 20_000
)

// NewWorld returns the world of a seed, in the bubble that it is called in. tracing keeps
// what Tracef is told.
func NewWorld(seed uint64, tracing bool) *World {
	return &World{Seed: seed, began: time.Now(), tracing: tracing}
}

// Go runs f, which ends by itself: the run is over when it has.
func (w *World) Go(f func()) { w.wg.Go(f) }

// Now returns the virtual time since the run began.
func (w *World) Now() time.Duration { return time.Since(w.began) }

// Calm ends all faults: from then on everything answers, and soon.
func (w *World) Calm() { w.calm.Store(true) }

// IsCalm reports whether Calm was called.
func (w *World) IsCalm() bool { return w.calm.Load() }

// Failf notes that something is wrong. The run goes on.
func (w *World) Failf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.Tracef("check", "WRONG: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) < maxFound {
		w.found = append(w.found, fmt.Sprintf("%v: %s", w.Now(), text))
	}
}

// Found returns what Failf was told.
func (w *World) Found() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.found
}

// Tracef notes what happens. The digest of a run is made of when Tracef was called, by
// whom, and for what, whether or not the lines are kept.
func (w *World) Tracef(who, format string, args ...any) {
	now := w.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps++
	// A sum: those that are told of one thing in one instant go on in any order.
	w.digest += mix(mix(uint64(now)) ^ hash(who) ^ hash(format)<<1)
	if !w.tracing {
		return
	}
	if len(w.lines) >= maxLines {
		w.overflow = true
		w.lines = w.lines[maxLines/2:]
	}
	w.lines = append(w.lines, fmt.Sprintf("%14.9fs %-14s %s", now.Seconds(), who, fmt.Sprintf(format, args...)))
}

// Trace returns the lines that were kept, the last of them if they were too many.
func (w *World) Trace() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := ""
	if w.overflow {
		first = "(earlier lines are left out)\n"
	}
	return first + strings.Join(w.lines, "\n")
}

// Digest tells runs apart: two runs of a seed have the same.
func (w *World) Digest() (digest uint64, steps int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.digest, w.steps
}

// Stream is a sequence of decisions, which depends on the seed and the stream's name alone:
// what others do does not change it. It is safe for concurrent use.
type Stream struct {
	Name string

	w   *World
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

// Stream returns a stream's beginning. A name is used once.
func (w *World) Stream(format string, args ...any) *Stream {
	name := fmt.Sprintf(format, args...)
	return &Stream{Name: name, w: w, rng: rand.New(rand.NewPCG(mix(w.Seed), hash(name)))}
}

// IntN returns a number from 0 to n-1; n is at least 1.
func (s *Stream) IntN(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(n)
}

// Between returns a number from low to high, both inclusive.
func (s *Stream) Between(low, high int) int { return low + s.IntN(high-low+1) }

// Chance is true with the given probability.
func (s *Stream) Chance(p float64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Float64() < p
}

// Fault is Chance until the world is calm, and false from then on.
func (s *Stream) Fault(p float64) bool { return s.Chance(p) && !s.w.IsCalm() }

// Duration returns a time from low to high, to the nanosecond.
func (s *Stream) Duration(low, high time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return low + time.Duration(s.rng.Int64N(int64(max(high-low, 0))+1))
}

// Tracef notes what the stream's owner does.
func (s *Stream) Tracef(format string, args ...any) { s.w.Tracef(s.Name, format, args...) }

// Sleep waits for a time from low to high. It returns ctx's cause if that ends first.
func (s *Stream) Sleep(ctx context.Context, low, high time.Duration) error {
	return sleep(ctx, s.Duration(low, high))
}

// Rest is Sleep without an end.
func (s *Stream) Rest(low, high time.Duration) { time.Sleep(s.Duration(low, high)) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}

// mix spreads the bits of x (the finaliser of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
