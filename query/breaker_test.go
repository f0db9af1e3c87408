package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

func TestJudge(t *testing.T) {
	exception := func(code int32) error {
		return fmt.Errorf("query: %w", &clickhouse.Exception{Code: code, Message: "m"})
	}
	for name, tt := range map[string]struct {
		err  error
		want verdict
	}{
		"no error":          {nil, fine},
		"too many rows":     {asScanTooLarge(exception(158)), fine},
		"too long":          {asScanTooLarge(exception(159)), fine},
		"unknown table":     {asScanTooLarge(exception(60)), failed},
		"too many queries":  {asScanTooLarge(exception(202)), failed},
		"cancelled":         {fmt.Errorf("read: %w", context.Canceled), cancelled},
		"deadline":          {fmt.Errorf("read: %w", context.DeadlineExceeded), failed},
		"connection closed": {io.ErrUnexpectedEOF, failed},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge(tt.err); got != tt.want {
				t.Errorf("judge(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(BreakerConfig{Failures: 3, Open: 5 * time.Second}, slog.New(slog.DiscardHandler), NewMetrics(nil))
		broken := errors.New("broken")
		fail := func() error { return broken }
		succeed := func() error { return nil }
		unavailable := func(err error) *UnavailableError {
			t.Helper()
			u, ok := errors.AsType[*UnavailableError](err)
			if !ok || !errors.Is(err, ErrUnavailable) {
				t.Fatalf("%v, want ErrUnavailable", err)
			}
			return u
		}
		for _, ask := range []func() error{fail, fail, succeed, fail, fail} { // a success starts the count anew
			_ = b.do(ask)
		}
		_ = b.do(func() error { return context.Canceled }) // neither
		if err := b.do(fail); !errors.Is(err, broken) {
			t.Fatalf("the failure that opens it: %v, want its cause", err)
		}
		time.Sleep(2 * time.Second)
		if u := unavailable(b.do(succeed)); u.Cause != nil || u.RetryAfter != 3*time.Second {
			t.Fatalf("open for 2 s: %+v, want a refusal for 3 s", u)
		}
		time.Sleep(4 * time.Second)
		err := b.do(func() error { // half open: this is the trial, and there is one
			if u := unavailable(b.do(succeed)); u.Cause != nil || u.RetryAfter <= 0 {
				t.Errorf("during the trial: %+v, want a refusal", u)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("trial: %v", err)
		}
		if err := b.do(succeed); err != nil {
			t.Fatalf("after the trial: %v", err)
		}
	})
}
