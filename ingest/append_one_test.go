package ingest

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// An event that comes by a stream is taken and refused as one of POST /v1/events is.
func TestAppendJSON(t *testing.T) {
	r := newRig(t)
	api := NewAPI(DefaultConfig(), r.appender)
	r.appended(200, call{path: "/v1/sessions/ended/events", body: event("")})
	if res := r.post("/v1/sessions/ended/end", ""); res.status != 200 {
		t.Fatalf("end: %d %s", res.status, res.body)
	}
	r.appended(200, call{path: "/v1/sessions/of-w2/events", body: event(`"workflow_id":"w2"`)})
	before := r.logged()
	anyone, bound, flow := Caller{Workspace: "ws1"}, Caller{Workspace: "ws1", Session: "a"}, Caller{Workspace: "ws1", Workflow: "w1"}

	for _, test := range []struct {
		name, event string
		caller      Caller
		code, param string
	}{
		{"nothing", "", anyone, "invalid_json", ""},
		{"no JSON", "{", anyone, "invalid_json", ""},
		{"no object", `"x"`, anyone, "invalid_field", ""},
		{"a list", list(`{"type":"a","session_id":"a"}`), anyone, "invalid_field", "events"},
		{"no session", event(""), anyone, "invalid_field", "session_id"},
		{"a bad type", `{"type":"a b","session_id":"a"}`, anyone, "invalid_field", "type"},
		{"a reserved type", `{"type":"error","session_id":"a"}`, anyone, "reserved_type", "type"},
		{"an unknown field", event(`"session_id":"a","colour":1`), anyone, "unknown_field", "colour"},
		{"bytes that are none", event(`"session_id":"a","content_type":"audio/wav","payload_base64":"?"`), anyone, "invalid_field", "payload_base64"},
		{"too large", event(`"session_id":"a","payload":"` + strings.Repeat("x", 2<<20) + `"`), anyone, "event_too_large", ""},
		{"an ended session", event(`"session_id":"ended"`), anyone, "session_ended", "session_id"},
		{"another session than the key's", event(`"session_id":"b"`), bound, "not_found", "session_id"},
		{"another workflow than the key's", event(`"session_id":"of-w2"`), flow, "not_found", "session_id"},
		{"a workspace that is none", event(`"session_id":"a"`), Caller{Workspace: "unknown"}, "not_found", ""},
	} {
		result, err := api.AppendJSON(t.Context(), test.caller, []byte(test.event))
		e, ok := errors.AsType[*httpapi.Error](err)
		if !ok || e.Code != test.code || test.param != "" && e.Param != test.param {
			t.Errorf("%s: %s, %v, want %s of %q", test.name, result, err, test.code, test.param)
		}
	}
	if n := r.logged(); n != before {
		t.Errorf("refused events have left %d records", n-before)
	}

	var first, again struct {
		ID        string `json:"id"`
		MessageID string `json:"message_id"`
		Duplicate bool   `json:"duplicate"`
		TMs       int64  `json:"t_ms"`
	}
	send := func(caller Caller, event string, into any) {
		t.Helper()
		result, err := api.AppendJSON(t.Context(), caller, []byte(event))
		if err == nil {
			err = json.Unmarshal(result, into)
		}
		if err != nil {
			t.Fatalf("%s: %s, %v", event, result, err)
		}
	}
	const one = `{"session_id":"a","type":"call.dtmf","payload":{"digit":"5"},"message_id":"m","t_ms":7}`
	send(bound, one, &first)
	send(anyone, one, &again)
	if first.ID == "" || first.ID != again.ID || first.Duplicate || !again.Duplicate || first.TMs != 7 || first.MessageID != "m" {
		t.Errorf("appended as %+v, and again as %+v", first, again)
	}
	send(flow, event(`"session_id":"new","content_type":"audio/pcm","payload_base64":"AAEC"`), &first)
	if n := r.logged(); n != before+2 {
		t.Errorf("two events have left %d records", n-before)
	}
	events := r.events()
	at := slices.IndexFunc(events, func(e *schema.Event) bool { return e.Session == "new" })
	if at < 0 {
		t.Fatal("the log does not hold the last event")
	}
	if last := events[at]; string(last.Payload) != "\x00\x01\x02" || last.ContentType != "audio/pcm" || last.Workflow != "w1" {
		t.Errorf("the log's last event is %+v", last)
	}
}
