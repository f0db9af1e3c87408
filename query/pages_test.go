package query

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/openapi/conform"
	"github.com/playhead-dev/playhead/schema"
)

// keys knows one key a workspace: its id; "s1-only" and "wf1-only" are bound.
type keys struct{}

func (keys) Authenticate(key string) (control.Principal, error) {
	p := control.Principal{Workspace: key, Scopes: control.ScopeRead}
	switch key {
	case "ingest-only":
		p = control.Principal{Workspace: "w1", Scopes: control.ScopeIngest}
	case "s1-only":
		p.Workspace, p.Session = "w1", "s1"
	case "wf1-only":
		p.Workspace, p.Workflow = "w1", "wf1"
	}
	return p, nil
}

// newSite serves a world whose log is on the tape from its beginning, so that nothing
// asks ClickHouse.
func newSite(t testing.TB, events ...*schema.Event) (*world, *fiber.App) {
	t.Helper()
	w := &world{t: t, r: rand.New(rand.NewPCG(1, 1)), epoch: 1, rule: schema.DedupeRule{Offsets: 1000, Age: 1e12}, history: brokenHistory(t)}
	w.windows = schema.NewWindow(w.rule)
	for _, e := range events {
		w.append(e)
	}
	app := httpapi.NewApp(httpapi.DefaultConfig(), slog.New(slog.DiscardHandler))
	app.Use(httpapi.Authenticate(keys{}))
	w.api(DefaultConfig()).Routes(app)
	return w, app
}

func get(t *testing.T, app *fiber.App, key, target string) (int, string, http.Header) {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, target, nil)
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := app.Test(req, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := conform.Answer{Method: http.MethodGet, Path: req.URL.EscapedPath(), Status: resp.StatusCode, Header: resp.Header, Body: body}
	if err := conform.Check(a); err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

type pageJSON struct {
	Data []struct {
		EventID       string          `json:"eventId"`
		MessageID     int             `json:"messageId"`
		EventTypeName string          `json:"eventTypeName"`
		Payload       json.RawMessage `json:"payload"`
		Late          bool            `json:"late"`
	} `json:"data"`
	Pagination struct {
		NextCursor *string `json:"nextCursor"`
		HasMore    bool    `json:"hasMore"`
		Limit      int     `json:"limit"`
	} `json:"pagination"`
	Degraded bool `json:"degraded"`
	Error    struct {
		Code, Param, Message string
	} `json:"error"`
}

func getPage(t *testing.T, app *fiber.App, query string) (int, pageJSON) {
	t.Helper()
	status, body, _ := get(t, app, "w1", "/v1/sessions/s1/events?"+query)
	var p pageJSON
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("%s: %v in %s", query, err, body)
	}
	return status, p
}

func siteEvent(offset int64, typ, payload string) *schema.Event {
	return &schema.Event{
		ID:        schema.EventID{Position: schema.Position{Epoch: 1, Offset: offset}, TimeMs: testStartMs + 1000*offset},
		Workspace: "w1", Session: "s1", Workflow: "wf1", Type: typ, TMs: 1000 * offset,
		ContentType: schema.DefaultContentType, Payload: []byte(payload),
	}
}

func siteLog() []*schema.Event {
	client, confidence := int64(testStartMs-5), float32(0.1)
	full := siteEvent(2, "memory.stored", "{ \"a\": 1.50,\n \"b\": \"<é>\" }")
	full.ClientTimeMs, full.Confidence, full.FrameID, full.MessageID = &client, &confidence, `f"1`, "m-1"
	full.Metadata = map[string]string{"k2": "v\n2", "k1": "v1"}
	sound := siteEvent(4, "audio.chunk", "\x00\xff\x10")
	sound.ContentType = "audio/wav"
	other := siteEvent(5, "mouse_move", "{}")
	other.Workspace = "w2"
	return []*schema.Event{
		siteEvent(0, schema.TypeSessionCreated, `{"kind":"session","metadata":{"a":"b"}}`),
		siteEvent(1, "init", `{}`), full, siteEvent(3, "mouse_move", `{"x":1}`), sound, other,
		siteEvent(6, schema.TypeSessionEnded, `{}`), siteEvent(7, "keypress", `"k"`),
	}
}

func TestPageIsWhatTheDocsSay(t *testing.T) {
	_, app := newSite(t, siteLog()...)
	status, body, header := get(t, app, "w1", "/v1/sessions/s1/events?include=payload")
	id := func(offset int64) string { return siteEvent(offset, "", "").ID.String() }
	tag := (&schema.Cursor{ID: siteEvent(7, "", "").ID, Filter: (&schema.Filter{}).Tag(false)}).String()
	want := `{"data":[` +
		`{"eventId":"` + id(1) + `","messageId":1,"eventTypeName":"init","timestamp":1767225601000,"payloadSize":2,"sessionId":"s1","tMs":1000,"workflowId":"wf1","payload":{}},` +
		`{"eventId":"` + id(2) + `","messageId":0,"eventTypeName":"memory.stored","timestamp":1767225602000,"payloadSize":27,"sessionId":"s1","tMs":2000,"workflowId":"wf1",` +
		`"clientTime":1767225599995,"frameId":"f\"1","confidence":0.1,"metadata":{"k1":"v1","k2":"v\n2"},"clientMessageId":"m-1","payload":{ "a": 1.50,` + "\n" + ` "b": "<é>" }},` +
		`{"eventId":"` + id(3) + `","messageId":16,"eventTypeName":"mouse_move","timestamp":1767225603000,"payloadSize":7,"sessionId":"s1","tMs":3000,"workflowId":"wf1","payload":{"x":1}},` +
		`{"eventId":"` + id(4) + `","messageId":0,"eventTypeName":"audio.chunk","timestamp":1767225604000,"payloadSize":3,"sessionId":"s1","tMs":4000,"workflowId":"wf1","contentType":"audio/wav","payload":"AP8Q"},` +
		`{"eventId":"` + id(7) + `","messageId":48,"eventTypeName":"keypress","timestamp":1767225607000,"payloadSize":3,"sessionId":"s1","tMs":7000,"workflowId":"wf1","late":true,"payload":"k"}` +
		`],"pagination":{"nextCursor":"` + tag + `","hasMore":false,"limit":100}}`
	if status != 200 || body != want {
		t.Errorf("page = %d\n%s\nwant\n%s", status, body, want)
	}
	if !strings.HasPrefix(header.Get("Content-Type"), "application/json") || header.Get("X-Playhead-Degraded") != "" {
		t.Errorf("headers = %v", header)
	}
	if _, p := getPage(t, app, ""); len(p.Data) != 5 || p.Data[0].Payload != nil {
		t.Errorf("without include=payload: %+v, want no payloads", p)
	}
}

func TestPageParameters(t *testing.T) {
	_, app := newSite(t, siteLog()...)
	ids := func(p pageJSON) string {
		var out []string
		for _, d := range p.Data {
			out = append(out, d.EventTypeName)
		}
		return strings.Join(out, " ")
	}
	for query, want := range map[string]string{
		"pageSize=2":              "init memory.stored",
		"limit=2&order=desc":      "keypress audio.chunk",
		"type=1":                  "init",
		"type=0x10,48":            "mouse_move keypress",
		"type=memory.*&type=0x01": "init memory.stored",
		"events=mouse_move":       "mouse_move",
		"startTime=1767225603000&endTime=1767225604000": "mouse_move audio.chunk",
		"t_ms.gte=2000&t_ms.lte=3000":                   "memory.stored mouse_move",
		"confidence.gte=0.1":                            "memory.stored",
		"filters[k1]=v1":                                "memory.stored",
		"since=2026-01-01T00:00:07Z&_=123":              "keypress",
		"type=none":                                     "",
		"cursor=" + siteEvent(3, "", "").ID.String():    "audio.chunk keypress",
		"cursor=" + siteEvent(3, "", "").ID.String() + "&order=desc&type=*": "memory.stored init",
	} {
		if status, p := getPage(t, app, query); status != 200 || ids(p) != want {
			t.Errorf("?%s = %d %q, want %q", query, status, ids(p), want)
		}
	}
	for query, want := range map[string]int{"": 100, "pageSize=7": 7, "limit=1000": 100, "pageSize=99999999999999999999": 100} {
		if _, p := getPage(t, app, query); p.Pagination.Limit != want {
			t.Errorf("?%s: limit %d, want %d", query, p.Pagination.Limit, want)
		}
	}
	for query, want := range map[string]string{
		"pageSize=0": "invalid_parameter pageSize", "pageSize=-1": "invalid_parameter pageSize", "pageSize=x": "invalid_parameter pageSize",
		"limit=1.5": "invalid_parameter limit", "pageSize=1&limit=1": "invalid_parameter pageSize", "limit=": "invalid_parameter limit",
		"type=200": "invalid_parameter type", "type=0xff": "invalid_parameter type", "type=256": "invalid_parameter type", "events=-": "invalid_parameter events",
		"startTime=x": "invalid_parameter startTime", "endTime=-1": "invalid_parameter endTime", "startTime=1&since=1": "invalid_parameter startTime",
		"order=up": "invalid_parameter order", "include=all": "invalid_parameter include", "include=": "invalid_parameter include",
		"pagesize=1": "unknown_parameter pagesize", "token=x": "token_in_query_not_allowed token",
		"cursor=x": "invalid_cursor cursor",
		"cursor=" + siteEvent(9, "", "").ID.String():                                                             "invalid_cursor cursor",
		"cursor=" + (schema.EventID{Position: schema.Position{Epoch: 1, Partition: 4}}).String():                 "invalid_cursor cursor",
		"cursor=" + (schema.EventID{Position: schema.Position{Epoch: 2}}).String():                               "invalid_cursor cursor",
		"cursor=" + (&schema.Cursor{ID: siteEvent(1, "", "").ID, Filter: 7}).String():                            "cursor_mismatch cursor",
		"cursor=" + (&schema.Cursor{ID: siteEvent(1, "", "").ID, Filter: (&schema.Filter{}).Tag(true)}).String(): "cursor_mismatch cursor",
	} {
		status, p := getPage(t, app, query)
		if got := p.Error.Code + " " + p.Error.Param; status/100 != 4 || got != want {
			t.Errorf("?%s = %d %q (%s), want %q", query, status, got, p.Error.Message, want)
		}
	}
	if _, p := getPage(t, app, "type=200"); !strings.Contains(p.Error.Message, "200") {
		t.Errorf("an unregistered code is not named: %q", p.Error.Message)
	}
}

func TestUnknownAndForeignSessionsAreTheSame404(t *testing.T) {
	w, app := newSite(t, siteLog()...)
	_, want, _ := get(t, app, "w1", "/v1/sessions/none/events")
	for _, path := range []string{"", "/events"} {
		for _, tt := range []struct{ key, session string }{
			{"w1", "none"}, {"w3", "s1"}, {"w1", "a%20b"}, {"w1", strings.Repeat("x", 129)}, {"s1-only", "s2"}, {"wf1-only", "s2"},
		} {
			status, body, header := get(t, app, tt.key, "/v1/sessions/"+tt.session+path)
			if status != 404 || strings.ReplaceAll(body, header.Get("X-Request-Id"), "") != want[:strings.Index(want, `"request_id"`)]+`"request_id":""}}` {
				t.Errorf("%+v%s = %d %s, want the 404 of all", tt, path, status, body)
			}
		}
	}
	for _, key := range []string{"w1", "s1-only", "wf1-only"} {
		if status, body, _ := get(t, app, key, "/v1/sessions/s1/events"); status != 200 {
			t.Errorf("%s: %d %s, want 200", key, status, body)
		}
	}
	if status, _, _ := get(t, app, "ingest-only", "/v1/sessions/s1/events"); status != 403 {
		t.Errorf("a key without the scope read: %d, want 403", status)
	}
	w.stateAway = true // nobody can tell the session's workflow
	if status, body, _ := get(t, app, "wf1-only", "/v1/sessions/s1/events"); status != 503 {
		t.Errorf("a bound key while states are away: %d %s, want 503", status, body)
	}
}

func TestEmptyPages(t *testing.T) {
	w, app := newSite(t, siteEvent(0, schema.TypeSessionCreated, `{"kind":"session"}`))
	if status, body, _ := get(t, app, "w1", "/v1/sessions/s1/events"); status != 200 || body != `{"data":[],"pagination":{"nextCursor":null,"hasMore":false,"limit":100}}` {
		t.Errorf("a session without events: %d %s", status, body)
	}
	w.append(siteEvent(1, "init", `{}`))
	if _, p := getPage(t, app, "type=keypress"); p.Pagination.NextCursor == nil || !strings.HasPrefix(*p.Pagination.NextCursor, siteEvent(1, "", "").ID.String()) {
		t.Errorf("a filter that takes nothing: %+v, want the last event as the cursor", p.Pagination)
	}
	cursor := siteEvent(1, "", "").ID.String()
	if _, p := getPage(t, app, "cursor="+cursor); p.Pagination.NextCursor == nil || !strings.HasPrefix(*p.Pagination.NextCursor, cursor) || p.Pagination.HasMore {
		t.Errorf("at the end: %+v, want the cursor that was given", p.Pagination)
	}
}

func TestPageIsBoundedInBytes(t *testing.T) {
	big := `"` + strings.Repeat("x", 60<<10) + `"`
	w, _ := newSite(t, siteEvent(0, "a", big), siteEvent(1, "a", big), siteEvent(2, "a", big))
	cfg := DefaultConfig()
	cfg.MaxPageBytes = 64 << 10
	who := everyKey
	who.Workspace = "w1"
	for payloads, want := range map[bool]int{true: 1, false: 3} {
		got, err := w.api(cfg).page(t.Context(), who, schema.Scope{Workspace: who.Workspace, Session: "s1"}, &pageRequest{limit: 10, payloads: payloads})
		if err != nil || len(got.page.items) != want || got.page.more != payloads {
			t.Errorf("payloads %v: %d events, more %v, %v, want %d", payloads, len(got.page.items), got.page.more, err, want)
		}
	}
}

func TestDegradedPageSaysSo(t *testing.T) {
	w, app := newSite(t, siteLog()...)
	w.committed = 4 // ClickHouse would have these; its breaker is open
	status, body, header := get(t, app, "w1", "/v1/sessions/s1/events?pageSize=3")
	var p pageJSON
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatal(err)
	}
	if status != 200 || !p.Degraded || header.Get("X-Playhead-Degraded") != "kafka" || len(p.Data) != 3 || !p.Pagination.HasMore {
		t.Errorf("degraded page = %d %s, header %q", status, body, header.Get("X-Playhead-Degraded"))
	}
	w.start, w.tapeStart, w.stateAway = 2, 2, true // Kafka has forgotten the beginning
	status, body, header = get(t, app, "w1", "/v1/sessions/s1/events")
	if status != 503 || !strings.Contains(body, "history_unavailable") || header.Get("Retry-After") == "" {
		t.Errorf("what cannot be answered = %d %s, Retry-After %q", status, body, header.Get("Retry-After"))
	}
}

func TestScanBudgetIs503(t *testing.T) {
	w, _ := newSite(t, siteLog()...)
	w.tapeStart = 8 // everything from Kafka
	w.warmAt = 8
	cfg := DefaultConfig()
	cfg.LogScan.MaxRecords = 3
	who := everyKey
	who.Workspace = "w1"
	_, err := w.api(cfg).page(t.Context(), who, schema.Scope{Workspace: who.Workspace, Session: "s1"}, &pageRequest{limit: 10})
	if answer, ok := errors.AsType[*httpapi.Error](err); !ok || answer.Status != 503 || answer.RetryAfter <= 0 {
		t.Errorf("beyond the budget: %v, want 503 with RetryAfter", err)
	}
}

func TestGetSession(t *testing.T) {
	_, app := newSite(t, siteLog()...)
	status, body, _ := get(t, app, "w1", "/v1/sessions/s1")
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if status != 200 || got["id"] != "s1" || got["status"] != "ended" || got["event_count"] != 5.0 || got["started_at"] != "2026-01-01T00:00:00.000Z" ||
		got["ended_at"] != "2026-01-01T00:00:06.000Z" || got["workflow_id"] != "wf1" || got["duration_ms"] != 7000.0 {
		t.Errorf("GET /v1/sessions/s1 = %d %s", status, body)
	}
	if status, body, _ := get(t, app, "w1", "/v1/sessions/s1?"+url.QueryEscape("x")+"=1"); status != 400 || !strings.Contains(body, "unknown_parameter") {
		t.Errorf("an unknown parameter: %d %s", status, body)
	}
}
