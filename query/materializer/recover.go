package materializer

import (
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// load reads the committed state, and looks for what it should not find: records that
// Kafka has deleted, a log that ends too early, rows that no intent announced.
func (w *worker) load() error {
	state, ok, err := w.commits.load(w.hard, w.partition)
	if err != nil {
		return err
	}
	start, end, err := w.kafkaLog.Bounds(w.hard, w.partition)
	if err != nil {
		return err
	}
	if !ok {
		if state, err = w.firstState(start); err != nil {
			return err
		}
	}
	w.state = state
	if state.next > end {
		return fmt.Errorf("%w: committed offset %d, end of log %d", ErrTruncated, state.next, end)
	}
	if w.state.intent.IsZero() && state.next < start {
		if err := w.skipGap(Gap{Start: state.next, End: start}, int(start-state.next)); err != nil {
			return err
		}
	}
	w.gauges.gap.Set(boolGauge(w.state.gap != Gap{}))
	w.gauges.incomplete.Set(boolGauge(w.state.rebuild.Incomplete()))
	w.publish()
	if err := w.findUnannounced(); err != nil {
		return err
	}
	return w.findLost(start)
}

// firstState is where a partition without a committed offset begins: at the log's start,
// or where the table ends if that lies before it. Then commits were lost (Kafka expires
// those of a group that is away for long) and so were the records in between.
func (w *worker) firstState(start int64) (committed, error) {
	end, err := w.store.end(w.hard, w.partition, 0)
	if err != nil {
		return committed{}, err
	}
	w.log.Info("partition has no committed offset", "log_start", start, "rows_end", end)
	if end > 0 {
		return committed{next: min(start, end)}, nil
	}
	return committed{next: start}, nil
}

// findUnannounced asks for rows at and beyond the committed offset, outside of the
// intent. There are none, unless the committed offset went back (expired by Kafka, set
// by an operator, a commit that arrived late): then the ranges up to there are counted
// before they are inserted.
func (w *worker) findUnannounced() error {
	from := max(w.state.next, w.state.intent.End)
	end, err := w.store.end(w.hard, w.partition, from)
	if err != nil {
		return err
	}
	w.verifyBelow = end
	if end > from {
		w.log.Warn("table holds rows beyond the committed offset: each range is counted before it is inserted",
			"offset", from, "rows_end", end)
	}
	return nil
}

// skipGap records that the records of g are lost, commits that, and goes on after it.
// offsets is how many offsets of g have no row.
func (w *worker) skipGap(g Gap, offsets int) error {
	w.log.Error("history has a gap: kafka deleted records before they became rows",
		"start", g.Start, "end", g.End, "offsets", offsets)
	w.metrics.gapOffsets.Add(float64(offsets))
	w.state.gap = g
	w.state.next = max(w.state.next, g.End)
	w.state.intent = Intent{}
	return w.commit()
}

// warmUp feeds j's window with the records before next that can matter to those after
// (schema.DedupeRule), so that it judges as every other reader does.
func (w *worker) warmUp(j *judge, next int64) error {
	j.window = schema.NewWindow(w.rule)
	from, err := w.warmUpStart(next)
	if err != nil {
		return err
	}
	began := time.Now()
	_, err = w.read(from, next, func(r *kgo.Record) error {
		j.row(r)
		return nil
	})
	if err != nil {
		return fmt.Errorf("warm up the dedupe window: %w", err)
	}
	w.log.Debug("dedupe window is warm", "from", from, "to", next, "ids", j.window.Len(), "took", time.Since(began))
	return nil
}

// lookForFirst is how many offsets a look for the next record reads at a time: a small fetch.
const lookForFirst = 64

// errFirstFound ends such a look; it is nobody's failure.
var errFirstFound = errors.New("first record found")

func (w *worker) warmUpStart(next int64) (int64, error) {
	start, end, err := w.kafkaLog.Bounds(w.hard, w.partition)
	if err != nil {
		return 0, err
	}
	next = min(max(next, start), end)
	// The age counts from the first record that is judged. If it is not there yet, its
	// time will be about now or later.
	ms := time.Now().UnixMilli()
	for at := next; at < end; { // offsets may have no record, as those of transaction markers
		to := min(at+lookForFirst, end)
		if at, err = w.kafkaLog.Read(w.hard, w.partition, at, to, func(r *kgo.Record) error {
			ms = min(ms, r.Timestamp.UnixMilli())
			return errFirstFound
		}); errors.Is(err, errFirstFound) {
			break
		}
		if err != nil {
			return 0, err
		}
		if at < to {
			break // the log ends here
		}
	}
	byTime, err := w.kafkaLog.OffsetForTime(w.hard, w.partition, ms-w.rule.WarmUpAge().Milliseconds())
	if err != nil {
		return 0, err
	}
	return min(max(start, byTime, next-w.rule.Offsets), next), nil
}

// read gives fn the records of [from, to) that Kafka still has, in order, and returns
// the offset it began at: from, or the log's start if that is later.
func (w *worker) read(from, to int64, fn func(*kgo.Record) error) (began int64, err error) {
	for began = from; began < to; {
		var out *kafka.OffsetRangeError
		next, err := w.kafkaLog.Read(w.hard, w.partition, began, to, fn)
		switch {
		case errors.As(err, &out) && next == began && out.Start > began:
			began = out.Start // deleted before a record was read
		case err != nil:
			return began, err
		case next < to:
			return began, fmt.Errorf("%w: read to %d, wanted %d", ErrTruncated, next, to)
		default:
			return began, nil
		}
	}
	return began, nil
}

// readBatch makes rows of the records in [start, end) that Kafka still has; began is
// where it begins.
func (w *worker) readBatch(j *judge, start, end int64) (b *batch, began int64, err error) {
	b = newBatch(w.epoch, w.partition)
	began, err = w.read(start, end, func(r *kgo.Record) error {
		made := j.row(r)
		b.add(&made)
		return nil
	})
	return b, began, err
}

// recover ends the doubt about the range that was announced when the partition's last
// owner, or our last life, ended.
func (w *worker) recover() error {
	in := w.state.intent
	w.log.Info("recovering an announced range", "start", in.Start, "end", in.End, "records", in.Records, "attempt", in.Attempt)
	// The same state once more: if we are fenced, we must not touch what another member
	// may be inserting right now.
	if err := w.commit(); err != nil {
		return err
	}
	j := &w.judge
	if in.End <= w.state.next { // a repair: the window at hand is already past it
		j = &judge{epoch: w.epoch, partition: w.partition, placement: w.placement, erased: w.erased}
		if err := w.warmUp(j, in.Start); err != nil {
			return err
		}
	}
	b, began, err := w.readBatch(j, in.Start, in.End)
	if err != nil {
		return fmt.Errorf("read the announced range again: %w", err)
	}
	if b.len() != in.Records {
		if err := w.clip(b, began); err != nil {
			return err
		}
	}
	if b.len() > 0 && !w.state.intent.IsZero() {
		if err := w.finish(b); err != nil {
			return err
		}
	}
	w.state.next = max(w.state.next, in.End)
	w.state.intent = Intent{}
	return w.commit()
}

// finish brings the announced range, whose rows are b's, into the table. Rows that were to
// be replaced may be there still, doubled even, or deleted, or inserted anew: that begins
// again.
func (w *worker) finish(b *batch) error {
	if !w.state.intent.Replace {
		return w.settle(b)
	}
	if _, err := w.killAndCount(w.state.intent); err != nil {
		return err
	}
	w.state.intent.Attempt++
	if err := w.commit(); err != nil {
		return err
	}
	return w.replace(b)
}

// clip narrows the announced range to the records that Kafka still has, from began on,
// which are b's. What it has lost is a gap, apart from what the table holds of it.
func (w *worker) clip(b *batch, began int64) error {
	in := &w.state.intent
	h, err := w.killAndCount(*in)
	if err != nil {
		return err
	}
	if h.rows == in.Records && h.distinct == in.Records {
		w.state.intent = Intent{} // all there before Kafka deleted it
		return nil
	}
	if began == in.Start || b.len() > in.Records {
		return fmt.Errorf("offsets %d to %d: %w: %d then, %d now", in.Start, in.End, ErrRecordsChanged, in.Records, b.len())
	}
	lostRange := offsetRange{start: in.Start, end: min(began, in.End), minMs: in.MinMs, maxMs: in.MaxMs}
	kept, err := w.store.count(w.hard, w.partition, lostRange)
	if err != nil {
		return err
	}
	if lost := in.Records - b.len() - kept.distinct; lost > 0 {
		rest := *in
		if err := w.skipGap(Gap{Start: lostRange.start, End: lostRange.end}, lost); err != nil {
			return err
		}
		*in = rest
	}
	if b.len() == 0 {
		*in = Intent{}
		return nil
	}
	in.Start, in.Records = began, b.len()
	w.state.next = max(w.state.next, in.Start)
	return w.commit()
}
