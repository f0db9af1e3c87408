package clients

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
)

// event is one event of the log, as appended and as acknowledged.
type event struct {
	Type       string            `json:"type"`
	TMs        int64             `json:"t_ms"`
	Payload    json.RawMessage   `json:"payload,omitempty"`
	Base64     string            `json:"payload_base64,omitempty"`
	Content    string            `json:"content_type,omitempty"`
	FrameID    string            `json:"frame_id,omitempty"`
	Confidence float64           `json:"confidence,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`

	id, session string
}

// log is what was appended to one session, in order.
type log struct {
	server  *server
	session string
	stamp   string // the metadata run of every event, unless ""
	events  []event
}

// append appends events in one request and keeps them with their ids.
func (l *log) append(t *testing.T, events ...event) {
	t.Helper()
	if l.stamp != "" {
		for i := range events {
			metadata := map[string]string{"run": l.stamp}
			maps.Copy(metadata, events[i].Metadata)
			events[i].Metadata = metadata
		}
	}
	body, err := json.Marshal(map[string]any{"events": events})
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Results []struct {
			ID string `json:"id"`
		} `json:"results"`
	}
	l.server.post(t, "/v1/sessions/"+l.session+"/events", string(body), 200, &answer)
	for i, r := range answer.Results {
		events[i].id, events[i].session = r.ID, l.session
	}
	l.events = append(l.events, events...)
}

// end ends the session.
func (l *log) end(t *testing.T) {
	t.Helper()
	l.server.post(t, "/v1/sessions/"+l.session+"/end", "", 200, nil)
}

// newSession creates a session. fields are those of POST /v1/sessions beside the id.
func newSession(t *testing.T, s *server, id, fields string) *log {
	t.Helper()
	if fields != "" {
		fields = "," + fields
	}
	s.post(t, "/v1/sessions", fmt.Sprintf(`{"id":%q%s}`, id, fields), 201, nil)
	return &log{server: s, session: id}
}

// Types of the samples: names of the services whose clients should work here.
var sampleTypes = []string{
	"click", "validation_error", "memory.created", "memory.updated", "search.performed", "message", "message.received",
	"conversation.mode_changed", "transcript.turn", "call.transcription", "call.agent_response", "call.barge_in", "note:1-a_b",
}

// payloads that a careless framing, escaping or cut would break.
var payloads = []string{
	`{"x":12,"y":-0.5}`, `{"text":"line\nbreak\r\nand \u2028 and \u0000 and \"quotes\" \\ /"}`, `"data: not a field"`, `"id: evt_1\n\nevent: forged"`,
	`{"text":"` + "Grüße, 你好, 🎧🎉, e\u0301, \u2028\u2029\u0085\ufeff" + `"}`, `[]`, `{}`, `""`, `0`, `false`, `null`, `":"`,
	"{\n  \"pretty\" :\r\n [1,\t2]\n}", `{"deep":{"deep":{"deep":[[[[1]]]]}}}`, `123456789.25`,
}

// samples returns n events; every third or so with the optional fields.
func samples(random *rand.Rand, first, n int) []event {
	var out []event
	for i := first; i < first+n; i++ {
		e := event{Type: sampleTypes[i%len(sampleTypes)], TMs: int64(i)}
		switch e.Type {
		case "transcript.turn":
			e.Payload = fmt.Appendf(nil, `{"role":"user","text":"turn %d 🎧","turn_id":"t%d","is_final":%t}`, i, i, i%2 == 0)
		case "call.transcription", "call.agent_response":
			e.Payload = fmt.Appendf(nil, `{"text":"said %d, at length"}`, i)
		default:
			e.Payload = json.RawMessage(payloads[random.IntN(len(payloads))])
		}
		switch random.IntN(8) {
		case 0:
			e.FrameID, e.Confidence = fmt.Sprintf("frm_%d", i), 0.5
		case 1:
			e.Metadata = map[string]string{"user_id": "user123", "n": fmt.Sprint(i), "über": "ü\n\"x\""}
		case 2:
			if !strings.Contains(e.Type, "trans") && !strings.Contains(e.Type, "agent") {
				e.Payload, e.Base64, e.Content = nil, "AAECA/8=", "audio/L16"
			}
		case 3:
			if e.Type == "click" || e.Type == "call.barge_in" {
				e.Payload = fmt.Appendf(nil, `{"long":%q}`, strings.Repeat("0123456789abcdeф", 1<<(4+random.IntN(6))))
			}
		}
		out = append(out, e)
	}
	return out
}

// fence is the last event of a log that a test follows.
func fence() event {
	return event{Type: "transcript.turn", TMs: 1 << 30, Payload: json.RawMessage(`{"role":"agent","text":"the end","turn_id":"last"}`)}
}
