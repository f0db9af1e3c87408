package streamer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stored starts a node with n events of 200 bytes in the history of session s, and no more
// slots than said.
func stored(t *testing.T, n, maxReplays int) *env {
	t.Helper()
	cfg := testConfig()
	cfg.MaxReplays = maxReplays
	cfg.ReplayReads = 1
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	for range 10 {
		e.produce(benchEvents(n / 10)...)
	}
	e.history.setWatermark(int64(n))
	e.serve()
	e.warm("s")
	return e
}

// A client has the only slot and stops reading, while nobody waits. Whoever comes then gets
// the slot all the same, long before the write timeout; the first goes on when it reads.
func TestStuckClientGivesUpItsSlot(t *testing.T) {
	checkGoroutines(t)
	e := stored(t, 20_000, 1)
	stuck := e.stuck("?from=start")
	eventually(t, "the stuck client's replay waits for it", func() bool {
		return e.hub.replays.idle() == 0 && e.history.reads.Load() > 0
	})
	began := time.Now()
	for range 3 {
		c := e.stream("?from=start")
		c.mustExpect(e.want("s", -1))
		c.close()
	}
	if took := time.Since(began); took > e.cfg.WriteTimeout/2 {
		t.Errorf("three replays took %v beside a client that does not read", took)
	}
	stuck.mustExpect(e.want("s", -1))
	stuck.quiet(e)
	stuck.close()
}

// Many clients that read slowly or not at all share the slots with one that is fast.
func TestSlowReplaysDoNotStopAFastOne(t *testing.T) {
	checkGoroutines(t)
	slow := 200
	if raceEnabled {
		slow = 60
	}
	e := stored(t, 10_000, 2)
	var clients []*client
	for range slow {
		clients = append(clients, e.stuck("?from=start"))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, c := range clients[:slow/2] { // these read some 10 KB/s
		wg.Go(func() {
			buf := make([]byte, 100)
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
					if _, err := c.nc.Read(buf); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	began := time.Now()
	fast := e.stream("?from=start")
	fast.mustExpect(e.want("s", -1))
	took := time.Since(began)
	fast.quiet(e)
	fast.close()
	t.Logf("a replay of 10,000 events beside %d slow ones took %v; %d questions to history", slow, took, e.history.reads.Load())
	if took > 15*time.Second {
		t.Errorf("a fast client's replay took %v", took)
	}
	close(stop)
	wg.Wait()
	for _, c := range clients {
		c.close()
	}
}

// A replay that never has to wait for its client lets others have their turn.
func TestLongReplayYieldsItsSlot(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.MaxReplays, cfg.ReplayReads, cfg.ReplayBytes = 1, 4, 64<<10
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	const n = 30_000
	for range 10 {
		e.produce(benchEvents(n / 10)...)
	}
	e.history.setWatermark(n)
	e.history.delay.Store(int64(25 * time.Millisecond)) // some 3 s in all
	e.serve()
	e.warm("s")
	long := e.stream("?from=start")
	defer long.close()
	var wg sync.WaitGroup
	var over atomic.Bool
	wg.Go(func() {
		if err := long.expect(e.want("s", -1)); err != nil {
			t.Error(err)
		}
		over.Store(true)
	})
	eventually(t, "the long replay is under way", func() bool { return e.history.reads.Load() > 2 })
	short := e.stream("?last_event_id=" + cursorAt(n-100))
	defer short.close()
	short.mustExpect(e.want("s", n-100))
	if over.Load() {
		t.Error("a short replay had to wait for the end of a long one")
	}
	wg.Wait()
}

// Every kind of replay at once, with one slot, one read and tiny chunks: none waits for
// another for ever.
func TestReplaysWithoutRoom(t *testing.T) {
	checkGoroutines(t)
	events, clients, rounds := 2000, 30, 4
	if raceEnabled {
		events, clients, rounds = 800, 16, 2
	}
	for _, slots := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d slots", slots), func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxReplays, cfg.ReplayReads, cfg.ReplayBytes = slots, 1, 64<<10
			cfg.Tape.MaxBytes = 20_000
			cfg.KeepAlive = 64 * time.Millisecond
			cfg.Tape.IdleAfter = 300 * time.Millisecond
			e := startWideEnv(t, cfg, 8)
			rng := rand.New(rand.NewPCG(21, uint64(slots)))
			e.produce(scattered(rng, events)...)
			e.history.setWatermark(e.longest() / 2)
			e.serve()
			stop := make(chan struct{})
			var movers sync.WaitGroup
			movers.Go(func() {
				rng := rand.New(rand.NewPCG(22, 22))
				for {
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Millisecond):
						e.history.setWatermark(rng.Int64N(e.longest() + 1))
						e.history.failing.Store(rng.IntN(10) == 0)
						e.history.delay.Store(rng.Int64N(int64(200 * time.Microsecond)))
						e.produce(scattered(rng, 1)...)
					}
				}
			})
			var whole, cut atomic.Int64
			var wg sync.WaitGroup
			for i := range clients {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(i), 23))
					for range rounds {
						l := []listening{
							workspaceStream(""), workflowStream("type=tock"), sessionStream("s1", ""), workspaceStream("type=never"),
							workspaceStream("notices=1"), sessionStream("s2", "type=tick"),
						}[rng.IntN(6)]
						l.query += []string{"", "&on_slow=replay", "&speed=100"}[rng.IntN(3)]
						if !strings.Contains(l.query, "notices") {
							l.query += "&notices=1"
						}
						c, err := e.dial(l.at(""), "reader")
						if err != nil || c.status != 200 {
							t.Errorf("%s: %v, %+v", l.at(""), err, c)
							continue
						}
						if rng.IntN(3) == 0 { // reads a little, slowly, and goes
							_ = c.nc.(*net.TCPConn).SetReadBuffer(4096)
							for range rng.IntN(50) {
								if _, err := c.next(); err != nil {
									t.Errorf("%s: %v", l.at(""), err)
								}
								time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
							}
							cut.Add(1)
							c.close()
							continue
						}
						if _, err := c.toTheSeam(); err != nil {
							t.Errorf("%s: %v", l.at(""), err)
						}
						whole.Add(1)
						c.close()
					}
				})
			}
			wg.Wait()
			close(stop)
			movers.Wait()
			eventually(t, "all slots are free", func() bool {
				return e.hub.replays.idle() == slots && e.hub.reads.idle() == 1 && e.streams() == 0
			})
			t.Logf("%d replays came to their end, %d were cut", whole.Load(), cut.Load())
		})
	}
}

// Of several workspaces that want slots none waits for another's queue.
func TestSlotsAreSharedBetweenWorkspaces(t *testing.T) {
	s := newSlots(2)
	type grant struct {
		workspace string
		n         int
	}
	granted := make(chan grant, 100)
	want := func(workspace string, n int) {
		for i := range n {
			ch := s.queue(workspace)
			if ch == nil {
				t.Fatalf("%s has a slot, want none free", workspace)
			}
			go func() { // ends when its slot is granted, as all are
				<-ch
				granted <- grant{workspace, i}
			}()
		}
	}
	for range 2 {
		if s.queue("big") != nil {
			t.Fatal("no slot, want two free")
		}
	}
	want("big", 5)
	want("small", 2)
	want("other", 1)
	counts := make(map[string]int)
	next := func(of string) string {
		s.give(of)
		g := <-granted
		counts[g.workspace]++
		return g.workspace
	}
	for i, step := range []struct{ gives, gets string }{
		{"big", "small"},   // big still holds one; of the two with none, small came first
		{"big", "big"},     // big has none now, and waits longest
		{"small", "other"}, // small had its turn
		{"other", "small"},
	} {
		if got := next(step.gives); got != step.gets {
			t.Errorf("slot %d goes to %s, want %s", i, got, step.gets)
		}
	}
	for _, of := range []string{"small", "big", "big", "big"} {
		if got := next(of); got != "big" {
			t.Errorf("a slot goes to %s, want big, which alone waits", got)
		}
	}
	s.give("big")
	s.give("big")
	if s.idle() != 2 || s.contended() || len(s.held) != 0 || len(s.queues) != 0 {
		t.Errorf("at the end: %d idle, %v held, %d queues, want 2 idle and nothing else", s.idle(), s.held, len(s.queues))
	}
}

// Who stops waiting leaves nothing behind, also when the slot came in the same moment.
func TestSlotsForgetWhoLeaves(t *testing.T) {
	s := newSlots(1)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 31))
			for range 500 {
				ctx, cancel := context.WithCancel(t.Context())
				wake := make(chan struct{}, 1)
				if rng.IntN(2) == 0 {
					wg.Go(cancel)
				} else {
					wake <- struct{}{}
				}
				workspace := fmt.Sprint("w", rng.IntN(3))
				err := s.take(ctx, workspace, wake, func() error {
					if rng.IntN(2) == 0 {
						return errStop
					}
					return nil
				})
				if err == nil {
					s.give(workspace)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s.idle() != 1 || s.contended() || len(s.held) != 0 || len(s.queues) != 0 {
		t.Errorf("at the end: %d idle, %v held, %d queues, want 1 idle and nothing else", s.idle(), s.held, len(s.queues))
	}
}

var errStop = errors.New("stop")
