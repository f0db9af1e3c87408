package streamer

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/playhead-dev/playhead/schema"
)

// goldenEvents are the events whose frames the golden file holds.
func goldenEvents() []*schema.Event {
	id := func(offset int64) schema.EventID {
		return schema.EventID{Position: schema.Position{Epoch: 1, Partition: 3, Offset: offset}, TimeMs: 1_700_000_000_000 + offset}
	}
	confidence, tiny := float32(0.87), float32(1e-7)
	clientTime := int64(1_699_999_999_000)
	return []*schema.Event{
		{ID: id(0), Workspace: "w", Session: "s", Type: "tick", ContentType: "application/json", Payload: []byte(`null`)},
		{
			ID: id(1), Workspace: "w", Session: "s", Workflow: "flow", Type: "memory.updated", MessageID: "m-1", TMs: 1234,
			ClientTimeMs: &clientTime, Confidence: &confidence, FrameID: "frame \"1\" ü",
			Metadata:    map[string]string{"b": "2", "a": "<x>\n"},
			ContentType: "application/json", Payload: []byte(`{"text":"line\nbreak","ü":[1,2.50,1e3]}`),
		},
		{ID: id(2), Session: "s", Type: "audio", TMs: 5, ContentType: "audio/wav", Payload: []byte{0, 1, 2, '\n', 0xff}},
		{ID: id(3), Session: "s", Type: "empty", ContentType: "application/octet-stream"},
		{ID: id(4), Session: "s", Type: "pretty", ContentType: "application/json", Payload: []byte("{\r\n  \"a\": [\n\t1,\r\t2\n  ]\r\n}\n")},
		{ID: id(5), Session: "s", Type: "vendor", ContentType: "application/problem+json; charset=utf-8", Confidence: &tiny, Payload: []byte(`"x"`)},
	}
}

// The frames of every view, as files that docs/api.md is written from: of Server-Sent
// Events as they are, of messages one a line. UPDATE_GOLDEN=1 writes them anew.
func TestFramesAreGolden(t *testing.T) {
	events := append(goldenEvents(), goldenTurns()...)
	for _, v := range views() {
		for ; v != nil; v = v.Envelope {
			var got []byte
			for _, e := range events {
				if v.Types != nil && !slices.Contains(v.Types, e.Type) {
					continue
				}
				f := v.frame(e)
				got = append(got, f.Bytes...)
				if v.WebSocket {
					got = append(got, '\n')
				}
			}
			golden(t, v.Name+"_frames.txt", got)
			if !v.WebSocket {
				mustParseSSE(t, got)
			}
		}
	}
}

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.MkdirAll("testdata", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("frames are not those of %s:\n%s", path, got)
	}
}

// goldenTurns are turns of a call, good and odd.
func goldenTurns() []*schema.Event {
	var out []*schema.Event
	for i, turn := range []struct{ typ, payload string }{
		{typeTurn, `{"role":"user","text":"hello","turn_id":"t1","is_final":true}`},
		{typeTurn, `{"role":"agent","text":"hi th","turn_id":"t2","is_final":false}`},
		{typeTranscription, `{"text":"\u00e9\n\u2028\ud83d\ude00"}`},
		{typeAgentResponse, `{"text":"fine","role":"impostor"}`},
		{typeTurn, `"only text"`},
	} {
		e := goldenEvents()[0]
		e.Type, e.Payload, e.ID.Offset = turn.typ, []byte(turn.payload), int64(10+i)
		out = append(out, e)
	}
	return out
}

// A cursor's rest goes right behind the id, in every view that has a place for it.
func TestFramesHaveAPlaceForTheCursor(t *testing.T) {
	for _, e := range append(goldenEvents(), goldenTurns()...) {
		for _, v := range views() {
			for ; v != nil; v = v.Envelope {
				// Not at the beginning of memory of its own: cut counts from the frame's.
				before := []byte("before")
				out, cut := v.Frame(before, e)
				if string(out[:len(before)]) != "before" {
					t.Fatalf("%s writes over what is there", v.Name)
				}
				out = out[len(before):]
				several := v.Of != OfSession
				switch {
				case cut < 0 && several:
					t.Errorf("%s has no place for the cursor", v.Name)
				case cut >= 0 && v.WebSocket && !bytes.HasSuffix(out[:cut], []byte(e.ID.String()+`"`)),
					cut >= 0 && !v.WebSocket && !bytes.HasSuffix(out[:cut], []byte("id: "+e.ID.String())):
					t.Errorf("%s has its place for the cursor behind %q", v.Name, out[:cut])
				}
			}
		}
	}
}

func TestTurns(t *testing.T) {
	f := func(typ, contentType, payload, role, text, turnID string, final bool) {
		t.Helper()
		e := goldenEvents()[0]
		e.Type, e.ContentType, e.Payload = typ, contentType, []byte(payload)
		var got struct {
			Role    string `json:"role"`
			Text    string `json:"text"`
			TurnID  string `json:"turn_id"`
			IsFinal *bool  `json:"is_final"`
			TS      time.Time
		}
		frame := transcriptView().frame(e).Bytes
		blocks := mustParseSSE(t, frame)
		if err := json.Unmarshal([]byte(blocks[0].data), &got); err != nil {
			t.Fatalf("%s is sent as %s: %v", payload, frame, err)
		}
		if turnID == "" {
			turnID = e.ID.String()
		}
		if got.Role != role || got.Text != text || got.TurnID != turnID || got.IsFinal == nil || *got.IsFinal != final ||
			!got.TS.Equal(e.Time()) || blocks[0].event != "" || blocks[0].id != e.ID.String() {
			t.Errorf("%s with %s is sent as %s", typ, payload, frame)
		}
	}
	const j = "application/json"
	f(typeTurn, j, `{"role":"user","text":"a","turn_id":"t","is_final":false}`, "user", "a", "t", false)
	f(typeTurn, j, `{"role":"user","text":"a"}`, "user", "a", "", true)
	f(typeTurn, j, `{"role":null,"text":null,"turn_id":null,"is_final":null}`, "", "", "", true)
	f(typeTurn, j, `{"role":1,"text":"a","turn_id":7,"is_final":"no"}`, "", "a", "", true)
	f(typeTurn, j, `{"role":"user","text":{"a":1},"is_final":false}`, "user", "", "", false)
	f(typeTurn, j, `{"ROLE":"user","Text":"a","extra":[1,2]}`, "", "", "", true) // names are case sensitive
	f(typeTurn, j, `{"text":"a","turn_id":""}`, "", "a", "", true)
	f(typeTurn, j, `{}`, "", "", "", true)
	f(typeTurn, j, `null`, "", "", "", true)
	f(typeTurn, j, `"just text"`, "", "just text", "", true)
	f(typeTurn, j, `5`, "", "", "", true)
	f(typeTurn, j, `["a"]`, "", "", "", true)
	f(typeTurn, "text/plain", "not\njson", "", "", "", true)
	f(typeTranscription, j, `{"text":"a"}`, "user", "a", "", true)
	f(typeTranscription, j, `{"text":"a","role":"agent"}`, "user", "a", "", true)
	f(typeAgentResponse, j, `{"text":"a\r\n\n: b\u0000\u2028"}`, "agent", "a\r\n\n: b\x00\u2028", "", true)
	f(typeAgentResponse, j, `{"text":"half \ud83d of a pair"}`, "agent", "half \ufffd of a pair", "", true)
	f(typeAgentResponse, j, "\"with\\nbreaks\" \r\n", "agent", "with\nbreaks", "", true)
}

// Whatever the log may hold, a frame is one frame: nothing in an event begins a line, ends
// one, or becomes an id.
func FuzzFramesNeverBreak(f *testing.F) {
	f.Add("click", "s", "w", "application/json", []byte("{\"a\":\r\n1}"), "frame", "k", "v\n\nid: 1", float32(0.5), int64(3))
	f.Add("a.b:c-d_e", "s\u2028", "", "text/x-y; a=\"\\n\"", []byte("\x00\n\n"), "ü", "\"", "\u2029", float32(1e-9), int64(-1))
	f.Add(typeTurn, "s", "", "application/json", []byte(`{"text":"\n\ndata: x","role":"\r"}`), "", "", "", float32(0), int64(0))
	f.Fuzz(func(t *testing.T, typ, session, workflow, contentType string, payload []byte, frame, key, value string, confidence float32, tMs int64) {
		made := &schema.Event{
			ID: goldenEvents()[0].ID, Workspace: "w", Session: session, Workflow: workflow, Type: typ, ContentType: contentType,
			Payload: payload, FrameID: frame, Metadata: map[string]string{key: value}, Confidence: &confidence, TMs: tMs,
		}
		e, err := schema.DecodeRecord(made.ID, schema.AppendHeaders[schema.Header](nil, made, "x"), payload)
		if err != nil {
			return // no such event is on the log
		}
		for _, v := range views() {
			for ; v != nil; v = v.Envelope {
				out := v.frame(e).Bytes
				if v.WebSocket {
					if !utf8.Valid(out) || !json.Valid(out) {
						t.Fatalf("%s sends %q", v.Name, out)
					}
					continue
				}
				blocks, err := parseSSE(out)
				if err != nil || len(blocks) != 1 || blocks[0].comment != "" || blocks[0].retry != 0 || !blocks[0].hasData {
					t.Fatalf("%s sends %q: %+v, %v", v.Name, out, blocks, err)
				}
				b := blocks[0]
				if b.id != e.ID.String() || b.event != "" && b.event != e.Type || !json.Valid([]byte(b.data)) {
					t.Fatalf("%s sends %q", v.Name, out)
				}
			}
		}
	})
}

// A frame's own memory: appending to a slice with room must not write into an event.
func TestFrameDoesNotAliasThePayload(t *testing.T) {
	e := goldenEvents()[4]
	before := string(e.Payload)
	_ = sessionView().frame(e)
	if string(e.Payload) != before {
		t.Error("encoding changed the payload")
	}
}

// The frames that docs/api.md quotes are what the views make of those events.
func TestDocsQuoteRealFrames(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	event := func(id, session, typ string, tMs int64, payload string) *schema.Event {
		parsed, err := schema.ParseEventID(id)
		if err != nil {
			t.Fatal(err)
		}
		return &schema.Event{
			ID: parsed, Workspace: "ws_d7npxrhxx7h4zg3n", Session: session, Type: typ, TMs: tMs,
			ContentType: schema.DefaultContentType, Payload: []byte(payload),
		}
	}
	hello := event("evt_0100000000000020D20DBH7K00", "call-42", typeTurn, 564, `{"role":"user","text":"hello"}`)
	confidence := float32(0.93)
	hello.Confidence, hello.Metadata = &confidence, map[string]string{"lang": "en"}
	audio := event("evt_0100000000000080D20DBH8600", "call-42", "audio", 3100, "RIFF")
	audio.ContentType, audio.FrameID = "audio/wav", "f1"
	asks := event("evt_01001000000000G0D20FZYN180", "call-43", typeTranscription, 840, `{"text":"Do you have it in blue?"}`)
	half := event("evt_01001000000000J0D20FZYPP00", "call-43", typeAgentResponse, 2150, `{"text":"Let me","turn_id":"t2","is_final":false}`)
	whole := event("evt_01001000000000M0D20FZYRF80", "call-43", typeAgentResponse, 2400, `{"text":"Let me look.","turn_id":"t2"}`)
	message := event("evt_01001G00000000C0D20FZYT500", "chat-7b", "message.created", 310, `{"from":"user","text":"Is anybody there?"}`)
	mode := event("evt_01001G00000000E0D20FZYVY80", "chat-7b", "conversation.mode_changed", 900, `{"mode":"human"}`)
	const ofCalls, ofChats = "~AAABAAIA", "~AAABAAEL"
	for _, quote := range []struct {
		view string
		e    *schema.Event
		tail string
	}{
		{"session", hello, ""},
		{"session", audio, ""},
		{"workflow", half, ofCalls},
		{"workflow", whole, ofCalls},
		{"workflow", message, ofChats},
		{"workspace", message, ofChats},
		{"workspace_envelope", message, ofChats},
		{"transcript", asks, ""},
		{"transcript", half, ""},
		{"transcript", whole, ""},
		{"conversation", message, ""},
		{"conversation", mode, ""},
		{"workflow_socket", half, ofCalls},
		{"call_socket", half, ""},
	} {
		v := frameView(quote.view)
		var frame []byte
		if f := v.frame(quote.e); v.WebSocket {
			frame = (&socket{view: v}).event(nil, f, quote.e, []byte(quote.tail))
			frame = append(frame[bytes.IndexByte(frame, '{'):], '\n')
		} else {
			frame = bytes.TrimSuffix(sse{v}.event(nil, f, quote.e, []byte(quote.tail)), []byte("\n")) // the last one stands before ```
		}
		if !bytes.Contains(page, frame) {
			t.Errorf("docs/api.md does not quote this frame of %s:\n%s", v.Name, frame)
		}
	}
}
