package streamer

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Every stream beats in its own rhythm, the first time within one period, and not all at
// the same moment.
func TestWheel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keepAlive = 15 * time.Second
		h := &Hub{wheel: newWheel(keepAlive, maxHeartbeat), stop: make(chan struct{}), queue: make(chan *subscription, 1000)}
		periods := []time.Duration{keepAlive, 2 * keepAlive, 100 * time.Second, maxHeartbeat}
		beats := make(map[*subscription][]time.Duration)
		const each = 50
		h.mu.Lock()
		for _, p := range periods {
			for range each {
				s := &subscription{hub: h, req: Request{Heartbeat: p}}
				h.wheel.add(s)
				beats[s] = nil
			}
		}
		h.mu.Unlock()
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(h.turnWheel)
		for time.Since(began) < time.Hour {
			s := <-h.queue
			if !s.beatDue.Swap(false) {
				t.Fatal("woken without a beat")
			}
			beats[s] = append(beats[s], time.Since(began))
			s.sched.Store(resting)
		}
		h.mu.Lock()
		for s := range beats {
			h.wheel.remove(s)
		}
		h.mu.Unlock()
		for len(h.queue) > 0 {
			<-h.queue
		}
		time.Sleep(maxHeartbeat)
		if n := len(h.queue); n > 0 {
			t.Errorf("%d beats of streams that are gone", n)
		}
		close(h.stop)
		wg.Wait()

		tick := h.wheel.tick
		firsts := make(map[time.Duration]map[time.Duration]bool)
		for s, at := range beats {
			p := s.req.Heartbeat
			if len(at) < int(time.Hour/p)-1 || at[0] > p {
				t.Fatalf("period %v: %d beats in an hour, the first after %v", p, len(at), at[0])
			}
			for i := 1; i < len(at); i++ {
				if gap := at[i] - at[i-1]; gap > p || gap < p-tick {
					t.Fatalf("period %v: a beat %v after the one before", p, gap)
				}
			}
			if firsts[p] == nil {
				firsts[p] = make(map[time.Duration]bool)
			}
			firsts[p][at[0]] = true
		}
		for p, at := range firsts {
			if len(at) < 8 {
				t.Errorf("period %v: %d streams opened together first beat at %d moments", p, each, len(at))
			}
		}
	})
}

// The wheel holds the longest heartbeat, whatever keep_alive is.
func TestWheelOfEveryKeepAlive(t *testing.T) {
	for _, keepAlive := range []time.Duration{time.Second, 15 * time.Second, 5 * time.Minute} {
		w := newWheel(keepAlive, max(maxHeartbeat, maxBeat*keepAlive))
		for _, p := range []time.Duration{keepAlive, maxBeat * keepAlive, minHeartbeat, maxHeartbeat} {
			s := &subscription{req: Request{Heartbeat: p}}
			w.place(s, w.ticks(s))
			turns := 1
			for len(w.turn()) == 0 {
				turns++
			}
			if at := time.Duration(turns) * w.tick; at > p || at < p-w.tick {
				t.Errorf("keep_alive %v: a heartbeat of %v comes after %v", keepAlive, p, at)
			}
			w.remove(s)
		}
	}
}

// A replay is as far apart as its events were, divided by the speed.
func TestPacerByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := &pacer{speed: 10}
		events := []int64{1000, 2000, 2000, 1500, 12_000} // one clock runs back
		want := []time.Duration{0, 100 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond, 1100 * time.Millisecond}
		for i, ms := range events {
			time.Sleep(time.Until(p.due(ms, time.Now())))
			if at := time.Since(began); at != want[i] {
				t.Errorf("event %d at %v, want %v", i, at, want[i])
			}
		}
		p.setSpeed(100, time.Now())
		if wait := time.Until(p.due(22_000, time.Now())); wait != 100*time.Millisecond {
			t.Errorf("ten seconds at a hundredfold wait %v", wait)
		}
		p.restart()
		if wait := time.Until(p.due(99_000, time.Now())); wait != 0 {
			t.Errorf("the first event after a pause waits %v", wait)
		}
	})
}
