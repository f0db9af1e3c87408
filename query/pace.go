package query

import (
	"sync"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// pace is what reading a scope has shown of its rows: how much to ask for next. It is a
// guess: a wrong one costs a statement of the wrong size.
type pace struct {
	eventBytes    int     // of one event; 0: not known
	offsetsPerRow float64 // within the partition; 0: not known
	ahead         int     // how many bytes a statement is to read, if more than asked for
	maxWindow     int64   // longer windows may read too much; 0: none is known to
}

// learn takes in what a statement found in so many offsets, of one epoch or not.
func (p *pace) learn(r *result, offsets int64, oneEpoch bool) {
	p.maxWindow = min(p.maxWindow+p.maxWindow/4, schema.MaxOffset) // it may have been a bad stretch
	if len(r.events) == 0 {
		return
	}
	p.eventBytes = max(1, r.bytes/len(r.events))
	if oneEpoch {
		p.offsetsPerRow = float64(offsets) / float64(len(r.events))
	}
}

// Bounds of reading ahead: it grows while an event takes longer than it should, and a
// larger question may make it shorter.
const (
	mostAhead = 32 << 20
	dearEvent = 4 * time.Microsecond
)

// learnCost takes in how long it took to read so many events of bytes, of target bytes
// that were wanted.
func (p *pace) learnCost(events, bytes, target int, took time.Duration) {
	if events > 0 && bytes >= target/enoughPart && took > time.Duration(events)*dearEvent {
		p.ahead = min(4*target, max(mostAhead, target))
	}
}

// window is the length in offsets of a window in which about so many rows lie.
func (p *pace) window(rows int) int64 {
	if p.offsetsPerRow == 0 {
		return p.bound(firstWindow)
	}
	// A little less, as rows beyond the number are read in vain.
	return p.bound(int64(min(float64(rows)*p.offsetsPerRow*0.9, schema.MaxOffset)))
}

// shrink takes in that a window reads too much, and returns the one to try instead.
func (p *pace) shrink(window int64) int64 {
	p.maxWindow = max(window/windowGrowth, minWindow)
	return p.maxWindow
}

func (p *pace) bound(window int64) int64 {
	longest := int64(schema.MaxOffset) + 1 // beyond the last offset: all of an epoch
	if p.maxWindow > 0 {
		longest = min(longest, p.maxWindow)
	}
	return min(max(window, minWindow), longest)
}

// maxPaces bounds the scopes whose pace is remembered; beyond it all are forgotten.
const maxPaces = 4096

// paces remembers the pace of scopes between calls. It is safe for concurrent use.
type paces struct {
	mu sync.Mutex
	of map[readKey]pace // guarded by mu
}

func newPaces() *paces { return &paces{of: make(map[readKey]pace)} }

func (p *paces) get(k readKey) pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[k]
}

func (p *paces) set(k readKey, v pace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.of[k]; !known && len(p.of) >= maxPaces {
		clear(p.of)
	}
	p.of[k] = v
}

// askForLess has the next statement read no more than it is asked for.
func (p *paces) askForLess(k readKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v, known := p.of[k]; known {
		v.ahead = 0
		p.of[k] = v
	}
}
