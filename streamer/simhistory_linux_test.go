package streamer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
)

// simTable is what the materialiser has made of a simulated log: all of it below a
// watermark, which moves on by itself, and does not fall.
type simTable struct {
	log *simulation.Log

	mu         sync.Mutex // guards what follows
	watermarks []int64    // by partition
	gone       []map[int64]bool
	down       bool
}

func newSimTable(l *simulation.Log) *simTable {
	t := &simTable{log: l, watermarks: make([]int64, l.Placement.Partitions)}
	for range l.Placement.Partitions {
		t.gone = append(t.gone, make(map[int64]bool))
	}
	return t
}

// watermark returns that of a partition.
func (t *simTable) watermark(partition uint16) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.watermarks[partition]
}

// lost reports whether Kafka had deleted an offset before it was copied.
func (t *simTable) lost(partition uint16, offset int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gone[partition][offset]
}

// simHistory is History as one node reaches it. A node hears of a watermark some time after
// it has moved.
type simHistory struct {
	*simTable
	run     *simRun
	node    *simulation.Node
	streams []*simulation.Stream // by partition

	known []int64 // watermarks, by partition; simTable.mu guards it
}

var _ History = (*simHistory)(nil)

var errSimHistory = errors.New("simulated history is away")

func newSimHistory(r *simRun, node *simulation.Node) *simHistory {
	h := &simHistory{simTable: r.table, run: r, node: node, known: make([]int64, r.log.Placement.Partitions)}
	for p := range h.known {
		h.streams = append(h.streams, r.w.Stream("%s/history%d", node.Name, p))
	}
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	copy(h.known, r.table.watermarks) // a node asks before it starts
	return h
}

func (h *simHistory) call(ctx context.Context, partition uint16) error {
	s := simulation.StreamOf(ctx, partition, h.streams[partition])
	if err := h.node.Step(ctx, s, 200*time.Microsecond, 50*time.Millisecond); err != nil {
		return err
	}
	h.mu.Lock()
	down := h.down
	h.mu.Unlock()
	if down || s.Fault(h.run.errors) {
		return errSimHistory
	}
	return nil
}

// Watermark is part of History.
func (h *simHistory) Watermark(partition uint16) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[partition]
}

// ReadChunk is part of History.
func (h *simHistory) ReadChunk(ctx context.Context, scope schema.Scope, partition uint16, from, to schema.Position,
	f *schema.Filter, maxBytes int,
) (events []*schema.Event, next schema.Position, err error) {
	if err := h.call(ctx, partition); err != nil {
		return nil, from, err
	}
	if end := h.watermark(partition); to.Offset > end {
		h.run.w.Failf("%s reads history of partition %d up to %d; it is in doubt above %d", h.node.Name, partition, to.Offset, end)
	}
	size := 0
	for _, j := range h.log.Judged(partition) {
		if j.Record.Offset < from.Offset || j.Record.Offset >= to.Offset || !j.Visible() || h.lost(partition, j.Record.Offset) ||
			!scope.Holds(j.Event) || !f.Match(j.Event) || h.run.erasedFor(h.node.Name, j.Event) {
			continue
		}
		e := *j.Event
		events = append(events, &e)
		if size += e.Size(); size >= maxBytes {
			next = e.ID.Position
			next.Offset++
			return events, next, nil
		}
	}
	return events, to, nil
}

// SessionBase is part of History.
func (h *simHistory) SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error) {
	s := schema.NewSession()
	if err := h.call(ctx, to.Partition); err != nil {
		return s, err
	}
	if end := h.watermark(to.Partition); to.Offset > end {
		h.run.w.Failf("%s folds history of partition %d up to %d; it is in doubt above %d", h.node.Name, to.Partition, to.Offset, end)
	}
	for _, j := range h.log.Judged(to.Partition) {
		if j.Kind == simulation.Event && j.Record.Offset < to.Offset && j.Event.Workspace == workspace && j.Event.Session == session &&
			!h.lost(to.Partition, j.Record.Offset) && !h.run.erasedFor(h.node.Name, j.Event) {
			s.Apply(j.Event)
		}
	}
	return s, nil
}

// materialise moves the watermarks on until the run ends.
func (r *simRun) materialise() {
	s := r.w.Stream("materialiser")
	for !r.over() {
		s.Rest(0, r.lag)
		p := uint16(s.IntN(r.log.Placement.Partitions))
		_, end, _ := r.log.Bounds(p)
		r.table.mu.Lock()
		mark := r.table.watermarks[p] + int64(s.IntN(int(max(0, end-r.table.watermarks[p]))+1))
		r.table.watermarks[p] = mark
		r.table.mu.Unlock()
		r.w.Tracef("materialiser", "watermark %d/%d", p, mark)
		for _, n := range r.alive() {
			delay := s.Duration(0, time.Second)
			time.AfterFunc(delay, func() {
				r.table.mu.Lock()
				defer r.table.mu.Unlock()
				n.history.known[p] = max(n.history.known[p], mark)
			})
		}
	}
}

// breakHistory has ClickHouse go away and come back.
func (r *simRun) breakHistory() {
	s := r.w.Stream("breaker")
	for r.w.Now() < r.length {
		s.Rest(0, 20*time.Second)
		r.setDown(true)
		s.Rest(0, 8*time.Second)
		r.setDown(false)
	}
}

func (r *simRun) setDown(down bool) {
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	r.table.down = down
	r.w.Tracef("history", "is away: %v", down)
}

// retain has Kafka delete its oldest records: what history has, and as far back as a reader
// that begins at a watermark has to look; with tooSoon, more than that.
func (r *simRun) retain(tooSoon bool) {
	s := r.w.Stream("retention")
	for r.w.Now() < r.length {
		s.Rest(0, 15*time.Second)
		p := uint16(s.IntN(r.log.Placement.Partitions))
		old, end, _ := r.log.Bounds(p)
		r.table.mu.Lock()
		start := r.table.watermarks[p]
		for _, n := range r.alive() {
			start = min(start, n.history.known[p])
		}
		start -= r.log.Rule.Offsets + int64(s.IntN(40))
		if tooSoon && s.Chance(0.3) {
			start = max(start, end-int64(s.IntN(60)))
		}
		for offset := r.table.watermarks[p]; offset < start; offset++ {
			r.table.gone[p][offset] = true
		}
		r.table.watermarks[p] = max(r.table.watermarks[p], start)
		r.table.mu.Unlock()
		if start > old {
			r.w.Tracef("kafka", "partition %d begins at %d now", p, start)
			r.log.Retain(p, start)
		}
	}
}
