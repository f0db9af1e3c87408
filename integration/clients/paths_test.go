package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// delivery is one event as a client should have got it, or has. Data is decoded JSON.
type delivery struct {
	Type, ID, Session string
	Data              any
}

// present is a value of wanted data that may be anything but absent.
type present struct{}

// path is one row of the table of streams: where to follow, and how each event looks.
type path struct {
	name     string
	kind     string // of its sessions
	sessions int    // that it follows; the last is created while it is followed
	sse      bool
	url      func(g *group) string
	want     func(e event) (delivery, bool) // false for events the path does not carry
	decode   func(r record) (delivery, error)
	anyToken bool // ?token= takes any key
	few      bool // it carries few of the samples
	beats    bool // its heartbeats are events
	stamped  bool // its events carry the group's name in their metadata
	bound    bool // a key bound to its session or workflow may follow it
}

// group is the sessions that one test follows together.
type group struct {
	server *server
	path   *path
	name   string // of its workflow
	logs   []*log
}

// newGroup returns a group for a path with no session yet; its name is of this run alone.
func newGroup(s *server, p *path, purpose string) *group {
	return &group{server: s, path: p, name: fmt.Sprintf("%s-%s-%d", purpose, p.name, groups.Add(1))}
}

var groups atomic.Int64 // made so far

// open creates the group's next session.
func (g *group) open(t *testing.T) *log {
	t.Helper()
	id := fmt.Sprintf("%s:%d", g.name, len(g.logs))
	l := newSession(t, g.server, id, fmt.Sprintf(`"kind":%q,"workflow_id":%q`, g.path.kind, g.name))
	if g.path.stamped {
		l.stamp = g.name
	}
	g.logs = append(g.logs, l)
	return l
}

// browserKey makes a key for a browser, bound to the group.
func (g *group) browserKey(t *testing.T, seconds int) string {
	t.Helper()
	bind := fmt.Sprintf(`"workflow_id":%q`, g.name)
	if g.path.sessions == 1 {
		bind = fmt.Sprintf(`"session_id":%q`, g.logs[0].session)
	}
	var made struct {
		Key string `json:"key"`
	}
	g.server.post(t, "/v1/keys", fmt.Sprintf(`{"scopes":["read"],%s,"expires_in":%d}`, bind, seconds), 201, &made)
	if !strings.HasPrefix(made.Key, "pk_tmp_") {
		t.Fatalf("a bound, short-lived read key is %.7s…, want a browser key", made.Key)
	}
	return made.Key
}

// job is a client's job on the group's path, through the proxy at addr.
func (g *group) job(t *testing.T, c client, addr string) job {
	t.Helper()
	p := g.path
	scheme := "http"
	if !p.sse {
		scheme = "ws"
	}
	j := job{URL: scheme + "://" + addr + p.url(g), Headers: map[string]string{}}
	j.Types = append(slices.Clone(sampleTypes), "wanted", "other", "heartbeat", "playhead.caught_up", "playhead.gap")
	key := devKey
	if c.browser && !p.anyToken {
		key = g.browserKey(t, 600)
	}
	switch {
	case c.browser && !p.sse && p.anyToken:
		j.URL += "&token=" + key
		j.Protocols = []string{"playhead.v1"}
	case c.browser && p.sse:
		j.URL += "&token=" + key
	case c.browser:
		j.Protocols = []string{"playhead.v1", "key." + key}
	case !p.sse && c.name == "ws":
		j.Headers["Authorization-Token"] = key
	default:
		j.Headers["Authorization"] = "Bearer " + key
	}
	return j
}

// sessionData is the data of Nusomi's views.
func sessionData(e event) map[string]any {
	data := map[string]any{"t_ms": e.TMs, "payload": payloadOf(e)}
	if e.Content != "" {
		data["content_type"] = e.Content
	}
	if e.FrameID != "" {
		data["frame_id"] = e.FrameID
	}
	if e.Confidence != 0 {
		data["confidence"] = e.Confidence
	}
	if e.Metadata != nil {
		data["metadata"] = e.Metadata
	}
	return data
}

func wantSession(e event) (delivery, bool) {
	return delivery{Type: e.Type, ID: e.id, Data: sessionData(e)}, true
}

func decodeSSE(r record) (delivery, error) {
	d := delivery{Type: r.Type, ID: r.ID}
	if r.Data == "" {
		return d, errors.New("it is empty: a blank line follows what is no event, a comment or a retry")
	}
	if err := json.Unmarshal([]byte(r.Data), &d.Data); err != nil {
		return d, fmt.Errorf("%w in %q", err, r.Data)
	}
	return d, nil
}

// ofSession returns the url of a path of the group's one session.
func ofSession(prefix, suffix string) func(g *group) string {
	return func(g *group) string {
		return prefix + url.PathEscape(g.logs[0].session) + suffix + "?from=start"
	}
}

func ofWorkflow(suffix string) func(g *group) string {
	return func(g *group) string { return "/v1/workflows/" + url.PathEscape(g.name) + suffix + "?from=start" }
}

// ofWorkspace returns the url of a path over the workspace, which other tests share.
func ofWorkspace(prefix string) func(g *group) string {
	return func(g *group) string {
		return prefix + "?from=start&" + url.QueryEscape("filters[run]") + "=" + url.QueryEscape(g.name)
	}
}

// ssePaths are the streams of Server-Sent Events, by the table of docs/api.md.
var ssePaths = []path{
	{
		name: "session", kind: "session", sessions: 1, sse: true, bound: true,
		url: ofSession("/v1/sessions/", "/events/stream"), want: wantSession, decode: decodeSSE,
	},
	{
		name: "workflow", kind: "session", sessions: 4, sse: true, bound: true,
		url: ofWorkflow("/events/stream"), want: wantWorkflow, decode: decodeSSE,
	},
	{
		name: "workspace", kind: "session", sessions: 4, sse: true, stamped: true, beats: true,
		url: ofWorkspace("/v1/stream"), want: wantPayload, decode: decodeSSE,
	},
	{
		name: "workspace-api", kind: "session", sessions: 3, sse: true, stamped: true, beats: true,
		url:  func(g *group) string { return ofWorkspace("/api/v1/stream")(g) + "&envelope=1" },
		want: wantPayloadEnvelope, decode: decodeSSE,
	},
	{
		name: "transcript", kind: "call", sessions: 1, sse: true, bound: true, anyToken: true, few: true,
		url: ofSession("/v1/calls/", "/transcript/stream"), want: wantTurn, decode: decodeSSE,
	},
	{
		name: "conversation", kind: "conversation", sessions: 1, sse: true, bound: true,
		url: ofSession("/v1/conversations/", "/stream"), want: wantConversation, decode: decodeSSE,
	},
}

// socketPaths are the WebSockets.
var socketPaths = []path{
	{
		name: "session", kind: "session", sessions: 1, bound: true,
		url: ofSession("/v1/sessions/", "/events/ws"), want: wantSession, decode: decodeMessage,
	},
	{
		name: "workflow", kind: "session", sessions: 4, bound: true,
		url: ofWorkflow("/events/ws"), want: wantMessageOfMany, decode: decodeMessage,
	},
	{
		name: "workspace", kind: "session", sessions: 4, stamped: true,
		url: ofWorkspace("/v1/stream/ws"), want: wantMessageOfMany, decode: decodeMessage,
	},
	{
		name: "call", kind: "call", sessions: 1, bound: true, anyToken: true,
		url: ofSession("/v1/calls/", "/stream"), want: wantWebhook, decode: decodeWebhook,
	},
}

// wantWorkflow is Nusomi's view of several sessions.
func wantWorkflow(e event) (delivery, bool) {
	data := sessionData(e)
	data["session_id"] = e.session
	return delivery{Type: e.Type, ID: e.id, Data: data}, true
}

// payloadOf is the payload as every view shows it.
func payloadOf(e event) any {
	if e.Base64 != "" {
		return e.Base64
	}
	return e.Payload
}

// wantPayload is Lanonasis's view: the payload is the data.
func wantPayload(e event) (delivery, bool) {
	return delivery{Type: e.Type, ID: e.id, Data: payloadOf(e)}, true
}

func wantPayloadEnvelope(e event) (delivery, bool) {
	return delivery{Type: e.Type, ID: e.id, Data: map[string]any{"event": e.Type, "id": e.id, "data": payloadOf(e)}}, true
}

// wantTurn is Voicebip's view of a call: its turns, unnamed.
func wantTurn(e event) (delivery, bool) {
	var turn struct {
		Role, Text string
		TurnID     string `json:"turn_id"`
		IsFinal    *bool  `json:"is_final"`
	}
	if json.Unmarshal(e.Payload, &turn) != nil {
		return delivery{}, false
	}
	switch e.Type {
	case "transcript.turn":
	case "call.transcription":
		turn.Role = "user"
	case "call.agent_response":
		turn.Role = "agent"
	default:
		return delivery{}, false
	}
	if turn.TurnID == "" {
		turn.TurnID = e.id
	}
	return delivery{Type: "message", ID: e.id, Data: map[string]any{
		"role": turn.Role, "text": turn.Text, "turn_id": turn.TurnID, "is_final": turn.IsFinal == nil || *turn.IsFinal, "ts": present{},
	}}, true
}

// envelope is what webhooks, conversations and call sockets carry an event in.
func envelope(e event) map[string]any {
	data := map[string]any{
		"event_id": e.id, "event_type": e.Type, "session_id": e.session, "created_at": present{}, "payload": payloadOf(e),
	}
	if e.Content != "" {
		data["content_type"] = e.Content
	}
	return data
}

func wantConversation(e event) (delivery, bool) {
	return delivery{Type: "message", ID: e.id, Data: envelope(e)}, true
}

func wantWebhook(e event) (delivery, bool) {
	data := envelope(e)
	data["workspace_id"] = present{}
	return delivery{Type: e.Type, ID: e.id, Data: data}, true
}

func wantMessageOfMany(e event) (delivery, bool) {
	return delivery{Type: e.Type, ID: e.id, Session: e.session, Data: sessionData(e)}, true
}

// decodeMessage reads a frame of the generic WebSockets.
func decodeMessage(r record) (delivery, error) {
	var m struct {
		Type    string `json:"type"`
		ID      string `json:"id"`
		Session string `json:"session_id"`
		Cursor  string `json:"cursor"`
		Data    any    `json:"data"`
	}
	in := json.NewDecoder(strings.NewReader(r.Data))
	in.DisallowUnknownFields()
	if err := in.Decode(&m); err != nil {
		return delivery{}, fmt.Errorf("%w in %q", err, r.Data)
	}
	return delivery{Type: m.Type, ID: m.ID, Session: m.Session, Data: m.Data}, nil
}

// decodeWebhook reads a frame of a call's WebSocket.
func decodeWebhook(r record) (delivery, error) {
	var m map[string]any
	if err := json.Unmarshal([]byte(r.Data), &m); err != nil {
		return delivery{}, fmt.Errorf("%w in %q", err, r.Data)
	}
	id, _ := m["event_id"].(string)
	kind, _ := m["event_type"].(string)
	return delivery{Type: kind, ID: id, Data: m}, nil
}

// size is how many events of the log the path carries.
func (g *group) size() int {
	n := 0
	for _, l := range g.logs {
		for _, e := range l.events {
			if _, ok := g.path.want(e); ok {
				n++
			}
		}
	}
	return n
}

// got returns the events that a client got, without heartbeats where those are events.
func (g *group) got(f *follower) []record {
	kind := "event"
	if !g.path.sse {
		kind = "frame"
	}
	return slices.DeleteFunc(f.of(kind), func(r record) bool { return g.path.beats && r.Type == "heartbeat" })
}

// awaitAll waits until a client got as many events as the log has for it.
func (g *group) awaitAll(t *testing.T, f *follower, within time.Duration) {
	t.Helper()
	eventually(t, within, f.client+" has the whole log", func() error {
		got, want := len(g.got(f)), g.size()
		if got >= want {
			return nil
		}
		err := fmt.Errorf("%d of %d events; last: %s", got, want, f.last())
		if len(f.of("end"))+len(f.of("fault")) > 0 {
			t.Fatalf("%s ended: %v", f.client, err)
		}
		return err
	})
}

// check compares what a client got with the log: per session the same events, in the same
// order, each once, and nothing else.
func (g *group) check(t *testing.T, got []record) {
	t.Helper()
	p := g.path
	kind := "event"
	if !p.sse {
		kind = "frame"
	}
	session := make(map[string]string)
	want := make(map[string][]delivery)
	total := g.size()
	for _, l := range g.logs {
		for _, e := range l.events {
			if d, ok := p.want(e); ok {
				d.Data = jsonOf(t, d.Data)
				session[e.id] = l.session
				want[l.session] = append(want[l.session], d)
			}
		}
	}
	seen := make(map[string]int)
	for i, r := range got {
		d, err := p.decode(r)
		if err != nil {
			t.Fatalf("%s %d: %v", kind, i, err)
		}
		d.ID, _, _ = strings.Cut(d.ID, "~") // the other partitions' positions
		s, ok := session[d.ID]
		if !ok {
			t.Fatalf("%s %d is none of the log: %+v", kind, i, d)
		}
		n := seen[s]
		if n >= len(want[s]) {
			t.Fatalf("%s %d comes after the end of %s: %+v", kind, i, s, d)
		}
		w := want[s][n]
		if d.ID != w.ID {
			t.Fatalf("%s %d is event %s of %s, want %s, its number %d", kind, i, d.ID, s, w.ID, n)
		}
		if d.Type != w.Type || d.Session != w.Session || !matches(w.Data, d.Data) {
			t.Fatalf("%s %d = %+v\nwant %+v", kind, i, d, w)
		}
		seen[s]++
	}
	if len(got) != total {
		t.Fatalf("%d %ss, want %d", len(got), kind, total)
	}
}

// jsonOf returns v as it looks after a journey as JSON, with every present kept.
func jsonOf(t *testing.T, v any) any {
	t.Helper()
	if m, ok := v.(map[string]any); ok {
		out := make(map[string]any, len(m))
		for name, value := range m {
			out[name] = jsonOf(t, value)
		}
		return out
	}
	if v == (present{}) {
		return v
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// matches compares decoded JSON; a present in want takes anything but null and "".
func matches(want, got any) bool {
	w, ok := want.(map[string]any)
	if !ok {
		if want == (present{}) {
			return got != nil && got != ""
		}
		return reflect.DeepEqual(want, got)
	}
	g, ok := got.(map[string]any)
	if !ok || len(g) != len(w) {
		return false
	}
	for name, value := range w {
		v, ok := g[name]
		if !ok || !matches(value, v) {
			return false
		}
	}
	return true
}
