package streamer

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/schema"
)

// ofKind returns the record that makes a session of a kind.
func ofKind(session, kind string) *schema.Event {
	e := newEvent(session, schema.TypeSessionCreated, "")
	e.Payload = fmt.Appendf(nil, `{"kind":%q}`, kind)
	return e
}

// said returns an event with a payload, at a millisecond of its session.
func said(session, typ, payload string, tMs int64) *schema.Event {
	e := newEvent(session, typ, "")
	e.Payload, e.TMs = []byte(payload), tMs
	return e
}

// withWorkflow puts events into a workflow.
func withWorkflow(workflow string, events ...*schema.Event) []*schema.Event {
	for _, e := range events {
		e.Workflow = workflow
	}
	return events
}

var viewKeys = fakeKeys{
	"reader":  {Workspace: "w", KeyID: "key_r", Scopes: control.ScopeRead},
	"pk_tmp_": {Workspace: "w", KeyID: "key_b", Scopes: control.ScopeRead, Session: "talk", Browser: true},
}

// sseViewPaths are the paths of the SSE streams in the world of serveViews, by view.
var sseViewPaths = map[string]string{
	"session":            "/v1/sessions/plain/events/stream",
	"workflow":           "/v1/workflows/flow/events/stream",
	"workspace":          "/v1/stream",
	"workspace_envelope": "/api/v1/stream?envelope=1",
	"transcript":         "/v1/calls/phone/transcript/stream",
	"conversation":       "/v1/conversations/talk/stream",
}

// serveViews serves a workspace with a session of every kind.
func serveViews(t *testing.T, cfg Config) *env {
	t.Helper()
	e := startEnv(t, cfg, 4)
	e.produce(
		ofKind("phone", schema.KindCall), ofKind("talk", schema.KindConversation),
		said("phone", "call.started", `{}`, 0), said("phone", typeTranscription, `{"text":"hello"}`, 100),
		said("phone", typeAgentResponse, `{"text":"hi","turn_id":"t2","is_final":false}`, 200),
		said("talk", "message.created", `{"text":"hey"}`, 300), said("talk", "conversation.mode_changed", `{"mode":"human"}`, 400),
		said("plain", "init", `null`, 1),
	)
	e.produce(withWorkflow("flow", said("plain", "click", `{"x":1}`, 500), said("other", "click", `{"x":2}`, 600))...)
	return e.serveWith(viewKeys, nil)
}

// addParam adds a parameter to a path that may have some.
func addParam(path, param string) string {
	if strings.Contains(path, "?") {
		return path + "&" + param
	}
	return path + "?" + param
}

// Every view sends what its Frame says, of the events it shows and no others, in replay
// and live.
func TestEveryViewSendsItsFrames(t *testing.T) {
	checkGoroutines(t)
	e := serveViews(t, testConfig())
	shown := map[string]func(*schema.Event) bool{
		"session":  func(ev *schema.Event) bool { return ev.Session == "plain" },
		"workflow": func(ev *schema.Event) bool { return ev.Workflow == "flow" },
		"transcript": func(ev *schema.Event) bool {
			return ev.Session == "phone" && (ev.Type == typeTurn || ev.Type == typeTranscription || ev.Type == typeAgentResponse)
		},
		"conversation":       func(ev *schema.Event) bool { return ev.Session == "talk" },
		"workspace":          func(*schema.Event) bool { return true },
		"workspace_envelope": func(*schema.Event) bool { return true },
	}
	clients := make(map[string]*client)
	for name, path := range sseViewPaths {
		c := e.get(addParam(path, "from=start"), "reader")
		defer c.close()
		if c.status != 200 || c.header.Get("Content-Type") != "text/event-stream" || c.header.Get("X-Connection-Id") == "" {
			t.Fatalf("%s: %d %v %s", name, c.status, c.header, c.body())
		}
		clients[name] = c
	}
	e.live(len(clients))
	live := []*schema.Event{
		said("phone", typeTurn, `{"role":"user","text":"bye"}`, 700), said("talk", "message.created", `"x"`, 800),
		said("plain", "click", `{"x":3}`, 900),
	}
	live[2].Workflow = "flow"
	e.produce(live...)
	for name, c := range clients {
		view := frameView(name)
		want := make(map[string]string) // by id
		for _, events := range e.visible {
			for _, ev := range events {
				if shown[name](ev) {
					want[ev.ID.String()] = string(view.frame(ev).Bytes)
				}
			}
		}
		var got []byte
		for n := len(want); n > 0; n-- {
			raw, err := c.block()
			for err == nil && string(raw) == ": keepalive\n" { // the others took their time
				raw, err = c.block()
			}
			if err != nil {
				t.Fatalf("%s: after\n%s: %v", name, got, err)
			}
			got = append(got, raw...)
			f := mustParseSSE(t, raw)[0]
			id, _, _ := strings.Cut(f.id, "~")
			if frame := strings.Replace(string(raw), f.id, id, 1); frame != want[id] {
				t.Errorf("%s sends\n%swant\n%s", name, frame, want[id])
			}
			if _, err := schema.ParseCursor(f.id); err != nil || (f.id != id) != (view.Of != OfSession) {
				t.Errorf("%s: id %s, %v; streams of several sessions send whole cursors, others ids", name, f.id, err)
			}
			delete(want, id)
		}
		if len(want) > 0 {
			t.Errorf("%s does not send %v", name, want)
		}
	}
}

// frameView returns the view of a name.
func frameView(name string) *View {
	for _, v := range views() {
		for ; v != nil; v = v.Envelope {
			if v.Name == name {
				return v
			}
		}
	}
	return nil
}

// block reads the raw bytes of what a stream says next: a comment line, or a frame with
// its blank line.
func (c *client) block() ([]byte, error) {
	var b []byte
	for {
		line, err := c.br.ReadBytes('\n')
		b = append(b, line...)
		if err != nil || len(line) == 1 || line[0] == ':' {
			return b, err
		}
	}
}

func TestKindsAreChecked(t *testing.T) {
	checkGoroutines(t)
	e := serveViews(t, testConfig())
	var unknown string
	f := func(path string, want int) {
		t.Helper()
		c := e.get(path, "reader", "X-Request-Id: same")
		defer c.close()
		if c.status != want {
			t.Errorf("%s = %d, want %d", path, c.status, want)
			return
		}
		if want != 404 {
			return
		}
		body := c.body()
		if strings.Contains(path, "/calls/") {
			if unknown == "" {
				unknown = body
			}
			if body != unknown {
				t.Errorf("%s is told apart: %s and %s", path, body, unknown)
			}
		}
	}
	f("/v1/calls/phone/transcript/stream", 200)
	f("/v1/calls/nobody/transcript/stream", 404)
	f("/v1/calls/talk/transcript/stream", 404)
	f("/v1/calls/plain/transcript/stream", 404)
	f("/v1/conversations/talk/stream", 200)
	f("/v1/conversations/phone/stream", 404)
	f("/v1/conversations/plain/stream", 404)
	f("/v1/sessions/phone/events/stream", 200)
	f("/v1/sessions/nobody/events/stream", 404)
	f("/v1/workflows/nobody/events/stream", 200) // an empty stream
	f("/v1/workflows/not%20a%20name/events/stream", 404)
}

// A workflow that nobody has used is followed from its first event on, whichever session
// and partition that comes to.
func TestAWorkflowMayBeginAfterItsStream(t *testing.T) {
	checkGoroutines(t)
	e := serveViews(t, testConfig())
	c := e.get("/v1/workflows/fresh/events/stream?from=start", "reader")
	defer c.close()
	e.live(1)
	var all []*schema.Event
	for i := range 8 {
		all = append(all, withWorkflow("fresh", said(fmt.Sprint("later", i), "a", `1`, int64(i)))...)
	}
	for _, ev := range all {
		e.produce(ev) // one by one, so that their order is known
		f, err := c.event()
		id, _, _ := strings.Cut(f.id, "~")
		if err != nil || id != ev.ID.String() || !strings.Contains(f.data, `"session_id":"`+ev.Session+`"`) {
			t.Fatalf("next = %+v, %v; want %s of %s", f, err, ev.ID, ev.Session)
		}
	}
}

// The parameters of each view, and what is wrong with them.
func TestParametersOfViews(t *testing.T) {
	checkGoroutines(t)
	e := serveViews(t, testConfig())
	f := func(name, query string, want int, code, param string) {
		t.Helper()
		path := sseViewPaths[name]
		c := e.get(addParam(path, query), "reader")
		defer c.close()
		var answer struct {
			Error struct{ Code, Param string }
		}
		if c.status != 200 {
			_ = json.Unmarshal([]byte(c.body()), &answer)
		}
		if c.status != want || answer.Error.Code != code || answer.Error.Param != param {
			t.Errorf("%s with %s = %d %+v; want %d %s %s", name, query, c.status, answer.Error, want, code, param)
		}
	}
	for name := range sseViewPaths {
		f(name, "colour=red", 400, "unknown_parameter", "colour")
		f(name, "_=1", 200, "", "")
		f(name, "type=0x01,click&confidence_gte=0.5&frame_id=a&filters[k]=v&t_ms.lte=5&until=5&notices=1&on_slow=replay&speed=1.5", 200, "", "")
		f(name, "speed=0.5", 400, "invalid_parameter", "speed")
		f(name, "speed=101", 400, "invalid_parameter", "speed")
		f(name, "speed=NaN", 400, "invalid_parameter", "speed")
		f(name, "speed=", 400, "invalid_parameter", "speed")
		f(name, "close=never", 200, "", "")
		f(name, "close=end", 200, "", "") // no session has ended
		if strings.HasPrefix(name, "workspace") {
			f(name, "heartbeat=30", 200, "", "")
			f(name, "heartbeat=300", 200, "", "")
			for _, bad := range []string{"29", "301", "", "-30", "30.5", "99999999999999999999", "9223372036854775807", "30s"} {
				f(name, "heartbeat="+bad, 400, "invalid_parameter", "heartbeat")
			}
			f(name, "heartbeat=30&heartbeat=31", 400, "invalid_parameter", "heartbeat")
		} else {
			f(name, "heartbeat=30", 400, "unknown_parameter", "heartbeat")
			f(name, "envelope=1", 400, "unknown_parameter", "envelope")
		}
	}
	f("workspace", "envelope=2", 400, "invalid_parameter", "envelope")
	f("workspace", "envelope=0", 200, "", "")
	eventually(t, "the streams are gone", func() bool { return e.streams() == 0 })
}

// A key in the URL: any on transcripts, a browser key on the others.
func TestTokensOfViews(t *testing.T) {
	checkGoroutines(t)
	e := serveViews(t, testConfig())
	anonymous := func(path string) (status int, code string) {
		t.Helper()
		resp, err := http.Get("http://" + e.addr + path) //nolint:noctx // bounded by the stream's end below
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == 200 {
			return 200, ""
		}
		var answer struct{ Error struct{ Code string } }
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		return resp.StatusCode, answer.Error.Code
	}
	for name, path := range sseViewPaths {
		status, code := anonymous(addParam(path, "token=reader"))
		if name == "transcript" {
			if status != 200 {
				t.Errorf("%s with any key in the URL: %d %s", name, status, code)
			}
		} else if status != 401 || code != "token_in_query_not_allowed" {
			t.Errorf("%s with a lasting key in the URL: %d %s", name, status, code)
		}
		want := map[string]int{"conversation": 200}[name] // what the browser key is bound to
		if want == 0 {
			want = 404
		}
		if status, code = anonymous(addParam(path, "token=pk_tmp_")); status != want {
			t.Errorf("%s with a browser key in the URL: %d %s, want %d", name, status, code, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// from_t_ms alone goes back to the sessions' beginnings, since to a time, and a type may
// be given by its code.
func TestBackfillOfViews(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 4)
	base := time.Now().UnixMilli() - 60_000
	var all []*schema.Event
	for i := range 40 {
		ev := said([]string{"a", "b", "c", "d", "e"}[i%5], []string{"init", "click"}[i%2], `1`, int64(i))
		ev.Workflow, ev.ID.TimeMs = "flow", base+int64(i)*1000
		all = append(all, ev)
	}
	e.produce(all...)
	e.history.setWatermark(4)
	e.serveWith(viewKeys, nil)
	for _, path := range []string{"/v1/stream", "/v1/workflows/flow/events/stream"} {
		for _, query := range []string{
			"from_t_ms=25", fmt.Sprintf("since=%d", base+25_000), "from_t_ms=10&type=1", "from=start&type=0x01&to_t_ms=7",
			fmt.Sprintf("since=%d&until=%d", base+5000, base+9000),
		} {
			filter := mustFilter(t, query)
			want := make(map[string]bool)
			for _, ev := range all {
				if filter.Match(ev) {
					want[ev.ID.String()] = true
				}
			}
			c := e.get(path+"?"+query+"&notices=1", "reader")
			last := ""
			for {
				f, err := c.event()
				if err != nil {
					t.Fatalf("%s?%s: %v; %d are missing", path, query, err, len(want))
				}
				if f.event == "playhead.caught_up" {
					break
				}
				id, _, _ := strings.Cut(f.id, "~")
				if !want[id] {
					t.Errorf("%s?%s sends %s, which is not wanted, or twice", path, query, id)
				}
				delete(want, id)
				last = f.id
			}
			c.close()
			if len(want) != 0 {
				t.Errorf("%s?%s does not send %v", path, query, want)
			}
			// And from its last cursor there is nothing more.
			c = e.get(path+"?"+query+"&notices=1", "reader", "Last-Event-ID: "+last)
			if f, err := c.event(); err != nil || f.event != "playhead.caught_up" {
				t.Errorf("%s?%s goes on after its last event with %+v, %v", path, query, f, err)
			}
			c.close()
		}
	}
}

// A transcript ends with its call, whichever way that ends, and who comes back is told to
// stay away. The event that ends a call is none of a transcript's: the end must be noticed
// all the same.
func TestTranscriptsEndWithTheirCalls(t *testing.T) {
	checkGoroutines(t)
	for _, ends := range []string{"call.completed", "call.ended", schema.TypeSessionEnded} {
		e := serveViews(t, testConfig())
		path := sseViewPaths["transcript"]
		c := e.get(path, "reader")
		stays := e.get(path+"?close=never", "reader")
		filtered := e.get("/v1/sessions/phone/events/stream?close=end&type=nothing", "reader")
		e.live(3)
		e.produce(said("phone", typeTurn, `{"role":"user","text":"bye"}`, 700), said("phone", ends, `{}`, 800))
		f, err := c.event()
		if err != nil || !strings.Contains(f.data, `"text":"bye"`) || f.event != "" {
			t.Errorf("%s: last turn = %+v, %v", ends, f, err)
		}
		if rest, err := io.ReadAll(c.br); err != nil || len(rest) > 0 {
			t.Errorf("%s: after the last turn come %q, %v", ends, rest, err)
		}
		if rest, err := io.ReadAll(filtered.br); err != nil || len(rest) > 0 {
			t.Errorf("%s: of a filter that takes nothing come %q, %v", ends, rest, err)
		}
		for _, header := range []string{"", f.id} {
			back := e.get(path, "reader", "Last-Event-ID: "+header)
			if back.status != 204 {
				t.Errorf("%s: back with %q: %d, want 204", ends, header, back.status)
			}
			back.close()
		}
		e.produce(said("phone", typeTurn, `{"role":"user","text":"late"}`, 900))
		for _, text := range []string{"bye", "late"} {
			if f, err := stays.event(); err != nil || !strings.Contains(f.data, text) {
				t.Errorf("%s: with close=never comes %+v, %v; want %s", ends, f, err, text)
			}
		}
		for _, c := range []*client{c, stays, filtered} {
			c.close()
		}
	}
}

// HEAD answers as GET would, and opens nothing.
func TestHeadOfEveryView(t *testing.T) {
	checkGoroutines(t)
	e := serveViews(t, testConfig())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	head := func(path string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+e.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer reader")
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp
	}
	for name, path := range sseViewPaths {
		resp := head(path)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") == "" {
			t.Errorf("HEAD of %s = %d %v", name, resp.StatusCode, resp.Header)
		}
	}
	for path, want := range map[string]int{
		"/v1/calls/plain/transcript/stream": 404, "/v1/stream?heartbeat=1": 400, "/v1/calls/phone/stream": 426,
	} {
		if resp := head(path); resp.StatusCode != want {
			t.Errorf("HEAD of %s = %d, want %d", path, resp.StatusCode, want)
		}
	}
	if n := e.streams(); n != 0 {
		t.Errorf("%d streams are open after HEAD", n)
	}
}

// As many streams are being opened as may be: who waits too long is told when to come
// back, not all at the same time.
func TestAStormOfOpeningsIsSpread(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.MaxOpenings = 1
	e := startEnv(t, cfg, 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	if err := e.hub.openings.take(t.Context(), "w", nil, nil); err != nil { // an opening that hangs
		t.Fatal(err)
	}
	const n = 24
	retries := make(chan string, n)
	for range n {
		go func() {
			c, err := e.dial(streamPath, "reader")
			if err != nil {
				retries <- err.Error()
				return
			}
			defer c.close()
			if c.status != 503 || !strings.Contains(c.body(), `"overloaded"`) {
				retries <- fmt.Sprint("status ", c.status)
				return
			}
			retries <- c.header.Get("Retry-After")
		}()
	}
	seen := make(map[string]int)
	for range n {
		seen[<-retries]++
	}
	e.hub.openings.give("w")
	for after := range seen {
		if len(after) != 1 || after < "1" || after > "5" {
			t.Errorf("Retry-After: %q, want 1 to 5", after)
		}
	}
	if len(seen) < 3 {
		t.Errorf("%d refused come back at %v; want them spread", n, seen)
	}
	c := e.stream("") // and there is room again
	c.close()
}
