package httpapi_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

type eventType struct {
	Name    string `json:"name"`
	Code    int    `json:"code"`
	Builtin bool   `json:"builtin"`
}

func serveEventTypes(t *testing.T, store *control.Store) server {
	return serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(store))
		httpapi.EventTypeRoutes(app, store)
	})
}

func TestEventTypes(t *testing.T) {
	store := openStore(t)
	s := serveEventTypes(t, store)
	_, admin := makeKey(t, store, control.KeySpec{Scopes: control.ScopeAdmin})
	_, recorder := makeKey(t, store, control.KeySpec{Scopes: control.ScopeIngest})
	_, reader := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead | control.ScopeControl})
	_, bound := makeKey(t, store, control.KeySpec{Scopes: control.ScopeIngest, Session: "s"})
	_, ofWorkflow := makeKey(t, store, control.KeySpec{Scopes: control.ScopeIngest, Workflow: "f"})
	_, browser := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead, Session: "s", ExpiresIn: time.Minute})
	_, others := makeKey(t, store, control.KeySpec{Workspace: "ws_b", Scopes: control.AllScopes})

	do := func(key, method, name, body string) answer {
		t.Helper()
		return s.do(t, method, "/v1/event-types/"+name, body, "X-Api-Key", key)
	}
	ok := func(key, name string, code, status int, builtin bool) {
		t.Helper()
		a := do(key, "PUT", name, fmt.Sprintf(`{"code":%d}`, code))
		name = strings.ReplaceAll(name, "%2E", ".")
		if want := fmt.Sprintf(`{"name":%q,"code":%d,"builtin":%v}`, name, code, builtin); a.status != status || string(a.body) != want {
			t.Errorf("PUT %s = %d %s, want %d %s", name, a.status, a.body, status, want)
		}
	}
	list := func(key string) (own []eventType) {
		t.Helper()
		a := s.do(t, "GET", "/v1/event-types", "", "X-Api-Key", key)
		var got struct{ Data []eventType }
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 {
			t.Fatalf("GET = %d %s", a.status, a.body)
		}
		builtin := 0
		for i, e := range got.Data {
			if i > 0 && e.Code <= got.Data[i-1].Code {
				t.Errorf("%v does not follow %v", e, got.Data[i-1])
			}
			if e.Builtin {
				builtin++
			} else {
				own = append(own, e)
			}
		}
		if builtin != len(schema.TypeCodes()) || !slices.Contains(got.Data, eventType{"init", 1, true}) {
			t.Errorf("GET lists %d built-in types, want %d, init with them", builtin, len(schema.TypeCodes()))
		}
		return own
	}

	ok(recorder, "agent.said", 200, 201, false)
	ok(recorder, "agent.said", 200, 200, false)
	ok(admin, "Turn:a_b-c%2Ed", 255, 201, false)
	ok(recorder, "init", 1, 200, true)
	for _, key := range []string{admin, recorder, reader, browser, bound} {
		if got, want := list(key), []eventType{{"agent.said", 200, false}, {"Turn:a_b-c.d", 255, false}}; !slices.Equal(got, want) {
			t.Errorf("own types = %v, want %v", got, want)
		}
	}
	if got := list(others); got != nil {
		t.Errorf("types of another workspace = %v, want none", got)
	}
	ok(others, "agent.heard", 200, 201, false)

	// Conflicts name what is in the way.
	conflict := func(a answer, status int, code, param, name string, has int) {
		t.Helper()
		a.want(t, status, code, param)
		var got struct{ Error struct{ Details eventType } }
		if err := json.Unmarshal(a.body, &got); err != nil || got.Error.Details.Name != name || got.Error.Details.Code != has {
			t.Errorf("details of %s: want %s, %d", a.body, name, has)
		}
	}
	conflict(do(admin, "PUT", "agent.heard", `{"code":200}`), 409, "type_code_taken", "code", "agent.said", 200)
	conflict(do(admin, "PUT", "agent.heard", `{"code":1}`), 409, "type_code_taken", "code", "init", 1)
	conflict(do(admin, "PUT", "init", `{"code":201}`), 409, "type_code_builtin", "name", "init", 1)
	conflict(do(recorder, "PUT", "agent.said", `{"code":201}`), 403, "insufficient_scope", "", "agent.said", 200)

	for _, key := range []string{reader, browser, bound, ofWorkflow} {
		do(key, "PUT", "x", `{"code":202}`).want(t, 403, "insufficient_scope", "")
		do(key, "DELETE", "agent.said", "").want(t, 403, "insufficient_scope", "")
	}
	do(recorder, "DELETE", "agent.said", "").want(t, 403, "insufficient_scope", "")

	for _, body := range []string{`{}`, `{"code":0}`, `{"code":256}`, `{"code":-1}`, `{"code":1.5}`, `{"code":"1"}`, `{"code":null}`, `{"code":99999999999999999999}`} {
		do(admin, "PUT", "x", body).want(t, 400, "invalid_field", "code")
	}
	do(admin, "PUT", "x", `{"code":202,"name":"y"}`).want(t, 400, "unknown_field", "name")
	do(admin, "PUT", "x", ``).want(t, 400, "invalid_json", "")
	do(admin, "PUT", "x?force=1", `{"code":202}`).want(t, 400, "unknown_parameter", "force")
	do(admin, "DELETE", "agent.said?force=1", ``).want(t, 400, "unknown_parameter", "force")
	for _, name := range []string{"1x", "x%20y", "%C3%A9", "x*", strings.Repeat("x", 129)} {
		do(admin, "PUT", name, `{"code":202}`).want(t, 400, "invalid_parameter", "name")
	}
	for _, name := range []string{"error", "open", "heartbeat", "playhead.x"} {
		do(admin, "PUT", name, `{"code":202}`).want(t, 400, "reserved_type", "name")
	}
	s.do(t, "GET", "/v1/event-types?x=1", "", "X-Api-Key", admin).want(t, 400, "unknown_parameter", "x")
	s.do(t, "GET", "/v1/event-types", "").want(t, 401, "missing_key", "")

	// Admins change codes and take them away.
	ok(admin, "agent.said", 201, 200, false)
	if a := do(admin, "DELETE", "agent.said", ""); a.status != 204 {
		t.Errorf("DELETE = %d %s, want 204", a.status, a.body)
	}
	for _, name := range []string{"agent.said", "init", "none", "1x"} {
		do(admin, "DELETE", name, "").want(t, 404, "not_found", "")
	}
	if got, want := list(admin), []eventType{{"Turn:a_b-c.d", 255, false}}; !slices.Equal(got, want) {
		t.Errorf("own types = %v, want %v", got, want)
	}
	if got, want := list(others), []eventType{{"agent.heard", 200, false}}; !slices.Equal(got, want) {
		t.Errorf("own types of another workspace = %v, want %v", got, want)
	}
}

func TestEventTypesWithoutTheLog(t *testing.T) {
	store := openStore(t)
	s := serveEventTypes(t, store)
	_, admin := makeKey(t, store, control.KeySpec{Scopes: control.ScopeAdmin})
	store.Close()
	s.do(t, "PUT", "/v1/event-types/x", `{"code":200}`, "X-Api-Key", admin).want(t, 503, "log_unavailable", "")
	if a := s.do(t, "GET", "/v1/event-types", "", "X-Api-Key", admin); a.status != 200 {
		t.Errorf("GET = %d %s, want what is known", a.status, a.body)
	}
}
