package ingest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/schema"
)

// eventually waits until ok, or fails the test.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// holdProduce makes the broker answer no produce request until release is called.
func holdProduce(cluster *kfake.Cluster) (release func()) {
	gate := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { <-gate })
		return nil, nil, false
	})
	return sync.OnceFunc(func() { close(gate) })
}

func TestAnswersAreInOrderAndCarryTheIDsOfTheRecords(t *testing.T) {
	r := newRig(t)
	var body []string
	for i := range 200 {
		body = append(body, fmt.Sprintf(`{"session_id":"s%d","type":"n","payload":%d,"message_id":"m%d"}`, i%7, i, i))
	}
	a := r.appended(200, call{path: "/v1/events", contentType: "application/x-ndjson", body: strings.Join(body, "\n")})
	if a.Accepted != 200 || a.Duplicates != 0 {
		t.Fatalf("accepted %d, duplicates %d", a.Accepted, a.Duplicates)
	}
	byID := make(map[string]*schema.Event)
	for _, e := range r.events() {
		byID[e.ID.String()] = e
	}
	last := make(map[string]int64)
	for i, res := range a.Results {
		e := byID[res.ID]
		if e == nil {
			t.Fatalf("results[%d]: no record has the id %s", i, res.ID)
		}
		if string(e.Payload) != fmt.Sprint(i) || e.MessageID != fmt.Sprintf("m%d", i) {
			t.Errorf("results[%d]: record holds %s, %s", i, e.Payload, e.MessageID)
		}
		if before, seen := last[e.Session]; seen && e.ID.Offset <= before {
			t.Errorf("results[%d]: offset %d of session %s is not beyond %d", i, e.ID.Offset, e.Session, before)
		}
		last[e.Session] = e.ID.Offset
	}
}

func TestEveryFieldReachesTheRecord(t *testing.T) {
	r := newRig(t)
	r.appended(200, call{path: "/v1/sessions/a/events", body: `{"type":"t","payload":{"a" : [1,2]},"t_ms":7,` +
		`"client_time":"2024-05-06T07:08:09.123456+02:00","frame_id":"f","confidence":0.25,"metadata":{"k":"v\u00e9"},` +
		`"message_id":"m","workflow_id":"w","content_type":"application/vnd.x+json","session_id":"a"}`})
	e := r.events()[0]
	if e.Type != "t" || string(e.Payload) != `{"a" : [1,2]}` || e.TMs != 7 || *e.ClientTimeMs != 1714972089123 ||
		e.FrameID != "f" || *e.Confidence != 0.25 || e.Metadata["k"] != "vé" || e.MessageID != "m" ||
		e.Workflow != "w" || e.ContentType != "application/vnd.x+json" || e.Session != "a" || e.Workspace != "ws1" {
		t.Errorf("record = %+v", e)
	}
}

func TestARepeatIsAnsweredWithTheFirstID(t *testing.T) {
	r := newRig(t)
	one := call{path: "/v1/sessions/a/events", body: event(`"message_id":"m1","t_ms":3`)}
	first := r.appended(200, one).Results[0].ID
	check := func(where string, r *rig) {
		t.Helper()
		a := r.appended(200, one)
		if res := a.Results[0]; res.ID != first || !res.Duplicate || a.Accepted != 0 || a.Duplicates != 1 || *res.TMs != 3 {
			t.Errorf("%s: got %+v, want a duplicate of %s", where, a, first)
		}
	}
	check("same node, at once", r)
	r.events()
	check("same node, the tail has passed it", r)
	other := newRigOn(t, r.cluster)
	check("another node", other)
	if err := r.appender.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after a restart", newRigOn(t, r.cluster))
	if n := r.logged(); n != 1 {
		t.Errorf("log holds %d records, want 1", n)
	}
}

func TestARepeatWithinOneRequestIsADuplicateOfTheFirst(t *testing.T) {
	r := newRig(t)
	a := r.appended(200, call{path: "/v1/sessions/a/events",
		body: list(event(`"message_id":"m1","payload":1`), event(""), event(`"message_id":"m1","payload":2`))})
	if a.Results[2].ID != a.Results[0].ID || !a.Results[2].Duplicate || a.Results[0].Duplicate || a.Accepted != 2 || a.Duplicates != 1 {
		t.Errorf("got %+v", a)
	}
	if n := r.logged(); n != 2 {
		t.Errorf("log holds %d records, want 2", n)
	}
}

func TestTheSameMessageIDInAnotherSessionIsAnotherEvent(t *testing.T) {
	r := newRig(t)
	for _, c := range []call{
		{path: "/v1/sessions/a/events", body: event(`"message_id":"m1"`)},
		{path: "/v1/sessions/b/events", body: event(`"message_id":"m1"`)},
		{path: "/v1/sessions/a/events", key: "other", body: event(`"message_id":"m1"`)},
	} {
		if a := r.appended(200, c); a.Accepted != 1 {
			t.Errorf("%s with key %q: %+v", c.path, c.key, a)
		}
	}
}

// TestARepeatBeforeTheTailHasPassedTheFirst: the record is acknowledged, but the tail
// stands still, so only the lane knows of it.
func TestARepeatBeforeTheTailHasPassedTheFirst(t *testing.T) {
	r := newRig(t)
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")}) // opens the tail
	r.events()
	release := r.tails.hold()
	defer release()
	one := call{path: "/v1/sessions/a/events", body: event(`"message_id":"m1"`)}
	first := r.appended(200, one)
	for range 3 {
		if a := r.appended(200, one); a.Results[0].ID != first.Results[0].ID || !a.Results[0].Duplicate {
			t.Fatalf("got %+v, want a duplicate of %s", a, first.Results[0].ID)
		}
	}
	release()
	r.events()
	if a := r.appended(200, one); !a.Results[0].Duplicate {
		t.Errorf("got %+v", a)
	}
	placement, _ := testLayout{}.Placement("ws1")
	l := r.appender.lane(placement.Partition("ws1", "a"))
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.claims)+len(l.starts)+len(l.done)-l.head != 0 {
		t.Errorf("the lane still remembers %d claims, %d starts, %d entries", len(l.claims), len(l.starts), len(l.done)-l.head)
	}
}

func TestConcurrentRepeatsAppendOnce(t *testing.T) {
	r := newRig(t)
	for round := range 20 {
		ids := make([]string, 16)
		duplicates := make([]bool, len(ids))
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				a := r.appended(200, call{path: "/v1/events", body: fmt.Sprintf(`{"session_id":"a","type":"t","message_id":"m%d"}`, round)})
				ids[i], duplicates[i] = a.Results[0].ID, a.Results[0].Duplicate
			})
		}
		wg.Wait()
		for _, id := range ids {
			if id != ids[0] {
				t.Fatalf("round %d: ids %v differ", round, ids)
			}
		}
		n := 0
		for _, d := range duplicates {
			if !d {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("round %d: %d answers were no duplicates, want 1", round, n)
		}
	}
	if n := r.logged(); n != 20 {
		t.Errorf("log holds %d records, want 20", n)
	}
}

// TestCrossedRepeatsDoNotWaitForEachOther: two requests hold the same ids in opposite order.
func TestCrossedRepeatsDoNotWaitForEachOther(t *testing.T) {
	r := newRig(t)
	for round := range 30 {
		a, b := event(fmt.Sprintf(`"message_id":"a%d"`, round)), event(fmt.Sprintf(`"message_id":"b%d"`, round))
		var wg sync.WaitGroup
		for _, body := range []string{list(a, b), list(b, a)} {
			wg.Go(func() { r.appended(200, call{path: "/v1/sessions/s/events", body: body}) })
		}
		wg.Wait()
	}
	if n := r.logged(); n != 60 {
		t.Errorf("log holds %d records, want 60", n)
	}
}

func TestRepeatsAreAnsweredBeforeTheEndIsChecked(t *testing.T) {
	r := newRig(t)
	r.appended(200, call{path: "/v1/sessions/a/events", body: list(event(`"message_id":"m1"`), event(`"message_id":"m2"`))})
	if res := r.post("/v1/sessions/a/end", ""); res.status != 200 {
		t.Fatalf("end: %d %s", res.status, res.body)
	}
	before := r.logged()
	a := r.appended(200, call{path: "/v1/sessions/a/events", body: list(event(`"message_id":"m1"`), event(`"message_id":"m2"`))})
	if a.Duplicates != 2 {
		t.Errorf("got %+v, want two duplicates", a)
	}
	res := r.post("/v1/sessions/a/events", list(event(`"message_id":"m1"`), event(`"message_id":"m3"`)))
	if e := res.error(t); res.status != 409 || e.Code != "session_ended" || e.Details["index"] != 1.0 {
		t.Errorf("new event beside a repeat: %d %s", res.status, res.body)
	}
	a = r.appended(207, call{path: "/v1/events", body: list(event(`"session_id":"a","message_id":"m1"`), event(`"session_id":"a","message_id":"m3"`), event(`"session_id":"b"`))})
	if !a.Results[0].Duplicate || a.Results[1].Error == nil || a.Results[1].Error.Code != "session_ended" || a.Accepted != 1 {
		t.Errorf("batch: %+v", a)
	}
	if n := r.logged() - before; n != 1 {
		t.Errorf("%d records were appended, want 1", n)
	}
	// The id that was refused is not taken.
	if res := r.post("/v1/sessions/a/events", event(`"message_id":"m3"`)); res.status != 409 {
		t.Errorf("again: %d %s", res.status, res.body)
	}
}

func TestABatchKeepsTheGoodOnes(t *testing.T) {
	r := newRig(t)
	a := r.appended(207, call{path: "/v1/events", contentType: "application/x-ndjson", body: strings.Join([]string{
		event(`"session_id":"a","message_id":"m0"`),
		`{"type":"click","session_id":`,
		event(`"session_id":"a","message_id":"m2","t_ms":-4`),
		event(`"message_id":"m3"`),
		event(`"session_id":"b","message_id":"m4"`),
	}, "\n")})
	codes := make([]string, len(a.Results))
	for i, res := range a.Results {
		if res.Error != nil {
			codes[i] = res.Error.Code + " " + res.Error.Param
		}
	}
	want := []string{"", "invalid_json events[1].session_id", "invalid_field events[2].t_ms", "invalid_field events[3].session_id", ""}
	if !slices.Equal(codes, want) || a.Accepted != 2 {
		t.Errorf("errors = %q, want %q; accepted %d", codes, want, a.Accepted)
	}
	if *a.Results[2].MessageID != "m2" {
		t.Errorf("the failed item is not named: %+v", a.Results[2])
	}
	if n := r.logged(); n != 2 {
		t.Errorf("log holds %d records, want 2", n)
	}
}

// clock is a settable time.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func TestTMsCountsFromTheSessionsStart(t *testing.T) {
	c := &clock{t: time.Now()}
	r := newRig(t, func(cfg *rigConfig) { cfg.now = c.now })
	tms := func(path, body string) int64 {
		t.Helper()
		res := r.appended(200, call{path: path, body: body}).Results
		return *res[len(res)-1].TMs
	}
	r.appended(200, call{path: "/v1/sessions/warm/events", body: event("")})
	release := r.tails.hold() // the tail does not know the session: the lane must
	defer release()
	if got := tms("/v1/sessions/a/events", list(event(`"message_id":"m1"`), event(""))); got != 0 {
		t.Errorf("first events: t_ms = %d, want 0", got)
	}
	c.advance(250 * time.Millisecond)
	if got := tms("/v1/sessions/a/events", event(`"message_id":"m2"`)); got != 250 {
		t.Errorf("before the tail knows the session: t_ms = %d, want 250", got)
	}
	release()
	r.events()
	c.advance(750 * time.Millisecond)
	if got := tms("/v1/sessions/a/events", event("")); got != 1000 {
		t.Errorf("t_ms = %d, want 1000", got)
	}
	if got := tms("/v1/sessions/a/events", event(`"t_ms":5`)); got != 5 {
		t.Errorf("t_ms = %d, want 5 as given", got)
	}
	if got := tms("/v1/sessions/a/events", event(`"message_id":"m2"`)); got != 250 {
		t.Errorf("repeat: t_ms = %d, want that of the first, 250", got)
	}
	c.advance(-5 * time.Second) // another node's clock
	if got := tms("/v1/sessions/a/events", event("")); got != 0 {
		t.Errorf("clock behind the start: t_ms = %d, want 0", got)
	}
}

func TestEventsInheritTheSessionsWorkflow(t *testing.T) {
	r := newRig(t)
	r.appended(200, call{path: "/v1/sessions/a/events", body: list(event(`"workflow_id":"w"`), event(""))})
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	r.appended(200, call{path: "/v1/sessions/b/events", key: "workflow", body: event("")})
	r.appended(200, call{path: "/v1/sessions/b/events", key: "workflow", body: event("")})
	for _, e := range r.events() {
		want := map[string]string{"a": "w", "b": "w1"}[e.Session]
		if e.Workflow != want {
			t.Errorf("event %s of session %s has workflow %q, want %q", e.ID, e.Session, e.Workflow, want)
		}
	}
}

// TestKafkaTakesOnlyAPart: one partition refuses. The answer says which events are in,
// and the same request again completes it without a repeat.
func TestKafkaTakesOnlyAPart(t *testing.T) {
	r := newRig(t)
	placement, _ := testLayout{}.Placement("ws1")
	bad := int32(placement.Partition("ws1", "s0"))
	var events []string
	wantFailed := 0
	for i := range 40 {
		session := fmt.Sprintf("s%d", i%8)
		if int32(placement.Partition("ws1", session)) == bad {
			wantFailed++
		}
		events = append(events, fmt.Sprintf(`{"session_id":"%s","type":"t","message_id":"m%d"}`, session, i))
	}
	if wantFailed == 40 {
		t.Fatal("all sessions are in one partition")
	}
	fault := r.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: schema.TopicEvents, Partitions: []int32{bad},
		Err: kerr.InvalidRecord, Count: -1})
	a := r.appended(207, call{path: "/v1/events", body: list(events...)})
	failed := 0
	for _, res := range a.Results {
		if res.Error != nil {
			failed++
			if res.Error.Code != "log_unavailable" {
				t.Errorf("error = %+v", res.Error)
			}
		}
	}
	if failed != wantFailed || a.Accepted != 40-wantFailed {
		t.Errorf("%d failed, %d accepted; want %d, %d", failed, a.Accepted, wantFailed, 40-wantFailed)
	}

	res := r.post("/v1/sessions/s0/events", list(event(`"message_id":"x1"`), event(`"message_id":"x2"`)))
	e := res.error(t)
	results, _ := e.Details["results"].([]any)
	if res.status != 503 || e.Code != "log_unavailable" || len(results) != 2 || res.header.Get("Retry-After") == "" {
		t.Errorf("one session: %d %s, Retry-After %q", res.status, res.body, res.header.Get("Retry-After"))
	}
	res = r.post("/v1/events", list(event(`"session_id":"s0"`), event(`"session_id":"s0"`)))
	if res.status != 503 || res.header.Get("Retry-After") == "" {
		t.Errorf("a batch of which nothing was taken: %d %s", res.status, res.body)
	}

	fault.Remove()
	a = r.appended(200, call{path: "/v1/events", body: list(events...)})
	if a.Accepted != wantFailed || a.Duplicates != 40-wantFailed {
		t.Errorf("retry: accepted %d, duplicates %d; want %d, %d", a.Accepted, a.Duplicates, wantFailed, 40-wantFailed)
	}
	if n := len(r.events()); n != 40 {
		t.Errorf("log holds %d events, want 40", n)
	}
}

// TestKafkaAnswersTooLate: the client is told 503, the record is written all the same,
// and the retry is answered with its id.
func TestKafkaAnswersTooLate(t *testing.T) {
	r := newRig(t)
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	release := holdProduce(r.cluster)
	defer release()

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	items := func() []Item {
		return []Item{{Event: schema.Event{Session: "a", Type: "t", MessageID: "m1", Payload: nullPayload}, TMsGiven: true}}
	}
	results, err := r.appender.Append(ctx, Caller{Workspace: "ws1"}, items(), Options{AllOrNothing: true})
	if err != nil || results[0].Err == nil || results[0].Err.Code != "log_unavailable" {
		t.Fatalf("got %+v, %v; want log_unavailable", results, err)
	}
	done := make(chan wireAnswer)
	go func() {
		done <- r.appended(200, call{path: "/v1/sessions/a/events", body: event(`"message_id":"m1"`)})
	}()
	release()
	a := <-done
	if !a.Results[0].Duplicate {
		t.Errorf("retry = %+v, want a duplicate", a)
	}
	if n := len(r.events()); n != 2 {
		t.Errorf("log holds %d events, want 2", n)
	}
}

// TestABrokerThatHangsIsLeft: 1. a partition's leader takes a batch and does not answer; 2. the
// batch is sent again long before the append's time is up; 3. the broker goes on with the
// first after all.
func TestABrokerThatHangsIsLeft(t *testing.T) {
	r := newRig(t, func(c *rigConfig) { c.ingest.ProduceTimeout = time.Minute })
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	defer release()
	var requests atomic.Int32
	r.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.cluster.KeepControl()
		if requests.Add(1) == 1 {
			r.cluster.SleepControl(func() { <-gate })
		}
		return nil, nil, false
	})
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	release()
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	if n := len(r.events()); n != 3 {
		t.Errorf("log holds %d events, want 3", n)
	}
}

func TestAFullBufferRefusesTheWholeRequest(t *testing.T) {
	r := newRig(t, func(c *rigConfig) {
		c.ingest.MaxBatchEvents = 10
		c.ingest.MaxInFlightEvents = 10
	})
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	release := holdProduce(r.cluster)
	defer release()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		r.appended(200, call{path: "/v1/sessions/a/events", body: list(slices.Repeat([]string{event("")}, 8)...)})
	})
	eventually(t, "eight events in flight", func() bool { return r.appender.producer.events.Load() == 8 })
	for _, path := range []string{"/v1/sessions/b/events", "/v1/events"} {
		res := r.post(path, list(slices.Repeat([]string{event(`"session_id":"b","message_id":"m1"`), event(`"session_id":"b","message_id":"m2"`), event(`"session_id":"b"`)}, 1)...))
		if e := res.error(t); res.status != 503 || e.Code != "overloaded" || res.header.Get("Retry-After") != "1" {
			t.Errorf("%s: %d %s", path, res.status, res.body)
		}
	}
	release()
	wg.Wait()
	eventually(t, "room again", func() bool { return r.appender.producer.events.Load() == 0 && r.appender.producer.bytes.Load() == 0 })
	if n := len(r.events()); n != 9 {
		t.Errorf("log holds %d events, want 9", n)
	}
	a := r.appended(200, call{path: "/v1/sessions/b/events", body: event(`"message_id":"m1"`)})
	if a.Accepted != 1 {
		t.Errorf("the refused message id is taken: %+v", a)
	}
}

func TestAppendsGoOnWhileHistoryIsAway(t *testing.T) {
	r := newRig(t)
	r.tails.setAway(true)
	r.appended(200, call{path: "/v1/sessions/a/events", body: event(`"t_ms":1,"message_id":"m1"`)})
	a := r.appended(200, call{path: "/v1/sessions/a/events", body: event(`"message_id":"m1"`)})
	if !a.Results[0].Duplicate || a.Results[0].TMs != nil {
		t.Errorf("repeat without t_ms: %+v", a.Results[0])
	}
	for _, c := range []call{
		{path: "/v1/sessions/a/events", body: event("")},
		{path: "/v1/sessions/a/events", key: "workflow", body: event(`"t_ms":1`)},
		{path: "/v1/sessions", body: `{}`},
		{path: "/v1/sessions/a/end"},
	} {
		res := r.do(c)
		if e := res.error(t); res.status != 503 || e.Code != "history_unavailable" || res.header.Get("Retry-After") == "" {
			t.Errorf("%s with key %q: %d %s", c.path, c.key, res.status, res.body)
		}
	}
	if n := r.logged(); n != 1 {
		t.Errorf("log holds %d records, want 1", n)
	}
}

// fakeHistory is what ClickHouse would know.
type fakeHistory struct {
	found map[MessageRef]schema.EventID
	err   error

	mu     sync.Mutex
	waited map[uint16]int64
	stuck  bool
}

func (h *fakeHistory) FindMessages(_ context.Context, workspace string, ids []MessageRef) (map[MessageRef]schema.EventID, error) {
	out := make(map[MessageRef]schema.EventID)
	for _, id := range ids {
		if e, ok := h.found[id]; ok && workspace == "ws1" {
			out[id] = e
		}
	}
	return out, h.err
}

func (h *fakeHistory) WaitMaterialised(ctx context.Context, partition uint16, next int64) error {
	h.mu.Lock()
	stuck := h.stuck
	h.waited[partition] = next
	h.mu.Unlock()
	if stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func TestDedupeHistoryFindsRepeatsOfAnyAge(t *testing.T) {
	old := schema.EventID{Position: schema.Position{Epoch: testEpoch, Partition: 1, Offset: 77}, TimeMs: 1_600_000_000_000}
	h := &fakeHistory{found: map[MessageRef]schema.EventID{{"a", "m1"}: old}}
	r := newRig(t, func(c *rigConfig) { c.history = h })
	// The session exists, and the rig's rule reaches back to nothing: its past may hold
	// anything.
	begun, err := schema.ParseEventID(r.appended(200, call{path: "/v1/sessions/a/events", body: event("")}).Results[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.tails.Open(t.Context(), begun.Partition); err != nil { // waits for the tail
		t.Fatal(err)
	}
	body := list(event(`"session_id":"a","message_id":"m1","t_ms":4`), event(`"session_id":"a","message_id":"m2"`), event(`"session_id":"a"`))
	a := r.appended(200, call{path: "/v1/events?dedupe=history", body: body})
	if a.Results[0].ID != old.String() || !a.Results[0].Duplicate || a.Accepted != 2 {
		t.Errorf("got %+v", a)
	}
	a = r.appended(200, call{path: "/v1/events", body: body})
	if a.Results[0].Duplicate || !a.Results[1].Duplicate {
		t.Errorf("without dedupe=history: %+v", a)
	}
	h.err = errHistoryAway
	res := r.post("/v1/events?dedupe=history", list(event(`"session_id":"a","message_id":"m8"`), event(`"session_id":"a","message_id":"m9"`)))
	if e := res.error(t); res.status != 503 || e.Code != "history_unavailable" {
		t.Errorf("history away: %d %s", res.status, res.body)
	}
	a = r.appended(200, call{path: "/v1/events?dedupe=history", body: list(event(`"session_id":"b","message_id":"m9"`))})
	if a.Accepted != 1 {
		t.Errorf("a session that begins within the window needs no history: %+v", a)
	}
}

func TestAckMaterialisedWaitsForClickHouse(t *testing.T) {
	h := &fakeHistory{waited: make(map[uint16]int64)}
	r := newRig(t, func(c *rigConfig) {
		c.history = h
		c.ingest.MaterialisedTimeout = 20 * time.Millisecond
	})
	a := r.appended(200, call{path: "/v1/sessions/a/events?ack=materialised", body: list(event(""), event(`"message_id":"m1"`))})
	id, err := schema.ParseEventID(a.Results[1].ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.waited[id.Partition]; got != id.Offset+1 {
		t.Errorf("waited for %d, want %d", got, id.Offset+1)
	}
	h.stuck = true
	a = r.appended(202, call{path: "/v1/sessions/a/events?ack=materialised", body: event(`"message_id":"m1"`)})
	if !a.Results[0].Duplicate {
		t.Errorf("202 without the id: %+v", a)
	}
	r.appended(200, call{path: "/v1/sessions/a/events?ack=log", body: event("")})
}

func TestConcurrentWritersEachKeepTheirOrder(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 20 {
				r.appended(200, call{path: "/v1/sessions/a/events", body: list(
					event(fmt.Sprintf(`"payload":[%d,%d]`, w, 2*i)), event(fmt.Sprintf(`"payload":[%d,%d]`, w, 2*i+1)))})
			}
		})
	}
	wg.Wait()
	next := make(map[int]int)
	for _, e := range r.events() {
		var w, i int
		if _, err := fmt.Sscanf(string(e.Payload), "[%d,%d]", &w, &i); err != nil {
			t.Fatal(err)
		}
		if next[w] != i {
			t.Fatalf("writer %d: got %d, want %d", w, i, next[w])
		}
		next[w]++
	}
	if len(next) != 6 || next[0] != 40 {
		t.Errorf("got %v", next)
	}
}

func TestAppendsAfterCloseAreRefused(t *testing.T) {
	r := newRig(t)
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	if err := r.appender.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	res := r.post("/v1/sessions/a/events", event(""))
	if e := res.error(t); res.status != 503 || e.Code != "shutting_down" {
		t.Errorf("%d %s", res.status, res.body)
	}
}
