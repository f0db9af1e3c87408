package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// testErasures is a store whose sessions are those of a list, and which can fail.
type testErasures struct {
	*control.Store
	sessions map[string]bool
	unknown  error // what SessionExists says
	refusal  error // what EraseSession says
}

func (e *testErasures) SessionExists(_ context.Context, _, session string) (bool, error) {
	return e.sessions[session], e.unknown
}

func (e *testErasures) EraseSession(ctx context.Context, workspace, session, by string) (schema.Erasure, error) {
	if e.refusal != nil {
		return schema.Erasure{}, e.refusal
	}
	delete(e.sessions, session)
	return e.Store.EraseSession(ctx, workspace, session, by)
}

type erasureAnswer struct {
	ID          string  `json:"id"`
	WorkspaceID string  `json:"workspace_id"`
	SessionID   *string `json:"session_id"`
	ErasedBelow *string `json:"erased_below"`
	Status      string  `json:"status"`
	ErasedBy    string  `json:"erased_by"`
	DoneAt      *string `json:"done_at"`
}

func read[T any](t *testing.T, a answer, status int) (v T) {
	t.Helper()
	if a.status != status {
		t.Fatalf("status = %d %s, want %d", a.status, a.body, status)
	}
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestErasures(t *testing.T) {
	store := openStore(t)
	if _, err := store.EnsureEpoch(t.Context(), [16]byte{1}, 1); err != nil {
		t.Fatal(err)
	}
	erasures := &testErasures{Store: store, sessions: map[string]bool{}}
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(store))
		httpapi.ErasureRoutes(app, erasures)
	})
	adminID, admin := makeKey(t, store, control.KeySpec{Scopes: control.ScopeAdmin})
	_, other := makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead | control.ScopeIngest | control.ScopeControl})
	_, foreign := makeKey(t, store, control.KeySpec{Workspace: "ws_b", Scopes: control.AllScopes})
	do := func(method, path, key string) answer {
		t.Helper()
		return s.do(t, method, path, "", "X-Api-Key", key)
	}

	for _, c := range []struct {
		name, method, path, key string
		status                  int
		code, param             string
	}{
		{"without the scope", "DELETE", "/v1/sessions/s", other, 403, "insufficient_scope", ""},
		{"a workspace without the scope", "DELETE", "/admin/v1/workspaces/ws_a", other, 403, "insufficient_scope", ""},
		{"the list without the scope", "GET", "/admin/v1/erasures", other, 403, "insufficient_scope", ""},
		{"an unknown session", "DELETE", "/v1/sessions/never", admin, 404, "not_found", ""},
		{"no id at all", "DELETE", "/v1/sessions/a%20b", admin, 404, "not_found", ""},
		{"a parameter", "DELETE", "/v1/sessions/s?force=1", admin, 400, "unknown_parameter", "force"},
		{"a parameter of a workspace", "DELETE", "/admin/v1/workspaces/ws_a?force=1", admin, 400, "unknown_parameter", "force"},
		{"another workspace", "DELETE", "/admin/v1/workspaces/ws_b", admin, 404, "not_found", ""},
		{"a limit of 0", "GET", "/admin/v1/erasures?limit=0", admin, 400, "invalid_parameter", "limit"},
		{"a limit beyond the bound", "GET", "/admin/v1/erasures?limit=1001", admin, 400, "invalid_parameter", "limit"},
		{"a strange cursor", "GET", "/admin/v1/erasures?cursor=x", admin, 400, "invalid_parameter", "cursor"},
		{"a strange parameter", "GET", "/admin/v1/erasures?page=2", admin, 400, "unknown_parameter", "page"},
	} {
		t.Run(c.name, func(t *testing.T) { do(c.method, c.path, c.key).want(t, c.status, c.code, c.param) })
	}
	if got := store.Erasures("ws_a"); len(got) != 0 {
		t.Fatalf("refused requests have erased %+v", got)
	}

	t.Run("a session is erased once, and found again", func(t *testing.T) {
		erasures.sessions["s"] = true
		first := read[erasureAnswer](t, do("DELETE", "/v1/sessions/s", admin), 202)
		if first.SessionID == nil || *first.SessionID != "s" || first.Status != "pending" || first.ErasedBy != adminID || first.WorkspaceID != "ws_a" {
			t.Errorf("the erasure is %+v", first)
		}
		// Events before and behind its record sort on either side, whatever their times.
		e := store.Erasures("ws_a")[0]
		before, after := e.Below, e.Below
		before.Offset -= 2
		if id := (schema.EventID{Position: after, TimeMs: 0}).String(); id <= *first.ErasedBelow {
			t.Errorf("%s is kept and does not sort above %s", id, *first.ErasedBelow)
		}
		if before.Offset >= 0 {
			if id := (schema.EventID{Position: before, TimeMs: schema.MaxTimeMs}).String(); id >= *first.ErasedBelow {
				t.Errorf("%s is erased and does not sort below %s", id, *first.ErasedBelow)
			}
		}
		if again := read[erasureAnswer](t, do("DELETE", "/v1/sessions/s", admin), 202); again.ID != first.ID {
			t.Errorf("the second time it is %s, want %s", again.ID, first.ID)
		}
		if err := store.FinishErasure(t.Context(), first.ID); err != nil {
			t.Fatal(err)
		}
		if done := read[erasureAnswer](t, do("DELETE", "/v1/sessions/s", admin), 200); done.ID != first.ID || done.Status != "done" || done.DoneAt == nil {
			t.Errorf("when it is done it is %+v", done)
		}
		do("DELETE", "/v1/sessions/s", foreign).want(t, 404, "not_found", "")
	})
	t.Run("what cannot be told does not keep a session", func(t *testing.T) {
		erasures.unknown = errors.New("history is away")
		defer func() { erasures.unknown = nil }()
		read[erasureAnswer](t, do("DELETE", "/v1/sessions/cold", admin), 202)
	})
	t.Run("failures", func(t *testing.T) {
		defer func() { erasures.refusal = nil }()
		erasures.sessions["t"] = true
		erasures.refusal = fmt.Errorf("%w: 3", control.ErrErasureLimit)
		do("DELETE", "/v1/sessions/t", admin).want(t, 409, "erasure_limit_reached", "")
		erasures.refusal = errors.New("no broker")
		do("DELETE", "/v1/sessions/t", admin).want(t, 503, "log_unavailable", "")
	})
	t.Run("the list has pages", func(t *testing.T) {
		for i := range 3 {
			id := fmt.Sprint("u", i)
			erasures.sessions[id] = true
			read[erasureAnswer](t, do("DELETE", "/v1/sessions/"+id, admin), 202)
		}
		var ids []string
		cursor := ""
		for range 10 {
			page := read[struct {
				Data       []erasureAnswer `json:"data"`
				Pagination struct {
					NextCursor *string `json:"next_cursor"`
					HasMore    bool    `json:"has_more"`
				} `json:"pagination"`
			}](t, do("GET", "/admin/v1/erasures?limit=2&cursor="+cursor, admin), 200)
			for _, e := range page.Data {
				ids = append(ids, e.ID)
			}
			if !page.Pagination.HasMore {
				break
			}
			cursor = *page.Pagination.NextCursor
		}
		var want []string
		for _, e := range store.Erasures("ws_a") {
			want = append(want, e.ID)
		}
		if fmt.Sprint(ids) != fmt.Sprint(want) || len(ids) != 5 {
			t.Errorf("pages hold %v, want %v", ids, want)
		}
	})
	t.Run("a workspace takes its keys with it", func(t *testing.T) {
		e := read[erasureAnswer](t, do("DELETE", "/admin/v1/workspaces/ws_a", admin), 202)
		if e.SessionID != nil || e.ErasedBelow != nil {
			t.Errorf("the erasure is %+v", e)
		}
		do("GET", "/admin/v1/erasures", admin).want(t, 401, "invalid_key", "")
		read[map[string]any](t, do("GET", "/admin/v1/erasures", foreign), 200)
	})
}
