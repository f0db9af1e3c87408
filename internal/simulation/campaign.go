package simulation

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Campaign is a simulation that is run with many seeds.
type Campaign struct {
	// Run is one run. It is called in a bubble of its own, and returns when all that it
	// started has ended.
	Run func(w *World)
	// Seeds is how many seeds to run, from First on.
	Seeds int
	First uint64
	// Kept are seeds that have failed once. They are run first, always.
	Kept []uint64
}

// Chosen returns the campaign that the environment asks for: SEED=n is the one seed n, SEEDS=n
// so many seeds.
func (c Campaign) Chosen(t *testing.T, getenv func(string) string) Campaign {
	t.Helper()
	if text := getenv("SEEDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			t.Fatalf("SEEDS is %q; want a number", text)
		}
		c.Seeds = n
	}
	if text := getenv("SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("SEED is %q; want a number", text)
		}
		c.Seeds, c.First, c.Kept = 1, n, nil
	}
	return c
}

// Execute runs a campaign on all processors. A seed that fails is run once more, with a
// trace, and fails the test; the trace is kept with go test -artifacts.
func (c Campaign) Execute(t *testing.T) {
	t.Helper()
	seeds := append([]uint64(nil), c.Kept...)
	for i := range c.Seeds {
		seeds = append(seeds, c.First+uint64(i))
	}
	var next, failed atomic.Int64
	began := time.Now()
	t.Run("seeds", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				for failed.Load() < maxFailed {
					i := int(next.Add(1)) - 1
					if i >= len(seeds) {
						return
					}
					w := c.run(t, seeds[i], false)
					if len(w.Found()) == 0 {
						continue
					}
					failed.Add(1)
					c.report(t, seeds[i], w)
				}
			})
		}
	})
	ran := min(int(next.Load()), len(seeds))
	t.Logf("%d seeds in %v, %.0f a second", ran, time.Since(began).Round(time.Millisecond), float64(ran)/time.Since(began).Seconds())
}

// maxFailed is after how many failing seeds a campaign ends.
const maxFailed = 3

// traceTail is how many lines of a trace a failure shows.
const traceTail = 40

// run runs one seed in a bubble.
func (c Campaign) run(t *testing.T, seed uint64, tracing bool) (w *World) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		w = NewWorld(seed, tracing)
		c.Run(w)
		w.wg.Wait()
	})
	return w
}

// report fails the test with what was found, and the trace of a run that repeats it.
func (c Campaign) report(t *testing.T, seed uint64, w *World) {
	t.Helper()
	again := c.run(t, seed, true)
	trace := again.Trace()
	path := filepath.Join(t.ArtifactDir(), fmt.Sprintf("seed-%d.txt", seed))
	if err := os.WriteFile(path, []byte(trace+"\n"), 0o600); err != nil {
		t.Error(err)
	}
	lines := strings.Split(trace, "\n")
	t.Errorf("seed %d: %s\nonce more: %s\nrepeat with SEED=%d; the trace is in %s and ends\n%s", seed,
		strings.Join(w.Found(), "\n  "), strings.Join(again.Found(), "\n  "), seed, path, strings.Join(lines[max(0, len(lines)-traceTail):], "\n"))
}

// Repeatable runs seeds twice and fails the test if more of them differ than are allowed to:
// where goroutines go on in one nanosecond the scheduler decides, and not the seed.
func (c Campaign) Repeatable(t *testing.T, seeds, allowed int) {
	t.Helper()
	differ := 0
	for i := range seeds {
		seed := c.First + uint64(i)
		first, second := c.run(t, seed, true), c.run(t, seed, true)
		a, steps := first.Digest()
		if b, again := second.Digest(); a != b {
			differ++
			t.Logf("seed %d: two runs differ, of %d and %d steps, first in\n%s", seed, steps, again, difference(first.Trace(), second.Trace()))
		}
	}
	if differ > allowed {
		t.Errorf("%d of %d seeds are not repeated; %d may", differ, seeds, allowed)
	}
}

// difference returns the first lines that two traces do not share.
func difference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	slices.Sort(x) // what happens in one instant has no order
	slices.Sort(y)
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return strings.Join(x[max(0, i-10):i+1], "\n") + "\nand\n" + y[i]
		}
	}
	return "their ends"
}
