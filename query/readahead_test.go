package query

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// stretchOf is what a statement may have read of a workspace, from an offset on.
func stretchOf(offsets ...int64) stretch {
	var s stretch
	for _, o := range offsets {
		e := &schema.Event{ID: schema.EventID{Position: schema.Position{Epoch: 1, Partition: 3, Offset: o}}}
		s.events = append(s.events, e)
		s.bytes += e.Size()
	}
	s.end = schema.Position{Epoch: 1, Partition: 3, Offset: offsets[len(offsets)-1] + 10}
	return s
}

var (
	aheadKey  = readKey{scope: schema.Scope{Workspace: "w"}, partition: 3}
	eventSize = new(schema.Event).Size()
)

// holds says what is kept.
func (a *readAhead) holds() (stretches, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.kept), a.bytes
}

func TestCutStretches(t *testing.T) {
	for _, c := range []struct {
		name         string
		maxBytes     int
		events, left int
		next         int64
	}{
		{"all of it", 4 * eventSize, 4, 0, 17},
		{"a rest that is not worth a chunk goes with it", 4*eventSize - eventSize/2, 4, 0, 17},
		{"half", 2 * eventSize, 2, 2, 3},
		{"never nothing", 0, 1, 3, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := stretchOf(1, 2, 5, 7)
			events, next := s.cut(aheadKey, c.maxBytes)
			if len(events) != c.events || len(s.events) != c.left || s.bytes != c.left*eventSize || next.Offset != c.next || next.Partition != 3 {
				t.Errorf("cut(%d) = %d events, next %v; left are %d of %d bytes, want %+v", c.maxBytes, len(events), next, len(s.events), s.bytes, c)
			}
		})
	}
}

func TestReadAheadIsTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var forgotten atomic.Int32
		a := newReadAhead(func(readKey) { forgotten.Add(1) })
		from := schema.Position{Epoch: 1, Offset: 1}
		a.keep(aheadKey, from, stretchOf(1, 2, 3))
		if _, ok := a.take(aheadKey, from, schema.Position{Epoch: 1, Offset: 12}); ok {
			t.Error("a stretch up to 13 is given for one up to 12")
		}
		other := aheadKey
		other.filter = "{}"
		if _, ok := a.take(other, from, everything); ok {
			t.Error("a stretch is given for another filter")
		}
		if s, ok := a.take(aheadKey, from, everything); !ok || len(s.events) != 3 {
			t.Errorf("take = %+v, %v", s, ok)
		}
		if _, ok := a.take(aheadKey, from, everything); ok {
			t.Error("a stretch is given twice")
		}
		a.keep(aheadKey, from, stretchOf(1))
		a.keep(aheadKey, from, stretchOf(1, 2)) // another reader at the same place
		if n, bytes := a.holds(); n != 1 || bytes != 2*eventSize {
			t.Errorf("%d stretches of %d bytes are kept, want the latest", n, bytes)
		}
		time.Sleep(readAheadLife + time.Second)
		synctest.Wait()
		if n, bytes := a.holds(); n != 0 || bytes != 0 || forgotten.Load() != 1 {
			t.Errorf("after its life: %d bytes are kept, %d were forgotten, want none and 1", bytes, forgotten.Load())
		}
	})
}

func TestReadAheadIsBounded(t *testing.T) {
	a := newReadAhead(func(readKey) {})
	large := stretchOf(1)
	large.bytes = maxReadAheadBytes / 2
	for o := range int64(5) {
		a.keep(aheadKey, schema.Position{Epoch: 1, Offset: o}, large)
	}
	if n, bytes := a.holds(); n != 2 || bytes != maxReadAheadBytes || a.room(1) || !a.room(0) {
		t.Errorf("%d stretches of %d bytes are kept, want 2 of %d bytes", n, bytes, maxReadAheadBytes)
	}
	for o := range int64(5) {
		a.take(aheadKey, schema.Position{Epoch: 1, Offset: o}, everything)
	}
	if n, bytes := a.holds(); n != 0 || bytes != 0 {
		t.Errorf("%d stretches of %d bytes are kept after all was taken", n, bytes)
	}
}

func TestStatementsGrowWhileEventsAreDear(t *testing.T) {
	p := newPaces()
	k := aheadKey
	v := pace{eventBytes: 500}
	for range 10 {
		v.learnCost(1000, 1<<20, max(1<<20, v.ahead), time.Second)
	}
	if v.ahead != 1<<20*4 { // 1 MiB of the 4 that were wanted tells nothing
		t.Errorf("ahead = %d, want 4 MiB", v.ahead)
	}
	for range 10 {
		v.learnCost(100_000, v.ahead, v.ahead, time.Second)
	}
	if v.ahead != mostAhead {
		t.Errorf("ahead = %d, want %d", v.ahead, mostAhead)
	}
	cheap := pace{}
	cheap.learnCost(100_000, 1<<20, 1<<20, time.Millisecond)
	if cheap.ahead != 0 {
		t.Errorf("ahead = %d after a cheap statement, want 0", cheap.ahead)
	}
	p.set(k, v)
	p.askForLess(k)
	if got := p.get(k); got.ahead != 0 || got.eventBytes != 500 {
		t.Errorf("after askForLess: %+v", got)
	}
}
