package query

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

type listJSON struct {
	Data []struct {
		ID     string `json:"id"`
		Status string `json:"status"`
		Kind   string `json:"kind"`
	} `json:"data"`
	Pagination struct {
		NextCursor *string `json:"nextCursor"`
		HasMore    bool    `json:"hasMore"`
		Limit      int     `json:"limit"`
	} `json:"pagination"`
	Partial, Degraded bool
	Error             struct{ Code, Param, Message string }
}

func (l *listJSON) ids() (ids []string) {
	for _, s := range l.Data {
		ids = append(ids, s.ID)
	}
	return ids
}

// listLog is a log of four sessions: s1 of wf1, a call that ended, one that was only
// created, and one of wf1 that is the last to be active.
func listLog() []*schema.Event {
	created := siteEvent(2, schema.TypeSessionCreated, `{"kind":"call"}`)
	created.Session, created.Workflow = "called", ""
	over := siteEvent(3, "call.ended", `{}`)
	over.Session, over.Workflow = "called", ""
	only := siteEvent(4, schema.TypeSessionCreated, `{"kind":"conversation"}`)
	only.Session, only.Workflow = "created", "wf2"
	last := siteEvent(1, "memo", `{}`)
	last.Session = "s2"
	again := siteEvent(5, "memo", `{}`)
	again.Session = "s2"
	return []*schema.Event{siteEvent(0, "init", `{}`), last, created, over, only, again}
}

func TestListOfSessionsAnswersItsParameters(t *testing.T) {
	_, app := newSite(t, listLog()...)
	list := func(key, query string) (int, listJSON) {
		t.Helper()
		status, body, header := get(t, app, key, "/v1/sessions?"+query)
		var l listJSON
		if err := json.Unmarshal([]byte(body), &l); err != nil {
			t.Fatalf("%s: %v in %s", query, err, body)
		}
		if status == 200 && (header.Get(headerDegraded) == "kafka") != l.Degraded {
			t.Errorf("%s: header %q, degraded %v", query, header.Get(headerDegraded), l.Degraded)
		}
		return status, l
	}
	f := func(key, query string, want ...string) {
		t.Helper()
		status, l := list(key, query)
		if got := l.ids(); status != 200 || !slices.Equal(got, want) {
			t.Errorf("%s as %s: %d %v %+v, want %v", query, key, status, got, l.Error, want)
		}
	}
	at := func(offset int64) string { return fmt.Sprint(int64(testStartMs) + 1000*offset) }
	f("w1", "", "s2", "created", "called", "s1")
	f("w1", "order_by=start", "created", "called", "s2", "s1")
	f("w1", "order_by=start&order=asc", "s1", "s2", "called", "created")
	f("w1", "status=ended", "called")
	f("w1", "status=active", "s2", "created", "s1")
	f("w1", "kind=conversation", "created")
	f("w1", "workflow_id=wf1", "s2", "s1")
	f("w1", "workflow_id=none")
	f("w1", "started_after="+at(1)+"&started_before="+at(4), "s2", "called")
	f("w1", "started_after="+time.UnixMilli(testStartMs+2000).UTC().Format(time.RFC3339), "created", "called")
	f("w2", "")
	f("s1-only", "", "s1")
	f("s1-only", "status=ended")
	f("wf1-only", "", "s2", "s1")
	f("wf1-only", "workflow_id=wf1", "s2", "s1")

	g := func(key, query string, status int, code, param string) {
		t.Helper()
		got, l := list(key, query)
		if got != status || l.Error.Code != code || l.Error.Param != param {
			t.Errorf("%s as %s: %d %+v, want %d %s of %s", query, key, got, l.Error, status, code, param)
		}
	}
	g("w1", "order_by=id", 400, "invalid_parameter", "order_by")
	g("w1", "order=asc", 400, "invalid_parameter", "order")
	g("w1", "order_by=start&order=up", 400, "invalid_parameter", "order")
	g("w1", "status=open", 400, "invalid_parameter", "status")
	g("w1", "kind=chat", 400, "invalid_parameter", "kind")
	g("w1", "workflow_id=a%20b", 400, "invalid_parameter", "workflow_id")
	g("w1", "started_after=yesterday", 400, "invalid_parameter", "started_after")
	g("w1", "started_before=-1", 400, "invalid_parameter", "started_before")
	g("w1", "limit=0", 400, "invalid_parameter", "limit")
	g("w1", "type=a", 400, "unknown_parameter", "type")
	g("w1", "cursor=evt_01000000000000000000000000", 400, "invalid_cursor", "cursor")
	g("w1", "cursor=.00000000", 400, "invalid_cursor", "cursor")
	g("wf1-only", "workflow_id=wf2", 404, "not_found", "")
	g("s1-only", "workflow_id=wf1", 404, "not_found", "")
	g("ingest-only", "", 403, "insufficient_scope", "")

	_, first := list("w1", "limit=3")
	if !first.Pagination.HasMore || first.Pagination.Limit != 3 || first.Pagination.NextCursor == nil {
		t.Fatalf("first page: %+v", first.Pagination)
	}
	f("w1", "limit=50&cursor="+*first.Pagination.NextCursor, "s1")
	_, last := list("w1", "cursor="+*first.Pagination.NextCursor)
	if last.Pagination.HasMore || last.Pagination.NextCursor == nil {
		t.Errorf("last page: %+v, want a cursor to go on from", last.Pagination)
	}
	for _, query := range []string{"status=active", "order_by=start", "kind=call", "workflow_id=wf1", "started_after=1", "started_before=1"} {
		g("w1", query+"&cursor="+*first.Pagination.NextCursor, 400, "cursor_mismatch", "cursor")
	}
	g("wf1-only", "cursor="+*first.Pagination.NextCursor, 400, "cursor_mismatch", "cursor")
}

func TestListCursorsHaveOneSpelling(t *testing.T) {
	for _, key := range []listKey{{0, ""}, {1, "s"}, {testStartMs, strings.Repeat("x", 128)}, {schema.MaxTimeMs, ""}} {
		text := key.cursor(0x9f3ac1d2)
		got, tag, ok := parseListCursor(text)
		if !ok || got != key || tag != 0x9f3ac1d2 {
			t.Errorf("%s reads as %v %x %v, want %v", text, got, tag, ok, key)
		}
		for _, bad := range []string{text + "0", strings.ToUpper(text), "A" + text, strings.Replace(text, ".", "=.", 1), text[:len(text)-9]} {
			if got, _, ok := parseListCursor(bad); ok && bad != text {
				t.Errorf("%q reads as %v", bad, got)
			}
		}
	}
	for _, bad := range []string{"", ".", "AA", "gAA.00000001", "_____________w.00000001", "AGEgYg.00000001"} {
		if got, _, ok := parseListCursor(bad); ok {
			t.Errorf("%q reads as %v", bad, got)
		}
	}
}

// TestListLeavesOutWhatIsBeingErased: while rows of erased sessions are still there, a
// session that is erased is not on the list, and one that was used again begins anew.
func TestListLeavesOutWhatIsBeingErased(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	erased := &erasureList{}
	h.Hide(erased)
	w := &listWorld{r: rand.New(rand.NewPCG(1, 1)), workspace: "w1"}
	one := &world{t: t, r: w.r, epoch: 1, history: h, insert: func(e []*schema.Event) { insert(t, conn, e) }, rule: schema.DedupeRule{Offsets: 1000, Age: 1e12}}
	one.windows = schema.NewWindow(one.rule)
	w.worlds = worlds{one}
	for i, session := range []string{"gone", "again", "kept", "again", "gone"} {
		e := siteEvent(int64(i), "memo", `{}`)
		e.Session = session
		one.append(e)
	}
	one.materialise(one.end)
	one.committed, one.tapeStart = one.end, one.end
	list := func() (out []string) {
		t.Helper()
		for _, req := range []listRequest{{limit: 100, orderBy: orderRecency, descending: true}, {limit: 1, orderBy: orderStart}} {
			for more := true; more; {
				got, err := w.read(t, &req, false)
				if err != nil {
					t.Fatal(err)
				}
				for _, item := range got.listed {
					out = append(out, fmt.Sprint(item.key.id, " ", item.state.StartedMs-testStartMs, " ", item.state.EventCount))
					req.cursor = item.key
				}
				more = got.more
			}
		}
		return out
	}
	f := func(want ...string) {
		t.Helper()
		if got := list(); !slices.Equal(got, want) {
			t.Errorf("listed %q, want %q", got, want)
		}
	}
	f("gone 0 2", "again 1000 2", "kept 2000 1", "gone 0 2", "again 1000 2", "kept 2000 1")
	at := func(offset int64) schema.Position { return schema.Position{Epoch: 1, Offset: offset} }
	erased.add(schema.Erasure{ID: "era_1", Workspace: "w1", Session: "gone", Below: at(5)})
	erased.add(schema.Erasure{ID: "era_2", Workspace: "w1", Session: "again", Below: at(2)})
	f("again 3000 1", "kept 2000 1", "kept 2000 1", "again 3000 1")
	erased.add(schema.Erasure{ID: "era_3", Workspace: "w1"})
	f()
}

// TestListAsksForFewerSessionsWhereTheyAreLong: states of a whole page would be more than
// one statement may read.
func TestListAsksForFewerSessionsWhereTheyAreLong(t *testing.T) {
	conn, _ := openEngine(t)
	err := conn.Exec(t.Context(), `INSERT INTO events (workspace_id, session_id, log_epoch, kafka_partition, kafka_offset, ts, type, payload)
		SELECT 'w1', 's' || toString(number % 40), 1, 0, number, toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(number), 'a', '{}' FROM numbers(400000)`)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.MaxReadBytes = 4 << 20
	h := NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
	w := &listWorld{r: rand.New(rand.NewPCG(1, 1)), workspace: "w1"}
	w.worlds = worlds{{t: t, r: w.r, epoch: 1, history: h, end: 400_000, committed: 400_000, tapeStart: 400_000}}
	var sessions []string
	for i := range 40 {
		sessions = append(sessions, fmt.Sprint("s", i))
	}
	everywhere := func(string) uint16 { return 0 }
	if _, err := h.SessionBases(t.Context(), "w1", 1, []window{{to: 400_000}}, everywhere, sessions); err == nil {
		t.Fatal("one statement reads all states; the test shows nothing")
	}
	req := listRequest{limit: 100, orderBy: orderStart, descending: true}
	got, err := w.read(t, &req, false)
	if err != nil || len(got.listed) != 40 || got.listed[39].state.EventCount != 10_000 {
		t.Errorf("%d sessions, %v, want 40 of 10,000 events", len(got.listed), err)
	}
}

// TestListIsRefusedWhereKafkaIsNotEnough: without ClickHouse a list of what Kafka still
// holds would be silently short.
func TestListIsRefusedWhereKafkaIsNotEnough(t *testing.T) {
	w, app := newSite(t, listLog()...)
	w.start = 1
	status, body, header := get(t, app, "w1", "/v1/sessions")
	if status != 503 || header.Get("Retry-After") == "" || !strings.Contains(body, "history_unavailable") {
		t.Errorf("%d %s, Retry-After %q, want 503 history_unavailable", status, body, header.Get("Retry-After"))
	}
	if status, body, _ := get(t, app, "s1-only", "/v1/sessions"); status != 200 || !strings.Contains(body, `"id":"s1"`) {
		t.Errorf("of a key bound to a session whose state is on the tape: %d %s", status, body)
	}
}

func TestDetailsEqualThePages(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	away := brokenHistory(t)
	answered, degraded := 0, 0
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(13, seed))
		workspace := fmt.Sprint("d", seed)
		w := newListWorld(t, r, h, func(events []*schema.Event) { insert(t, conn, events) }, workspace, 3)
		for range 12 {
			for _, one := range w.worlds {
				if one.history = h; r.IntN(3) == 0 {
					one.move()
				}
				if r.IntN(4) == 0 {
					one.history = away
				}
			}
			api := w.api()
			app := httpapi.NewApp(httpapi.DefaultConfig(), slog.New(slog.DiscardHandler))
			app.Use(httpapi.Authenticate(keys{}))
			api.Routes(app)
			session := pick(r, "s0", "s1", "s2", "none")
			query := pick(r, "", "buckets=1", "buckets=7", "buckets=1000", "interval=1s", "interval=37")
			status, body, _ := get(t, app, workspace, "/v1/sessions/"+session+"/details?"+query)
			_, plain, _ := get(t, app, workspace, "/v1/sessions/"+session)
			var got sessionDetails
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			what := fmt.Sprintf("seed %d, %s?%s", seed, session, query)
			one := w.worlds[w.placement().Partition(workspace, session)]
			var events []*schema.Event
			state := schema.NewSession()
			for _, e := range one.visible(true) {
				if e.Workspace != workspace || e.Session != session {
					continue
				}
				state.Apply(e)
				if !e.Hidden() {
					events = append(events, e)
				}
			}
			switch {
			case !state.Exists() && status == 404:
				continue
			case status == 503 && w.worlds[0].history == away && (one.epoch > 1 || one.start > 0):
				continue
			case status == 400 && strings.HasPrefix(query, "interval") && got.Timeline.Buckets == nil:
				if n := state.View(session).DurationMs; n < 37*maxTimelineBuckets {
					t.Fatalf("%s: refused though the session lasts %d ms: %s", what, n, body)
				}
				continue
			case status != 200:
				t.Fatalf("%s: %d %s", what, status, body)
			}
			if answered++; got.Degraded {
				degraded++
			}
			var total, busiest int64
			for _, b := range got.Timeline.Buckets {
				total, busiest = total+b.Count, max(busiest, b.Count)
			}
			if !strings.HasPrefix(body, strings.TrimSuffix(plain, "}")) || total != int64(len(events)) || got.EventCount != total {
				t.Fatalf("%s: %s\nof %d events, want the session as %s", what, body, len(events), plain)
			}
			for i, b := range got.Timeline.Buckets {
				kinds := make(map[string]int64)
				for _, e := range events {
					if e.TMs >= b.TMs && e.TMs < b.TMs+got.Timeline.IntervalMs {
						kinds[e.Type]++
					}
				}
				var n int64
				for _, k := range kinds {
					n += k
				}
				dominant := ""
				for kind, k := range kinds {
					if dominant == "" || k > kinds[dominant] || k == kinds[dominant] && kind < dominant {
						dominant = kind
					}
				}
				if b.TMs != int64(i)*got.Timeline.IntervalMs || b.Count != n || (b.DominantType == nil) != (n == 0) ||
					n > 0 && *b.DominantType != dominant || b.ActivityLevel != activity(n, busiest) {
					t.Fatalf("%s: bucket %d is %+v, want %d events, most of them %q", what, i, b, n, dominant)
				}
			}
		}
	}
	if answered < 20 || degraded == 0 {
		t.Errorf("%d answers, %d of them degraded; want some of each", answered, degraded)
	}
}

func TestDetailsAnswerTheirParameters(t *testing.T) {
	_, app := newSite(t, append(listLog(), siteEvent(100, "memo", `{}`))...)
	f := func(key, path string, status int, want string) {
		t.Helper()
		got, body, _ := get(t, app, key, "/v1/sessions/"+path)
		if got != status || !strings.Contains(body, want) {
			t.Errorf("%s as %s: %d %s, want %d and %s", path, key, got, body, status, want)
		}
	}
	f("w1", "s1/details?interval=50s", 200, `"timeline":{"interval_ms":50000,"buckets":[`+
		`{"t_ms":0,"count":1,"dominant_type":"init","activity_level":"high"},`+
		`{"t_ms":50000,"count":0,"dominant_type":null,"activity_level":"none"},`+
		`{"t_ms":100000,"count":1,"dominant_type":"memo","activity_level":"high"}]}`)
	f("w1", "created/details", 200, `"timeline":{"interval_ms":1,"buckets":[{"t_ms":0,"count":0,"dominant_type":null,"activity_level":"none"}]}`)
	f("w1", "s1/details?interval=100", 400, `"param":"interval"`)
	f("w1", "s1/details?interval=101", 200, `"interval_ms":101`)
	for _, bad := range []string{"buckets=0", "buckets=1001", "buckets=x", "buckets="} {
		f("w1", "s1/details?"+bad, 400, `"param":"buckets"`)
	}
	for _, bad := range []string{"interval=0", "interval=-5s", "interval=1us", "interval=", "interval=1&interval=2", "interval=1&buckets=2"} {
		f("w1", "s1/details?"+bad, 400, `"param":"interval"`)
	}
	f("w1", "s1/details?order=asc", 400, `"param":"order"`)
	f("w1", "none/details", 404, `"code":"not_found"`)
	f("w2", "s1/details", 404, `"code":"not_found"`)
	f("s1-only", "s2/details", 404, `"code":"not_found"`)
	f("wf1-only", "called/details", 404, `"code":"not_found"`)
	f("wf1-only", "s2/details", 200, `"id":"s2"`)
}

func TestActivityIsRelativeToTheBusiestBucket(t *testing.T) {
	f := func(n, busiest int64, want string) {
		t.Helper()
		if got := activity(n, busiest); got != want {
			t.Errorf("activity(%d, %d) = %s, want %s", n, busiest, got, want)
		}
	}
	f(0, 0, "none")
	f(0, 9, "none")
	f(1, 1, "high")
	f(3, 9, "low")
	f(4, 9, "medium")
	f(6, 9, "medium")
	f(7, 9, "high")
}
