package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/sony/gobreaker/v2"
)

// ErrUnavailable reports that ClickHouse cannot be asked now. Every such error is an
// *UnavailableError, which says when to come back.
var ErrUnavailable = errors.New("history is unavailable")

// UnavailableError wraps ErrUnavailable.
type UnavailableError struct {
	RetryAfter time.Duration // more than 0
	Cause      error         // nil if the breaker refused
}

// Error says when to come back, and why.
func (e *UnavailableError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("%v for %v", ErrUnavailable, e.RetryAfter)
	}
	return fmt.Sprintf("%v: %v", ErrUnavailable, e.Cause)
}

// Is matches ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Cause }

// ErrScanTooLarge reports a question that would read more rows, or take longer, than
// one question may. A narrower one may succeed.
var ErrScanTooLarge = errors.New("question reads too much history")

// retryFailed is when to come back after a failure that did not open the breaker.
const retryFailed = time.Second

// verdict is what an error of a question to ClickHouse means.
type verdict int

const (
	fine      verdict = iota // no error, or ClickHouse answered that the question is bad
	cancelled                // the caller went away: says nothing about ClickHouse
	failed                   // ClickHouse failed
)

// Exception codes of ClickHouse (ErrorCodes.cpp) that blame the question: it reads too
// many rows or bytes, or takes too long by the server's own clock.
const (
	codeTooManyRows      = 158
	codeTimeoutExceeded  = 159
	codeTooSlow          = 160
	codeTooManyBytes     = 307
	codeTooManyRowsBytes = 396
)

// judge is the one place that decides whether an error counts against ClickHouse.
// A deadline does, whoever set it: ClickHouse did not answer as fast as we need. Other
// exceptions do as well: they say that the server, or its table, is not as we need it.
func judge(err error) verdict {
	var exception *clickhouse.Exception
	switch {
	case err == nil, errors.Is(err, ErrScanTooLarge):
		return fine
	case errors.As(err, &exception):
		return failed
	case errors.Is(err, context.Canceled):
		return cancelled
	default:
		return failed
	}
}

// asScanTooLarge marks exceptions that blame the question.
func asScanTooLarge(err error) error {
	var exception *clickhouse.Exception
	if !errors.As(err, &exception) {
		return err
	}
	switch exception.Code {
	case codeTooManyRows, codeTimeoutExceeded, codeTooSlow, codeTooManyBytes, codeTooManyRowsBytes:
		return fmt.Errorf("%w: %w", ErrScanTooLarge, err)
	}
	return err
}

// breaker lets questions through to ClickHouse while it answers. It is safe for
// concurrent use.
type breaker struct {
	cb       *gobreaker.CircuitBreaker[struct{}]
	open     time.Duration
	openedAt atomic.Int64 // Unix ns
}

func newBreaker(cfg BreakerConfig, log *slog.Logger, m *Metrics) *breaker {
	b := &breaker{open: cfg.Open}
	b.cb = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         "clickhouse",
		MaxRequests:  1, // half open admits one trial
		Timeout:      cfg.Open,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(cfg.Failures) },
		IsSuccessful: func(err error) bool { return judge(err) == fine },
		IsExcluded:   func(err error) bool { return judge(err) == cancelled },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				b.openedAt.Store(time.Now().UnixNano())
			}
			m.breaker.Set(float64(to))
			log.Info("breaker around clickhouse changed", "from", from.String(), "to", to.String())
		},
	})
	return b
}

// do asks one question. Its error is an *UnavailableError if the breaker refused or the
// question failed by ClickHouse's fault; otherwise ask's error.
func (b *breaker) do(ask func() error) error {
	_, err := b.cb.Execute(func() (struct{}, error) { return struct{}{}, asScanTooLarge(ask()) })
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		return &UnavailableError{RetryAfter: b.retryAfter()}
	case errors.Is(err, gobreaker.ErrTooManyRequests): // the trial is on its way
		return &UnavailableError{RetryAfter: retryFailed}
	case judge(err) == failed:
		return &UnavailableError{RetryAfter: retryFailed, Cause: err}
	default:
		return err
	}
}

// retryAfter is when an open breaker lets a trial through.
func (b *breaker) retryAfter() time.Duration {
	return max(time.Until(time.Unix(0, b.openedAt.Load()).Add(b.open)), 10*time.Millisecond)
}
