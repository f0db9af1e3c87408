package query

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// growHours appends n records to each partition, minutes apart and out of order by minutes,
// as where clocks differ wildly.
func (ws worlds) growHours(workspace string, n int) {
	for _, w := range ws {
		ms := int64(testStartMs)
		if len(w.log) > 0 {
			ms = w.log[len(w.log)-1].ID.TimeMs
		}
		for range n {
			pos := schema.Position{Epoch: w.epoch, Partition: w.at, Offset: w.end + pick[int64](w.r, 0, 0, 0, 1, 3)}
			ms += w.r.Int64N(20*60_000) - 5*60_000
			in := pick(w.r, workspace, workspace, workspace+"x")
			w.append(randomEvent(w.r, in, w.session(in, pick(w.r, "s1", "s1", "s2")), pos, ms))
		}
	}
}

// wantTally is what a count must say of a list of events.
func wantTally(events []*schema.Event, req *countRequest) map[int64]map[string]uint64 {
	out := make(map[int64]map[string]uint64)
	for _, e := range events {
		bucket, typ := int64(0), e.Type
		if req.interval > 0 {
			bucket = e.ID.TimeMs / req.interval.Milliseconds()
		}
		if req.untyped {
			typ = ""
		}
		if out[bucket] == nil {
			out[bucket] = make(map[string]uint64)
		}
		out[bucket][typ]++
	}
	return out
}

func sameTally(a, b map[int64]map[string]uint64) bool {
	return maps.EqualFunc(a, b, func(a, b map[string]uint64) bool { return maps.Equal(a, b) })
}

// walkPages returns all events of a scope from a cursor on, page by page.
func (ws worlds) walkPages(scope schema.Scope, f schema.Filter, from schema.Cursor) []*schema.Event {
	t := ws[0].t
	t.Helper()
	req := pageRequest{limit: 100, filter: f, cursor: from}
	var out []*schema.Event
	for {
		answer, err := ws.api(DefaultConfig()).page(t.Context(), everyKey, scope, &req)
		if err != nil {
			t.Fatalf("page of %+v from %v: %v", scope, req.cursor, err)
		}
		out = append(out, pageEvents(answer.page)...)
		if !answer.page.more {
			return out
		}
		req.cursor = answer.cursor
	}
}

// randomCount makes a question that sums of hours often answer.
func randomCount(r *rand.Rand) countRequest {
	req := countRequest{
		interval: pick(r, 0, 0, time.Hour, 24*time.Hour, 3*time.Hour, time.Minute, 7*time.Minute),
		untyped:  r.IntN(4) == 0,
	}
	if r.IntN(3) == 0 {
		req.filter = randomFilter(r)
	}
	req.filter.SinceMs, req.filter.UntilMs = nil, nil
	at := func() *int64 {
		ms := testStartMs + r.Int64N(40)*hourOf + pick(r, 0, 0, -1, 1, r.Int64N(hourOf))
		return &ms
	}
	if r.IntN(2) == 0 {
		req.filter.SinceMs = at()
	}
	if r.IntN(2) == 0 {
		req.filter.UntilMs = at()
	}
	return req
}

const hourOf = 3_600_000

// TestCountsEqualThePages compares counts and histograms of random logs, in hours of which
// some are final, some in doubt and some not yet rows, with what the pages show, and goes on
// from their positions.
func TestCountsEqualThePages(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	byHours, byRows := 0, 0
	for seed := range uint64(14) {
		r := rand.New(rand.NewPCG(21, seed))
		workspace := fmt.Sprint("c", seed)
		insertRows := func(events []*schema.Event) { insert(t, conn, events) }
		ws := newWorlds(t, r, h, insertRows, workspace)
		if seed%3 == 0 { // a session lies in one partition
			workspace += "s"
			ws = worlds{newWorld(t, r, h, insertRows, workspace)}
		}
		for range 3 {
			ws.growHours(workspace, r.IntN(120))
			for _, w := range ws {
				w.move()
			}
			for range 6 {
				req := randomCount(r)
				scope := schema.Scope{Workspace: workspace}
				switch r.IntN(5) {
				case 0:
					scope.Workflow = pick(r, "wf1", "wf2")
				case 1:
					if len(ws) == 1 {
						scope.Session = pick(r, "s1", "s2")
					}
				}
				what := fmt.Sprintf("seed %d: %+v %+v", seed, scope, req)
				api := ws.api(DefaultConfig())
				who := everyKey
				who.Workspace = workspace
				got, err := api.count(t.Context(), who, scope, &req)
				if scope.Session != "" && isNotFound(err) {
					continue // no event yet
				}
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				pages := ws.walkPages(scope, req.filter, schema.Cursor{})
				if want := wantTally(pages, &req); !sameTally(got.tally.buckets, want) {
					t.Fatalf("%s:\n%v, want\n%v", what, got.tally.buckets, want)
				}
				var listed int
				for _, w := range ws {
					for _, e := range w.visible(false) {
						if scope.Holds(e) && req.filter.Match(e) {
							listed++
						}
					}
				}
				if listed != len(pages) {
					t.Fatalf("%s: pages show %d events, want %d", what, len(pages), listed)
				}
				c := counter{api: api, scope: scope, req: &req}
				if _, ok := c.hours(); ok {
					byHours++
				} else {
					byRows++
				}
				ws.checkPosition(what, workspace, scope, got.position)
			}
		}
	}
	if byHours < 40 || byRows < 40 {
		t.Errorf("%d counts by hours and %d by rows, want some of each", byHours, byRows)
	}
}

func isNotFound(err error) bool {
	answer, ok := err.(*httpapi.Error) //nolint:errorlint // as it is returned
	return ok && answer.Status == 404
}

// checkPosition appends and reads on from a count's position: what was appended since, and
// nothing else.
func (ws worlds) checkPosition(what, workspace string, scope schema.Scope, at schema.Cursor) {
	t := ws[0].t
	t.Helper()
	cursor, err := schema.ParseCursor(at.String())
	if err != nil {
		t.Fatalf("%s: position %q: %v", what, at, err)
	}
	ends := make([]int64, len(ws))
	for i, w := range ws {
		ends[i] = w.end
	}
	ws.growHours(workspace, 3)
	want := 0
	for i, w := range ws {
		for _, e := range w.visible(false) {
			if scope.Holds(e) && e.ID.Epoch == w.epoch && e.ID.Offset >= ends[i] {
				want++
			}
		}
	}
	if got := ws.walkPages(scope, schema.Filter{}, cursor); len(got) != want {
		t.Fatalf("%s: from its position %v on %d events, want %d", what, cursor, len(got), want)
	}
}

// TestCountsWithoutClickHouse takes them from Kafka while that holds the log, and says so.
func TestCountsWithoutClickHouse(t *testing.T) {
	away := brokenHistory(t)
	r := rand.New(rand.NewPCG(22, 1))
	w := newWorldOf(t, r, away, func([]*schema.Event) {}, "c", 1, 0, 1)
	ws := worlds{w}
	ws.growHours("c", 100)
	w.committed, w.rows, w.tapeStart, w.warmAt = w.end/2, w.end, w.end*3/4, 0
	req := countRequest{interval: time.Hour}
	for _, scope := range []schema.Scope{{Workspace: "c"}, {Workspace: "c", Session: "s1"}} {
		got, err := ws.api(DefaultConfig()).count(t.Context(), everyKey, scope, &req)
		if err != nil {
			t.Fatal(err)
		}
		if want := wantTally(ws.merged(scope, &pageRequest{}), &req); !got.degraded || !sameTally(got.tally.buckets, want) {
			t.Errorf("%+v: degraded %v, %v, want %v", scope, got.degraded, got.tally.buckets, want)
		}
	}
	w.start = 10 // Kafka has forgotten the beginning
	_, err := ws.api(DefaultConfig()).count(t.Context(), everyKey, schema.Scope{Workspace: "c"}, &req)
	if answer, ok := err.(*httpapi.Error); !ok || answer.Status != 503 || answer.RetryAfter <= 0 { //nolint:errorlint // as it is returned
		t.Errorf("what nobody holds whole: %v, want 503 with when to come back", err)
	}
}

// TestCountsLeaveErasedEventsOut counts while rows of an erasure are still there.
func TestCountsLeaveErasedEventsOut(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	store := &erasureList{}
	h.Hide(store)
	r := rand.New(rand.NewPCG(23, 1))
	w := newWorldOf(t, r, h, func(events []*schema.Event) { insert(t, conn, events) }, "c", 1, 0, 1)
	ws := worlds{w}
	ws.growHours("c", 200)
	w.materialise(w.end)
	w.committed, w.tapeStart = w.end, w.end
	req := countRequest{}
	count := func() map[string]uint64 {
		t.Helper()
		got, err := ws.api(DefaultConfig()).count(t.Context(), everyKey, schema.Scope{Workspace: "c"}, &req)
		if err != nil {
			t.Fatal(err)
		}
		return got.tally.buckets[0]
	}
	want := func(erased string) map[string]uint64 {
		return wantTally(slices.DeleteFunc(ws.merged(schema.Scope{Workspace: "c"}, &pageRequest{}), func(e *schema.Event) bool { return e.Session == erased }), &req)[0]
	}
	if got, want := count(), want(""); !maps.Equal(got, want) {
		t.Fatalf("before: %v, want %v", got, want)
	}
	store.add(schema.Erasure{ID: "e1", Workspace: "c", Session: "s1", Below: schema.Position{Epoch: 1, Offset: w.end}})
	if got, want := count(), want("s1"); !maps.Equal(got, want) {
		t.Errorf("while an erasure is pending: %v, want %v", got, want)
	}
}

func TestSplitHours(t *testing.T) {
	at := func(v int64) *int64 { return &v }
	const h = sumMs
	end := int64(schema.MaxEventTimeMs + 1)
	for name, tt := range map[string]struct {
		since, until *int64
		hours        span
		edges        []span
		ok           bool
	}{
		"no bounds":             {nil, nil, span{0, end}, nil, true},
		"whole hours":           {at(2 * h), at(4*h - 1), span{2 * h, 4 * h}, nil, true},
		"a ms more on each end": {at(2*h - 1), at(4 * h), span{2 * h, 4 * h}, []span{{2*h - 1, 2 * h}, {4 * h, 4*h + 1}}, true},
		"a ms less on each end": {at(2*h + 1), at(4*h - 2), span{3 * h, 3 * h}, nil, false},
		"from within an hour":   {at(2*h + 5), nil, span{3 * h, end}, []span{{2*h + 5, 3 * h}}, true},
		"within one hour":       {at(2*h + 5), at(2*h + 9), span{}, nil, false},
		"backwards":             {at(4 * h), at(2*h - 1), span{}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := splitHours(tt.since, tt.until)
			if ok != tt.ok || ok && (got.hours != tt.hours || !slices.Equal(got.edges, tt.edges)) {
				t.Errorf("splitHours = %+v, %v, want %v %v, %v", got, ok, tt.hours, tt.edges, tt.ok)
			}
		})
	}
}

func TestTallyIsBounded(t *testing.T) {
	for name, tt := range map[string]struct {
		limit int
		cell  func(i int) (int64, string)
	}{
		"buckets": {maxBuckets, func(i int) (int64, string) { return int64(i), "a" }},
		"types":   {maxTallyCells, func(i int) (int64, string) { return 0, fmt.Sprint("t", i) }},
	} {
		t.Run(name, func(t *testing.T) {
			tally := newTally(1, false)
			for i := range tt.limit + 1 {
				bucket, typ := tt.cell(i)
				err := tally.add(bucket, typ, 1)
				if full := errors.Is(err, errTallyFull); full != (i == tt.limit) {
					t.Fatalf("number %d: %v", i, err)
				}
			}
			if bucket, typ := tt.cell(0); tally.add(bucket, typ, 1) != nil {
				t.Error("one that is there already does not count on")
			}
		})
	}
}

// countSite serves counts of siteLog, which is on the tape.
func countSite(t *testing.T) *fiber.App {
	t.Helper()
	_, app := newSite(t, scopeLog()...)
	return app
}

func TestCountsAreWhatTheDocsSay(t *testing.T) {
	app := countSite(t)
	position := schema.CursorAt(1, []schema.NextOffset{{Partition: 0, Offset: 9}}, 0).ID.String()[:18] // but its time
	for target, want := range map[string]string{
		"/v1/events/count":                               `{"count":6,"counts_by_type":{"audio.chunk":1,"init":1,"keypress":1,"memory.stored":1,"mouse_move":1,"page.view":1}`,
		"/v1/events/count?type=0x10,1":                   `{"count":2,"counts_by_type":{"init":1,"mouse_move":1}`,
		"/v1/events/count?group_by=none":                 `{"count":6`,
		"/v1/events/count?session_id=s9":                 `{"count":1,"counts_by_type":{"page.view":1}`,
		"/v1/events/count?workflow_id=wf1&type=memory.*": `{"count":1,"counts_by_type":{"memory.stored":1}`,
		"/v1/events/count?type=none":                     `{"count":0,"counts_by_type":{}`,
		"/v1/events/histogram?interval=2s&endTime=1767225602999": `{"interval_ms":2000,"buckets":[{"start":1767225600000,"count":1,"counts_by_type":{"init":1}},` +
			`{"start":1767225602000,"count":1,"counts_by_type":{"memory.stored":1}}]`,
		"/v1/events/histogram?group_by=none": `{"interval_ms":3600000,"buckets":[{"start":1767225600000,"count":6}]`,
		"/v1/events/histogram?type=none":     `{"interval_ms":3600000,"buckets":[]`,
	} {
		status, body, _ := get(t, app, "w1", target)
		if status != 200 || !strings.HasPrefix(body, want+`,"position":"`+position) || !json.Valid([]byte(body)) || strings.Contains(body, "degraded") {
			t.Errorf("%s = %d %s, want %s", target, status, body, want)
		}
	}
}

func TestCountParameters(t *testing.T) {
	app := countSite(t)
	for target, want := range map[string]string{
		"count?session_id=s1&workflow_id=wf1": "400 invalid_parameter session_id",
		"count?session_id=a%20b":              "400 invalid_parameter session_id",
		"count?session_id=":                   "400 invalid_parameter session_id",
		"count?session_id=none":               "404 not_found ",
		"count?workflow_id=a%20b":             "400 invalid_parameter workflow_id",
		"count?group_by=session":              "400 invalid_parameter group_by",
		"count?interval=hour":                 "400 unknown_parameter interval",
		"count?cursor=x":                      "400 unknown_parameter cursor",
		"count?type=200":                      "400 invalid_parameter type",
		"count?startTime=x":                   "400 invalid_parameter startTime",
		"histogram?interval=999ms":            "400 invalid_parameter interval",
		"histogram?interval=1h0m0.0005s":      "400 invalid_parameter interval",
		"histogram?interval=8785h":            "400 invalid_parameter interval",
		"histogram?interval=week":             "400 invalid_parameter interval",
		"histogram?interval=":                 "400 invalid_parameter interval",
		"histogram?interval=second&startTime=1767225600000&endTime=1767235600000": "400 invalid_parameter interval",
	} {
		status, body, _ := get(t, app, "w1", "/v1/events/"+target)
		var answer pageJSON
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%d %s %s", status, answer.Error.Code, answer.Error.Param); got != want {
			t.Errorf("%s = %s (%s), want %s", target, got, answer.Error.Message, want)
		}
	}
	if status, body, _ := get(t, app, "w1", "/v1/events/histogram?interval=second&startTime=1767225600000&endTime=1767235599999"); status != 200 {
		t.Errorf("10,000 buckets: %d %s, want 200", status, body)
	}
}

func TestBoundKeysCountWhatTheySee(t *testing.T) {
	app := countSite(t)
	for _, test := range []struct{ key, query, want string }{
		{"w2", "", `200 {"count":1,`},
		{"w3", "", `200 {"count":0,`},
		{"s1-only", "", `200 {"count":5,`},
		{"s1-only", "session_id=s1", `200 {"count":5,`},
		{"s1-only", "session_id=s9", `404 {"error"`},
		{"s1-only", "workflow_id=wf1", `404 {"error"`},
		{"wf1-only", "", `200 {"count":5,`},
		{"wf1-only", "workflow_id=wf2", `404 {"error"`},
		{"wf1-only", "session_id=s1", `200 {"count":5,`},
		{"wf1-only", "session_id=s9", `404 {"error"`},
		{"w2", "session_id=s9", `404 {"error"`},
		{"ingest-only", "", `403 {"error"`},
	} {
		status, body, _ := get(t, app, test.key, "/v1/events/count?"+test.query)
		if got := fmt.Sprint(status, " ", body); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s, %q = %s, want %s", test.key, test.query, got, test.want)
		}
	}
}

// TestCountStatementsUseTheirOrder holds each statement to what it is meant to read.
func TestCountStatementsUseTheirOrder(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	fillHours(t, conn, "w", 200_000)
	final := []window{{partition: 0, to: 40_000}, {partition: 1, to: 40_000}}
	since, until := int64(testStartMs+10*60_000), int64(testStartMs+20*60_000)
	timed := &schema.Filter{SinceMs: &since, UntilMs: &until}
	hours := hoursQuery{workspace: "w", epoch: 1, final: final, filter: &schema.Filter{}, hours: span{testStartMs, testStartMs + 5*sumMs}, width: sumMs}
	doubts := doubtsQuery{workspace: "w", epoch: 1, filter: &schema.Filter{}, final: final, groups: map[hourGroup]int64{{hour: testStartMs, partition: 1, kind: "a"}: 30_000}}
	scan := func(s schema.Scope, f *schema.Filter) scanQuery {
		return scanQuery{scope: s, epoch: 1, final: final, filter: f, width: 60_000}
	}
	for name, tt := range map[string]struct {
		statement func() (string, []any)
		settings  string
		source    string // what it reads
		granules  int    // at most
	}{
		"hours":                     {hours.statement, settingsByHour, "ReadFromMergeTree (by_hour)", 4},
		"doubts":                    {doubts.statement, settingsByLog, "ReadFromMergeTree (playhead.events)", 8},
		"rows by time":              {new(scan(schema.Scope{Workspace: "w"}, timed)).statement, settingsScan, "ReadFromMergeTree (playhead.events)", 20},
		"rows of a workflow":        {new(scan(schema.Scope{Workspace: "w", Workflow: "none"}, &schema.Filter{})).statement, settingsScan, "", 0},
		"rows of a session":         {new(scan(schema.Scope{Workspace: "w", Session: sessionIn("w", 1)}, &schema.Filter{})).statement, settingsScanBySession, "ReadFromMergeTree (by_session)", 60},
		"rows of a session by time": {new(scan(schema.Scope{Workspace: "w", Session: sessionIn("w", 1)}, timed)).statement, settingsScanBySession, "ReadFromMergeTree (playhead.events)", 20},
	} {
		t.Run(name, func(t *testing.T) {
			query, args := tt.statement()
			plan := explainText(t, h, query, tt.settings, args)
			if !strings.Contains(plan, tt.source) || strings.Count(plan, "ReadFromMergeTree") > 1 {
				t.Errorf("want it to read %q:\n%s", tt.source, plan)
			}
			kept := 0
			if granules := regexpGranules.FindAllStringSubmatch(plan, -1); len(granules) > 0 {
				if _, err := fmt.Sscanf(granules[len(granules)-1][1], "%d/", &kept); err != nil {
					t.Fatal(err)
				}
			}
			if kept > tt.granules {
				t.Errorf("reads %d granules, want at most %d:\n%s", kept, tt.granules, plan)
			}
			rows, err := h.estimate(t.Context(), query, tt.settings, args)
			if err != nil || kept > 0 && (rows == 0 || rows > int64(kept*2048)) {
				t.Errorf("estimate = %d rows, %v, want the %d granules", rows, err, kept)
			}
		})
	}
}
