package streamer

import (
	"math/rand/v2"
	"time"
)

// maxHeartbeat is the longest time between heartbeats that a client may choose.
const maxHeartbeat = 5 * time.Minute

// wheel says when heartbeats are due. It turns one slot a tick; a stream lies in the slot
// of its next heartbeat. The hub's lock guards it.
type wheel struct {
	tick  time.Duration
	slots []map[*subscription]struct{}
	now   int
}

// newWheel returns a wheel for periods of up to longest, which the heartbeat of keepAlive
// divides into at least 16 ticks.
func newWheel(keepAlive, longest time.Duration) *wheel {
	tick := min(max(keepAlive/16, time.Millisecond), time.Second)
	n := int(max(longest, keepAlive)/tick) + 2
	return &wheel{tick: tick, slots: make([]map[*subscription]struct{}, n)}
}

// add has the first heartbeat of s come within one period, at random, so that streams
// opened together do not beat together.
func (w *wheel) add(s *subscription) { w.place(s, 1+rand.IntN(w.ticks(s))) }

func (w *wheel) ticks(s *subscription) int {
	return min(max(int(s.req.Heartbeat/w.tick), 1), len(w.slots)-1)
}

func (w *wheel) place(s *subscription, ticks int) {
	s.slot = (w.now + ticks) % len(w.slots)
	if w.slots[s.slot] == nil {
		w.slots[s.slot] = make(map[*subscription]struct{})
	}
	w.slots[s.slot][s] = struct{}{}
}

func (w *wheel) remove(s *subscription) { delete(w.slots[s.slot], s) }

// turn moves on by a tick and returns whose heartbeat is due.
func (w *wheel) turn() []*subscription {
	w.now = (w.now + 1) % len(w.slots)
	slot := w.slots[w.now]
	if len(slot) == 0 {
		return nil
	}
	w.slots[w.now] = nil
	due := make([]*subscription, 0, len(slot))
	for s := range slot {
		due = append(due, s)
		w.place(s, w.ticks(s))
	}
	return due
}

// turnWheel sends every stream its heartbeats until the hub stops.
func (h *Hub) turnWheel() {
	tick := time.NewTicker(h.wheel.tick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-h.stop:
			return
		}
		h.mu.Lock()
		due := h.wheel.turn()
		h.mu.Unlock()
		for _, s := range due {
			s.beatDue.Store(true)
			s.Wake()
		}
	}
}
