package ingest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

// lived runs f with a lane without a Kafka client, in virtual time.
func lived(t *testing.T, cfg Config, f func(t *testing.T, b *backfill)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(t, newBackfill(cfg, nil, NewMetrics(nil)))
	})
}

// takes fails the test unless a slice gets its turn after a time of waiting.
func takes(t *testing.T, b *backfill, want time.Duration) (sent func()) {
	t.Helper()
	began := time.Now()
	sent, err := b.slice(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := time.Since(began); got != want {
		t.Errorf("the slice waited %v, want %v", got, want)
	}
	return sent
}

func TestALaneWithoutLiveAppendsNeverRests(t *testing.T) {
	lived(t, DefaultConfig(), func(t *testing.T, b *backfill) {
		for range 3 {
			first := takes(t, b, 0)
			second := takes(t, b, 0) // backfillWindow side by side
			time.Sleep(10 * time.Millisecond)
			first()
			second()
		}
		b.begin()
		b.end()
		time.Sleep(liveMemory + time.Millisecond)
		takes(t, b, 0)()
		takes(t, b, 0)()
	})
}

func TestATurnWaitsForAMomentWithoutLiveAppends(t *testing.T) {
	lived(t, DefaultConfig(), func(t *testing.T, b *backfill) {
		b.begin()
		b.begin()
		time.AfterFunc(10*time.Millisecond, b.end)
		time.AfterFunc(20*time.Millisecond, b.end)
		takes(t, b, 20*time.Millisecond)()

		b.begin()
		time.AfterFunc(30*time.Millisecond, b.end)
		began := time.Now()
		if _, err := b.decode(t.Context(), func() int { return 1 }); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(began); got != 30*time.Millisecond {
			t.Errorf("decoding waited %v, want 30 ms", got)
		}
	})
}

func TestLiveAppendsThatNeverCeaseDoNotStopTheLane(t *testing.T) {
	cfg := DefaultConfig()
	lived(t, cfg, func(t *testing.T, b *backfill) {
		b.begin()
		defer b.end()
		for range 5 {
			sent := takes(t, b, cfg.BackfillYield)
			time.Sleep(time.Second) // a turn that takes long, and so would the rest
			sent()
		}
	})
	cfg.BackfillYield = 0
	lived(t, cfg, func(t *testing.T, b *backfill) {
		b.begin()
		defer b.end()
		takes(t, b, 0)()
	})
}

func TestTheLaneRestsBesideLiveAppends(t *testing.T) {
	cfg := DefaultConfig()
	cfg.BackfillShare, cfg.BackfillYield = 20, time.Second
	lived(t, cfg, func(t *testing.T, b *backfill) {
		b.begin()
		b.end()
		for range 5 {
			sent := takes(t, b, 0)
			time.AfterFunc(10*time.Millisecond, sent)
			takes(t, b, 50*time.Millisecond)() // alone: the turn before it, and four times as long a rest
		}
	})
}

func TestNoMoreThanTheWindowIsInFlight(t *testing.T) {
	lived(t, DefaultConfig(), func(t *testing.T, b *backfill) {
		for range backfillWindow {
			time.AfterFunc(time.Minute, takes(t, b, 0))
		}
		takes(t, b, time.Minute)
	})
}

func TestAWaitThatEndsChangesNothing(t *testing.T) {
	cfg := DefaultConfig()
	cfg.BackfillYield = time.Hour
	lived(t, cfg, func(t *testing.T, b *backfill) {
		b.begin()
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
		defer cancel()
		decode := func() *httpapi.Error {
			_, err := b.decode(ctx, func() int { t.Error("a body was decoded"); return 0 })
			return err
		}
		slice := func() *httpapi.Error { _, err := b.slice(ctx); return err }
		var wg sync.WaitGroup
		for range 2 { // the first waits for its turn, the second for the first
			for _, wait := range []func() *httpapi.Error{decode, slice} {
				wg.Go(func() {
					if err := wait(); err == nil || err.Code != codeOverloaded || err.RetryAfter <= 0 {
						t.Errorf("error = %v, want overloaded with Retry-After", err)
					}
				})
			}
		}
		wg.Wait()
		if b.turns != 0 || b.slices != 0 || b.bytes != 0 || b.waiting != 0 {
			t.Errorf("%d turns, %d slices, %d bytes, %d waiting; want none", b.turns, b.slices, b.bytes, b.waiting)
		}
		b.end()
		takes(t, b, 0)()
	})
}

// The bodies of requests that are under way are bounded, each counted as the largest
// there may be until it is decoded.
func TestDecodedBodiesAreBounded(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxBatchBytes, cfg.MaxBackfillBytes = 100, 240
	lived(t, cfg, func(t *testing.T, b *backfill) {
		decode := func(size int, wait time.Duration) (done func()) {
			t.Helper()
			began := time.Now()
			done, err := b.decode(t.Context(), func() int {
				if b.bytes > cfg.MaxBackfillBytes {
					t.Errorf("%d bytes reserved of %d", b.bytes, cfg.MaxBackfillBytes)
				}
				return size
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := time.Since(began); got != wait {
				t.Errorf("waited %v, want %v", got, wait)
			}
			return done
		}
		first := decode(90, 0)
		second := decode(60, 0)
		time.AfterFunc(time.Second, second)
		third := decode(100, time.Second) // beside the first, not beside both
		first()
		third()
		if b.bytes != 0 {
			t.Errorf("%d bytes at the end, want 0", b.bytes)
		}
		func() { // a decoder that panics keeps nothing
			defer func() { _ = recover() }()
			decode(0, 0)
			_, _ = b.decode(t.Context(), func() int { panic("ingest: our bug") })
		}()
		decode(10, 0)()
		if b.bytes != 0 || b.turns != 0 {
			t.Errorf("%d bytes, %d turns after a panic, want 0", b.bytes, b.turns)
		}
	})
}

// bulkEvents is a body of n events of one session, whose payloads do not compress.
func bulkEvents(n int) string {
	events := make([]string, n)
	for i := range events {
		events[i] = fmt.Sprintf(`{"session_id":"bulk","type":"click","message_id":"m%d","t_ms":%d,"client_time":"2019-03-0%dT10:00:00.000Z","payload":%q}`,
			i, 1000+i, 1+i%9, strings.Repeat("x", i%100))
	}
	return list(events...)
}

const bulkPath = "/v1/sessions/bulk/events?lane=backfill"

func TestABackfillIsAnAppend(t *testing.T) {
	const n = 3*sliceEvents + 7
	r := newRig(t)
	for _, path := range []string{bulkPath, "/v1/events?lane=backfill", "/v1/events?lane=backfill&dedupe=window"} {
		got := r.appended(200, call{path: path, body: bulkEvents(n)})
		if len(got.Results) != n || got.Accepted+got.Duplicates != n || (path == bulkPath) != (got.Accepted == n) {
			t.Errorf("%s: %d results, %d accepted, %d duplicates; want %d accepted once", path, len(got.Results), got.Accepted, got.Duplicates, n)
		}
		for i, res := range got.Results {
			if want := fmt.Sprintf("m%d", i); res.MessageID == nil || *res.MessageID != want || res.ID == "" || res.TMs == nil || *res.TMs != int64(1000+i) {
				t.Fatalf("%s: result %d = %+v, want %s at %d ms", path, i, res, want, 1000+i)
			}
		}
	}
	events := r.events()
	if len(events) != n {
		t.Fatalf("%d events in the log, want %d", len(events), n)
	}
	for i, e := range events {
		client := time.Date(2019, 3, 1+i%9, 10, 0, 0, 0, time.UTC).UnixMilli()
		if e.MessageID != fmt.Sprintf("m%d", i) || e.TMs != int64(1000+i) || e.ClientTimeMs == nil || *e.ClientTimeMs != client {
			t.Fatalf("event %d = %s, t_ms %d, client time %d; want them as given, in order", i, e.MessageID, e.TMs, e.ClientTimeMs)
		}
		if i > 0 && (e.ID.Offset <= events[i-1].ID.Offset || e.ID.TimeMs < events[i-1].ID.TimeMs) {
			t.Fatalf("id %d is %v behind %v", i, e.ID, events[i-1].ID)
		}
	}

	// Refusals are those of any append.
	if e := r.post(bulkPath, list(event(""), `{"type":"error"}`)).error(t); e.Code != "reserved_type" || e.Param != "events[1].type" {
		t.Errorf("a bad event: %+v", e)
	}
	if e := r.post("/v1/events?lane=bulk", list(event(""))).error(t); e.Code != "invalid_parameter" || e.Param != "lane" || !strings.Contains(e.Message, "want live or backfill") {
		t.Errorf("another lane: %+v", e)
	}
	if e := r.post("/v1/sessions/a/end?lane=backfill", "").error(t); e.Code != "unknown_parameter" {
		t.Errorf("the end of a session with a lane: %+v", e)
	}
	r.appended(200, call{path: "/v1/sessions/a/events?lane=live", body: event("")})
	if now := r.logged(); now != n+1 {
		t.Errorf("%d records, want %d", now, n+1)
	}
}

// While the lane stands still, for whatever reason, live appends go on, and what does not
// fit is refused whole, with when to come back.
func TestABackfillThatIsStuckHoldsUpNoLiveAppend(t *testing.T) {
	const requests = 3
	r := newRig(t, func(c *rigConfig) {
		c.ingest.MaxBackfillRequests = requests
		c.ingest.MaxDecompressions = 1
	})
	// The broker does not answer whoever sends much at once.
	gate := make(chan struct{})
	var stuck atomic.Int32
	r.cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.cluster.KeepControl()
		for _, topic := range req.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				if len(p.Records) > 2048 {
					stuck.Add(1)
					r.cluster.SleepControl(func() { <-gate })
				}
			}
		}
		return nil, nil, false
	})
	var wg sync.WaitGroup
	release := sync.OnceFunc(func() { close(gate) })
	defer wg.Wait()
	defer release()

	const n = 4 * sliceEvents
	for range requests {
		wg.Go(func() {
			r.appended(200, call{path: bulkPath, encoding: "gzip", body: gzipped(t, strings.ReplaceAll(bulkEvents(n), `"message_id"`, `"frame_id"`))})
		})
	}
	lane := r.appender.backfill
	eventually(t, "the window is full and the others wait", func() bool {
		lane.mu.Lock()
		defer lane.mu.Unlock()
		return stuck.Load() > 0 && lane.requests == requests && lane.slices == backfillWindow && len(lane.handing) == 1
	})
	if got := lane.producer.client.BufferedProduceRecords(); got > backfillWindow*sliceEvents {
		t.Errorf("%d records with Kafka's client, want at most %d", got, backfillWindow*sliceEvents)
	}

	res := r.post(bulkPath, event(""))
	if e := res.error(t); res.status != 503 || e.Code != "overloaded" || res.header.Get("Retry-After") == "" {
		t.Errorf("one more: %d %+v, Retry-After %q; want 503 overloaded with it", res.status, e, res.header.Get("Retry-After"))
	}
	for i := range 20 {
		// The same session too, compressed too, and whatever else is no backfill.
		session := []string{"bulk", "other"}[i%2]
		r.appended(200, call{path: "/v1/sessions/" + session + "/events", encoding: "gzip", body: gzipped(t, event(""))})
	}
	if res := r.post("/v1/sessions/other/end", ""); res.status != 200 {
		t.Errorf("end: %d %s", res.status, res.body)
	}
	if len(lane.handing) != 1 {
		t.Error("the backfills went on meanwhile; the test shows nothing")
	}

	release()
	wg.Wait()
	if got, want := len(r.events()), requests*n+20+1; got != want {
		t.Errorf("%d events at the end, want %d", got, want)
	}
	if lane.requests != 0 || lane.bytes != 0 || lane.slices != 0 || lane.turns != 0 {
		t.Errorf("left behind: %d requests, %d bytes, %d slices, %d turns", lane.requests, lane.bytes, lane.slices, lane.turns)
	}
}

// A backfill that runs out of time says what became of each event, and the same request
// again completes it.
func TestABackfillCutShortIsCompletedByARetry(t *testing.T) {
	r := newRig(t, func(c *rigConfig) {
		c.ingest.BackfillTimeout = time.Second
		c.ingest.BackfillYield = 10 * time.Second
	})
	r.appended(200, call{path: bulkPath, body: `{"type":"click"}`})
	lane := r.appender.backfill

	// Not even decoded.
	lane.begin()
	res := r.post(bulkPath, bulkEvents(1000))
	if e := res.error(t); res.status != 503 || e.Code != "overloaded" || res.header.Get("Retry-After") == "" || e.Details["results"] != nil {
		t.Errorf("before it was decoded: %d %+v", res.status, e)
	}
	if n := r.logged(); n != 1 {
		t.Errorf("%d records, want 1: nothing was appended", n)
	}

	// Between two slices: live appends come when the first is at the broker.
	var once sync.Once
	r.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.cluster.KeepControl()
		once.Do(lane.begin)
		return nil, nil, false
	})
	lane.end()
	eventually(t, "the lane has rested", func() bool {
		lane.mu.Lock()
		defer lane.mu.Unlock()
		return time.Since(lane.lastLive) > liveMemory
	})
	const n = 8 * sliceEvents
	res = r.post(bulkPath, bulkEvents(n))
	e := res.error(t)
	results, _ := e.Details["results"].([]any)
	if res.status != 503 || e.Code != "log_unavailable" || len(results) != n {
		t.Fatalf("between slices: %d %s with %d results; want 503 log_unavailable with %d", res.status, e.Code, len(results), n)
	}
	lane.end()
	taken := r.logged() - 1
	if taken == 0 || taken == n {
		t.Fatalf("%d of %d were taken; the test wants some", taken, n)
	}
	eventually(t, "it is completed", func() bool {
		res := r.post(bulkPath, bulkEvents(n))
		return res.status == 200
	})
	if got := len(r.events()); got != n+1 {
		t.Errorf("%d events, want %d, each once", got, n+1)
	}
}

func TestBackfillsAreCountedInEvents(t *testing.T) {
	r := newRig(t, func(c *rigConfig) {
		c.limits = &control.Limits{BackfillEventsPerSecond: 0.001, AppendsPerSecond: 0.001}
	})
	// A burst of one event: any request passes a full bucket, and what it owes is waited for.
	res := r.post(bulkPath, bulkEvents(10))
	if res.status != 200 || res.header.Get("X-RateLimit-Limit") != "1" || res.header.Get("X-RateLimit-Remaining") != "0" || res.header.Get("X-RateLimit-Reset") != "10000" {
		t.Errorf("the first: %d, headers %v; want 200 and 10 events owed for", res.status, res.header)
	}
	for _, path := range []string{bulkPath, "/v1/events?lane=backfill", "/v1/events?%6Cane=backfill"} {
		res := r.post(path, bulkEvents(1))
		if e := res.error(t); res.status != 429 || e.Code != "rate_limited" || e.Details["class"] != "backfill" || res.header.Get("Retry-After") != "10000" {
			t.Errorf("%s: %d %+v, Retry-After %q; want 429 of class backfill, 10,000 s", path, res.status, e, res.header.Get("Retry-After"))
		}
	}
	if n := r.logged(); n != 10 {
		t.Errorf("%d records, want 10: the refused left nothing", n)
	}
	// The two classes do not touch each other.
	r.appended(200, call{path: "/v1/sessions/bulk/events", body: event("")})
	if res := r.post("/v1/sessions/bulk/events", event("")); res.status != 429 {
		t.Errorf("the second live append: %d, want 429", res.status)
	}
}
