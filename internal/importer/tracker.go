package importer

import "sync"

// tracker knows up to which line of a source everything is acknowledged, although the
// lanes finish out of step: that is the line before the first line of the oldest batch
// still open. It is safe for concurrent use.
type tracker struct {
	mu sync.Mutex // guards all below; nothing is called under it
	// open holds, per lane, the first lines of its batches that are being filled, queued
	// or sent, oldest first: a lane finishes them in that order.
	open [][]int64
	last int64 // every line up to it is in a batch, or needs none
}

// newTracker returns a tracker of a source of which the first lines are acknowledged.
func newTracker(lanes int, acknowledged int64) *tracker {
	return &tracker{open: make([][]int64, lanes), last: acknowledged}
}

// begin notes a new batch of lane. The line has not been passed to advance yet.
func (t *tracker) begin(lane int, firstLine int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[lane] = append(t.open[lane], firstLine)
}

// advance notes that every line up to this one is in a batch, or needs none.
func (t *tracker) advance(line int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = line
}

// done notes that the lane's oldest batch is acknowledged.
func (t *tracker) done(lane int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[lane] = t.open[lane][1:]
}

// acknowledged returns the line up to which, inclusive, no event is still to be sent.
func (t *tracker) acknowledged() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := t.last
	for _, firsts := range t.open {
		if len(firsts) > 0 {
			line = min(line, firsts[0]-1)
		}
	}
	return line
}
