package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestTour is the README's tour: append, listen, resume, page, end; then the same after
// a restart.
func TestTour(t *testing.T) {
	s := startServer(t)

	first := s.append("tour", `{"type":"greeting","payload":{"text":"hello"}}`)
	if len(first.Results) != 1 || first.Accepted != 1 {
		t.Fatalf("append = %+v", first)
	}
	ids := []string{first.Results[0].ID}
	fromStart := s.listen("/v1/sessions/tour/events/stream?from=start", "")
	fromStart.awaitIDs(ids, 10*time.Second)

	var batch []string
	for i := range 250 {
		batch = append(batch, fmt.Sprintf(`{"type":"step.done","t_ms":%d,"message_id":"m%d","payload":{"n":%d}}`, i, i, i))
	}
	body := `{"events":[` + strings.Join(batch, ",") + `]}`
	for _, r := range s.append("tour", body).Results {
		ids = append(ids, r.ID)
	}
	fromStart.awaitIDs(ids, 10*time.Second)
	s.listen("/v1/sessions/tour/events/stream", ids[0]).awaitIDs(ids[1:], 10*time.Second)

	if again := s.append("tour", body); again.Duplicates != 250 || again.Results[7].ID != ids[8] {
		t.Errorf("repeated append: %d duplicates, event 7 is %s; want 250 and %s", again.Duplicates, again.Results[7].ID, ids[8])
	}
	checkPages(t, s, "tour", ids)

	if status, b := s.do(http.MethodPost, "/v1/sessions/tour/end", "", ""); status != http.StatusOK {
		t.Fatalf("end: %d %s", status, b)
	}
	status, b := s.do(http.MethodPost, "/v1/sessions/tour/events", "application/json", `{"type":"late"}`)
	if status != http.StatusConflict || !strings.Contains(string(b), "session_ended") {
		t.Errorf("append after the end: %d %s; want 409 session_ended", status, b)
	}

	s.stop()
	if code := s.exitCode(); code != 0 {
		t.Errorf("exit code after SIGTERM = %d, want 0", code)
	}
	s.start()
	checkPages(t, s, "tour", ids)
	s.listen("/v1/sessions/tour/events/stream", ids[100]).awaitIDs(ids[101:], 10*time.Second)
	state := getJSON[struct {
		Status     string `json:"status"`
		EventCount int    `json:"event_count"`
	}](s, "/v1/sessions/tour")
	if state.Status != "ended" || state.EventCount != len(ids) {
		t.Errorf("session after restart = %+v, want ended with %d events", state, len(ids))
	}
}

func checkPages(t *testing.T, s *server, session string, ids []string) {
	t.Helper()
	p := s.allPages(session)
	if len(p.Data) != len(ids) {
		t.Fatalf("pages of %s hold %d events, want %d", session, len(p.Data), len(ids))
	}
	for i, e := range p.Data {
		if e.EventID != ids[i] {
			t.Fatalf("event %d of %s is %s, want %s", i, session, e.EventID, ids[i])
		}
	}
}
