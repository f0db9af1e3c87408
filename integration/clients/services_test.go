package clients

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// The users of four services should be able to move here by changing a base URL and a
// key. These programs listen as their documentation has them do.

// serviceJob is the job of a service's program: base URL and key are all that is ours.
func serviceJob(s *server, id string, types ...string) job {
	return job{URL: "http://" + s.addr, Key: devKey, ID: id, Types: types}
}

// TestNusomiLoop follows a session by a loop over its events, back-filled from an offset
// and filtered by types.
func TestNusomiLoop(t *testing.T) {
	t.Parallel()
	client{lacks: lacksNode}.need(t)
	s := sharedServer(t)
	p := ssePaths[0]
	p.want = func(e event) (delivery, bool) {
		d, _ := wantSession(e)
		return d, e.TMs >= 10 && (e.Type == "click" || e.Type == "validation_error")
	}
	g := newGroup(s, &p, "nusomi")
	l := g.open(t)
	random := newRandom(t, "samples")
	l.append(t, samples(random, 0, 40)...)
	f := node("services/nusomi.mjs")(t, serviceJob(s, l.session))
	g.awaitAll(t, f, 20*time.Second)
	l.append(t, samples(random, 40, 40)...)
	g.awaitAll(t, f, 20*time.Second)
	f.stop()
	g.check(t, g.got(f))
	if lost := f.of("lost"); len(lost) > 0 {
		t.Errorf("the stream broke: %+v", lost)
	}
}

// TestLanonasisClass follows the workspace through a class that dispatches on the event's
// type, filtered by types and metadata.
func TestLanonasisClass(t *testing.T) {
	t.Parallel()
	client{lacks: lacksNode}.need(t)
	s := sharedServer(t)
	p := path{name: "api", kind: "session", sessions: 2, sse: true, stamped: true, decode: decodeSSE, beats: true}
	p.want = func(e event) (delivery, bool) {
		d, _ := wantPayload(e)
		return d, e.Metadata["user_id"] == "user123" && (e.Type == "memory.created" || e.Type == "search.performed")
	}
	g := newGroup(s, &p, "lanonasis")
	f := node("services/lanonasis.mjs")(t, serviceJob(s, g.name, "memory.created", "memory.updated", "search.performed"))
	f.await(t, "open", 1, 20*time.Second)
	random := newRandom(t, "samples")
	for range p.sessions {
		g.open(t).append(t, samples(random, 0, 200)...)
	}
	for _, l := range g.logs {
		last := event{
			Type: "memory.created", Metadata: map[string]string{"user_id": "user123"},
			Payload: json.RawMessage(`{"id":"mem_1234567890abcdef","content":"New memory","created_at":"2024-01-15T10:30:00Z"}`),
		}
		l.append(t, last)
	}
	g.awaitAll(t, f, 20*time.Second)
	f.stop()
	g.check(t, g.got(f))
}

// TestVoicebipDashboard listens to a call's turns and events and to a conversation.
func TestVoicebipDashboard(t *testing.T) {
	t.Parallel()
	client{lacks: lacksNode}.need(t)
	s := sharedServer(t)

	call := newSession(t, s, "voicebip:call", `"kind":"call"`)
	onCall := node("services/voicebip.mjs")(t, serviceJob(s, call.session, "transcript", "callEvents"))
	call.append(t,
		event{Type: "call.transcription", Payload: json.RawMessage(`{"text":"Hello?"}`)},
		event{Type: "call.barge_in", Payload: json.RawMessage(`{"at_ms":300}`)},
		event{Type: "call.agent_response", Payload: json.RawMessage(`{"text":"Good morning","turn_id":"t2","is_final":false}`)},
		event{Type: "transcript.turn", Payload: json.RawMessage(`{"role":"user","text":"Bye"}`)},
		event{Type: "call.completed", Payload: json.RawMessage(`{"duration_s":4}`)},
	)
	onCall.await(t, "turns end", 1, 20*time.Second)
	turns := onCall.of("turn")
	want := []string{
		fmt.Sprintf(`user: Hello? (%s, true)`, call.events[0].id), `agent: Good morning (t2, false)`,
		fmt.Sprintf(`user: Bye (%s, true)`, call.events[3].id),
	}
	if len(turns) != len(want) {
		t.Fatalf("%d turns, want %d: %+v", len(turns), len(want), turns)
	}
	for i, r := range turns {
		var turn struct {
			Role    string    `json:"role"`
			Text    string    `json:"text"`
			TurnID  string    `json:"turn_id"`
			IsFinal bool      `json:"is_final"`
			TS      time.Time `json:"ts"`
		}
		if err := json.Unmarshal([]byte(r.Data), &turn); err != nil || turn.TS.IsZero() {
			t.Errorf("turn %d is %s: %v", i, r.Data, err)
		}
		if got := fmt.Sprintf("%s: %s (%s, %t)", turn.Role, turn.Text, turn.TurnID, turn.IsFinal); got != want[i] {
			t.Errorf("turn %d = %s, want %s", i, got, want[i])
		}
	}
	for i, r := range onCall.await(t, "call", len(call.events), 20*time.Second) {
		if e := call.events[i]; r.Type != e.Type || r.ID != e.id || r.Data != string(e.Payload) {
			t.Errorf("call event %d = %+v, want %+v", i, r, e)
		}
	}

	conversation := newSession(t, s, "voicebip:conversation", `"kind":"conversation"`)
	onConversation := node("services/voicebip.mjs")(t, serviceJob(s, conversation.session, "conversation"))
	conversation.append(t,
		event{Type: "message.received", Payload: json.RawMessage(`{"message_id":"m1","direction":"inbound","text":"hi\n\nthere"}`)},
		event{Type: "message.delivered", Payload: json.RawMessage(`{"message_id":"m0"}`)},
		event{Type: "conversation.mode_changed", Payload: json.RawMessage(`{"from_mode":"agent","to_mode":"human","actor_user_id":"u1"}`)},
	)
	for kind, e := range map[string]event{"message": conversation.events[0], "mode": conversation.events[2]} {
		if got := onConversation.await(t, kind, 1, 20*time.Second)[0]; got.Type != e.Type || got.Data != string(e.Payload) {
			t.Errorf("%s = %+v, want %+v", kind, got, e)
		}
	}
}

// TestIsNotAIPages pages through a session to its end and goes on live from the last
// page's cursor.
func TestIsNotAIPages(t *testing.T) {
	t.Parallel()
	client{lacks: lacksPython}.need(t)
	s := sharedServer(t)
	l := newSession(t, s, "isnotai:1", "")
	random := newRandom(t, "samples")
	l.append(t, samples(random, 0, 50)...)
	f := pythonProgram("isnotai.py")(t, serviceJob(s, l.session))
	f.await(t, "page", 50, 20*time.Second)
	l.append(t, samples(random, 50, 50)...)
	for i, r := range f.await(t, "page", 100, 20*time.Second) {
		if e := l.events[i]; r.ID != e.id || r.Type != e.Type {
			t.Errorf("event %d = %s %s, want %s %s", i, r.ID, r.Type, e.id, e.Type)
		}
	}
}
