package httpapi_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

// openCounts says that a key has as many streams open as its id has letters, and its
// workspace 100.
type openCounts struct{}

func (openCounts) Open(_, key string) (ofWorkspace, ofKey int) { return 100, len(key) }

type limitsAnswer struct {
	WorkspaceID string         `json:"workspace_id"`
	KeyID       string         `json:"key_id"`
	Plan        string         `json:"plan"`
	PageSize    int            `json:"page_size"`
	Limits      control.Limits `json:"limits"`
	Requests    map[string]struct{ Limit, Remaining, Reset *int }
	OpenStreams *struct{ Workspace, Key int } `json:"open_streams"`
}

// limitServer serves a few paths behind the limits of store.
func limitServer(t *testing.T, store *control.Store, c *manualClock, streams httpapi.StreamCounts) server {
	return serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		limiter := httpapi.NewLimiter(func(workspace string) control.Limits {
			w, _ := store.Workspace(workspace)
			return w.Limits
		}, c.now, nil)
		app.Use(httpapi.Authenticate(store), limiter.Handler)
		httpapi.LimitRoutes(app, store, limiter, streams)
		app.Get("/v1/events", func(*fiber.Ctx) error { return nil })
	})
}

func readLimits(t *testing.T, a answer) limitsAnswer {
	t.Helper()
	var got limitsAnswer
	if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 {
		t.Fatalf("answer = %d %s, want limits", a.status, a.body)
	}
	return got
}

func TestLimitsAreTold(t *testing.T) {
	store := openStore(t)
	s := limitServer(t, store, newClock(), openCounts{})
	id, reader := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead})
	_, browser := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead, Session: "s", ExpiresIn: time.Minute})
	for range 3 {
		s.do(t, "GET", "/v1/events", "", "X-Api-Key", reader)
	}
	a := s.do(t, "GET", "/v1/limits", "", "X-Api-Key", reader)
	got := readLimits(t, a)
	if got.WorkspaceID != "ws_a" || got.KeyID != id || got.Plan != "free" || got.PageSize != 50 || got.Limits != control.DefaultLimits() {
		t.Errorf("limits = %s", a.body)
	}
	if got.OpenStreams == nil || got.OpenStreams.Workspace != 100 || got.OpenStreams.Key != len(id) {
		t.Errorf("open streams = %s", a.body)
	}
	want := `{"append":{"limit":2000,"remaining":2000,"reset":0},"backfill":{"limit":20000,"remaining":20000,"reset":0},"create":{"limit":60,"remaining":60,"reset":0},"read":{"limit":400,"remaining":397,"reset":1}}`
	if !strings.Contains(string(a.body), `"requests":`+want) {
		t.Errorf("limits = %s, want requests %s: looking does not count", a.body, want)
	}
	if a := s.do(t, "GET", "/v1/limits", "", "X-Api-Key", browser); a.status != 200 {
		t.Errorf("a browser key: %d %s, want its limits", a.status, a.body)
	}
	s.do(t, "GET", "/v1/limits?x=1", "", "X-Api-Key", reader).want(t, 400, "unknown_parameter", "x")
	s.do(t, "GET", "/v1/limits", "").want(t, 401, "missing_key", "")
}

func TestWithoutLimitsTheAnswerSaysNull(t *testing.T) {
	store := openStore(t)
	if _, err := store.ChangeLimits(t.Context(), "ws_a", func(l *control.Limits) { *l = control.Unlimited() }); err != nil {
		t.Fatal(err)
	}
	s := limitServer(t, store, newClock(), nil)
	_, reader := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead})
	a := s.do(t, "GET", "/v1/limits", "", "X-Api-Key", reader)
	if got := readLimits(t, a); got.OpenStreams != nil || len(got.Requests) != 4 {
		t.Errorf("limits = %s, want null for open streams and four classes", a.body)
	}
	if !strings.Contains(string(a.body), `"read":{"limit":null,"remaining":null,"reset":null}`) {
		t.Errorf("limits = %s, want null for what has no limit", a.body)
	}
	if a := s.do(t, "GET", "/v1/events", "", "X-Api-Key", reader); a.header.Get("X-RateLimit-Limit") != "" {
		t.Errorf("X-RateLimit-Limit = %q without a limit", a.header.Get("X-RateLimit-Limit"))
	}
}

func TestAdminsChangeTheLimitsOfTheirWorkspace(t *testing.T) {
	store := openStore(t)
	c := newClock()
	s := limitServer(t, store, c, nil)
	_, admin := makeKey(t, store, control.KeySpec{Scopes: control.ScopeAdmin})
	_, reader := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead})
	_, others := makeKey(t, store, control.KeySpec{Workspace: "ws_b", Scopes: control.ScopeRead})
	patch := func(body string) answer {
		t.Helper()
		return s.do(t, "PATCH", "/admin/v1/limits", body, "X-Api-Key", admin)
	}
	get := func(who string) int {
		t.Helper()
		return s.do(t, "GET", "/v1/events", "", "X-Api-Key", who).status
	}

	want := control.DefaultLimits()
	want.ReadsPerSecond, want.EventStreamsPerKey, want.StreamsPerKey = 0.5, 0, 7
	got := readLimits(t, patch(`{"reads_per_second":0.5,"event_streams_per_key":0,"streams_per_key":7,"events_per_minute":null}`))
	if got.Limits != want {
		t.Errorf("after PATCH: %+v, want %+v", got.Limits, want)
	}
	if a, b := get(reader), get(reader); a != 200 || b != 429 {
		t.Errorf("two reads at 0.5/s = %d, %d, want 200 and 429", a, b)
	}
	for range 3 {
		if a := get(others); a != 200 {
			t.Errorf("the other workspace's read = %d, want 200", a)
		}
	}
	// A key whose bucket is empty finds out why, and an admin's raises the limit.
	if a := s.do(t, "GET", "/v1/limits", "", "X-Api-Key", reader); a.status != 200 {
		t.Errorf("GET /v1/limits over the limit = %d, want 200", a.status)
	}
	readLimits(t, patch(`{"reads_per_second":100}`))
	if a := get(reader); a != 200 {
		t.Errorf("read after the limit was raised = %d, want 200", a)
	}
	want.ReadsPerSecond = 100
	if got := readLimits(t, patch(`{}`)); got.Limits != want {
		t.Errorf("after an empty PATCH: %+v, want %+v", got.Limits, want)
	}

	s.do(t, "PATCH", "/admin/v1/limits", `{}`, "X-Api-Key", reader).want(t, 403, "insufficient_scope", "")
	patch(`{"reads_per_secund":1}`).want(t, 400, "unknown_field", "reads_per_secund")
	patch(`{"workspace_id":"ws_b","keys":1}`).want(t, 400, "unknown_field", "workspace_id")
	patch(`{"reads_per_second":"1"}`).want(t, 400, "invalid_field", "reads_per_second")
	patch(`{"reads_per_second":-1}`).want(t, 400, "invalid_field", "reads_per_second")
	patch(`{"reads_per_second":1e400}`).want(t, 400, "invalid_field", "reads_per_second")
	patch(`{"appends_per_second":1e10}`).want(t, 400, "invalid_field", "appends_per_second")
	patch(`{"streams_per_key":1.5}`).want(t, 400, "invalid_field", "streams_per_key")
	patch(`{"max_page_size":10001}`).want(t, 400, "invalid_field", "max_page_size")
	patch(`{"keys":0}`).want(t, 400, "invalid_field", "keys")
	patch(`{"keys":1,"keys":2}`).want(t, 400, "invalid_json", "keys")
	patch(`[]`).want(t, 400, "invalid_json", "")
	if w, _ := store.Workspace("ws_a"); w.Limits != want {
		t.Errorf("after refused changes: %+v, want %+v", w.Limits, want)
	}
	if w, _ := store.Workspace("ws_b"); w.Limits != control.DefaultLimits() {
		t.Errorf("the other workspace's limits: %+v", w.Limits)
	}
}

func TestEveryLimitCanBeChanged(t *testing.T) {
	store := openStore(t)
	s := limitServer(t, store, newClock(), nil)
	_, admin := makeKey(t, store, control.KeySpec{Scopes: control.ScopeAdmin})
	fields := reflect.TypeFor[control.Limits]()
	for i := range fields.NumField() {
		name := fields.Field(i).Tag.Get("json")
		s.do(t, "PATCH", "/admin/v1/limits", fmt.Sprintf(`{%q:%d}`, name, 41+i), "X-Api-Key", admin)
		w, _ := store.Workspace("ws_a")
		if got := fmt.Sprint(reflect.ValueOf(w.Limits).Field(i)); got != fmt.Sprint(41+i) {
			t.Errorf("%s = %s after it was changed to %d", name, got, 41+i)
		}
	}
}

func TestAbsentWorkspaceHasNoLimits(t *testing.T) {
	store := openStore(t)
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		limits := control.DefaultLimits()
		limiter := httpapi.NewLimiter(sameLimits(&limits), nil, nil)
		app.Use(httpapi.Authenticate(fakeKeys{})) // whose workspace the store does not have
		httpapi.LimitRoutes(app, store, limiter, nil)
	})
	s.do(t, "GET", "/v1/limits", "", "X-Api-Key", "reader").want(t, 404, "not_found", "")
	s.do(t, "PATCH", "/admin/v1/limits", `{"keys":1}`, "X-Api-Key", "pk_tmp_named").want(t, 404, "not_found", "")
}
