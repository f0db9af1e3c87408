package query

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatermarkNeverFalls(t *testing.T) {
	w := NewWatermarks()
	w.Set(3, 10)
	w.Set(3, 7)
	if got := w.Get(3); got != 10 {
		t.Errorf("Get(3) = %d, want 10", got)
	}
	if got := w.Get(4); got != 0 {
		t.Errorf("Get(4) = %d, want 0 for a partition nobody has spoken of", got)
	}
}

func TestWaitEndsWhenTheWatermarkIsReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatermarks()
		if err := w.Wait(t.Context(), 1, 0); err != nil {
			t.Errorf("Wait(0) = %v", err)
		}
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- w.Wait(t.Context(), 1, 10) }()
		}
		for _, next := range []int64{5, 9} {
			synctest.Wait()
			w.Set(1, next)
		}
		w.Set(2, 10)
		synctest.Wait()
		if len(done) > 0 {
			t.Error("Wait(10) returned at watermark 9")
		}
		w.Set(1, 12)
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("Wait(10) = %v", err)
			}
		}
	})
}

func TestWaitReturnsTheCause(t *testing.T) {
	cause := errors.New("client is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := NewWatermarks().Wait(ctx, 1, 1); !errors.Is(err, cause) {
		t.Errorf("Wait() = %v, want %v", err, cause)
	}
}

func TestRunPollsThroughFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatermarks()
		ctx, cancel := context.WithCancel(t.Context())
		calls := int64(0)
		done := make(chan error, 1)
		go func() {
			done <- w.Run(ctx, func(context.Context) (map[uint16]int64, error) {
				calls++
				if calls == 2 {
					return nil, errors.New("no broker")
				}
				return map[uint16]int64{0: calls * 10, 1: 5}, nil
			}, slog.New(slog.DiscardHandler))
		}()
		synctest.Wait()
		if got := w.Get(0); got != 10 {
			t.Errorf("Get(0) = %d at once, want 10", got)
		}
		time.Sleep(2 * WatermarkInterval)
		synctest.Wait()
		if got := w.Get(0); got != 30 {
			t.Errorf("Get(0) = %d after a failure, want 30", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
}
