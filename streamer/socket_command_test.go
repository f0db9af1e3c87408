package streamer

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/playhead-dev/playhead/schema"
)

// Every command, what it is answered, and every way to get one wrong.
func TestCommandsAndTheirAnswers(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 4)
	e.produce(numbered("s", 0, 10)...)
	e.produce(numbered("t", 0, 1)...)
	e.serveSockets()
	at := e.visible["s"][4].ID.String()
	elsewhere := e.visible["t"][0].ID
	ahead := e.visible["s"][9].ID
	ahead.Offset += 1000
	c := e.socket(socketPath+"?type=none", "talker")
	connection := c.id()
	for _, test := range []struct{ send, answer string }{
		// The form.
		{`nonsense`, `{"error":{"code":"invalid_json","details":{},"message":"A command is one JSON object, in UTF-8."},"ref":null}`},
		{`[]`, `invalid_json`},
		{`null`, `invalid_json`},
		{`{"op":"pause"} {}`, `invalid_json`},
		{`{"op":"pause"}]`, `invalid_json`},
		{`{"op":"pause",}`, `invalid_json`},
		{`{"op":"pause"`, `invalid_json`},
		{`{"op":"pause","op":"cancel","ref":1}`, `{"error":{"code":"invalid_field","details":{},"message":"\"op\" is given twice.","param":"op"},"ref":1}`},
		{`{"ref":1}`, `{"error":{"code":"invalid_field","details":{},"message":"op is missing or no text; want subscribe, pause, resume, seek, speed, cancel or append.","param":"op"},"ref":1}`},
		{`{"op":7,"ref":"x"}`, `invalid_field op`},
		{`{"op":null}`, `invalid_field op`},
		{`{"op":"dance","ref":{"a":[1]}}`, `{"error":{"code":"invalid_field","details":{},"message":"op is \"dance\"; want subscribe, pause, resume, seek, speed, cancel or append.","param":"op"},"ref":{"a":[1]}}`},
		{`{"op":"answer"}`, `invalid_field op`},
		{`{"op":"pause","ref":"` + strings.Repeat("x", 300) + `"}`, `invalid_field ref`},

		// pause and resume
		{`{"op":"pause"}`, `{"ack":null}`},
		{`{"op":"pause","ref":1}`, `{"ack":1}`},
		{`{"op":"pause","ref":1,"for":5}`, `{"error":{"code":"unknown_field","details":{},"message":"\"for\" is not a member of the command pause.","param":"for"},"ref":1}`},
		{`{"op":"resume","ref":"a"}`, `{"ack":"a"}`},
		{`{"op":"resume","ref":null,"at":0}`, `unknown_field at`},

		// speed
		{`{"op":"speed","speed":2,"ref":1.5}`, `{"ack":1.5}`},
		{`{"op":"speed","speed":"2.5"}`, `{"ack":null}`},
		{`{"op":"speed","speed":null}`, `{"ack":null}`},
		{`{"op":"speed"}`, `invalid_field speed`},
		{`{"op":"speed","speed":0.5}`, `invalid_parameter speed`},
		{`{"op":"speed","speed":101}`, `invalid_parameter speed`},
		{`{"op":"speed","speed":{}}`, `invalid_field speed`},
		{`{"op":"speed","speed":[1,2]}`, `invalid_parameter speed`},
		{`{"op":"speed","speed":[]}`, `invalid_field speed`},
		{`{"op":"speed","speed":2,"from":"start"}`, `unknown_field from`},

		// seek
		{`{"op":"seek","from":"start","ref":1}`, `{"ack":1}`},
		{`{"op":"seek","from":"now","ref":1}`, `{"ack":1}`},
		{`{"op":"seek","last_event_id":"` + at + `","ref":2}`, `{"ack":2}`},
		{`{"op":"seek","from_t_ms":3,"ref":3}`, `{"ack":3}`},
		{`{"op":"seek","since":"2026-01-01T00:00:00Z","ref":4}`, `{"ack":4}`},
		{`{"op":"seek","since":1,"ref":4}`, `{"ack":4}`},
		{`{"op":"seek","ref":5}`, `{"error":{"code":"invalid_field","details":{},"message":"A seek wants one of from, from_t_ms, since and last_event_id.","param":"from"},"ref":5}`},
		{`{"op":"seek","from":"end"}`, `invalid_field from`},
		{`{"op":"seek","from":["start","start"]}`, `invalid_parameter from`},
		{`{"op":"seek","from":"now","since":1}`, `invalid_field from`},
		{`{"op":"seek","last_event_id":"evt_x"}`, `invalid_cursor last_event_id`},
		{`{"op":"seek","last_event_id":"` + ahead.String() + `"}`, `invalid_cursor last_event_id`},
		{`{"op":"seek","last_event_id":null}`, `invalid_field last_event_id`},
		{`{"op":"seek","from_t_ms":-1}`, `invalid_parameter from_t_ms`},
		{`{"op":"seek","from_t_ms":1.5}`, `invalid_parameter from_t_ms`},
		{`{"op":"seek","since":"yesterday"}`, `invalid_parameter since`},
		{`{"op":"seek","from":"start","type":"tick"}`, `unknown_field type`},
		{`{"op":"seek","from":"start","append":{"type":"audio"}}`, `unknown_field append`},

		// subscribe
		{`{"op":"subscribe","ref":1}`, `{"ack":1,"connection_id":"` + connection + `"}`},
		{`{"op":"subscribe","type":"none"}`, `{"ack":null,"connection_id":"` + connection + `"}`},
		{`{"op":"subscribe","type":["none","nothing.*"],"filters":{"k":"v"},"confidence_gte":0.5,"notices":false,"binary":true,"frame_id":"f","to_t_ms":9,"until":1,"from":"start"}`,
			`{"ack":null,"connection_id":"` + connection + `"}`},
		{`{"op":"subscribe","type":"none","append":{"type":"audio","content_type":"audio/pcm"}}`, `{"ack":null,"connection_id":"` + connection + `"}`},
		{`{"op":"subscribe","type":"a b"}`, `invalid_parameter type`},
		{`{"op":"subscribe","type":{"a":1}}`, `invalid_field type`},
		{`{"op":"subscribe","type":[["a"]]}`, `invalid_field type`},
		{`{"op":"subscribe","type":["` + strings.Repeat(`a","`, 256) + `a"]}`, `invalid_field type`},
		{`{"op":"subscribe","filters":[]}`, `invalid_field filters`},
		{`{"op":"subscribe","filters":{"k":1}}`, `invalid_field filters`},
		{`{"op":"subscribe","filters":{"k":"v"},"filters[k]":"v"}`, `invalid_parameter filters[k]`},
		{`{"op":"subscribe","confidence_gte":2}`, `invalid_parameter confidence_gte`},
		{`{"op":"subscribe","notices":2}`, `invalid_parameter notices`},
		{`{"op":"subscribe","binary":"yes"}`, `invalid_parameter binary`},
		{`{"op":"subscribe","colour":"red"}`, `unknown_field colour`},
		{`{"op":"subscribe","on_slow":"replay"}`, `unknown_field on_slow`},
		{`{"op":"subscribe","append":null}`, `invalid_field append.type`},
		{`{"op":"subscribe","append":[]}`, `invalid_field append`},
		{`{"op":"subscribe","append":{"type":"a","bytes":1}}`, `invalid_field append`},
		{`{"op":"subscribe","append":{"type":"a b"}}`, `invalid_field append.type`},
		{`{"op":"subscribe","append":{"type":"heartbeat"}}`, `reserved_type append.type`},
		{`{"op":"subscribe","append":{"type":"a","content_type":"x"}}`, `invalid_field append.content_type`},

		// append
		{`{"op":"append","ref":1}`, `{"error":{"code":"invalid_field","details":{},"message":"event is missing or no object.","param":"event"},"ref":1}`},
		{`{"op":"append","event":[]}`, `invalid_field event`},
		{`{"op":"append","event":{}}`, `invalid_field event.type`},
		{`{"op":"append","event":{"type":"a b"}}`, `invalid_field event.type`},
		{`{"op":"append","event":{"type":"x","session_id":"t"}}`, `invalid_field event.session_id`},
		{`{"op":"append","event":{"type":"x"},"type":"y"}`, `unknown_field type`},

		// cancel
		{`{"op":"cancel","reason":1}`, `invalid_field reason`},
		{`{"op":"cancel","reason":"` + strings.Repeat("x", 124) + `"}`, `invalid_field reason`},
		{`{"op":"cancel","why":"x"}`, `unknown_field why`},
	} {
		m := c.do(test.send)
		got := m.text
		if !strings.HasPrefix(test.answer, "{") && m.Error != nil {
			got = strings.TrimSpace(m.Error.Code + " " + m.Error.Param)
		}
		if got != test.answer {
			t.Errorf("%s\n is answered %s,\n want %s", test.send, m.text, test.answer)
		}
	}
	// A position of another partition.
	if elsewhere.Partition == ahead.Partition {
		t.Fatal("the sessions lie in one partition")
	}
	if m := c.do(`{"op":"seek","last_event_id":"` + elsewhere.String() + `"}`); m.Error == nil || m.Error.Code != "invalid_cursor" {
		t.Errorf("another session's position: %s", m.text)
	}
	c.ack(`{"op":"cancel","reason":"enough","ref":1}`)
	c.mustClose(closeNormal, "cancelled")
}

// A command with a mistake in it does nothing of what it says.
func TestBadCommandsChangeNothing(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(numbered("s", 0, 3)...)
	e.serveSockets()
	c := e.socket(socketPath+"?type=tick", "talker")
	e.live(1)
	for _, bad := range []string{
		`{"op":"subscribe","from":"start","type":"other","notices":1,"append":{"type":"audio"},"confidence_gte":7}`,
		`{"op":"subscribe","append":{"type":"audio"},"last_event_id":"evt_"}`,
		`{"op":"seek","from":"start","since":"x"}`,
		`{"op":"speed","speed":1,"colour":"red"}`,
		`{"op":"pause","colour":"red"}`,
		`{"op":"cancel","reason":["x"]}`,
		`{"op":"append","event":{"type":"tick","session_id":"t"}}`,
	} {
		if m := c.do(bad); m.Error == nil {
			t.Errorf("%s is answered %s", bad, m.text)
		}
	}
	if err := c.conn.WriteMessage(websocket.BinaryMessage, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if m := c.mustNext(); m.Error == nil || m.Error.Param != "append" || string(m.Ref) != "null" || string(m.Binary) != "1" {
		t.Errorf("a binary message nobody has announced is answered %s", m.text)
	}
	after := e.end("s") - 1
	e.produce(newEvent("s", "other", ""))
	e.produce(numbered("s", 3, 2)...)
	c.expect(e.want("s", after+1))
	if got := len(e.want("s", -1)); got != 6 {
		t.Errorf("the log has %d events, want 6", got)
	}
}

// No event of the old position comes behind the ack of a seek or a subscribe, none of the
// new one before, in whatever state the stream is: live, in a replay, paced or paused.
func TestAcksOfSeeksAreBoundaries(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.MaxBytes = 60_000
	cfg.ReplayBytes = 64 << 10
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 4000)...)
	e.history.setWatermark(2000)
	e.serveSockets()
	e.warm("s")
	ids := e.want("s", -1)
	place := make(map[string]int, len(ids))
	for i, id := range ids {
		place[id] = i
	}
	for round := range 3 {
		rng := rand.New(rand.NewPCG(uint64(round), 7))
		c := e.socket(socketPath+"?from=start", "reader")
		at, paused, filtered := 0, false, false
		for n := range 60 {
			// Read some, then change something while more is on its way.
			for range rng.IntN(400) {
				if paused || at >= len(ids) {
					break
				}
				m := c.mustNext()
				if i, ok := place[m.ID]; !ok || i != at {
					t.Fatalf("round %d: event %d comes, want %d: %s", round, i, at, m.text)
				}
				at++
				for filtered && at < len(ids) && at%10 != 0 {
					at++
				}
			}
			var send string
			target := at
			switch kind := rng.IntN(6); {
			case kind == 0:
				send = `"op":"pause"`
				paused = true
			case kind == 1:
				send = `"op":"resume"`
				paused = false
			case kind == 2 && !filtered:
				send, target = `"op":"seek","from":"start"`, 0
			case kind == 3:
				target = rng.IntN(len(ids))
				send = fmt.Sprintf(`"op":"subscribe","last_event_id":%q`, ids[target])
				target++
				filtered = false
			default:
				target = rng.IntN(len(ids))
				send = fmt.Sprintf(`"op":"seek","last_event_id":%q`, ids[target])
				target++
			}
			c.send(fmt.Sprintf(`{%s,"ref":%d}`, send, n))
			for {
				m := c.mustNext()
				if m.Ack != nil {
					if string(m.Ack) != fmt.Sprint(n) {
						t.Fatalf("round %d: ack %s, want %d", round, m.Ack, n)
					}
					break
				}
				if i, ok := place[m.ID]; !ok || i != at {
					t.Fatalf("round %d: before the ack of %s comes event %d, want %d: %s", round, send, i, at, m.text)
				}
				at++
			}
			if strings.Contains(send, "seek") || strings.Contains(send, "subscribe") {
				at = target
			}
		}
		if paused {
			c.ack(`{"op":"resume"}`)
		}
		c.expect(ids[at:])
		after := e.end("s") - 1
		e.produce(numbered("s", 9000, 3)...)
		c.expect(e.want("s", after))
		ids = e.want("s", -1)
		for i, id := range ids {
			place[id] = i
		}
		c.close()
	}
}

// A stream of several partitions goes back to a cursor, and to a time, exactly.
func TestSeeksOfManyPartitions(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 8)
	for n := range 120 {
		e.produce(numbered(fmt.Sprintf("s%d", n%7), n, 1)...)
	}
	e.serveSockets()
	c := e.socket("/v1/stream/ws?from=start", "reader")
	var first []message
	for range 120 {
		first = append(first, c.mustNext())
	}
	for _, at := range []int{100, 3, 50, 119, 0} {
		c.ack(`{"op":"seek","last_event_id":"` + first[at].Cursor + `"}`)
		left := map[string]bool{}
		for _, m := range first[at+1:] {
			left[m.ID] = true
		}
		for len(left) > 0 {
			m := c.mustNext()
			if !left[m.ID] {
				t.Fatalf("after a seek to %d comes %s", at, m.text)
			}
			delete(left, m.ID)
		}
	}
	c.ack(`{"op":"subscribe","from_t_ms":115}`)
	for range 5 {
		var data struct {
			TMs int `json:"t_ms"`
		}
		if m := c.mustNext(); json.Unmarshal(m.Data, &data) != nil || data.TMs < 115 {
			t.Errorf("a subscription from t_ms 115 gets %s", m.text)
		}
	}
	c.ack(`{"op":"pause"}`)
}

// A paused stream loses nothing, even what leaves the tape meanwhile; "now" leaves it out.
func TestPauseAndResume(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, slowConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serveSockets()
	c := e.socket(socketPath+"?notices=1", "reader")
	if m := c.mustNext(); m.text != `{"type":"playhead.caught_up","cursor":"`+m.Cursor+`","data":{}}` || m.Cursor == "" {
		t.Errorf("at the seam comes %s", m.text)
	}
	reader := e.stream("")
	defer reader.close()
	e.live(2)
	c.ack(`{"op":"pause","ref":1}`)
	after := e.end("s") - 1
	for i := 0; i < 40; i += 4 {
		before := e.end("s") - 1
		e.produce(bigEvents(i, 4)...)
		reader.mustExpect(e.want("s", before))
	}
	c.ack(`{"op":"pause","ref":2}`) // nothing comes between
	c.send(`{"op":"resume","ref":3}`)
	if m := c.mustNext(); m.text != `{"ack":3}` {
		t.Errorf("before the ack comes %.80s", m.text)
	}
	c.expect(e.want("s", after))
	c.ack(`{"op":"pause"}`)
	e.produce(bigEvents(40, 4)...)
	c.ack(`{"op":"seek","from":"now"}`)
	c.ack(`{"op":"resume"}`)
	if m := c.mustNext(); m.Type != "playhead.caught_up" {
		t.Errorf("a seek to now is followed by %.80s", m.text)
	}
	after = e.end("s") - 1
	e.produce(numbered("s", 0, 2)...)
	c.expect(e.want("s", after))
}

// Speed: a replay keeps the pauses of the session, and changes its pace at a command.
func TestSpeedOfSockets(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	events := numbered("s", 0, 9)
	for i, ev := range events {
		ev.TMs = int64(i) * 1000
	}
	events[8].TMs = 3_600_000 // nobody waits for it but at no speed
	e.produce(events...)
	e.serveSockets()
	ids := e.want("s", -1)
	began := time.Now() // before anything of the stream can have begun
	c := e.socket(socketPath+"?from=start&speed=10", "reader")
	c.expect(ids[:3])
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("two seconds at speed 10 took %v", took)
	}
	c.send(`{"op":"speed","speed":1,"ref":1}`)
	for i := 3; ; i++ {
		m := c.mustNext()
		if m.Ack != nil {
			ids = ids[i:]
			break
		}
	}
	c.send(`{"op":"speed","speed":null,"ref":2}`) // as fast as it goes
	for i := 0; ; i++ {
		m := c.mustNext()
		if m.Ack != nil {
			ids = ids[i:]
			break
		}
	}
	c.expect(ids)
	c.ack(`{"op":"speed","speed":5}`)
	began = time.Now()
	c.ack(`{"op":"seek","from":"start"}`)
	c.expect(e.want("s", -1)[:2])
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("a second at speed 5 took %v", took)
	}
}

func TestAppendsOnSockets(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(ofKind("phone", schema.KindCall), newEvent("s", "first", ""), newEvent("ended", "first", ""), newEvent("broken", "first", ""), newEvent("busy", "first", ""))
	a := &fakeAppender{e: e}
	e.serveWith(socketKeys, func(d *Deps) { d.Appender = a })
	listener := e.socket("/v1/calls/phone/stream", "reader")
	f := func(c *socketClient, send, session, typ, payload string) {
		t.Helper()
		c.send(send)
		var event, answered message
		for range 2 { // the event is on the stream before its ack, or behind
			if m := c.mustNext(); m.Ack != nil || m.Error != nil {
				answered = m
			} else {
				event = m
			}
		}
		id := event.ID + event.EventID
		if string(answered.Result) != fmt.Sprintf(`{"id":%q}`, id) || string(answered.Ack) != "7" || event.Type+event.EventType != typ {
			t.Errorf("%s: %s and %s", send, answered.text, event.text)
		}
		last := e.visible[session][len(e.visible[session])-1]
		if string(last.Payload) != payload {
			t.Errorf("%s: the payload is %s, want %s", send, last.Payload, payload)
		}
	}
	phone := e.socket("/v1/calls/phone/stream", "caller") // scope control
	e.live(2)
	f(phone, `{"op":"append","ref":7,"event":{"type":"call.dtmf","payload":{"digit":"5"}}}`, "phone", "call.dtmf", `{"digit":"5"}`)
	f(phone, `{"op":"append","ref":7,"event":{ "session_id" : "phone", "type":"call.hangup","payload":null}}`, "phone", "call.hangup", `null`)
	for _, want := range []string{"call.dtmf", "call.hangup"} {
		if m := listener.mustNext(); m.EventType != want {
			t.Errorf("whoever runs the call gets %s, want %s", m.text, want)
		}
	}
	all := e.socket("/v1/stream/ws?type=x", "talker")
	f(all, `{"op":"append","ref":7,"event":{"type":"x","session_id":"s","payload":1}}`, "s", "x", `1`)

	refused := func(c *socketClient, send, want string) {
		t.Helper()
		if m := c.do(send); m.text != want {
			t.Errorf("%s is answered %s, want %s", send, m.text, want)
		}
	}
	refused(all, `{"op":"append","event":{"type":"x","session_id":"ended"}}`,
		`{"error":{"code":"session_ended","details":{},"message":"The session has ended."},"ref":null}`)
	refused(all, `{"op":"append","event":{"type":"x","session_id":"broken"}}`,
		`{"error":{"code":"internal_error","details":{},"message":"Something went wrong on our side."},"ref":null}`)
	if m := all.do(`{"op":"append","ref":2,"event":{"type":"x","session_id":"busy"}}`); m.Error == nil || m.Error.Code != "log_unavailable" ||
		!strings.Contains(m.text, `"retry_after":1500`) || strings.Contains(m.text, "secret") {
		t.Errorf("an unreachable log is told as %s", m.text)
	}
	refused(all, `{"op":"subscribe","append":{"type":"x"}}`,
		`{"error":{"code":"invalid_field","details":{},"message":"append is only for the stream of one session.","param":"append"},"ref":null}`)
	reader := e.socket(socketPath, "reader")
	refused(reader, `{"op":"append","event":{"type":"x"}}`,
		`{"error":{"code":"insufficient_scope","details":{"required":["ingest","control"]},"message":"To append, the API key wants the scope ingest or control."},"ref":null}`)

	for i, event := range a.taken {
		if a.by[i].KeyID != "key_caller" && a.by[i].KeyID != "key_talker" {
			t.Errorf("%s was appended for %+v", event, a.by[i])
		}
	}
	all.send(`{"op":"append","event":{"type":"panic","session_id":"s"}}`)
	all.mustClose(closeInternal, "")
	e.hub.appender = nil
	if m := phone.do(`{"op":"append","event":{"type":"x"}}`); m.Error == nil || m.Error.Code != "overloaded" {
		t.Errorf("a node without ingest answers %s", m.text)
	}
}

// Audio both ways: bytes as they are, with what they are said in a message before.
func TestBinaryMessages(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(ofKind("phone", schema.KindCall), newEvent("s", "first", ""))
	e.serveSockets()
	sound := strings.Repeat("\x00\xff\n", 30_000)
	hears := e.socket(socketPath, "reader")
	hears.ack(`{"op":"subscribe","binary":true}`)
	text := e.socket(socketPath, "reader")
	speaks := e.socket(socketPath+"?type=none", "talker")
	speaks.ack(`{"op":"subscribe","type":"none","append":{"type":"audio","content_type":"audio/pcm"}}`)
	e.live(3)
	for n, bytes := range []string{sound, "", "x"} {
		if err := speaks.conn.WriteMessage(websocket.BinaryMessage, []byte(bytes)); err != nil {
			t.Fatal(err)
		}
		m := speaks.mustNext()
		id := e.visible["s"][len(e.visible["s"])-1].ID.String()
		if want := fmt.Sprintf(`{"ack":null,"binary":%d,"result":{"id":%q}}`, n+1, id); m.text != want {
			t.Errorf("bytes are answered %s, want %s", m.text, want)
		}
		m = hears.mustNext()
		if want := fmt.Sprintf(`{"type":"audio","id":%q,"data":{"t_ms":0,"payload":{"binary":%d,"content_type":"audio/pcm"}}}`, id, len(bytes)); m.text != want {
			t.Errorf("bytes are announced by %s, want %s", m.text, want)
		}
		if m = hears.mustNext(); m.text != "" || string(m.binary) != bytes {
			t.Errorf("then come %d bytes and %s, want %d", len(m.binary), m.text, len(bytes))
		}
		if m = text.mustNext(); m.ID != id || !strings.Contains(m.text, `"content_type":"audio/pcm"`) || m.binary != nil {
			t.Errorf("as text it comes as %.100s", m.text)
		}
	}
	// In a replay, and in the envelope of calls; JSON stays text.
	hears.ack(`{"op":"seek","from":"start"}`)
	if m := hears.mustNext(); m.Type != "first" {
		t.Errorf("the replay begins with %s", m.text)
	}
	if m := hears.mustNext(); m.Type != "audio" {
		t.Errorf("then %s", m.text)
	}
	if m := hears.mustNext(); string(m.binary) != sound {
		t.Errorf("then %d bytes", len(m.binary))
	}
	call := e.socket("/v1/calls/phone/stream", "caller")
	call.ack(`{"op":"subscribe","binary":1,"append":{"type":"audio"}}`)
	if err := call.conn.WriteMessage(websocket.BinaryMessage, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		switch m := call.mustNext(); {
		case m.EventType == "audio":
			if string(m.Payload) != `{"binary":3,"content_type":"application/octet-stream"}` {
				t.Errorf("announced by %s", m.text)
			}
		case m.binary != nil:
			if string(m.binary) != "abc" {
				t.Errorf("bytes %q", m.binary)
			}
		case m.Ack == nil:
			t.Errorf("unexpected %s", m.text)
		}
	}
}

// post sends a command by a request of its own.
func (e *env) post(id, key, command string) (status int, body string) {
	e.t.Helper()
	request, err := http.NewRequestWithContext(e.t.Context(), http.MethodPost, "http://"+e.addr+"/v1/streams/"+id+"/commands", strings.NewReader(command))
	if err != nil {
		e.t.Fatal(err)
	}
	request.Header.Set("X-Api-Key", key)
	request.Close = true
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testDeadline}
	response, err := client.Do(request)
	if err != nil {
		e.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return response.StatusCode, string(b)
}
