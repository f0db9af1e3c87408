package httpapi_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

// manualClock is a time that only tests move.
type manualClock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *manualClock { return &manualClock{t: time.Now()} }

func (c *manualClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *manualClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// sameLimits gives every workspace the limits at l.
func sameLimits(l *control.Limits) func(string) control.Limits {
	return func(string) control.Limits { return *l }
}

func key(id string) control.Principal { return control.Principal{Workspace: "ws", KeyID: id} }

func TestBucketsHoldTwoSecondsAndRefillAtTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpapi.NewLimiter(sameLimits(&control.Limits{ReadsPerSecond: 10}), nil, nil)
		who := key("k")
		for i := range 20 {
			if q := l.Take(who, httpapi.ClassRead); !q.OK || q.Limit != 20 || q.Remaining != 19-i || q.RetryAfter != 0 {
				t.Fatalf("request %d: %+v, want it to pass with %d remaining of 20", i+1, q, 19-i)
			}
		}
		q := l.Take(who, httpapi.ClassRead)
		if q.OK || q.Remaining != 0 || q.Reset != 2*time.Second || q.RetryAfter != 100*time.Millisecond {
			t.Errorf("request 21: %+v, want it refused for 100 ms, full in 2 s", q)
		}
		time.Sleep(q.RetryAfter - time.Millisecond)
		if l.Take(who, httpapi.ClassRead).OK {
			t.Error("a request a millisecond early passes")
		}
		time.Sleep(time.Millisecond)
		if !l.Take(who, httpapi.ClassRead).OK {
			t.Error("a request after Retry-After is refused")
		}
		time.Sleep(1050 * time.Millisecond)
		if q := l.Peek(who, httpapi.ClassRead); q.Remaining != 10 || q.Limit != 20 {
			t.Errorf("after 1.05 s: %+v, want 10 remaining", q)
		}
		time.Sleep(time.Hour)
		if q := l.Peek(who, httpapi.ClassRead); q.Remaining != 20 || q.Reset != 0 {
			t.Errorf("after an hour: %+v, want a full bucket and no more", q)
		}
	})
}

func TestKeysAndClassesAreCountedApart(t *testing.T) {
	c := newClock()
	l := httpapi.NewLimiter(sameLimits(&control.Limits{SessionCreatesPerSecond: 0.5, AppendsPerSecond: 1, ReadsPerSecond: 0}), c.now, nil)
	f := func(who string, class httpapi.Class, want bool) {
		t.Helper()
		if q := l.Take(key(who), class); q.OK != want {
			t.Errorf("Take(%s, %s) = %+v, want OK %v", who, class, q, want)
		}
	}
	f("a", httpapi.ClassCreate, true) // 0.5/s: a burst of one
	f("a", httpapi.ClassCreate, false)
	f("b", httpapi.ClassCreate, true)
	f("a", httpapi.ClassAppend, true)
	f("a", httpapi.ClassAppend, true)
	f("a", httpapi.ClassAppend, false)
	for range 1000 {
		f("a", httpapi.ClassRead, true)
		f("a", httpapi.ClassNone, true)
	}
	if n := l.Buckets(); n != 3 {
		t.Errorf("%d buckets, want 3: what has no limit needs none", n)
	}
	c.add(2 * time.Second)
	f("a", httpapi.ClassCreate, true)
}

func TestChangedLimitsHoldAtOnce(t *testing.T) {
	limits := control.Limits{ReadsPerSecond: 100}
	c := newClock()
	l := httpapi.NewLimiter(sameLimits(&limits), c.now, nil)
	f := func(rate float64, wantLimit, wantRemaining int) {
		t.Helper()
		limits.ReadsPerSecond = rate
		if q := l.Peek(key("k"), httpapi.ClassRead); q.Limit != wantLimit || q.Remaining != wantRemaining {
			t.Errorf("at %v/s: %+v, want %d of %d", rate, q, wantRemaining, wantLimit)
		}
	}
	for range 50 {
		l.Take(key("k"), httpapi.ClassRead)
	}
	f(100, 200, 150)
	f(50, 100, 50)
	f(10, 20, 0)
	f(1000, 2000, 1950) // raised: what was taken is still what is missing
	f(0, 0, 0)
	if q := l.Take(key("k"), httpapi.ClassRead); !q.OK || q.Limited {
		t.Errorf("without limit: %+v", q)
	}

	// A lower limit leaves nobody with a debt that takes longer to pay than an empty bucket.
	limits.ReadsPerSecond = 1
	if q := l.Take(key("k"), httpapi.ClassRead); q.OK || q.RetryAfter > time.Second {
		t.Errorf("lowered to 1/s: %+v, want a refusal for at most a second", q)
	}
}

// However requests come, no more pass in any span than the burst and what flows back.
func TestNoMorePassThanTheRate(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		rate := math.Exp(rng.Float64()*10 - 3) // 0.05 to 1100 a second
		c := newClock()
		l := httpapi.NewLimiter(sameLimits(&control.Limits{AppendsPerSecond: rate}), c.now, nil)
		var elapsed time.Duration
		passed := 0
		for range 5000 {
			step := time.Duration(rng.ExpFloat64() / rate / 2 * float64(time.Second))
			elapsed += step
			c.add(step)
			q := l.Take(key("k"), httpapi.ClassAppend)
			if q.OK {
				passed++
				continue
			}
			if rng.IntN(10) == 0 { // do as told
				elapsed += q.RetryAfter
				c.add(q.RetryAfter)
				if !l.Take(key("k"), httpapi.ClassAppend).OK {
					t.Fatalf("at %v/s: refused after waiting %v as told", rate, q.RetryAfter)
				}
				passed++
			}
		}
		most := max(1, 2*rate) + elapsed.Seconds()*rate
		least := elapsed.Seconds() * rate / 2 // a small bucket is full at times, and loses what flows in
		if float64(passed) > most+1 || float64(passed) < least {
			t.Errorf("at %v/s: %d passed in %v, want %v to %v", rate, passed, elapsed, least, most)
		}
	}
}

func TestFullBucketsAreForgotten(t *testing.T) {
	limits := control.Limits{ReadsPerSecond: 1000, SessionCreatesPerSecond: 0.001}
	c := newClock()
	l := httpapi.NewLimiter(sameLimits(&limits), c.now, nil)
	for i := range 1000 {
		l.Take(key(fmt.Sprint(i)), httpapi.ClassRead)
	}
	l.Take(key("slow"), httpapi.ClassCreate) // full in 1000 s
	if n := l.Buckets(); n != 1001 {
		t.Fatalf("%d buckets, want 1001", n)
	}
	c.add(2 * time.Minute)
	l.Take(key("0"), httpapi.ClassRead)
	if n := l.Buckets(); n != 2 {
		t.Errorf("%d buckets two minutes later, want that of the last request and the one that is not full", n)
	}
	if l.Take(key("slow"), httpapi.ClassCreate).OK {
		t.Error("a bucket that was not full was forgotten")
	}
}

func TestBucketsAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newClock()
	l := httpapi.NewLimiter(sameLimits(&control.Limits{ReadsPerSecond: 1}), c.now, reg)
	l.SetMostBuckets(100)
	for i := range 1000 {
		if !l.Take(key(fmt.Sprint(i)), httpapi.ClassRead).OK {
			t.Errorf("key %d is refused because others are busy", i)
		}
		if n := l.Buckets(); n > 100 {
			t.Fatalf("%d buckets, want at most 100", n)
		}
	}
	if got := metricValue(t, reg, "playhead_http_rate_buckets_dropped_total"); got != 900 {
		t.Errorf("dropped = %v, want 900", got)
	}
	// Once the others are full again, none has to go before its time.
	c.add(time.Hour)
	for i := range 100 {
		l.Take(key(fmt.Sprint("new", i)), httpapi.ClassRead)
	}
	if got := metricValue(t, reg, "playhead_http_rate_buckets_dropped_total"); got != 900 {
		t.Errorf("dropped = %v after they were full, want 900 still", got)
	}
	if got := metricValue(t, reg, "playhead_http_rate_buckets"); got != 100 {
		t.Errorf("buckets = %v, want 100", got)
	}
}

// metricValue sums a metric over its labels.
func metricValue(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestConcurrentRequestsTakeEachTokenOnce(t *testing.T) {
	c := newClock()
	l := httpapi.NewLimiter(sameLimits(&control.Limits{ReadsPerSecond: 500}), c.now, nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	passed := 0
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if l.Take(key("k"), httpapi.ClassRead).OK {
					mu.Lock()
					passed++
					mu.Unlock()
				}
				l.Peek(key("k"), httpapi.ClassRead)
			}
		})
	}
	wg.Wait()
	if passed != 1000 {
		t.Errorf("%d of 4000 passed at once, want the burst of 1000", passed)
	}
}

func TestRequestsAreCountedByMethodAndPath(t *testing.T) {
	limits := control.Limits{SessionCreatesPerSecond: 1, AppendsPerSecond: 2, ReadsPerSecond: 3}
	reg := prometheus.NewRegistry()
	c := newClock()
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(fakeKeys{}), httpapi.NewLimiter(sameLimits(&limits), c.now, reg).Handler)
		app.All("/*", func(c *fiber.Ctx) error {
			if strings.HasPrefix(c.Path(), "/v1/broken") {
				return httpapi.NotFound("thing")
			}
			return nil
		})
	})
	auth := []string{"Authorization", "Bearer reader"}
	f := func(method, path string, wantLimit string) {
		t.Helper()
		c.add(time.Minute) // full again
		a := s.do(t, method, path, "", auth...)
		if got := a.header.Get("X-RateLimit-Limit"); got != wantLimit {
			t.Errorf("%s %s: X-RateLimit-Limit %q, want %q", method, path, got, wantLimit)
		}
	}
	f("POST", "/v1/sessions", "2")
	f("POST", "/v1/sessions/", "2")
	f("POST", "/v1/%73essions", "2")
	f("POST", "/v1/sessions?x=1", "2")
	f("POST", "/v1/sessions/s/events", "4")
	f("POST", "/v1/sessions/s/end", "4")
	f("POST", "/v1/events", "4")
	f("POST", "/v1/keys", "4")
	f("DELETE", "/v1/keys/k", "4")
	f("PUT", "/v1/event-types/x", "4")
	f("GET", "/v1/sessions", "6")
	f("HEAD", "/v1/sessions/s", "6")
	f("GET", "/v1/sessions/s/events/stream", "6")
	f("GET", "/v1/broken", "6")
	f("GET", "/v1/limits", "")
	f("PATCH", "/admin/v1/limits", "")

	c.add(time.Minute)
	for i := range 4 {
		a := s.do(t, "POST", "/v1/events", "", auth...)
		want := fmt.Sprint("4 ", 3-i, " ", (i+2)/2)
		if got := a.header.Get("X-RateLimit-Limit") + " " + a.header.Get("X-RateLimit-Remaining") + " " + a.header.Get("X-RateLimit-Reset"); a.status != 200 || got != want {
			t.Errorf("request %d: %d, headers %s, want 200 and %s", i+1, a.status, got, want)
		}
	}
	a := s.do(t, "POST", "/v1/events", "", auth...)
	a.want(t, 429, "rate_limited", "")
	if a.header.Get("Retry-After") != "1" || a.header.Get("X-RateLimit-Remaining") != "0" || a.header.Get("X-RateLimit-Reset") != "2" ||
		a.Error.Details["class"] != "append" || a.Error.Details["limit"] != 4.0 {
		t.Errorf("429 = %v %s", a.header, a.body)
	}
	if got := metricValue(t, reg, "playhead_http_rate_limited_total"); got != 1 {
		t.Errorf("playhead_http_rate_limited_total = %v, want 1", got)
	}
	// Who is not let in is not counted, and the names are sent as they are written.
	a = s.do(t, "POST", "/v1/events", "", "Authorization", "Bearer other")
	a.want(t, 401, "invalid_key", "")
	if a.header.Get("X-RateLimit-Limit") != "" {
		t.Errorf("401 carries X-RateLimit-Limit %q", a.header.Get("X-RateLimit-Limit"))
	}
	c.add(time.Second)
	if raw := s.raw(t, "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer reader\r\nContent-Length: 0\r\n\r\n"); !strings.Contains(raw, "\r\nX-RateLimit-Limit: 4\r\nX-RateLimit-Remaining: 1\r\nX-RateLimit-Reset: 2\r\n") {
		t.Errorf("answer = %q, want the headers spelled X-RateLimit-…", raw)
	}
}

func BenchmarkTake(b *testing.B) {
	limits := control.DefaultLimits()
	limits.AppendsPerSecond = 1e9
	l := httpapi.NewLimiter(sameLimits(&limits), nil, nil)
	who := key("key_FTwpCcOsrXy9N3Ek")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if !l.Take(who, httpapi.ClassAppend).OK {
				b.Error("refused")
			}
		}
	})
}
