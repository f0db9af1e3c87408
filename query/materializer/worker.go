package materializer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Reasons why a worker's contexts end.
var (
	errRevoked = errors.New("partition moves to another member, or the process stops")
	errLost    = errors.New("partition was lost to another member")
	errTooSlow = errors.New("partition moves and its last insert did not end in time")
)

// ErrTruncated reports a committed offset beyond the end of the log: records that are
// rows already are not in Kafka (any more, or not yet on a new leader).
var ErrTruncated = errors.New("committed offset lies beyond the end of the log")

const (
	// idlePoll is how long a worker without records waits before it looks around.
	idlePoll = time.Second
	// rebuildPoll is how long it waits for new records between two batches of a rebuild.
	rebuildPoll = time.Millisecond
	// stoppedPause is how long a stopped partition waits before it looks whether what
	// stopped it was mended.
	stoppedPause = 30 * time.Second
)

// worker copies one partition for as long as it is ours. One goroutine runs it; the
// contexts are how the group tells it to end:
//
//	soft ends   begin nothing new; finish and commit what is in flight
//	hard ends   drop everything where it is: statements, commits
//
// hard ends after soft. Neither loses or doubles a row: what is in flight is announced.
type worker struct {
	*Materializer
	commits *commits

	partition uint16
	member    string // our id in the group when the partition was assigned
	soft      context.Context
	hard      context.Context
	log       *slog.Logger
	gauges    partitionMetrics
	ledger    ledger

	state       committed // as committed, apart from dirty
	dirty       bool      // state.next is ahead of what was committed
	oldestMs    int64     // append time of the oldest row not yet below the committed offset
	verifyBelow int64     // ranges below it may be in the table though no intent says so

	judge   judge
	batch   *batch
	held    *row          // made, and left over for the next batch
	pending []*kgo.Record // polled, and not yet made rows of

	lastInsert time.Time

	requests  requestBox
	rebuilder *rebuilder // nil: not begun in this life
}

// run works until the partition is given up. It returns after its last statement.
func (w *worker) run() {
	pause := backoff{random: w.random}
	for w.soft.Err() == nil {
		began := time.Now()
		err := w.life()
		switch {
		case err == nil, w.hard.Err() != nil:
			return
		case w.soft.Err() != nil:
			w.log.Warn("partition is given up with a range in doubt", "error", err)
			return
		}
		if time.Since(began) > maxBackoff {
			pause = backoff{random: w.random}
		}
		stop := mustStop(err)
		w.gauges.stopped.Set(boolGauge(stop))
		if errors.Is(err, ErrFenced) {
			w.metrics.fenced.Inc()
		}
		if stop {
			w.log.Error("partition is stopped", "error", err, "retry_in", stoppedPause)
			sleep(w.soft, stoppedPause)
			continue
		}
		w.log.Warn("partition begins again from its committed state", "error", err)
		pause.wait(w.soft)
	}
}

// mustStop reports whether an error needs a human: going on at once could only make
// things worse, or lose something unsaid.
func mustStop(err error) bool {
	for _, e := range []error{ErrTooManyRows, ErrNotKept, ErrRecordsChanged, ErrTruncated, ErrIntent} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// life takes the partition from its committed state to the end of soft, or to the first
// error, and leaves nothing in memory that the next life would need.
func (w *worker) life() error {
	w.dirty, w.held, w.pending, w.oldestMs, w.rebuilder = false, nil, nil, 0, nil
	if err := w.load(); err != nil {
		return err
	}
	w.judge.window = nil // warmed up by the first record to judge: a quiet partition never reads back
	if !w.state.intent.IsZero() {
		if err := w.warmUp(&w.judge, w.state.next); err != nil {
			return err
		}
		if err := w.recover(); err != nil {
			return err
		}
	}
	w.gauges.stopped.Set(0)
	t, err := w.openTail(w.partition, w.state.next)
	if err != nil {
		return err
	}
	defer t.close()
	w.log.Info("partition is being copied", "offset", w.state.next)
	for {
		if err := w.rebuildSome(); err != nil {
			return err
		}
		if err := w.gather(t); err != nil {
			return err
		}
		if w.soft.Err() != nil {
			return w.commitIfDirty()
		}
		if w.batch.len() > 0 {
			if err := w.flush(t.highWatermark); err != nil {
				return err
			}
		}
	}
}

// gather fills the batch: until it is full, or its first record has waited long enough,
// or soft ends. It returns with an empty batch now and then while nothing comes.
func (w *worker) gather(t *tail) error {
	w.batch.reset()
	l := w.limits()
	var born time.Time
	for w.soft.Err() == nil {
		if len(w.pending) > 0 && w.judge.window == nil {
			if err := w.warmUp(&w.judge, w.pending[0].Offset); err != nil {
				return err
			}
		}
		if !w.fill(l) || w.batch.full(l) {
			return nil
		}
		if w.batch.len() > 0 && born.IsZero() {
			born = time.Now()
		}
		records, err := t.buffered()
		if err != nil {
			return err
		}
		if len(records) == 0 {
			// There is time now to commit what is done; under load the next intent does.
			if err := w.commitIfDirty(); err != nil {
				return err
			}
			if err := w.rebuildSome(); err != nil { // with the time that waiting would take
				return err
			}
			wait := idlePoll
			if w.state.rebuild.ID != "" {
				wait = rebuildPoll
			}
			if !born.IsZero() {
				wait = min(wait, w.lingerLeft(born))
			}
			if wait <= 0 {
				return nil
			}
			if records, err = pollFor(w.soft, t, wait); err != nil {
				return err
			}
			if len(records) == 0 && born.IsZero() {
				w.keepPassed(t)
				return nil
			}
		}
		w.keepPassed(t)
		w.pending = records
	}
	return nil
}

// lingerLeft is how long a batch that is not full, and whose first record came at born,
// waits for more.
func (w *worker) lingerLeft(born time.Time) time.Duration {
	return max(time.Until(born.Add(w.cfg.Linger)), time.Until(w.lastInsert.Add(w.cfg.BatchInterval)))
}

func pollFor(ctx context.Context, t *tail, wait time.Duration) ([]*kgo.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return t.poll(ctx)
}

// fill moves records into the batch, and reports whether all fitted.
func (w *worker) fill(l limits) bool {
	if w.held != nil {
		w.batch.add(w.held) // the first of its batch always fits
		w.held = nil
	}
	for i, r := range w.pending {
		w.pending[i] = nil
		if r.Attrs.IsControl() {
			w.pass(r.Offset + 1)
			continue
		}
		made := w.judge.row(r)
		if !w.batch.fits(&made, l) {
			w.held, w.pending = &made, w.pending[i+1:]
			return false
		}
		w.batch.add(&made)
	}
	w.pending = nil
	return true
}

// pass moves on behind the mark of a transaction's end, of which nothing is made: or the
// watermark would stay below a log that ends with one, and who waits for it wait in vain.
func (w *worker) pass(next int64) {
	if w.batch.len() > 0 {
		w.batch.end = next
		return
	}
	w.state.next, w.dirty = next, true
}

// flush announces the batch, inserts it and moves on.
func (w *worker) flush(highWatermark int64) error {
	if !w.keepLetters(w.batch.letters) {
		return nil // nothing was announced: the batch is dropped
	}
	release, ok := w.acquireInsert(w.soft)
	if !ok {
		return nil // nothing was announced: the batch is dropped
	}
	defer release()
	w.state.intent = w.batch.intent(w.state.next)
	if err := w.commit(); err != nil {
		return err
	}
	if err := w.insertOrSettle(w.batch); err != nil {
		return err
	}
	in := w.state.intent
	w.state.next, w.state.intent = in.End, Intent{}
	w.dirty, w.oldestMs = true, in.MinMs
	w.lastInsert = time.Now()
	w.ledger.add(in)
	w.gauges.lag.Set(float64(max(0, highWatermark-in.End)))
	return nil
}

// insertOrSettle inserts an announced batch for the first time. An outcome that is in
// doubt is settled by counting, and so is a range that may hold rows already.
func (w *worker) insertOrSettle(b *batch) error {
	if w.state.next < w.verifyBelow {
		return w.settle(b)
	}
	err := w.insert(b)
	if err == nil {
		return nil
	}
	first := backoff{random: w.random}
	if err := w.pause(&first, "insert", err); err != nil {
		return err
	}
	return w.settle(b)
}

// insert sends rows under the token of the committed intent.
func (w *worker) insert(b *batch) error {
	began := time.Now()
	if err := w.store.insert(w.hard, w.state.intent.token(w.epoch, w.partition), b); err != nil {
		w.metrics.insertErrors.Inc()
		return err
	}
	w.metrics.insertSeconds.Observe(time.Since(began).Seconds())
	w.metrics.addRows(b)
	return nil
}

// commit writes the state to the group, however long that takes, and publishes the
// watermark. It returns ErrFenced if the partition is another's, and hard's cause.
func (w *worker) commit() error {
	pause := backoff{random: w.random}
	for {
		err := w.commits.commit(w.hard, w.member, w.partition, w.state)
		switch {
		case err == nil:
			w.dirty = false
			w.metrics.commits.Inc()
			w.publish()
			return nil
		case w.hard.Err() != nil:
			return context.Cause(w.hard)
		case errors.Is(err, ErrFenced), errors.Is(err, kgo.ErrClientClosed):
			return err
		}
		w.metrics.retries.Inc()
		if !pause.quiet() {
			w.log.Warn("retrying", "doing", "commit", "error", err)
		}
		if !pause.wait(w.hard) {
			return context.Cause(w.hard)
		}
	}
}

func (w *worker) commitIfDirty() error {
	if !w.dirty {
		return nil
	}
	return w.commit()
}

// publish tells the process how far the table is.
func (w *worker) publish() {
	w.gauges.committed.Set(float64(w.state.next))
	if w.oldestMs > 0 {
		w.metrics.visible.Observe(max(0, time.Since(time.UnixMilli(w.oldestMs)).Seconds()))
		w.oldestMs = 0
	}
	w.published(w.partition, w.state.next)
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
