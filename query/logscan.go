package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/playhead-dev/playhead/internal/sessionlog"
	"github.com/playhead-dev/playhead/schema"
)

// errScanBudget reports that a page would have to read more of Kafka than one may.
var errScanBudget = errors.New("page reads too much of the log")

// errLogFailed reports that Kafka could not be read.
var errLogFailed = errors.New("read the log")

// logScan reads a scope's events from one partition of Kafka for one page, within the bounds
// of LogScanConfig. Everything it reads counts: other sessions' records, and those that it
// reads only to tell repeats.
type logScan struct {
	reader sessionlog.Reader
	start  int64 // log start offset

	records int   // how many it may still read
	bytes   int64 // likewise
	until   time.Time
	spent   func(records int)
}

// newLogScan asks for the log start offset.
func (a *API) newLogScan(ctx context.Context, v *view, scope schema.Scope, reason string) (*logScan, error) {
	start, _, err := a.deps.Log.Bounds(ctx, v.partition)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLogFailed, err)
	}
	s := &logScan{
		start:   start,
		records: a.cfg.LogScan.MaxRecords, bytes: a.cfg.LogScan.MaxBytes, until: time.Now().Add(a.cfg.LogScan.Timeout),
		spent: func(n int) { a.metrics.logScans.WithLabelValues(reason).Add(float64(n)) },
	}
	s.reader = sessionlog.Reader{
		Log: a.deps.Log, Rule: a.deps.Dedupe, Judge: v.tape, Erased: a.deps.Erased, Spend: s.spend, Strict: true,
		Scope: scope, Epoch: v.epoch, Partition: v.partition, Placement: a.deps.Placement,
	}
	return s, nil
}

func (s *logScan) spend(bytes int) error {
	s.records--
	s.bytes -= int64(bytes)
	if s.records < 0 || s.bytes < 0 {
		return errScanBudget
	}
	return nil
}

// read calls emit with the scope's events of [from, to) in offset order, without
// hidden ones and repeats. Offsets below the log start offset are passed over. emit's
// first error ends it and is returned as it is.
func (s *logScan) read(ctx context.Context, from, to int64, emit func(*schema.Event) error) error {
	return s.readAll(ctx, from, to, func(e *schema.Event) error {
		if e.Hidden() {
			return nil
		}
		return emit(e)
	})
}

// readAll is read with hidden events as well.
func (s *logScan) readAll(ctx context.Context, from, to int64, emit func(*schema.Event) error) error {
	had := s.records
	defer func() { s.spent(had - s.records) }()
	ctx, cancel := context.WithDeadline(ctx, s.until)
	defer cancel()
	var stopped error // by emit, not by Kafka
	_, err := s.reader.Read(ctx, max(from, s.start), to, func(e *schema.Event) error {
		stopped = emit(e)
		return stopped
	})
	switch {
	case err == nil, stopped != nil:
		return stopped
	case errors.Is(err, errScanBudget):
		return err
	case errors.Is(err, sessionlog.ErrForgotten):
		return fmt.Errorf("%w: %w", errNotInKafka, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", errScanBudget, err)
	default:
		return fmt.Errorf("%w: %w", errLogFailed, err)
	}
}
