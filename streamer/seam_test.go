package streamer

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// mixed returns events of several sessions of one partition: those of s, others', hidden
// ones, and repeats of message ids.
func mixed(rng *rand.Rand, n int) []*schema.Event {
	out := make([]*schema.Event, 0, n)
	for range n {
		session, typ, id := "s", "tick", ""
		if rng.IntN(3) == 0 {
			session = fmt.Sprint("other", rng.IntN(5))
		}
		switch rng.IntN(10) {
		case 0:
			typ = schema.TypeSessionCreated
		case 1, 2:
			typ = "memory.updated"
		}
		if rng.IntN(2) == 0 {
			id = fmt.Sprint("m", rng.IntN(n))
		}
		out = append(out, newEvent(session, typ, id))
	}
	return out
}

func cursorAt(offset int64) string {
	return schema.EventID{Position: schema.Position{Epoch: 1, Offset: offset}, TimeMs: 1}.String()
}

// Every cursor of a log gets exactly the rest of it, wherever the seams between
// ClickHouse, Kafka and the tape lie.
func TestEveryCursorGetsExactlyTheRest(t *testing.T) {
	checkGoroutines(t)
	events, perTape := 2000, 400
	if raceEnabled {
		events = 800
	}
	for _, tapeBytes := range []int{64 << 20, events * perTape / 2, 20_000} {
		t.Run(fmt.Sprintf("tape of %d bytes", tapeBytes), func(t *testing.T) {
			cfg := testConfig()
			cfg.Tape.MaxBytes = tapeBytes
			cfg.ReplayBytes = 50_000
			e := startEnv(t, cfg, 1)
			rng := rand.New(rand.NewPCG(1, uint64(tapeBytes)))
			for range 10 {
				e.produce(mixed(rng, events/10)...)
			}
			e.serve()
			e.warm("s")
			all := e.want("s", -1)
			cursors := make(chan int64)
			var wg sync.WaitGroup
			var delivered atomic.Int64
			for range 16 {
				wg.Go(func() {
					for cursor := range cursors {
						c, err := e.dial("/v1/sessions/s/events/stream?last_event_id="+cursorAt(cursor), "reader")
						if err != nil {
							t.Errorf("cursor %d: %v", cursor, err)
							continue
						}
						want := e.want("s", cursor)
						if c.status != 200 {
							t.Errorf("cursor %d is answered %d %s", cursor, c.status, c.body())
						} else if err := c.expect(want); err != nil {
							t.Errorf("cursor %d: %v", cursor, err)
						}
						delivered.Add(int64(len(want)))
						c.close()
					}
				})
			}
			for cursor := range e.end("s") {
				if cursor%7 == 0 {
					e.history.setWatermark(rng.Int64N(e.end("s") + 1))
				}
				e.history.failing.Store(rng.IntN(4) == 0)
				e.history.emitted.Store(0)
				e.history.failAfter.Store(rng.Int64N(40))
				cursors <- cursor
			}
			close(cursors)
			wg.Wait()
			t.Logf("%d cursors, %d events delivered, %d listed", e.end("s"), delivered.Load(), len(all))
		})
	}
}

// The same while everything moves: events are appended, the tape sheds its oldest in the
// middle of replays, the watermark goes up, ClickHouse fails and comes back.
func TestReplayRunsIntoLiveWithoutASeam(t *testing.T) {
	checkGoroutines(t)
	rounds, listeners, appends := 10, 60, 400
	if raceEnabled {
		rounds, listeners, appends = 5, 30, 250
	}
	cfg := testConfig()
	cfg.Tape.MaxBytes = 60_000 // some 150 events
	cfg.Tape.DedupeOffsets = 700
	cfg.ReplayBytes = 10_000
	e := startEnv(t, cfg, 1)
	rng := rand.New(rand.NewPCG(7, 7))
	e.produce(mixed(rng, 2000)...)
	e.serve()
	var delivered, full int64
	for round := range rounds {
		end := e.end("s")
		stop := make(chan struct{})
		var movers sync.WaitGroup
		movers.Go(func() { // the materialiser, and ClickHouse's health
			rng := rand.New(rand.NewPCG(uint64(round), 1))
			for {
				e.history.setWatermark(rng.Int64N(e.end("s") + 1))
				e.history.failing.Store(rng.IntN(3) == 0)
				e.history.emitted.Store(0)
				e.history.failAfter.Store(rng.Int64N(60))
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(rng.IntN(3000)) * time.Microsecond):
				}
			}
		})
		clients := make([]*client, listeners)
		cursors := make([]int64, listeners)
		var finished sync.WaitGroup
		done := make(chan struct{}) // closed when the round's last event is listed
		for i := range clients {
			cursors[i] = rng.Int64N(end)
			if rng.IntN(3) == 0 {
				cursors[i] = max(0, end-1-rng.Int64N(200)) // near the tape's edge
			}
			query := "?last_event_id=" + cursorAt(cursors[i])
			if i%4 == 0 {
				query += "&on_slow=replay"
			}
			c, err := e.dial("/v1/sessions/s/events/stream"+query, "reader")
			if err != nil || c.status != 200 {
				t.Fatalf("round %d: %v, %+v", round, err, c)
			}
			clients[i] = c
			finished.Go(func() {
				defer c.close()
				over := fmt.Sprint("round.over.", round)
				var got []string
				dropped := 0
				for {
					f, err := c.next()
					if err != nil {
						t.Errorf("round %d, cursor %d, after %d events: %v", round, cursors[i], len(got), err)
						return
					}
					if n, ok := strings.CutPrefix(f.comment, "dropped "); ok && i%4 != 0 {
						lost, _ := strconv.Atoi(n)
						dropped += lost
						continue
					}
					if f.comment == "keepalive" {
						continue
					}
					if f.comment != "" || f.event == "playhead.gap" {
						t.Errorf("round %d, cursor %d, after %d events: %+v", round, cursors[i], len(got), f)
						return
					}
					got = append(got, f.id)
					if f.event == over {
						break
					}
				}
				<-done
				want := e.want("s", cursors[i])
				k := 0
				for _, id := range want {
					switch {
					case k < len(got) && got[k] == id:
						k++
					case dropped > 0:
						dropped--
					default:
						t.Errorf("round %d, cursor %d: %s did not come, or not in its place; %d of %d events came",
							round, cursors[i], offsetText(id), len(got), len(want))
						return
					}
				}
				if k != len(got) || dropped != 0 {
					t.Errorf("round %d, cursor %d: %d of %d events are not wanted, %d are told lost that were not",
						round, cursors[i], len(got)-k, len(got), dropped)
				}
				atomic.AddInt64(&delivered, int64(len(got)))
				atomic.AddInt64(&full, 1)
			})
		}
		for left := appends; left > 0; {
			n := min(left, 1+rng.IntN(40))
			e.produce(mixed(rng, n)...)
			left -= n
		}
		e.produce(newEvent("s", fmt.Sprint("round.over.", round), ""))
		close(done)
		finished.Wait()
		close(stop)
		movers.Wait()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d listeners got %d events, %d questions to history", full, delivered, e.history.reads.Load())
}

// Repeats of message ids are dropped the same whether they are judged by the tape, or by
// a scan of Kafka below it.
func TestRepeatsAreDroppedOnEveryWay(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	nowMs := time.Now().UnixMilli()
	var events []*schema.Event
	for i := range 300 { // 30 ids, 9 minutes ago and now
		ev := newEvent("s", "tick", fmt.Sprint("m", i%30))
		ev.ID.TimeMs = nowMs - int64(300-i)*1800
		events = append(events, ev)
	}
	e.produce(events...)
	e.history.failing.Store(false)
	e.serve()
	e.warm("s")
	for _, watermark := range []int64{0, 10, 150, 299, 300} {
		for _, cursor := range []int64{0, 15, 29, 31, 200, 298} {
			e.history.setWatermark(watermark)
			c := e.stream("?last_event_id=" + cursorAt(cursor))
			c.mustExpect(e.want("s", cursor))
			c.quiet(e)
			c.close()
		}
	}
}

// Kafka no longer holds what the cursor asks for. With history it is read there; without,
// the stream says so and ends, and the client resumes later.
func TestWhatOnlyHistoryHas(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 100)...)
	e.deleteRecords(0, 50)
	e.history.setWatermark(80)
	e.serve()
	e.warm("s")
	c := e.stream("?from=start")
	c.mustExpect(e.want("s", -1))
	c.quiet(e)
	c.close()

	// The state is known, so the stream opens; then history goes away.
	e.history.failing.Store(true)
	c = e.stream("?last_event_id=" + cursorAt(10))
	f, err := c.next()
	if err != nil || f.event != "error" || f.data != `{"code":"CONNECTION_ERROR","message":"history is unavailable; resume later from the last id","retry_after":5000}` {
		t.Errorf("first frame = %+v, %v; want an error event", f, err)
	}
	if f, err := c.next(); err == nil {
		t.Errorf("the stream goes on with %+v", f)
	}
	c.close()
	// What Kafka holds it still delivers.
	c = e.stream("?last_event_id=" + cursorAt(60))
	c.mustExpect(e.want("s", 60))
	c.close()
}

// Neither Kafka nor history has what lies below the log's start: the client is told.
func TestGapIsTold(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 100)...)
	e.deleteRecords(0, 50)
	e.history.setWatermark(0)
	e.serve()
	e.warm("s")
	c := e.stream("?last_event_id=" + cursorAt(10))
	f, err := c.next()
	want := fmt.Sprintf(`{"from":%q,"to":%q,"reason":"expired"}`, gapID(11), gapID(50))
	if err != nil || f.event != "playhead.gap" || f.data != want {
		t.Errorf("first frame = %+v, %v; want playhead.gap %s", f, err, want)
	}
	c.mustExpect(e.want("s", 49))
	c.close()
}

func gapID(offset int64) string {
	return schema.EventID{Position: schema.Position{Epoch: 1, Offset: offset}}.String()
}
