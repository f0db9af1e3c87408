package httpapi_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

func TestARequestMayOweWhatItsBucketLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := control.Limits{BackfillEventsPerSecond: 100}
		l := httpapi.NewLimiter(sameLimits(&limits), nil, nil)
		f := func(n int, wantOK bool, wantRemaining int, wantReset, wantRetryAfter time.Duration) {
			t.Helper()
			q := l.TakeN(key("k"), httpapi.ClassBackfill, n)
			if q.OK != wantOK || q.Limit != 200 || q.Remaining != wantRemaining || q.Reset.Round(time.Microsecond) != wantReset || q.RetryAfter.Round(time.Microsecond) != wantRetryAfter {
				t.Errorf("%d: %+v, want OK %v, %d remaining, full in %v, again in %v", n, q, wantOK, wantRemaining, wantReset, wantRetryAfter)
			}
		}
		f(0, true, 200, 0, 0)
		f(199, true, 1, 1990*time.Millisecond, 0)
		f(1000, true, 0, 11990*time.Millisecond, 0) // 1199 missing of 200
		f(0, false, 0, 11990*time.Millisecond, 10*time.Second)
		f(1, false, 0, 11990*time.Millisecond, 10*time.Second)
		time.Sleep(10*time.Second - time.Millisecond)
		f(1, false, 0, 1991*time.Millisecond, time.Millisecond)
		time.Sleep(time.Millisecond)
		f(1, true, 0, 2*time.Second, 0)

		// In the long run no more passes than the rate.
		began, passed := time.Now(), 0
		for range 1000 {
			if q := l.TakeN(key("other"), httpapi.ClassBackfill, 777); q.OK {
				passed += 777
			} else {
				time.Sleep(q.RetryAfter)
			}
		}
		if most := 200 + 777 + int(time.Since(began).Seconds()*100); passed > most {
			t.Errorf("%d events passed in %v, want at most %d", passed, time.Since(began), most)
		}

		// A debt of another rate is cancelled, down to an empty bucket.
		l.TakeN(key("debtor"), httpapi.ClassBackfill, 1_000_000)
		limits.BackfillEventsPerSecond = 10
		if q := l.Peek(key("debtor"), httpapi.ClassBackfill); q.Remaining != 0 || q.Reset != 2*time.Second {
			t.Errorf("at a lower rate: %+v, want an empty bucket that is full in 2 s", q)
		}
	})
}

func TestOnlyAppendsAreOfClassBackfill(t *testing.T) {
	store := openStore(t)
	_, ingest := makeKey(t, store, control.KeySpec{Scopes: control.ScopeIngest})
	counts := &control.Limits{BackfillEventsPerSecond: 7, AppendsPerSecond: 3, SessionCreatesPerSecond: 2, ReadsPerSecond: 1}
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(store), httpapi.NewLimiter(sameLimits(counts), newClock().now, nil).Handler)
		app.All("/*", func(c *fiber.Ctx) error { return c.SendString("ok") })
	})
	for _, c := range []struct{ method, path, limit string }{
		{"POST", "/v1/events?lane=backfill", "14"},
		{"POST", "/v1/events/?lane=backfill&dedupe=history", "14"},
		{"POST", "/v1/sessions/a/events?lane=backfill", "14"},
		{"POST", "/v1/events", "6"},
		{"POST", "/v1/events?lane=live", "6"},
		{"POST", "/v1/sessions/a/end?lane=backfill", "6"},
		{"POST", "/v1/sessions/a/b/events?lane=backfill", "6"},
		{"POST", "/v1/keys?lane=backfill", "6"},
		{"DELETE", "/v1/events?lane=backfill", "6"},
		{"POST", "/v1/sessions?lane=backfill", "4"},
		{"GET", "/v1/events?lane=backfill", "2"},
	} {
		a := s.do(t, c.method, c.path, "", "X-Api-Key", ingest)
		if got := a.header.Get("X-RateLimit-Limit"); got != c.limit {
			t.Errorf("%s %s: limit %s, want %s", c.method, c.path, got, c.limit)
		}
	}
}
