package materializer

import (
	"context"
	"errors"
	"fmt"
)

// maxAttempts bounds the tokens one range may use up in one go. Each is used up only by
// a server that says a row is kept and then does not have it.
const maxAttempts = 8

// Reasons to stop a partition: going on could only make it worse.
var (
	// ErrTooManyRows reports a range of which the table holds more rows than the log
	// has records.
	ErrTooManyRows = errors.New("table holds more rows than the log has records")
	// ErrNotKept reports a range that ClickHouse acknowledged again and again and does
	// not hold.
	ErrNotKept = errors.New("clickhouse acknowledges the rows and does not hold them")
	// ErrRecordsChanged reports a range whose records are not those it was announced
	// with: the topic was changed under us.
	ErrRecordsChanged = errors.New("records of the range are not those that were announced")
)

// action is the next step for a range in doubt.
type action int

const (
	actionDone     action = iota // the table holds the range once
	actionSend                   // insert all of it under the present token
	actionSendNew                // insert all of it under a new token
	actionSendRest               // insert what is missing under a new token
	actionStop                   // more rows than records: nothing we may do
)

func (a action) String() string {
	switch a {
	case actionDone:
		return "done"
	case actionSend:
		return "send"
	case actionSendNew:
		return "send_new"
	case actionSendRest:
		return "send_rest"
	case actionStop:
		return "stop"
	default:
		return fmt.Sprintf("action(%d)", int(a))
	}
}

// decide says what to do about a range of n records of which the table holds h, with no
// statement of ours running. acknowledged says that since the count before this one an
// insert of the whole range under the present token was acknowledged: if there is still
// nothing, the server took it for a repeat of something it lost, and the token is used up.
// expiring says that the rows may have expired, so that they need not stay: then an
// acknowledged insert of whatever was missing is enough, which sent says.
func decide(n int, h held, acknowledged, sent, expiring bool) action {
	switch {
	case h.rows > n || h.rows != h.distinct:
		return actionStop
	case h.rows == n:
		return actionDone
	case expiring && sent:
		return actionDone
	case h.rows > 0:
		return actionSendRest
	case acknowledged:
		return actionSendNew
	default:
		return actionSend
	}
}

// settle ends the doubt about a range: it returns nil once the table holds each row of b
// once. The intent is committed already; settle commits it again when the attempt
// changes. While ClickHouse or Kafka is away it waits, for as long as the partition is
// ours. It takes the state that the worker has committed and leaves the range's end in
// its intent.
func (w *worker) settle(b *batch) error {
	in := &w.state.intent
	acknowledged, sent := false, false
	expiring := in.MinMs < w.keptFromMs()
	pause := backoff{random: w.random}
	for attempts := 0; attempts < maxAttempts; {
		h, err := w.killAndCount(*in)
		if err != nil {
			if err := w.pause(&pause, "count the range", err); err != nil {
				return err
			}
			continue
		}
		act := decide(b.len(), h, acknowledged, sent, expiring)
		w.metrics.settled.WithLabelValues(act.String()).Inc()
		w.log.Info("settling a range", "start", in.Start, "end", in.End, "attempt", in.Attempt,
			"records", b.len(), "rows", h.rows, "offsets", h.distinct, "action", act.String())
		rows := b
		switch act {
		case actionDone:
			return nil
		case actionStop:
			return fmt.Errorf("offsets %d to %d: %w: %d records, %d rows, %d offsets",
				in.Start, in.End, ErrTooManyRows, b.len(), h.rows, h.distinct)
		case actionSendRest:
			present, err := w.store.offsets(w.hard, w.partition, in.offsetRange())
			if err != nil {
				if err := w.pause(&pause, "list the range", err); err != nil {
					return err
				}
				continue
			}
			rows = b.without(present)
			if rows.len() != b.len()-len(present) {
				return fmt.Errorf("offsets %d to %d: %w", in.Start, in.End, ErrRecordsChanged)
			}
			fallthrough
		case actionSendNew:
			attempts++
			in.Attempt++
			if err := w.commit(); err != nil {
				return err
			}
		case actionSend:
		}
		err = w.insert(rows)
		acknowledged, sent = err == nil && rows == b, err == nil
		if err != nil {
			if err := w.pause(&pause, "insert", err); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("offsets %d to %d: %w", in.Start, in.End, ErrNotKept)
}

// killAndCount counts a range with none of our statements on it running any more.
func (w *worker) killAndCount(in Intent) (held, error) {
	if in.Replace {
		if err := w.store.removed(w.hard, in.removal(w.partition)); err != nil {
			return held{}, err
		}
	}
	if err := w.store.kill(w.hard, in.token(w.epoch, w.partition)); err != nil {
		if !answered(err) {
			return held{}, err
		}
		// Not allowed to, or not known there. Then a statement that still runs refuses
		// ours by its id, and we come back here.
		w.log.Warn("cannot kill an insert in doubt", "error", err)
	}
	return w.store.count(w.hard, w.partition, in.offsetRange())
}

// pause waits after a failure, longer each time. It returns an error when the partition
// is to be given up meanwhile: the range stays in doubt, for its next owner.
func (w *worker) pause(b *backoff, doing string, err error) error {
	if w.hard.Err() != nil {
		return context.Cause(w.hard)
	}
	w.metrics.retries.Inc()
	if b.quiet() {
		w.log.Debug("retrying", "doing", doing, "error", err)
	} else {
		w.log.Warn("retrying", "doing", doing, "error", err)
	}
	if !b.wait(w.soft) {
		return fmt.Errorf("%s: %w, after: %w", doing, context.Cause(w.soft), err)
	}
	return nil
}
