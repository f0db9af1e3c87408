package query

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/playhead-dev/playhead/schema"
)

// errNotInKafka reports that ClickHouse is unavailable and Kafka does not hold all that
// the page wants.
var errNotInKafka = errors.New("the log does not reach back far enough")

// errPageFull ends the reading of a page; it does not leave this file.
var errPageFull = errors.New("page is full")

// page is a page of a session's events, as read.
type page struct {
	items    []pageItem
	more     bool // there are events beyond, in the page's direction
	degraded bool // ClickHouse was unavailable; Kafka stood in
}

// pageItem is one event. Its payload is empty unless the page was asked for payloads;
// its size is right all the same.
type pageItem struct {
	event       *schema.Event
	payloadSize int
}

// pageReader reads one page. It joins neighbouring stretches of the log at fixed
// offsets, so that no event is read from two of them: rows below the committed offset,
// then what Kafka and the tape hold up to the end of the view.
type pageReader struct {
	api  *API
	view *view
	req  *pageRequest

	// state is the session's; known is false where it could not be had, because only
	// ClickHouse holds its beginning.
	state schema.Session
	known bool

	page  page
	bytes int
	scan  *logScan // made at the first need
}

// add takes the next event and returns errPageFull if the page needs no more.
func (r *pageReader) add(e *schema.Event, payloadSize int) error {
	size := e.Size()
	if !r.req.payloads {
		size -= len(e.Payload)
	}
	r.bytes += size
	if len(r.page.items) == r.req.limit || len(r.page.items) > 0 && r.bytes > r.api.cfg.MaxPageBytes {
		r.page.more = true
		return errPageFull
	}
	r.page.items = append(r.page.items, pageItem{event: e, payloadSize: payloadSize})
	return nil
}

// addMatching is add for events that nobody has filtered.
func (r *pageReader) addMatching(e *schema.Event) error {
	if !r.req.filter.Match(e) {
		return nil
	}
	return r.add(e, len(e.Payload))
}

// read reads the page from or, descending, below position at; the zero position is the
// session's beginning or the view's end.
func (r *pageReader) read(ctx context.Context, at schema.Position) (page, error) {
	var err error
	if r.req.descending {
		if at.IsZero() {
			at = r.view.at(r.view.end)
		}
		err = r.readDown(ctx, at)
	} else {
		if at.IsZero() {
			at = beginning
		}
		err = r.readUp(ctx, at)
	}
	if err != nil && !errors.Is(err, errPageFull) {
		return page{}, err
	}
	return r.page, nil
}

// beginning is the first position there can be: epochs count from 1.
var beginning = schema.Position{Epoch: 1}

// readUp reads from position from up to the end.
func (r *pageReader) readUp(ctx context.Context, from schema.Position) error {
	next := r.view.committed // the first offset that is not ClickHouse's to answer
	if rows := r.view.at(next); before(from, rows) {
		err := r.readHistory(ctx, from, rows)
		if errors.Is(err, ErrUnavailable) {
			r.page, r.bytes = page{degraded: true}, 0
			next, err = r.kafkaBegins(ctx, from, err)
		}
		if err != nil {
			return err
		}
	} else {
		next = from.Offset
	}
	return r.hotUp(ctx, next)
}

// readDown reads from below position to down to the session's beginning.
func (r *pageReader) readDown(ctx context.Context, to schema.Position) error {
	rows := r.view.at(r.view.committed)
	if before(rows, to) {
		if err := r.hotDown(ctx, rows.Offset, to.Offset); err != nil {
			return err
		}
		to = rows
	}
	had, hadBytes := len(r.page.items), r.bytes
	err := r.readHistory(ctx, beginning, to)
	if !errors.Is(err, ErrUnavailable) {
		return err
	}
	r.page.items, r.bytes, r.page.degraded = r.page.items[:had], hadBytes, true
	return r.kafkaDown(ctx, to, err)
}

// readHistory reads rows in [from, to) in the page's direction.
func (r *pageReader) readHistory(ctx context.Context, from, to schema.Position) error {
	q := scopeRows{
		scope: r.view.ref.Scope(), from: from, to: to, filter: &r.req.filter,
		descending: r.req.descending, noPayloads: !r.req.payloads,
	}
	// One more than wanted tells whether there is more.
	_, err := r.api.deps.History.readSession(ctx, q, r.req.limit+1-len(r.page.items), r.add)
	return err
}

// complete reports whether Kafka holds the session from its beginning: the log has lost
// nothing yet, or the session is known to begin above its start.
func (r *pageReader) complete(start int64) bool {
	if r.view.epoch == 1 && start == 0 {
		return true
	}
	return r.known && (r.state.First.IsZero() || r.state.First.Epoch == r.view.epoch && r.state.First.Offset >= start)
}

// kafkaBegins returns the offset from which Kafka holds all of the session from
// position from on. If it does not, the error wraps why, which is ClickHouse's.
func (r *pageReader) kafkaBegins(ctx context.Context, from schema.Position, why error) (int64, error) {
	scan, err := r.logScan(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case from.Epoch == r.view.epoch && from.Offset >= scan.start:
		return from.Offset, nil
	case !r.complete(scan.start):
		return 0, fmt.Errorf("%w: %w", errNotInKafka, why)
	case r.known && !r.state.First.IsZero():
		return max(scan.start, r.state.First.Offset), nil
	default:
		return scan.start, nil
	}
}

// kafkaDown reads below position to from Kafka, in the place of ClickHouse. Where the
// log ends before the session does, the page ends short, with more to come; an empty
// page would say nothing, and is an error that wraps why.
func (r *pageReader) kafkaDown(ctx context.Context, to schema.Position, why error) error {
	scan, err := r.logScan(ctx)
	if err != nil {
		return err
	}
	forgotten := false
	if to.Epoch == r.view.epoch {
		err := r.hotDown(ctx, scan.start, to.Offset)
		if forgotten = errors.Is(err, errNotInKafka); err != nil && !forgotten {
			return err
		}
	}
	switch {
	case !forgotten && r.complete(scan.start):
		return nil
	case len(r.page.items) == 0:
		return fmt.Errorf("%w: %w", errNotInKafka, why)
	default:
		r.page.more = true
		return nil
	}
}

// logScan returns the page's scan of Kafka.
func (r *pageReader) logScan(ctx context.Context) (*logScan, error) {
	if r.scan != nil {
		return r.scan, nil
	}
	reason := "lag"
	if r.page.degraded {
		reason = "degraded"
	}
	var err error
	r.scan, err = r.api.newLogScan(ctx, r.view, reason)
	return r.scan, err
}

// Sizes of the steps in which the hot part of a log is read.
const (
	tapeStep     = 256     // events taken from the tape at a time, upwards
	firstStep    = 1024    // offsets looked at first, downwards
	stepGrowth   = 8       // by which the next step is longer
	maxKafkaStep = 1 << 17 // offsets of Kafka held in memory, of one session, at most
)

// hotUp reads offsets [from, end): what the tape covers from the tape, what lies below
// from Kafka. The tape may move on between two looks; the offset read up to decides.
func (r *pageReader) hotUp(ctx context.Context, from int64) error {
	ref, end := r.view.ref, r.view.end
	for from < end {
		events, start, next := r.view.tape.SessionEvents(ref.Workspace, ref.Session, from, tapeStep)
		if start > from {
			to := min(start, end)
			scan, err := r.logScan(ctx)
			if err != nil {
				return err
			}
			if err := scan.read(ctx, from, to, r.addMatching); err != nil {
				return err
			}
			from = to
			continue
		}
		for _, e := range events {
			if e.ID.Offset >= end {
				return nil
			}
			if err := r.addMatching(e); err != nil {
				return err
			}
		}
		if len(events) == tapeStep {
			next = events[len(events)-1].ID.Offset + 1
		}
		if next <= from { // it had passed the end before
			return fmt.Errorf("tape of partition %d ends at offset %d, below %d", ref.Partition, next, end)
		}
		from = next
	}
	return nil
}

// hotDown reads offsets [from, to) downwards.
func (r *pageReader) hotDown(ctx context.Context, from, to int64) error {
	ref := r.view.ref
	to = min(to, r.view.end)
	for step := int64(firstStep); from < to; step *= stepGrowth {
		low := max(from, to-step)
		events, start, _ := r.view.tape.SessionEvents(ref.Workspace, ref.Session, low, int(to-low))
		if start >= to {
			break
		}
		if err := r.addDown(events, to); err != nil {
			return err
		}
		if to = max(low, start); start > low {
			break
		}
	}
	return r.kafkaRangeDown(ctx, from, to)
}

// kafkaRangeDown reads offsets [from, to) from Kafka, in steps that it turns around.
func (r *pageReader) kafkaRangeDown(ctx context.Context, from, to int64) error {
	if from >= to {
		return nil
	}
	scan, err := r.logScan(ctx)
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
		if err := r.addDown(events, to); err != nil {
			return err
		}
		to = low
	}
	return nil
}

// addDown adds those of events, in ascending order, that lie below to, the last first.
func (r *pageReader) addDown(events []*schema.Event, to int64) error {
	for _, e := range slices.Backward(events) {
		if e.ID.Offset >= to {
			continue
		}
		if err := r.addMatching(e); err != nil {
			return err
		}
	}
	return nil
}
