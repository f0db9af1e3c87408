package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// errScanBudget reports that a page would have to read more of Kafka than one may.
var errScanBudget = errors.New("page reads too much of the log")

// errLogFailed reports that Kafka could not be read.
var errLogFailed = errors.New("read the log")

// logScan reads one session's events from Kafka for one page, within the bounds of
// LogScanConfig. Everything it reads counts: other sessions' records, and those that it
// reads only to tell repeats.
type logScan struct {
	log   Log
	view  *view
	rule  schema.DedupeRule
	start int64 // log start offset

	records int   // how many it may still read
	bytes   int64 // likewise
	until   time.Time
	spent   func(records int)

	window *schema.Window // judges what the tape cannot; nil until it is needed
	seenTo int64          // the window has observed the session's records up to here
}

// newLogScan asks for the log start offset.
func (a *API) newLogScan(ctx context.Context, v *view, reason string) (*logScan, error) {
	start, _, err := a.deps.Log.Bounds(ctx, v.ref.Partition)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLogFailed, err)
	}
	return &logScan{
		log: a.deps.Log, view: v, rule: a.deps.Dedupe, start: start,
		records: a.cfg.LogScan.MaxRecords, bytes: a.cfg.LogScan.MaxBytes, until: time.Now().Add(a.cfg.LogScan.Timeout),
		spent: func(n int) { a.metrics.logScans.WithLabelValues(reason).Add(float64(n)) },
	}, nil
}

// read calls emit with the session's events of [from, to) in offset order, without
// hidden ones and repeats. Offsets below the log start offset are passed over. emit's
// first error ends it and is returned as it is.
func (s *logScan) read(ctx context.Context, from, to int64, emit func(*schema.Event) error) error {
	from = max(from, s.start)
	if from >= to {
		return nil
	}
	if s.window != nil && s.seenTo != from {
		s.window = nil
	}
	err := s.scan(ctx, from, to, func(e *schema.Event) error {
		repeats, err := s.repeats(ctx, e)
		if err != nil || repeats || e.Hidden() {
			return err
		}
		return emit(e)
	})
	if err == nil {
		s.seenTo = to
	}
	return err
}

// scan calls fn with every event of the session in [from, to).
func (s *logScan) scan(ctx context.Context, from, to int64, fn func(*schema.Event) error) error {
	had := s.records
	defer func() { s.spent(had - s.records) }()
	ctx, cancel := context.WithDeadline(ctx, s.until)
	defer cancel()
	var stopped error // by us, not by Kafka
	_, err := s.log.Read(ctx, s.view.ref.Partition, from, to, func(r *kgo.Record) error {
		s.records--
		s.bytes -= int64(len(r.Value))
		if s.records < 0 || s.bytes < 0 {
			stopped = errScanBudget
		} else if e := s.decode(r); e != nil {
			stopped = fn(e)
		}
		return stopped
	})
	switch {
	case stopped != nil:
		return stopped
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", errScanBudget, err)
	case err != nil:
		return fmt.Errorf("%w: %w", errLogFailed, err)
	default:
		return nil
	}
}

// decode returns the record's event if it is one of the session's. Records that are no
// events are dead letters, which the materialiser reports.
func (s *logScan) decode(r *kgo.Record) *schema.Event {
	if r.Attrs.IsControl() || !schema.HasSubject(r.Headers, s.view.ref.Session) {
		return nil
	}
	id := schema.EventID{Position: s.view.at(r.Offset), TimeMs: r.Timestamp.UnixMilli()}
	e, err := schema.DecodeRecord(id, r.Headers, r.Value)
	if err != nil || e.Workspace != s.view.ref.Workspace || e.Session != s.view.ref.Session {
		return nil
	}
	return e
}

// repeats reports whether e repeats an earlier record. The tape mostly knows. Where it
// does not, a window of our own does, which then must see every further record.
func (s *logScan) repeats(ctx context.Context, e *schema.Event) (bool, error) {
	repeats, known := s.view.tape.Repeats(e)
	if e.MessageID == "" {
		repeats, known = false, true
	}
	if !known && s.window == nil {
		if err := s.warmUp(ctx, e); err != nil {
			return false, err
		}
	}
	if s.window != nil {
		_, judged := s.window.Observe(e)
		s.seenTo = e.ID.Offset + 1
		if !known {
			repeats = judged
		}
	}
	return repeats, nil
}

// warmUp begins the window with what e, and any record after it, could repeat. Where
// the log does not hold all of that any more, nobody but ClickHouse knows.
func (s *logScan) warmUp(ctx context.Context, e *schema.Event) error {
	s.window = schema.NewWindow(s.rule)
	byTime, err := s.log.OffsetForTime(ctx, s.view.ref.Partition, max(0, e.ID.TimeMs-s.rule.WarmUpAge().Milliseconds()))
	if err != nil {
		return fmt.Errorf("%w: warm up dedupe window: %w", errLogFailed, err)
	}
	from := max(e.ID.Offset-s.rule.Offsets, byTime, 0)
	if s.start > 0 && from <= s.start {
		return fmt.Errorf("%w: what %s may repeat has been forgotten", errNotInKafka, e.ID)
	}
	err = s.scan(ctx, from, e.ID.Offset, func(e *schema.Event) error {
		s.window.Observe(e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("warm up dedupe window: %w", err)
	}
	return nil
}
