package query

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// scopeLog is siteLog with an event of another session without a workflow.
func scopeLog() []*schema.Event {
	elsewhere := siteEvent(8, "page.view", `{"u":2}`)
	elsewhere.Session, elsewhere.Workflow = "s9", ""
	return append(siteLog(), elsewhere)
}

// eventTypes returns the types on a page, joined.
func (p *pageJSON) eventTypes() string {
	var out []string
	for _, d := range p.Data {
		out = append(out, d.EventTypeName)
	}
	return strings.Join(out, " ")
}

func TestScopePagesByPathAndKey(t *testing.T) {
	_, app := newSite(t, scopeLog()...)
	all := "init memory.stored mouse_move audio.chunk keypress"
	for _, test := range []struct {
		name, key, target string
		status            int
		want              string // types, or the error's code and parameter
	}{
		{"workspace", "w1", "/v1/events", 200, all + " page.view"},
		{"descending", "w1", "/v1/events?order=desc&limit=2", 200, "page.view keypress"},
		{"another workspace", "w2", "/v1/events", 200, "mouse_move"},
		{"empty workspace", "w3", "/v1/events", 200, ""},
		{"filter by type's code", "w1", "/v1/events?type=0x10", 200, "mouse_move"},
		{"filter by metadata", "w1", "/v1/events?filters[k1]=v1", 200, "memory.stored"},
		{"filter by time", "w1", fmt.Sprintf("/v1/events?startTime=%d&endTime=%d", testStartMs+2000, testStartMs+3000), 200, "memory.stored mouse_move"},
		{"workflow by parameter", "w1", "/v1/events?workflow_id=wf1", 200, all},
		{"workflow by path", "w1", "/v1/workflows/wf1/events", 200, all},
		{"workflow nobody has used", "w1", "/v1/workflows/none/events", 200, ""},
		{"another workspace's workflow", "w2", "/v1/workflows/wf1/events", 200, "mouse_move"},
		{"key of a session", "s1-only", "/v1/events", 200, all},
		{"key of a session, workflow", "s1-only", "/v1/workflows/wf1/events", 404, "not_found "},
		{"key of a workflow", "wf1-only", "/v1/events", 200, all},
		{"key of a workflow, another one", "wf1-only", "/v1/workflows/wf2/events", 404, "not_found "},
		{"no workflow's id", "w1", "/v1/workflows/a%20b/events", 404, "not_found "},
		{"bad workflow_id", "w1", "/v1/events?workflow_id=a%20b", 400, "invalid_parameter workflow_id"},
		{"workflow_id on the workflow's path", "w1", "/v1/workflows/wf1/events?workflow_id=wf1", 400, "unknown_parameter workflow_id"},
		{"bad order", "w1", "/v1/events?order=up", 400, "invalid_parameter order"},
		{"bad cursor", "w1", "/v1/events?cursor=nonsense", 400, "invalid_cursor cursor"},
		{"cursor beyond the end", "w1", "/v1/events?cursor=" + siteEvent(99, "", "").ID.String(), 400, "invalid_cursor cursor"},
		{"after an event's id", "w1", "/v1/events?cursor=" + siteEvent(4, "", "").ID.String(), 200, "keypress page.view"},
		{"below an event's id", "w1", "/v1/events?order=desc&cursor=" + siteEvent(4, "", "").ID.String(), 200, "mouse_move memory.stored init"},
		{"key without read", "ingest-only", "/v1/events", 403, "insufficient_scope "},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, body, _ := get(t, app, test.key, test.target)
			var p pageJSON
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			got := p.eventTypes()
			if status >= 400 {
				got = p.Error.Code + " " + p.Error.Param
			}
			if status != test.status || got != test.want {
				t.Errorf("%s = %d %q, want %d %q\n%s", test.target, status, got, test.status, test.want, body)
			}
		})
	}
}

// TestScopePagesGoOnAtTheirCursor walks by cursor, and checks that a cursor goes with its
// filters, its order and its workflow.
func TestScopePagesGoOnAtTheirCursor(t *testing.T) {
	w, app := newSite(t, scopeLog()...)
	page := func(target string) pageJSON {
		status, body, _ := get(t, app, "w1", target)
		var p pageJSON
		if err := json.Unmarshal([]byte(body), &p); err != nil || status != 200 {
			t.Fatalf("%s = %d %s", target, status, body)
		}
		return p
	}
	p := page("/v1/events?limit=4")
	if !p.Pagination.HasMore || p.Pagination.NextCursor == nil {
		t.Fatalf("first page: %+v, want more and a cursor", p.Pagination)
	}
	cursor := *p.Pagination.NextCursor
	p = page("/v1/events?limit=4&cursor=" + cursor)
	if got := p.eventTypes(); got != "keypress page.view" || p.Pagination.HasMore {
		t.Errorf("second page = %q, more %v, want the last two", got, p.Pagination.HasMore)
	}
	for _, other := range []string{"&order=desc", "&type=init", "&workflow_id=wf1"} {
		status, body, _ := get(t, app, "w1", "/v1/events?cursor="+cursor+other)
		if status != 400 || !strings.Contains(body, `"cursor_mismatch"`) {
			t.Errorf("cursor with %s = %d %s, want 400 cursor_mismatch", other, status, body)
		}
	}
	// The last page's cursor goes on with what is appended later, once.
	last := *p.Pagination.NextCursor
	if p = page("/v1/events?cursor=" + last); len(p.Data) != 0 {
		t.Fatalf("behind the end: %q, want nothing", p.eventTypes())
	}
	late := siteEvent(9, "later", "{}")
	w.append(late)
	if got := page("/v1/events?cursor=" + *p.Pagination.NextCursor); got.eventTypes() != "later" {
		t.Errorf("behind the end, after an append: %q, want later", got.eventTypes())
	}
}

func TestGetEvent(t *testing.T) {
	_, app := newSite(t, scopeLog()...)
	id := func(offset int64) string { return siteEvent(offset, "", "").ID.String() }
	wrongTime := siteEvent(2, "", "").ID
	wrongTime.TimeMs++
	for _, test := range []struct {
		name, key, id string
		status        int
		want          string
	}{
		{"with its payload", "w1", id(3), 200, `{"eventId":"` + id(3) + `","messageId":16,"eventTypeName":"mouse_move","timestamp":1767225603000,"payloadSize":7,"sessionId":"s1","tMs":3000,"workflowId":"wf1","payload":{"x":1}}`},
		{"binary", "w1", id(4), 200, `"contentType":"audio/wav","payload":"AP8Q"}`},
		{"of another workspace", "w1", id(5), 404, `"not_found"`},
		{"bookkeeping", "w1", id(0), 404, `"not_found"`},
		{"not there yet", "w1", id(100), 404, `"not_found"`},
		{"another time", "w1", wrongTime.String(), 404, `"not_found"`},
		{"no id", "w1", "evt_1", 404, `"not_found"`},
		{"key of the session", "s1-only", id(3), 200, `"mouse_move"`},
		{"key of another session", "s1-only", id(8), 404, `"not_found"`},
		{"key of another workflow", "wf1-only", id(8), 404, `"not_found"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, body, _ := get(t, app, test.key, "/v1/events/"+test.id)
			if status != test.status || !strings.Contains(body, test.want) {
				t.Errorf("= %d %s, want %d %s", status, body, test.status, test.want)
			}
		})
	}
	if status, body, _ := get(t, app, "w1", "/v1/events/"+id(3)+"?x=1"); status != http.StatusBadRequest {
		t.Errorf("unknown parameter: %d %s, want 400", status, body)
	}
}

// TestGetEventFromHistory reads rows, of this epoch and one before.
func TestGetEventFromHistory(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	old := siteEvent(7, "old", `{"old":true}`)
	old.ID.Epoch, old.ID.Partition = 1, 3
	now := siteEvent(5, "now", `{"now":true}`)
	now.ID.Epoch = 2
	hidden := siteEvent(6, schema.TypeSessionEnded, `{}`)
	hidden.ID.Epoch = 2
	insert(t, conn, []*schema.Event{old, now, hidden})
	w := &world{t: t, epoch: 2, history: h, end: 10, committed: 10, tapeStart: 10}
	a := w.api(DefaultConfig())
	for _, e := range []*schema.Event{old, now} {
		got, err := a.event(t.Context(), "w1", e.ID)
		if err != nil || got.event == nil || got.event.ID != e.ID || string(got.event.Payload) != string(e.Payload) {
			t.Errorf("event %v = %+v, %v", e.ID, got.event, err)
		}
	}
	if got, err := a.event(t.Context(), "w1", hidden.ID); err != nil || got.event != nil {
		t.Errorf("a hidden row = %+v, %v, want none", got.event, err)
	}
}
