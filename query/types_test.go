package query

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

func TestPagesUseTheWorkspacesTypeCodes(t *testing.T) {
	w, _ := newSite(t, siteLog()...)
	own := map[string]schema.TypeTable{"w1": schema.NewTypeTable([]schema.TypeCode{{Code: 200, Type: "memory.stored"}})}
	api := w.api(DefaultConfig())
	api.deps.Types = func(workspace string) schema.TypeTable { return own[workspace] }
	app := httpapi.NewApp(httpapi.DefaultConfig(), slog.New(slog.DiscardHandler))
	app.Use(httpapi.Authenticate(keys{}))
	api.Routes(app)

	f := func(query string, want ...int) {
		t.Helper()
		status, p := getPage(t, app, query)
		var got []int
		for _, e := range p.Data {
			got = append(got, e.MessageID)
		}
		if status != 200 || !slices.Equal(got, want) {
			t.Errorf("%s: %d, codes %v, want 200, %v", query, status, got, want)
		}
	}
	f("", 1, 200, 16, 0, 48)
	f("type=200", 200)
	f("type=0xC8,1", 1, 200)
	f("events=memory.stored", 200)

	// A page's cursor is of the types that the codes stood for.
	_, p := getPage(t, app, "type=200,16&limit=1")
	if p.Pagination.NextCursor == nil {
		t.Fatal("no cursor")
	}
	f("type=memory.stored,mouse_move&cursor="+*p.Pagination.NextCursor, 16)
	own["w1"] = schema.NewTypeTable([]schema.TypeCode{{Code: 200, Type: "audio.chunk"}})
	if status, p := getPage(t, app, "type=200,16&cursor="+*p.Pagination.NextCursor); status != 400 || p.Error.Code != "cursor_mismatch" {
		t.Errorf("cursor of another type: %d %+v, want 400 cursor_mismatch", status, p.Error)
	}
	f("type=200", 200)
	if status, p := getPage(t, app, "type=201"); status != 400 || p.Error.Param != "type" {
		t.Errorf("type=201: %d %+v, want 400 of type", status, p.Error)
	}
}
