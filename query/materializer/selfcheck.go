package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
)

const (
	// checkOffsets bounds the offsets of one comparison with the log's past.
	checkOffsets = 200_000
	// muchMissing is how many rows missing in one comparison make a loss of data likely.
	muchMissing = 10_000
	// maxLedger bounds the ranges a partition remembers until they are compared.
	// Neighbours are one range, so there are several only around a gap.
	maxLedger = 16
	// checkShare is the part of the time that comparisons may take: 1 in so many.
	checkShare = 100
)

// stretch is a range of offsets that was copied; records is what Kafka had in it.
type stretch struct {
	offsetRange
	records int
}

// ledger remembers what a worker copied since the last comparison. Its worker adds, the
// checker takes.
type ledger struct {
	mu      sync.Mutex // guards the rest
	copied  []stretch
	cursor  int64        // the walk over the log's past goes on here
	missing []stretchGap // found, and for the worker to repair
}

// stretchGap is a range with missing rows.
type stretchGap struct{ start, end int64 }

// add notes a settled range.
func (l *ledger) add(in Intent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.copied); n > 0 && l.copied[n-1].end == in.Start && l.copied[n-1].records < checkOffsets {
		s := &l.copied[n-1]
		s.end, s.records = in.End, s.records+in.Records
		s.minMs, s.maxMs = min(s.minMs, in.MinMs), max(s.maxMs, in.MaxMs)
		return
	}
	if len(l.copied) == maxLedger { // the walk will come by
		l.copied = l.copied[1:]
	}
	l.copied = append(l.copied, stretch{offsetRange: in.offsetRange(), records: in.Records})
}

// take returns the oldest range that lies below next whole; ok is false if there is none.
func (l *ledger) take(next int64) (s stretch, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.copied) == 0 || l.copied[0].end > next {
		return stretch{}, false
	}
	s = l.copied[0]
	l.copied = l.copied[1:]
	return s, true
}

// step returns the next range of the walk over [start, next), which begins anew at its
// end.
func (l *ledger) step(start, next int64) offsetRange {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cursor < start || l.cursor >= next {
		l.cursor = start
	}
	r := offsetRange{start: l.cursor, end: min(l.cursor+checkOffsets, next)}
	l.cursor = r.end
	return r
}

// ask leaves a range for the worker to repair, unless one waits already: the walk finds
// it again.
func (l *ledger) ask(g stretchGap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.missing) == 0 {
		l.missing = append(l.missing, g)
	}
}

func (l *ledger) asked() (g stretchGap, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.missing) == 0 {
		return g, false
	}
	g = l.missing[0]
	l.missing = l.missing[:0]
	return g, true
}

// selfCheck compares table and log, all the time and at low cost, until ctx ends: what
// was copied last, and when there is nothing of that, the next piece of the past that
// Kafka still has. Partitions take turns.
func (m *Materializer) selfCheck(ctx context.Context) {
	turn := 0
	for ctx.Err() == nil {
		began := time.Now()
		if r := m.turn(&turn); r != nil {
			if err := m.check(ctx, r.worker); err != nil && ctx.Err() == nil && r.soft.Err() == nil {
				m.metrics.checks.WithLabelValues("unknown").Inc()
				r.log.Info("self-check could not be made", "error", err)
			}
		}
		sleep(ctx, max(m.cfg.SelfCheckInterval, checkShare*time.Since(began)))
	}
}

// turn picks the partition whose turn it is.
func (m *Materializer) turn(turn *int) *running {
	m.mu.Lock()
	defer m.mu.Unlock()
	partitions := make([]uint16, 0, len(m.owned))
	for p := range m.owned {
		partitions = append(partitions, p)
	}
	if len(partitions) == 0 {
		return nil
	}
	slices.Sort(partitions)
	*turn++
	return m.owned[partitions[*turn%len(partitions)]]
}

// check makes one comparison of w's partition.
func (m *Materializer) check(ctx context.Context, w *worker) error {
	state, ok, err := w.commits.load(ctx, w.partition)
	if err != nil || !ok {
		return err
	}
	if state.rebuild.ID != "" {
		return nil // rows are missing, and come
	}
	if s, ok := w.ledger.take(state.next); ok {
		if s.minMs < m.keptFromMs() {
			return nil
		}
		return m.compare(ctx, w, s.offsetRange, s.records, state.next)
	}
	start, _, err := m.kafkaLog.Bounds(ctx, w.partition)
	if err != nil {
		return err
	}
	if m.ttl > 0 {
		kept, err := m.kafkaLog.OffsetForTime(ctx, w.partition, m.keptFromMs())
		if err != nil {
			return err
		}
		start = max(start, kept)
	}
	if start >= state.next {
		return nil
	}
	r := w.ledger.step(start, state.next)
	// Without gaps in the offsets a range has as many records as offsets. If it has
	// gaps, comparing finds out by reading.
	return m.compare(ctx, w, r, int(r.end-r.start), state.next)
}

// compare counts a range that is settled. If the count is not what it should be, it
// reads the range from Kafka and finds out what is wrong. Where much is missing, more may
// be: all from there to next, the committed offset, is rebuilt then.
func (m *Materializer) compare(ctx context.Context, w *worker, r offsetRange, records int, next int64) error {
	h, err := m.store.count(ctx, w.partition, r)
	if err != nil {
		return err
	}
	if h.rows == records && h.distinct == records {
		m.metrics.checks.WithLabelValues("ok").Inc()
		return nil
	}
	r.minMs, r.maxMs = 0, 0
	diff, err := m.difference(ctx, w.partition, r)
	if err != nil {
		return err
	}
	report := func(result string, rows int) {
		if rows > 0 {
			m.metrics.checks.WithLabelValues(result).Inc()
			w.log.Error("self-check found that table and log differ", "difference", result,
				"rows", rows, "start", r.start, "end", r.end)
		}
	}
	report("double", diff.doubles)
	report("foreign", diff.foreign)
	report("gap", len(diff.missing))
	if diff.doubles+diff.foreign+len(diff.missing) == 0 {
		m.metrics.checks.WithLabelValues("ok").Inc()
	}
	if n := len(diff.missing); n > 0 {
		g := stretchGap{start: diff.missing[0], end: diff.missing[n-1] + 1}
		if n >= muchMissing {
			g.end = next
		}
		w.ledger.ask(g)
	}
	return nil
}

// difference is what is wrong with a range.
type difference struct {
	missing []int64 // offsets with a record and no row, ascending
	doubles int     // rows too many, on offsets that have one
	foreign int     // offsets with a row and no record
}

func (m *Materializer) difference(ctx context.Context, partition uint16, r offsetRange) (d difference, err error) {
	var records []int64
	expired := make(map[int64]bool) // rows that need not be there
	keptFrom := m.keptFromMs()
	next, err := m.kafkaLog.Read(ctx, partition, r.start, r.end, func(rec *kgo.Record) error {
		records = append(records, rec.Offset)
		if rec.Timestamp.UnixMilli() < keptFrom {
			expired[rec.Offset] = true
		}
		return nil
	})
	if out := (*kafka.OffsetRangeError)(nil); errors.As(err, &out) {
		return d, nil // deleted meanwhile: nothing left to compare with
	}
	if err != nil {
		return d, err
	}
	if next < r.end {
		return d, fmt.Errorf("%w: read to %d, wanted %d", ErrTruncated, next, r.end)
	}
	h, err := m.store.count(ctx, partition, r)
	if err != nil {
		return d, err
	}
	rows, err := m.store.offsets(ctx, partition, r)
	if err != nil {
		return d, err
	}
	d.doubles = h.rows - h.distinct
	for len(records) > 0 || len(rows) > 0 {
		switch {
		case len(rows) == 0 || len(records) > 0 && records[0] < rows[0]:
			if !expired[records[0]] {
				d.missing = append(d.missing, records[0])
			}
			records = records[1:]
		case len(records) == 0 || rows[0] < records[0]:
			d.foreign++
			rows = rows[1:]
		default:
			records, rows = records[1:], rows[1:]
		}
	}
	return d, nil
}
