package httpapi

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// A note is told while it says something, and a node with a note is ready.
func TestNotesDoNotMakeANodeLessReady(t *testing.T) {
	h := NewHealth(slog.New(slog.DiscardHandler))
	said := ""
	h.Note("history", func(context.Context) string { return said })
	app := fiber.New()
	h.Routes(app, prometheus.NewRegistry())
	for _, want := range []string{"", "partition 3 is being rebuilt", ""} {
		said = want
		res, err := app.Test(httptest.NewRequest(http.MethodGet, PathReady, nil))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Status string            `json:"status"`
			Notes  map[string]string `json:"notes"`
		}
		if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 200 || got.Status != "ready" || got.Notes["history"] != want || (want == "") != (got.Notes == nil) {
			t.Errorf("readyz = %d %+v, want 200, ready and note %q", res.StatusCode, got, want)
		}
	}
}
