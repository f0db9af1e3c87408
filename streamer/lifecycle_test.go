package streamer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestMaxStreamsIsAnsweredAndHangUpsFreeSlots(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.MaxStreams = 3
	e := startEnv(t, cfg, 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	var open []*client
	for range 3 {
		open = append(open, e.stream(""))
	}
	e.live(3)
	c := e.get(streamPath, "reader")
	if c.status != 503 || c.header.Get("Retry-After") == "" {
		t.Errorf("one stream too many = %d, Retry-After %q", c.status, c.header.Get("Retry-After"))
	}
	c.close()
	began := time.Now()
	open[1].close()
	eventually(t, "the hang-up is noticed", func() bool { return e.streams() == 2 })
	if took := time.Since(began); took > 5*time.Second { // the keep-alive would take minutes
		t.Errorf("a hang-up was noticed after %v", took)
	}
	c = e.stream("")
	c.quiet(e)
	c.close()
	for _, c := range open {
		c.close()
	}
	eventually(t, "all streams are gone", func() bool { return e.streams() == 0 })
	if n := value(t, e.hub.metrics.streams.WithLabelValues("session")); n != 0 {
		t.Errorf("the gauge of streams is %v", n)
	}
}

// A connection that breaks between the handler and the take-over must not keep its slot:
// the server drops the take-over then if an earlier answer was still to be flushed.
func TestBrokenTakeOversFreeTheirSlots(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	e.warm("s")
	request := "GET " + streamPath + "?colour=red HTTP/1.1\r\nHost: t\r\nx-api-key: reader\r\n\r\n" +
		"GET " + streamPath + " HTTP/1.1\r\nHost: t\r\nx-api-key: reader\r\n\r\n"
	for range 100 {
		nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.(*net.TCPConn).SetLinger(0) // Close resets
		if _, err := nc.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
	}
	eventually(t, "all slots are free", func() bool { return e.streams() == 0 })
}

func TestManyListenersHalfOfThemLeave(t *testing.T) {
	checkGoroutines(t)
	listeners, appends := 500, 60
	if raceEnabled {
		listeners = 200
	}
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	clients := make([]*client, listeners)
	for i := range clients {
		clients[i] = e.stream("")
	}
	e.live(listeners)
	var half sync.WaitGroup
	var wg sync.WaitGroup
	for i, c := range clients {
		half.Add(1)
		wg.Go(func() {
			defer c.close()
			for n := range appends {
				if n == appends/2 {
					half.Done()
					if i%2 == 0 {
						return
					}
				}
				f, err := c.event()
				if want := fmt.Sprintf(`{"t_ms":%d,"payload":{"n":%d}}`, n, n); err != nil || f.data != want {
					t.Errorf("listener %d: event %d = %+v, %v", i, n, f, err)
					if n < appends/2 {
						half.Done()
					}
					return
				}
			}
		})
	}
	for n := range appends {
		e.produce(numbered("s", n, 1)...)
		if n == appends/2 {
			half.Wait()
		}
	}
	wg.Wait()
	eventually(t, "all streams are gone", func() bool { return e.streams() == 0 })
}

func TestCloseEndsEverybodyWithAGoodbye(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(numbered("s", 0, 10)...)
	e.serve()
	clients := make([]*client, 50)
	for i := range clients {
		clients[i] = e.stream("?from=start")
		defer clients[i].close()
	}
	e.live(len(clients))
	e.closeHub()
	for i, c := range clients {
		c.mustExpect(e.want("s", -1))
		if f, err := c.next(); err != nil || f.retry == "" {
			t.Errorf("listener %d: goodbye = %+v, %v", i, f, err)
		}
		if _, err := c.next(); !errors.Is(err, io.EOF) {
			t.Errorf("listener %d: after the goodbye: %v", i, err)
		}
	}
	c := e.get(streamPath, "reader")
	defer c.close()
	if c.status != 503 {
		t.Errorf("a stream after Close = %d %s", c.status, c.body())
	}
}

// The tape's reader gives up: its streams end, and a client that comes back is served by
// a new tape.
func TestStreamsEndWithTheirTape(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	c := e.stream("")
	defer c.close()
	e.live(1)
	e.tapes.Close()
	if f, err := c.next(); err != nil || f.event != "error" || !strings.Contains(f.data, codeConnection) {
		t.Errorf("a stream whose tape failed: %+v, %v; want an error", f, err)
	}
	if f, err := c.next(); !errors.Is(err, io.EOF) {
		t.Errorf("behind the error: %+v, %v; want the end", f, err)
	}
}

// stress is a node on which everything happens at once: wakes, heartbeats, hang-ups,
// connections that fill up, evictions, replays, and the stop. The race detector watches that
// no subscription is run by two goroutines.
type stress struct {
	rounds, clients int
	lasts           time.Duration // of a round

	// serve makes the events that are there before, and serves.
	serve func(e *env, rng *rand.Rand)
	// client is the life of one connection. Every client has one after the other.
	client func(e *env, rng *rand.Rand)
	// produce appends some events, for the nth time.
	produce func(e *env, rng *rand.Rand, n int)
}

func (s stress) run(t *testing.T) {
	t.Helper()
	for round := range s.rounds {
		cfg := testConfig()
		cfg.KeepAlive = 64 * time.Millisecond
		cfg.WriteTimeout = 200 * time.Millisecond
		cfg.Tape.MaxBytes = 200 << 10
		cfg.MaxReplays = 3
		cfg.Workers = 4
		e := startEnv(t, cfg, 1)
		rng := rand.New(rand.NewPCG(uint64(round), 1<<32))
		e.produce(bigEvents(0, 20)...)
		s.serve(e, rng)
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range s.clients {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(i)))
				for ctx.Err() == nil {
					s.client(e, rng)
				}
			})
		}
		for n, began := 0, time.Now(); time.Since(began) < s.lasts; n++ {
			s.produce(e, rng, n)
			e.history.setWatermark(rng.Int64N(e.end("s")))
		}
		if round%2 == 0 {
			e.closeHub() // under the clients' feet
		}
		stop()
		wg.Wait()
		e.closeHub()
		if n := e.streams(); n != 0 {
			t.Errorf("round %d: %d streams after Close", round, n)
		}
	}
}

func TestSubscriptionsUnderStress(t *testing.T) {
	checkGoroutines(t)
	var served atomic.Int64
	stress{
		rounds: 6, clients: 24, lasts: 1200 * time.Millisecond,
		serve: func(e *env, rng *rand.Rand) {
			e.produce(mixed(rng, 300)...)
			e.history.setWatermark(100)
			e.serve()
		},
		client: func(e *env, rng *rand.Rand) {
			query := []string{"", "?from=start", "?from=start&on_slow=replay", "?close=end&type=a", "?notices=1&from=start"}[rng.IntN(5)]
			c, err := e.dial(streamPath+query, "reader")
			if err != nil {
				return
			}
			defer c.close()
			_ = c.nc.(*net.TCPConn).SetReadBuffer(4096)
			if rng.IntN(2) == 0 {
				_ = c.nc.(*net.TCPConn).SetLinger(0)
			}
			_ = c.nc.SetReadDeadline(time.Now().Add(time.Duration(rng.IntN(300)) * time.Millisecond))
			for range rng.IntN(400) {
				if _, err := c.next(); err != nil {
					return
				}
				served.Add(1)
			}
		},
		produce: func(e *env, rng *rand.Rand, n int) {
			e.produce(bigEvents(n, 1)...)
			e.produce(mixed(rng, 10)...)
		},
	}.run(t)
	t.Logf("%d frames read", served.Load())
}
