package httpapi_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/kafka"
)

// openStore opens a store on an embedded broker of its own, with one workspace.
func openStore(t testing.TB) *control.Store {
	t.Helper()
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", 1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	if err := kafka.EnsureTopics(t.Context(), broker.Config()); err != nil {
		t.Fatal(err)
	}
	store, err := control.Open(t.Context(), broker.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	for _, id := range []string{"ws_a", "ws_b"} {
		if _, err := store.CreateWorkspace(t.Context(), control.Workspace{ID: id, Limits: control.DefaultLimits()}); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

func makeKey(t testing.TB, s *control.Store, spec control.KeySpec) (id, text string) {
	t.Helper()
	if spec.Workspace == "" {
		spec.Workspace = "ws_a"
	}
	k, text, err := s.CreateKey(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return k.ID, text
}

type keyAnswer struct {
	ID        string     `json:"id"`
	Key       string     `json:"key"`
	Scopes    []string   `json:"scopes"`
	SessionID string     `json:"session_id"`
	Browser   bool       `json:"browser"`
	ExpiresAt *time.Time `json:"expires_at"`
	RevokedAt *time.Time `json:"revoked_at"`
}

func TestKeys(t *testing.T) {
	store := openStore(t)
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(store))
		httpapi.KeyRoutes(app, store)
	})
	_, admin := makeKey(t, store, control.KeySpec{Scopes: control.AllScopes})
	readerID, reader := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead})
	_, foreign := makeKey(t, store, control.KeySpec{Workspace: "ws_b", Scopes: control.AllScopes})
	_, browser := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead, Session: "call-1", ExpiresIn: time.Minute})
	_, bound := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead | control.ScopeIngest, Session: "call-1", ExpiresIn: time.Hour})

	create := func(t *testing.T, key, body string) (keyAnswer, answer) {
		t.Helper()
		a := s.do(t, "POST", "/v1/keys", body, "Authorization", "Bearer "+key)
		var k keyAnswer
		if a.status == 201 {
			if err := json.Unmarshal(a.body, &k); err != nil {
				t.Fatal(err)
			}
		}
		return k, a
	}

	t.Run("admin makes any key and it works at once", func(t *testing.T) {
		k, a := create(t, admin, `{"scopes":["ingest","read"],"name":"bot"}`)
		if a.status != 201 || !strings.HasPrefix(k.Key, "pk_live_") || len(k.Key) != 40 || k.ExpiresAt != nil {
			t.Fatalf("create = %d %s", a.status, a.body)
		}
		p, err := store.Authenticate(k.Key)
		if err != nil || p.KeyID != k.ID || p.Workspace != "ws_a" || p.Scopes.String() != "ingest,read" {
			t.Errorf("Authenticate = %+v, %v", p, err)
		}
	})
	t.Run("a read key makes browser keys", func(t *testing.T) {
		k, a := create(t, reader, `{"scopes":["read"],"session_id":"call-1","expires_in":600}`)
		if a.status != 201 || !strings.HasPrefix(k.Key, "pk_tmp_") || !k.Browser || k.ExpiresAt == nil || k.SessionID != "call-1" {
			t.Fatalf("create = %d %s", a.status, a.body)
		}
		// It made the key, so it may revoke it.
		if a := s.do(t, "DELETE", "/v1/keys/"+k.ID, "", "X-Api-Key", reader); a.status != 204 {
			t.Errorf("revoke = %d %s, want 204", a.status, a.body)
		}
		s.do(t, "POST", "/v1/keys", `{}`, "X-Api-Key", k.Key).want(t, 401, "invalid_key", "")
	})
	t.Run("a bound key hands its binding and its end on", func(t *testing.T) {
		k, a := create(t, bound, `{"scopes":["read"]}`)
		if a.status != 201 || k.SessionID != "call-1" || k.ExpiresAt == nil || time.Until(*k.ExpiresAt) > time.Hour {
			t.Errorf("create = %d %s", a.status, a.body)
		}
	})
	t.Run("refusals", func(t *testing.T) {
		f := func(key, body string, status int, code, param string) {
			t.Helper()
			_, a := create(t, key, body)
			a.want(t, status, code, param)
		}
		f(reader, `{"scopes":["read"]}`, 403, "insufficient_scope", "")
		f(reader, `{"scopes":["read","ingest"],"session_id":"x"}`, 403, "insufficient_scope", "scopes")
		f(browser, `{"scopes":["read"],"expires_in":1}`, 403, "insufficient_scope", "")
		f(bound, `{"scopes":["read"],"session_id":"call-2"}`, 403, "insufficient_scope", "session_id")
		f(bound, `{"scopes":["read"],"expires_in":7200}`, 400, "invalid_field", "expires_in")
		f(admin, `{"scopes":[]}`, 400, "invalid_field", "scopes")
		f(admin, `{"scopes":["root"]}`, 400, "invalid_field", "scopes")
		f(admin, `{"scopes":"read"}`, 400, "invalid_field", "scopes")
		f(admin, `{"scopes":["read",1]}`, 400, "invalid_field", "scopes.1")
		f(admin, `{}`, 400, "invalid_field", "scopes")
		f(admin, `{"scopes":["read"],"session_id":"no spaces"}`, 400, "invalid_field", "session_id")
		f(admin, `{"scopes":["read"],"session_id":""}`, 400, "invalid_field", "session_id")
		f(admin, `{"scopes":["read"],"workflow_id":""}`, 400, "invalid_field", "workflow_id")
		f(admin, `{"scopes":["admin"],"session_id":"s"}`, 400, "invalid_field", "scopes")
		f(admin, `{"scopes":["read"],"expires_in":0}`, 400, "invalid_field", "expires_in")
		f(admin, `{"scopes":["read"],"expires_in":9223372036854775807}`, 400, "invalid_field", "expires_in")
		f(admin, `{"scopes":["read"],"expires_in":1.5}`, 400, "invalid_field", "expires_in")
		f(admin, `{"scopes":["read"],"expires_in":"1h"}`, 400, "invalid_field", "expires_in")
		f(admin, `{"scopes":["read"],"Scopes":["read"]}`, 400, "unknown_field", "Scopes")
		f(admin, `{"scopes":["read"],"workspace":"ws_b"}`, 400, "unknown_field", "workspace")
		f(admin, `{"scopes":["read"],"scopes":["admin"]}`, 400, "invalid_json", "scopes")
		f(admin, `{"scopes":["read"]`, 400, "invalid_json", "")
		f(admin, `{"scopes":["read"]} {}`, 400, "invalid_json", "")
		f(admin, ``, 400, "invalid_json", "")
		f(admin, `[]`, 400, "invalid_json", "")
		s.do(t, "POST", "/v1/keys", "x", "X-Api-Key", admin, "Content-Encoding", "gzip").want(t, 415, "unsupported_media_type", "Content-Encoding")
	})
	t.Run("a list in pages without secrets", func(t *testing.T) {
		s.do(t, "GET", "/v1/keys", "", "X-Api-Key", reader).want(t, 403, "insufficient_scope", "")
		s.do(t, "GET", "/v1/keys?limit=0", "", "X-Api-Key", admin).want(t, 400, "invalid_parameter", "limit")
		s.do(t, "GET", "/v1/keys?cursor=x", "", "X-Api-Key", admin).want(t, 400, "invalid_parameter", "cursor")
		s.do(t, "GET", "/v1/keys?page=2", "", "X-Api-Key", admin).want(t, 400, "unknown_parameter", "page")
		var ids []string
		cursor := ""
		for {
			a := s.do(t, "GET", "/v1/keys?limit=2"+cursor, "", "X-Api-Key", admin)
			var page struct {
				Data       []keyAnswer
				Pagination struct {
					NextCursor *string `json:"next_cursor"`
				}
			}
			if err := json.Unmarshal(a.body, &page); err != nil || a.status != 200 {
				t.Fatalf("list = %d %s", a.status, a.body)
			}
			if strings.Contains(string(a.body), "pk_") {
				t.Errorf("list tells a key: %s", a.body)
			}
			for _, k := range page.Data {
				ids = append(ids, k.ID)
			}
			if page.Pagination.NextCursor == nil {
				break
			}
			cursor = "&cursor=" + *page.Pagination.NextCursor
		}
		if want := len(store.Keys("ws_a")); len(ids) != want {
			t.Errorf("listed %d keys, want %d", len(ids), want)
		}
	})
	t.Run("foreign keys are not found", func(t *testing.T) {
		path := "/v1/keys/" + readerID
		notMine := s.do(t, "DELETE", path, "", "X-Api-Key", foreign)
		notThere := s.do(t, "DELETE", "/v1/keys/key_none", "", "X-Api-Key", foreign)
		notMine.want(t, 404, "not_found", "")
		if notMine.Error.Message != notThere.Error.Message || fmt.Sprint(notMine.Error.Details) != fmt.Sprint(notThere.Error.Details) {
			t.Errorf("foreign %s and missing %s answer differently", notMine.body, notThere.body)
		}
		if _, err := store.Authenticate(reader); err != nil {
			t.Errorf("foreign DELETE revoked the key: %v", err)
		}
	})
	t.Run("a key revokes itself", func(t *testing.T) {
		if a := s.do(t, "DELETE", "/v1/keys/"+readerID, "", "X-Api-Key", reader); a.status != 204 {
			t.Fatalf("revoke = %d %s", a.status, a.body)
		}
		s.do(t, "DELETE", "/v1/keys/"+readerID, "", "X-Api-Key", reader).want(t, 401, "invalid_key", "")
		// Again, by somebody who may: nothing to do.
		if a := s.do(t, "DELETE", "/v1/keys/"+readerID, "", "X-Api-Key", admin); a.status != 204 {
			t.Errorf("second revoke = %d %s, want 204", a.status, a.body)
		}
	})
}

func TestKeyLimitIsAnswered(t *testing.T) {
	store := openStore(t)
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(store))
		httpapi.KeyRoutes(app, store)
	})
	w, _ := store.Workspace("ws_a")
	w.Limits.Keys = 1
	if err := store.UpdateWorkspace(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	_, admin := makeKey(t, store, control.KeySpec{Scopes: control.AllScopes})
	s.do(t, "POST", "/v1/keys", `{"scopes":["read"]}`, "X-Api-Key", admin).want(t, 409, "key_limit_reached", "")
}
