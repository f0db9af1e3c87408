package materializer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Rebuild is the making anew of a range of a partition's rows from Kafka, below the
// committed offset: what is asked, how far it is, and what it found. Its state is part of
// the commit that its owner makes after each batch, so it survives the owner; and as the
// owner is the only one who inserts rows of the partition, a rebuild, the copying and
// what the self-check repairs cannot insert a row twice.
//
// The zero Rebuild is none.
type Rebuild struct {
	ID      string `json:"id"`
	Cause   string `json:"cause"` // one of CauseRequest, CauseLost, CauseCheck
	Start   int64  `json:"start"` // inclusive
	End     int64  `json:"end"`   // exclusive
	Replace bool   `json:"replace,omitempty"`
	DryRun  bool   `json:"dry_run,omitempty"`

	Next    int64  `json:"next"`  // all offsets of the range below it are done
	Ended   bool   `json:"ended"` // nothing more will be done
	Failure string `json:"failure,omitempty"`

	Checked  int64 `json:"checked"`  // records that were read from Kafka and compared
	Missing  int64 `json:"missing"`  // of them those without a row
	Inserted int64 `json:"inserted"` // rows; a batch that a crash fell into is left out
	Doubled  int64 `json:"doubled"`  // rows too many, on offsets that have one
	Foreign  int64 `json:"foreign"`  // rows on offsets without a record
	Removed  int64 `json:"removed"`  // rows deleted by Replace
	Beyond   int64 `json:"beyond"`   // offsets that Kafka has deleted
	Lost     int64 `json:"lost"`     // of them those without a row: at most so many are lost
	Expired  int64 `json:"expired"`  // offsets left out as their rows may have expired
}

// What a Rebuild is for.
const (
	CauseRequest = "request" // somebody asked (Request)
	CauseLost    = "lost"    // rows that had been committed were not there
	CauseCheck   = "check"   // the self-check found rows missing
)

// Bounds of a Rebuild's texts: the commit's metadata holds two of them.
const (
	maxRebuildID = 40
	maxFailure   = 160
)

// Left is how many rows the rebuild could not restore, or, in a dry run, would not have
// to: those that are doubled, foreign, lost, or missing beside such.
func (b Rebuild) Left() int64 {
	left := b.Lost
	if !b.Replace {
		left += b.Doubled + b.Foreign
	}
	if !b.DryRun && !b.Replace {
		left += b.Missing - b.Inserted
	}
	return left
}

// Incomplete reports whether pages may lack rows until the rebuild has ended.
func (b Rebuild) Incomplete() bool {
	return b != (Rebuild{}) && !b.DryRun && (b.Cause == CauseLost || b.Replace || b.Missing > 0)
}

// check refuses what no node of ours writes.
func (b *Rebuild) check() error {
	if b.ID == "" || len(b.ID) > maxRebuildID || len(b.Failure) > maxFailure ||
		b.Start < 0 || b.End < b.Start || b.End > schema.MaxOffset+1 || b.Next < b.Start {
		return fmt.Errorf("rebuild %.40q of [%d, %d) at %d", b.ID, b.Start, b.End, b.Next)
	}
	return nil
}

// newRebuildID returns an id that no other rebuild has: it is part of tokens.
func newRebuildID() string { return strings.ToLower(rand.Text()[:12]) }

// rebuilder is what a worker keeps in memory of the rebuild under way.
type rebuilder struct {
	judge     judge
	batch     *batch
	held      *row // made, and left over for the next batch
	from      int64
	committed time.Time
}

// rebuildCommitInterval is how often a rebuild commits how far it is while there is
// nothing to insert.
const rebuildCommitInterval = time.Second

// errBatchFull ends the reading of a batch; it is nobody's failure.
var errBatchFull = errors.New("batch is full")

// nextRebuild begins the next rebuild if none is under way: one that was asked for, or
// one that the self-check wants. It ends one whose request was withdrawn.
func (w *worker) nextRebuild() error {
	req, asked := w.requests.get(w.epoch)
	if b := &w.state.rebuild; b.ID != "" {
		if b.Cause == CauseRequest && asked && req.ID == b.ID && req.Cancelled {
			return w.endRebuild("cancelled")
		}
		return nil
	}
	if asked && !req.Cancelled && req.ID != w.state.rebuilt.ID {
		return w.beginRebuild(Rebuild{
			ID: req.ID, Cause: CauseRequest, Start: req.Start, End: min(req.End, w.state.next), Replace: req.Replace, DryRun: req.DryRun,
		})
	}
	if g, ok := w.ledger.asked(); ok {
		return w.beginRebuild(Rebuild{ID: newRebuildID(), Cause: CauseCheck, Start: g.start, End: min(g.end, w.state.next)})
	}
	return nil
}

// beginRebuild enters b as the one under way and commits it.
func (w *worker) beginRebuild(b Rebuild) error {
	b.End = max(b.Start, b.End)
	b.Next = b.Start
	unexpired, err := w.unexpired()
	if err != nil {
		return err
	}
	if unexpired > b.Next {
		b.Expired = min(unexpired, b.End) - b.Next
		b.Next = min(unexpired, b.End)
	}
	w.log.Warn("rebuilding rows from kafka", "rebuild", b.ID, "cause", b.Cause, "start", b.Start, "end", b.End,
		"replace", b.Replace, "dry_run", b.DryRun)
	w.state.rebuild = b
	w.rebuilder = nil
	w.gauges.incomplete.Set(boolGauge(b.Incomplete()))
	return w.commit()
}

// endRebuild ends the rebuild under way; failure says why before its end, "" that it is
// through.
func (w *worker) endRebuild(failure string) error {
	b := w.state.rebuild
	b.Ended, b.Failure = true, failure
	if len(b.Failure) > maxFailure {
		b.Failure = strings.ToValidUTF8(b.Failure[:maxFailure], "")
	}
	w.log.Warn("rebuild has ended", "rebuild", b.ID, "failure", b.Failure, "checked", b.Checked, "missing", b.Missing,
		"inserted", b.Inserted, "doubled", b.Doubled, "foreign", b.Foreign, "removed", b.Removed, "lost", b.Lost)
	w.state.rebuild = Rebuild{}
	if b.Cause == CauseRequest {
		w.state.rebuilt = b
	}
	w.rebuilder = nil
	w.gauges.incomplete.Set(0)
	return w.commit()
}

// rebuildSome begins the next rebuild, if one is due, and does a batch of the one under
// way.
func (w *worker) rebuildSome() error {
	if err := w.nextRebuild(); err != nil {
		return err
	}
	return w.rebuildStep()
}

// rebuildStep does one batch of the rebuild under way, if there is one. A failure that
// concerns its range alone ends the rebuild, not the partition's copying.
func (w *worker) rebuildStep() error {
	b := &w.state.rebuild
	if b.ID == "" {
		return nil
	}
	if b.Next >= b.End {
		return w.endRebuild("")
	}
	err := w.rebuildBatch()
	if errors.Is(err, ErrTooManyRows) || errors.Is(err, ErrNotKept) || errors.Is(err, ErrRecordsChanged) {
		w.state.intent = Intent{}
		return w.endRebuild(err.Error())
	}
	if err != nil {
		return fmt.Errorf("rebuild at offset %d: %w", b.Next, err)
	}
	return nil
}

// rebuildBatch compares the next batch of the range with the table and mends what
// differs.
func (w *worker) rebuildBatch() error {
	job := &w.state.rebuild
	rb := w.rebuilder
	if rb == nil {
		rb = &rebuilder{
			judge: judge{epoch: w.epoch, partition: w.partition, placement: w.placement, erased: w.erased},
			batch: newBatch(w.epoch, w.partition), from: job.Next, committed: time.Now(),
		}
		if err := w.warmUp(&rb.judge, job.Next); err != nil {
			return err
		}
		w.rebuilder = rb
	}
	end, began, err := w.readRebuildBatch(rb)
	if err != nil {
		w.rebuilder = nil // it is ahead of what was done
		return err
	}
	after := *job // with what this batch adds
	if began > job.Next {
		h, err := w.store.count(w.hard, w.partition, offsetRange{start: job.Next, end: began})
		if err != nil {
			w.rebuilder = nil
			return err
		}
		after.Beyond += began - job.Next
		after.Lost += began - job.Next - int64(h.distinct)
	}
	after.Checked += int64(rb.batch.len())
	after.Next = end
	if rb.batch.len() > 0 {
		if err := w.mend(rb.batch, offsetRange{start: max(began, job.Next), end: end}, &after); err != nil {
			w.rebuilder = nil
			return err
		}
	}
	changed := !w.state.intent.IsZero()
	w.state.intent = Intent{}
	w.state.rebuild = after
	w.gauges.incomplete.Set(boolGauge(after.Incomplete()))
	rb.batch.reset()
	if changed || time.Since(rb.committed) > rebuildCommitInterval {
		rb.committed = time.Now()
		return w.commit()
	}
	return nil
}

// readRebuildBatch fills rb's batch with the rows of the next records. It returns the
// offset behind the last, and where Kafka's records begin: job.Next, or later if it has
// deleted some.
func (w *worker) readRebuildBatch(rb *rebuilder) (end, began int64, err error) {
	job := &w.state.rebuild
	l := w.limits()
	rb.batch.reset()
	began = job.Next
	if rb.held != nil {
		rb.batch.add(rb.held)
		rb.held = nil
	}
	from := rb.from
	end = min(max(from, job.Next)+int64(w.cfg.MaxBatchRows), job.End)
	start, err := w.read(from, end, func(r *kgo.Record) error {
		made := rb.judge.row(r)
		if !rb.batch.fits(&made, l) || rb.batch.full(l) {
			rb.held, end, rb.from = &made, r.Offset, r.Offset+1
			return errBatchFull
		}
		rb.batch.add(&made)
		return nil
	})
	switch {
	case errors.Is(err, errBatchFull):
	case err != nil:
		return 0, 0, err
	default:
		// Kafka may have deleted more than the range it was asked for.
		end = min(max(end, start), job.End)
		rb.from = end
	}
	if start > from && from == job.Next {
		began = min(start, job.End)
	}
	return end, began, nil
}

// mend brings the table to hold each row of b once, as far as the rebuild may, and adds
// what it found and did to sum. It looks at rows of any time: one that should not be there
// may have any. r is the range of b's records and of nothing else. What
// it wrote is announced in the committed intent, which it leaves to the caller to clear.
func (w *worker) mend(b *batch, r offsetRange, sum *Rebuild) error {
	h, err := w.store.count(w.hard, w.partition, r)
	if err != nil {
		return err
	}
	missing := b
	if h.rows > 0 {
		present, err := w.store.offsets(w.hard, w.partition, r)
		if err != nil {
			return err
		}
		missing = b.without(present)
		sum.Foreign += int64(len(present) - (b.len() - missing.len()))
	}
	sum.Missing += int64(missing.len())
	sum.Doubled += int64(h.rows - h.distinct)
	in := b.intent(r.start)
	in.End, in.Rebuild, in.Replace = r.end, sum.ID, sum.Replace
	switch {
	case sum.DryRun, missing.len() == 0 && !sum.Replace:
		return nil
	case sum.Replace:
		if err := w.announce(in); err != nil {
			return err
		}
		sum.Removed += int64(h.rows)
		sum.Inserted += int64(b.len())
		return w.replace(b)
	case h.rows != h.distinct || h.rows+missing.len() != b.len():
		return nil // inserting beside rows that should not be there could not be settled by counting
	}
	if err := w.announce(in); err != nil {
		return err
	}
	release, ok := w.acquireInsert(w.hard)
	if !ok {
		return context.Cause(w.hard)
	}
	defer release()
	if h.rows > 0 || w.insert(b) != nil {
		if err := w.settle(b); err != nil {
			return err
		}
	}
	sum.Inserted += int64(missing.len())
	w.metrics.repairedRows.Add(float64(missing.len()))
	return nil
}

// announce commits in as the range that is about to be inserted.
func (w *worker) announce(in Intent) error {
	w.state.intent = in
	return w.commit()
}

// replace deletes the rows of the announced range and inserts b's.
func (w *worker) replace(b *batch) error {
	release, ok := w.acquireInsert(w.hard)
	if !ok {
		return context.Cause(w.hard)
	}
	defer release()
	in := w.state.intent
	if err := w.store.remove(w.hard, w.partition, offsetRange{start: in.Start, end: in.End}, in.removal(w.partition)); err != nil {
		return err
	}
	return w.settle(b)
}

// unexpired returns the offset from which on the table keeps every row: those below may
// have expired. 0 if rows do not expire.
func (w *worker) unexpired() (int64, error) {
	if w.ttl == 0 {
		return 0, nil
	}
	return w.kafkaLog.OffsetForTime(w.hard, w.partition, w.keptFromMs())
}

// keptFromMs is the append time, Unix ms, from which on the table keeps every row.
func (m *Materializer) keptFromMs() int64 {
	if m.ttl == 0 {
		return 0
	}
	return time.Now().Add(expiryMargin - m.ttl).UnixMilli()
}

// expiryMargin is how long before its time a row counts as expired: ClickHouse's clock is
// not ours, and records' times may run back.
const expiryMargin = time.Hour

// lostProbe is how far below the committed offset rows are looked for first.
const lostProbe = 200_000

// findLost asks whether the table ends before the committed offset: it was lost, or put
// back from an older backup. Then what Kafka still holds of the rest is rebuilt.
func (w *worker) findLost(logStart int64) error {
	unexpired, err := w.unexpired()
	if err != nil {
		return err
	}
	low := max(logStart, unexpired)
	if low >= w.state.next || w.state.rebuild.ID != "" {
		return nil
	}
	from := max(low, w.state.next-lostProbe)
	end, err := w.store.end(w.hard, w.partition, from)
	if err == nil && end == from && from > low {
		end, err = w.store.end(w.hard, w.partition, low)
	}
	if err != nil || end >= w.state.next {
		return err
	}
	records := false // or else what is missing are the marks of transactions
	_, err = w.read(end, w.state.next, func(*kgo.Record) error {
		records = true
		return errBatchFull
	})
	if err != nil && !errors.Is(err, errBatchFull) || !records {
		return err
	}
	w.log.Error("history lacks rows below the committed offset: the table was lost, or is of an older backup",
		"rows_end", end, "offset", w.state.next)
	return w.beginRebuild(Rebuild{ID: newRebuildID(), Cause: CauseLost, Start: end, End: w.state.next})
}
