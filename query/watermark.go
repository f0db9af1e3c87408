package query

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// WatermarkInterval is how often Watermarks.Run asks for the committed offsets. It is
// the most by which a node without a materialiser lags behind in knowing them.
const WatermarkInterval = 250 * time.Millisecond

// CommittedOffsets reads the materialiser's committed offset of every partition that
// has one (materializer.Committed does, over Kafka).
type CommittedOffsets func(ctx context.Context) (map[uint16]int64, error)

// Watermarks knows how far each partition of the log is in ClickHouse: all records
// below a partition's watermark are rows, exactly once; pages take the rest from the
// tape. A watermark is the materialiser's committed offset, and never falls.
//
// It learns of them by asking (Run) and by being told by a materialiser in the same
// process (Set). It is safe for concurrent use.
type Watermarks struct {
	mu         sync.Mutex
	partitions map[uint16]*watermark // guarded by mu
}

type watermark struct {
	next    int64
	changed chan struct{} // closed when next moves; nil while nobody waits
}

// NewWatermarks returns a Watermarks in which every partition is at 0.
func NewWatermarks() *Watermarks {
	return &Watermarks{partitions: make(map[uint16]*watermark)}
}

// Get returns the first offset of the partition that may not be in ClickHouse yet; 0
// if nothing is known, which is always true, if wasteful.
func (w *Watermarks) Get(partition uint16) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m := w.partitions[partition]; m != nil {
		return m.next
	}
	return 0
}

// Set says that all records below next are in ClickHouse. A lower value than the known
// one is left out: an answer may arrive late.
func (w *Watermarks) Set(partition uint16, next int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.entry(partition)
	if next <= m.next {
		return
	}
	m.next = next
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// Wait blocks until the partition's watermark is at least next: all records below next
// are in ClickHouse. It returns ctx's cause if that comes first.
func (w *Watermarks) Wait(ctx context.Context, partition uint16, next int64) error {
	for {
		changed := w.changedUntil(partition, next)
		if changed == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for offset %d of partition %d in clickhouse: %w", next, partition, context.Cause(ctx))
		}
	}
}

// changedUntil returns nil once the watermark has reached next, else a channel that is
// closed when it moves.
func (w *Watermarks) changedUntil(partition uint16, next int64) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.entry(partition)
	if m.next >= next {
		return nil
	}
	if m.changed == nil {
		m.changed = make(chan struct{})
	}
	return m.changed
}

// entry is called with mu held.
func (w *Watermarks) entry(partition uint16) *watermark {
	m := w.partitions[partition]
	if m == nil {
		m = &watermark{}
		w.partitions[partition] = m
	}
	return m
}

// Run asks for the committed offsets at once and then every WatermarkInterval, until
// ctx ends; then it returns nil. Failures are logged when they begin and when they end:
// meanwhile the watermarks stay where they are, and what was promised stays true.
func (w *Watermarks) Run(ctx context.Context, committed CommittedOffsets, log *slog.Logger) error {
	ticker := time.NewTicker(WatermarkInterval)
	defer ticker.Stop()
	failing := false
	for {
		offsets, err := committed(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			log.Warn("committed offsets of the materialiser are unknown", "error", err)
		case err == nil && failing:
			log.Info("committed offsets of the materialiser are known again")
		}
		failing = err != nil
		for p, next := range offsets {
			w.Set(p, next)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
