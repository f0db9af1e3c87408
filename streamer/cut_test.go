package streamer

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// eventsToCut is how many events the seam test appends; PLAYHEAD_SEAM_EVENTS makes it
// millions.
func eventsToCut(t *testing.T) int {
	t.Helper()
	if text := os.Getenv("PLAYHEAD_SEAM_EVENTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1000 {
			t.Fatalf("PLAYHEAD_SEAM_EVENTS is %q; want a number from 1000", text)
		}
		return n
	}
	if raceEnabled {
		return 15_000
	}
	return 120_000
}

// follower checks the events of one listener, across all of its connections, against the
// log: each partition's in order, none twice, none missing, none that is not wanted.
type follower struct {
	listening
	e    *env
	next map[uint16]int // index into env.inOrder of the first that has not come
	last string
	got  int
}

// take checks the next event that came.
func (f *follower) take(id string) error {
	got, err := eventOf(id)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(testDeadline)
	for {
		want, listed := f.wanted(got.Partition)
		switch {
		case want == got:
			f.next[got.Partition]++
			f.got++
			return nil
		case listed:
			return fmt.Errorf("event %d is %s of partition %d, want %s", f.got, offsetText(got.String()), got.Partition, offsetText(want.String()))
		case time.Now().After(deadline):
			return fmt.Errorf("event %d is %s, which nobody has appended", f.got, offsetText(got.String()))
		}
		time.Sleep(time.Millisecond) // a stream may be faster than the list of what was appended
	}
}

// wanted returns the next event of a partition that has to come, if it is listed yet.
func (f *follower) wanted(p uint16) (id schema.EventID, listed bool) {
	f.e.mu.Lock()
	all := f.e.inOrder[p]
	f.e.mu.Unlock()
	for ; f.next[p] < len(all); f.next[p]++ {
		if ev := all[f.next[p]]; f.takes(ev) {
			return ev.ID, true
		}
	}
	return schema.EventID{}, false
}

// done reports whether all that is listed has come.
func (f *follower) done() bool {
	for p := range uint16(f.e.placement.Partitions) {
		if _, listed := f.wanted(p); listed {
			return false
		}
	}
	return true
}

// follow listens on one connection after the other until over is set and all has come.
func (f *follower) follow(rng *rand.Rand, over *atomic.Bool) error {
	connections := 0
	for {
		c, err := f.e.dial(f.at(f.last), "reader")
		if err != nil {
			return err
		}
		if c.status == 503 { // it says when to come back
			c.close()
			time.Sleep(time.Millisecond)
			continue
		}
		if c.status != 200 {
			err := fmt.Errorf("%s is answered %d %s", f.at(f.last), c.status, c.body())
			c.close()
			return err
		}
		connections++
		frames := 1 + rng.IntN(1<<rng.IntN(15))
		if rng.IntN(4) == 0 { // a socket that is soon full, and slow
			_ = c.nc.(*net.TCPConn).SetReadBuffer(4096)
			frames = min(frames, 500)
		}
		lazy := rng.IntN(3) == 0
		for frames > 0 {
			fr, err := c.next()
			if err != nil {
				c.close()
				return fmt.Errorf("connection %d, after %d events: %w", connections, f.got, err)
			}
			if fr.event == "playhead.gap" || fr.comment != "" && fr.comment != "keepalive" || fr.event == "error" && fr.data == "" {
				c.close()
				return fmt.Errorf("connection %d, after %d events: %+v", connections, f.got, fr)
			}
			if fr.data != "" && fr.event != "heartbeat" && fr.event != "playhead.caught_up" {
				frames--
				if err := f.take(fr.id); err != nil {
					c.close()
					return fmt.Errorf("connection %d to %s: %w", connections, f.at(f.last), err)
				}
			}
			if fr.id != "" {
				f.last = fr.id
			} else if over.Load() && f.done() { // a sign of life: nothing more was on its way
				c.close()
				return nil
			}
			if over.Load() && f.done() {
				break
			}
			if lazy && rng.IntN(500) == 0 {
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
			}
		}
		if rng.IntN(2) == 0 {
			_ = c.nc.(*net.TCPConn).SetLinger(0) // Close resets, in the middle of a frame
		}
		c.close()
		if over.Load() && f.done() {
			return f.e.resumes(f.listening, f.last, map[uint16][]schema.EventID{}) // and nothing comes twice
		}
	}
}

// Listeners of sessions, workflows and the workspace, with filters of all kinds, are cut
// off at random and resume, while events are appended, the tapes shed, the watermark moves
// and ClickHouse fails and comes back: each ends with exactly the log.
func TestEveryListenerEndsWithExactlyTheLog(t *testing.T) {
	checkGoroutines(t)
	events := eventsToCut(t)
	cfg := testConfig()
	cfg.KeepAlive = 100 * time.Millisecond
	cfg.Tape.MaxBytes = min(events*8, 2<<20) // a fifth of the log, or less
	cfg.MaxReplays = 5
	cfg.ReplayBytes = 256 << 10
	cfg.Tape.DedupeOffsets = 20_000
	cfg.ReplayReads = 3
	e := startWideEnv(t, cfg, 8)
	rng := rand.New(rand.NewPCG(11, 11))
	appended := 0
	for ; appended < events/2; appended += 1000 { // below the tapes, mostly
		e.produce(scattered(rng, 1000)...)
	}
	e.history.setWatermark(e.longest() / 3)
	e.serve()
	filters := []string{
		"", "", "type=tick", "type=tock,tick", "type=memory.*", "type=never", "notices=1", "notices=1&type=memory.updated", "until=9999999999999",
	}
	var listeners []*follower
	for i := range 18 {
		q := filters[rng.IntN(len(filters))]
		l := workspaceStream(q)
		switch i % 3 {
		case 1:
			l = workflowStream(q)
		case 2:
			l = sessionStream(fmt.Sprint("s", rng.IntN(24)), q)
		}
		l.query += "&on_slow=replay"
		listeners = append(listeners, &follower{listening: l, e: e, next: make(map[uint16]int)})
	}
	var over atomic.Bool
	var wg, movers sync.WaitGroup
	stop := make(chan struct{})
	movers.Go(func() { // the materialiser, and ClickHouse's health
		rng := rand.New(rand.NewPCG(12, 12))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(1+rng.IntN(30)) * time.Millisecond):
			}
			end := e.longest()
			e.history.setWatermark(end - min(end, rng.Int64N(1+rng.Int64N(20_000))))
			e.history.failing.Store(rng.IntN(20) == 0)
			e.history.emitted.Store(0)
			e.history.failAfter.Store(rng.Int64N(4) * rng.Int64N(2000))
		}
	})
	for i, f := range listeners {
		wg.Go(func() {
			if err := f.follow(rand.New(rand.NewPCG(uint64(i), 13)), &over); err != nil {
				t.Errorf("%s?%s: %v", f.path, f.query, err)
			}
		})
	}
	for appended < events {
		n := 1 + rng.IntN(min(2000, events-appended))
		e.produce(scattered(rng, n)...)
		appended += n
	}
	over.Store(true)
	wg.Wait()
	close(stop)
	movers.Wait()
	delivered := 0
	for _, f := range listeners {
		delivered += f.got
		if !f.done() && !t.Failed() {
			t.Errorf("%s?%s: not all has come", f.path, f.query)
		}
	}
	t.Logf("%d events, %d deliveries to %d listeners, %d questions to history",
		appended, delivered, len(listeners), e.history.reads.Load())
}
