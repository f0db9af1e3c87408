package query

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/playhead-dev/playhead/schema"
)

// leg is what a page reads of one Kafka partition in one epoch of the log; of a session it
// is all of its log, as an older epoch may have had it in another partition.
//
// Three stretches follow each other in it: rows that are final, what Kafka and the tape hold
// above them, and what was appended after the request came, which is not the page's. They
// are joined at fixed offsets, so that no event is read from two of them.
type leg struct {
	view      *view // nil for an epoch before this one, of which only ClickHouse knows
	partition uint16

	at   schema.Position // ascending: all below has been read; descending: all at or above has
	rows schema.Position // ClickHouse answers below it, the tape and Kafka from it on
	far  schema.Position // where the leg ends: the position behind its last, or its first

	// enter, if set, lies below rows: between the two nothing is old enough for a page that
	// goes down from a time.
	enter *schema.Position

	items []pageItem // read and not yet on the page, in its direction
	bytes int        // what items hold
	cut   bool       // it ends here, though the log goes on: ClickHouse is away, and Kafka holds no more

	endsCut bool // it will be cut once it has been read to far
}

// errLegFull ends the reading of a leg for now; it does not leave this file.
var errLegFull = errors.New("leg has enough")

// done reports whether all of the leg has been read.
func (r *pageReader) done(l *leg) bool {
	if r.req.descending {
		return l.cut || !before(l.far, l.at)
	}
	return !before(l.at, l.far)
}

// inRows reports whether it is ClickHouse that the leg has to ask next.
func (r *pageReader) inRows(l *leg) bool {
	if r.req.descending {
		return !before(l.rows, l.at)
	}
	return before(l.at, l.rows)
}

// take adds the next event that the filter takes, and returns errLegFull, without adding it,
// if the leg has as many as a page can use. One more than a page holds tells whether there
// is more.
func (r *pageReader) take(l *leg, e *schema.Event, payloadSize int) error {
	item := pageItem{event: e, payloadSize: payloadSize, size: e.Size()}
	if !r.req.payloads {
		item.size -= len(e.Payload)
	}
	if n := len(l.items); n > r.req.limit || n > 0 && l.bytes+item.size > r.api.cfg.MaxPageBytes {
		return errLegFull
	}
	l.items = append(l.items, item)
	l.bytes += item.size
	if l.at = e.ID.Position; !r.req.descending {
		l.at = after(l.at)
	}
	return nil
}

// takeMatching is take for events that nobody has filtered.
func (r *pageReader) takeMatching(l *leg, e *schema.Event) error {
	if !r.req.filter.Match(e) {
		return nil
	}
	return r.take(l, e, len(e.Payload))
}

// fill reads on in every leg that has nothing for the page, until each has or is done.
func (r *pageReader) fill(ctx context.Context) error {
	for {
		var rows []*leg
		for _, l := range r.legs {
			if len(l.items) == 0 && !r.done(l) && !r.inRows(l) {
				if err := r.fillHot(ctx, l); err != nil {
					return err
				}
			}
			if len(l.items) == 0 && !r.done(l) && r.inRows(l) {
				rows = append(rows, l)
			}
		}
		if len(rows) > 0 {
			if err := r.fillRows(ctx, rows); err != nil {
				return err
			}
		}
		if !slices.ContainsFunc(r.legs, func(l *leg) bool { return len(l.items) == 0 && !r.done(l) }) {
			return nil
		}
	}
}

// fillRows reads on in the rows of legs. Where ClickHouse is away, Kafka stands in.
func (r *pageReader) fillRows(ctx context.Context, legs []*leg) error {
	var err error
	if r.scope.Session != "" {
		err = r.fillSession(ctx, legs[0])
	} else {
		err = r.fillWindows(ctx, legs)
	}
	if !errors.Is(err, ErrUnavailable) {
		return err
	}
	r.page.degraded = true
	for _, l := range legs {
		if err := r.standIn(ctx, l, err); err != nil {
			return err
		}
	}
	return nil
}

// fillSession reads rows of a session.
func (r *pageReader) fillSession(ctx context.Context, l *leg) error {
	q := scopeRows{
		scope: r.scope, from: l.at, to: l.rows, filter: &r.req.filter,
		descending: r.req.descending, noPayloads: !r.req.payloads,
	}
	if r.req.descending {
		q.from, q.to = l.far, l.at
	}
	q.placed = q.to.Epoch == l.view.epoch // of an earlier one the leg does not know the partition
	wanted := r.req.limit + 1
	n, err := r.api.deps.History.readSession(ctx, q, wanted, func(e *schema.Event, size int) error { return r.take(l, e, size) })
	switch {
	case errors.Is(err, errLegFull):
		return nil
	case err != nil:
		return err
	case n < wanted && r.req.descending:
		l.at = l.far
	case n < wanted:
		l.at = l.rows
	}
	return nil
}

// standIn has Kafka answer in the place of ClickHouse from where the leg is. why is
// ClickHouse's error, which is returned, wrapped, where Kafka does not reach: upwards at
// once, downwards once there is nothing to show (pageReader.read).
func (r *pageReader) standIn(ctx context.Context, l *leg, why error) error {
	unreachable := fmt.Errorf("%w: %w", errNotInKafka, why)
	r.why = unreachable
	if l.view == nil {
		if l.cut = r.req.descending; l.cut {
			return nil
		}
		return unreachable
	}
	scan, err := r.logScan(ctx, l)
	if err != nil {
		return err
	}
	reached := l.at.Epoch == l.view.epoch && l.at.Offset >= scan.start
	begins := scan.start // the first offset to read, if the log is complete from there on
	if r.known() && !r.state.First.IsZero() {
		begins = max(begins, r.state.First.Offset)
	}
	switch {
	case !r.req.descending && reached:
		l.rows = l.at
	case !r.req.descending && r.complete(l, scan.start):
		l.at = l.view.at(begins)
		l.rows = l.at
	case !r.req.descending:
		return unreachable
	case !reached:
		l.cut = !r.complete(l, scan.start)
		l.at = l.far
	default:
		l.endsCut = !r.complete(l, scan.start)
		l.rows = l.view.at(scan.start)
		l.far = l.rows
	}
	return nil
}

// complete reports whether Kafka holds the leg from its beginning: the log has lost nothing
// yet, or the session is known to begin above its start.
func (r *pageReader) complete(l *leg, start int64) bool {
	if l.view.epoch == 1 && start == 0 {
		return true
	}
	return r.known() && r.scope.Session != "" &&
		(r.state.First.IsZero() || r.state.First.Epoch == l.view.epoch && r.state.First.Offset >= start)
}

// logScan returns the page's scan of the leg's partition in Kafka.
func (r *pageReader) logScan(ctx context.Context, l *leg) (*logScan, error) {
	if scan := r.scans[l.partition]; scan != nil {
		return scan, nil
	}
	reason := "lag"
	if r.page.degraded {
		reason = "degraded"
	}
	scan, err := r.api.newLogScan(ctx, l.view, r.scope, reason)
	if err == nil {
		r.scans[l.partition] = scan
	}
	return scan, err
}

// fillHot reads what lies above the rows.
func (r *pageReader) fillHot(ctx context.Context, l *leg) error {
	var err error
	if r.req.descending {
		if err = r.hotDown(ctx, l, l.rows.Offset, l.at.Offset); err == nil {
			l.at = l.rows
			l.cut = l.endsCut
		}
		if errors.Is(err, errNotInKafka) && r.page.degraded {
			// Of what lies below nobody can tell whether it repeats something.
			l.cut, r.why, err = true, errors.Join(r.why, err), nil
		}
	} else if err = r.hotUp(ctx, l, l.at.Offset); err == nil {
		l.at = l.far
	}
	if errors.Is(err, errLegFull) {
		return nil
	}
	return err
}

// Sizes of the steps in which the hot part of a log is read.
const (
	tapeStep     = 256     // events taken from the tape at a time, upwards
	firstStep    = 1024    // offsets looked at first, downwards
	stepGrowth   = 8       // by which the next step is longer
	maxKafkaStep = 1 << 17 // offsets of Kafka held in memory, of one scope, at most
)

// hotUp reads offsets [from, end): what the tape covers from the tape, what lies below
// from Kafka. The tape may move on between two looks; the offset read up to decides.
func (r *pageReader) hotUp(ctx context.Context, l *leg, from int64) error {
	end := l.far.Offset
	for from < end {
		events, start, next := l.view.tape.ScopeEvents(r.scope, from, tapeStep)
		if start > from {
			to := min(start, end)
			scan, err := r.logScan(ctx, l)
			if err != nil {
				return err
			}
			if err := scan.read(ctx, from, to, func(e *schema.Event) error { return r.takeMatching(l, e) }); err != nil {
				return err
			}
			from = to
			continue
		}
		for _, e := range events {
			if e.ID.Offset >= end {
				return nil
			}
			if err := r.takeMatching(l, e); err != nil {
				return err
			}
		}
		if len(events) == tapeStep {
			next = events[len(events)-1].ID.Offset + 1
		}
		if next <= from { // it had passed the end before
			return fmt.Errorf("tape of partition %d ends at offset %d, below %d", l.partition, next, end)
		}
		from = next
	}
	return nil
}

// hotDown reads offsets [from, to) downwards.
func (r *pageReader) hotDown(ctx context.Context, l *leg, from, to int64) error {
	to = min(to, l.view.end)
	for step := int64(firstStep); from < to; step *= stepGrowth {
		low := max(from, to-step)
		events, start, _ := l.view.tape.ScopeEvents(r.scope, low, int(to-low))
		if start >= to {
			break
		}
		if err := r.takeDown(l, events, to); err != nil {
			return err
		}
		if to = max(low, start); start > low {
			break
		}
	}
	return r.kafkaDown(ctx, l, from, to)
}

// kafkaDown reads offsets [from, to) from Kafka, in steps that it turns around.
func (r *pageReader) kafkaDown(ctx context.Context, l *leg, from, to int64) error {
	if from >= to {
		return nil
	}
	scan, err := r.logScan(ctx, l)
	if err != nil {
		return err
	}
	from = max(from, scan.start)
	var events []*schema.Event
	for step := int64(firstStep); from < to; step = min(step*stepGrowth, maxKafkaStep) {
		low := max(from, to-step)
		events = events[:0]
		err := scan.read(ctx, low, to, func(e *schema.Event) error {
			events = append(events, e)
			return nil
		})
		if err != nil {
			return err
		}
		if err := r.takeDown(l, events, to); err != nil {
			return err
		}
		to = low
	}
	return nil
}

// takeDown takes those of events, in ascending order, that lie below to, the last first.
func (r *pageReader) takeDown(l *leg, events []*schema.Event, to int64) error {
	for _, e := range slices.Backward(events) {
		if e.ID.Offset >= to {
			continue
		}
		if err := r.takeMatching(l, e); err != nil {
			return err
		}
	}
	return nil
}
