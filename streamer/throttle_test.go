package streamer

import (
	"testing"
	"testing/synctest"
	"time"
)

// A stream passes a minute's events at once, then as many a minute as it may; it is told
// once for as long as it is held up.
func TestThrottle(t *testing.T) {
	for _, perMinute := range []int{1, 7, 60, 1000, 100_000} {
		synctest.Test(t, func(t *testing.T) {
			th := newThrottle(perMinute)
			for i := range perMinute {
				if wait, _ := th.take(time.Now()); wait != 0 {
					t.Fatalf("%d a minute: event %d waits %v", perMinute, i, wait)
				}
			}
			began, passed, told := time.Now(), 0, 0
			for time.Since(began) < 10*time.Minute {
				wait, tell := th.take(time.Now())
				if tell {
					told++
				}
				if wait == 0 {
					passed++
					continue
				}
				if wait > time.Minute+time.Second {
					t.Fatalf("%d a minute: waits %v", perMinute, wait)
				}
				time.Sleep(wait)
			}
			if most := 10*perMinute + perMinute/60 + 1; passed > most || passed < 10*perMinute-perMinute/60-1 {
				t.Errorf("%d a minute: %d events in ten minutes", perMinute, passed)
			}
			if told != 1 {
				t.Errorf("%d a minute: told %d times of one backlog", perMinute, told)
			}
		})
	}
}

// Who has been quiet for a while and sends too much again is told again.
func TestThrottleTellsOfEveryBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(10)
		for backlog := range 3 {
			told := 0
			for range 15 {
				wait, tell := th.take(time.Now())
				if tell {
					told++
				}
				time.Sleep(wait)
			}
			if told != 1 {
				t.Errorf("backlog %d: told %d times", backlog, told)
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

// The clock of a throttle may stand still, and run back by a bit.
func TestThrottleOfAClockThatRunsBack(t *testing.T) {
	now := time.Unix(1000, 0)
	th := newThrottle(2)
	for range 2 {
		th.take(now)
	}
	if wait, tell := th.take(now.Add(-time.Second)); wait < 30*time.Second || wait > 31*time.Second || !tell {
		t.Errorf("wait %v, %v; want half a minute", wait, tell)
	}
}

// A stream that is held up is asked again whenever something is appended: it is woken by
// one timer all the same.
func TestAHeldUpStreamHasOneTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Hub{queue: make(chan *subscription, 1)}
		s := &subscription{hub: h}
		s.legs = s.one[:]
		for range 3 {
			for range 50 {
				h.later(s, time.Second)
			}
			woken := 0
			for deadline := time.After(time.Minute); ; {
				select {
				case <-h.queue:
					woken++
					s.sched.Store(resting)
					continue
				case <-deadline:
				}
				break
			}
			if woken != 1 || !s.legs[0].fresh.Swap(false) {
				t.Errorf("woken %d times, want once, to look", woken)
			}
		}
	})
}
