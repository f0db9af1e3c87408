package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// guarded is a node of which everything is on record that it logs and that it asks
// ClickHouse, with two workspaces: the one of devKey, and a stranger's.
type guarded struct {
	parts
	*server
	store      *control.Store
	statements *statements

	stranger string // a key of the other workspace, with every scope
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{parts: startParts(t), statements: &statements{}}
	p := g.parts
	p.dsn = g.statements.before(t, p.dsn)
	g.server = p.serveWith(t, "", "log:\n  level: debug\nhttp:\n  cors:\n    allowed_origins: [\"https://*.example.com\"]\n")

	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{p.brokers}
	var err error
	if g.store, err = control.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.store.Close)
	if _, err := g.store.ChangeLimits(t.Context(), "ws_default", func(l *control.Limits) { *l = control.Unlimited() }); err != nil {
		t.Fatal(err)
	}
	if _, err := g.store.CreateWorkspace(t.Context(), control.Workspace{ID: "ws_stranger", Limits: control.Unlimited()}); err != nil {
		t.Fatal(err)
	}
	g.stranger = g.key(t, control.KeySpec{Workspace: "ws_stranger", Scopes: control.AllScopes})
	for _, key := range []string{g.server.key, g.stranger} {
		eventually(t, 20*time.Second, "the node knows the key", func() error {
			if a := g.ask(t, "GET", "/v1/limits", key, "", nil); a.status != 200 || a.header.Get("X-Ratelimit-Limit") != "" {
				return fmt.Errorf("%d %s", a.status, a.body)
			}
			return nil
		})
	}
	return g
}

func (g *guarded) key(t *testing.T, spec control.KeySpec) string {
	t.Helper()
	_, text, err := g.store.CreateKey(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestHostileClients has hostile clients at one node.
func TestHostileClients(t *testing.T) {
	g := startGuarded(t)
	t.Run("foreign things are as if they were not", func(t *testing.T) { checkForeign(t, g) })
	t.Run("text from outside stays text", func(t *testing.T) { checkText(t, g) })
	t.Run("ClickHouse is asked for no more than is granted", func(t *testing.T) { checkGrants(t, g) })
	t.Run("keys are nowhere", func(t *testing.T) { checkKeysAreNowhere(t, g) }) // stops the node
}

// reply is an answer as it came.
type reply struct {
	status int
	header http.Header
	body   string // of a stream that has no end, nothing
}

// ask sends a request and reads the answer, of a stream only if close=end is asked for.
func (g *guarded) ask(t *testing.T, method, path, key, body string, header http.Header) reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, g.url(path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	a := reply{status: res.StatusCode, header: res.Header}
	if res.StatusCode == http.StatusSwitchingProtocols ||
		strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") && !strings.Contains(path, "close=end") {
		return a
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	a.body = string(b)
	return a
}

// raw sends bytes as they are and returns all that comes back until the connection ends.
func (g *guarded) raw(t *testing.T, request string) string {
	t.Helper()
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(nc, request); err != nil {
		t.Fatal(err)
	}
	_ = nc.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(nc) // a reset is an end as well
	return string(b)
}

// route is a path of the API's documentation, with {id} or {name} in it.
type route struct{ method, path string }

var documented = regexp.MustCompile("`(?:([A-Z]+) )?(/[^ `?]*)`")

// routes are all paths that docs/api.md lists.
func routes(t *testing.T) []route {
	t.Helper()
	b, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "| path | scope | what |\n| --- | --- | --- |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var out []route
	for line := range strings.Lines(table) {
		method := ""
		for _, m := range documented.FindAllStringSubmatch(strings.Split(line, "|")[1], -1) {
			if m[1] != "" {
				method = m[1]
			}
			out = append(out, route{method, m[2]})
		}
	}
	if !found || len(out) < 40 {
		t.Fatalf("docs/api.md lists %d paths; want all of them", len(out))
	}
	return out
}

// fill puts id in the place of the path's parameter.
func (r route) fill(id string) string {
	open, after := strings.IndexByte(r.path, '{'), strings.IndexByte(r.path, '}')
	if open < 0 {
		return r.path
	}
	return r.path[:open] + url.PathEscape(id) + r.path[after+1:]
}

// checkForeign asks with a stranger's key for what there is, and for what there is nowhere:
// the answers are the same.
func checkForeign(t *testing.T, g *guarded) {
	owner := g.server.key
	var session struct {
		ID string `json:"first_event_id"`
	}
	for _, kind := range []string{"call", "conversation"} {
		if a := g.ask(t, "POST", "/v1/sessions", owner, fmt.Sprintf(`{"id":"of-%s","kind":%q,"workflow_id":"flow"}`, kind, kind), nil); a.status != 201 {
			t.Fatalf("create a session: %d %s", a.status, a.body)
		}
		g.server.append("of-"+kind, `{"type":"transcript.turn","payload":{"text":"confidential"}}`)
	}
	if err := json.Unmarshal([]byte(g.ask(t, "GET", "/v1/sessions/of-call", owner, "", nil).body), &session); err != nil || session.ID == "" {
		t.Fatalf("the session has no event: %v", err)
	}
	event, err := schema.ParseEventID(session.ID)
	if err != nil {
		t.Fatal(err)
	}
	nowhere := event
	nowhere.Offset += 1 << 30
	key := g.store.Keys("ws_default")[0].ID
	live := g.server.open("/v1/sessions/of-call/events/stream", owner, "")

	normal := regexp.MustCompile(`"(request_id|nextCursor)":"[^"]*"`) // a cursor is of its question
	for _, r := range routes(t) {
		there, absent := "of-call", ""
		switch {
		case !strings.Contains(r.path, "{"):
			continue // the whole of the key's own workspace
		case r == route{"POST", "/v1/sessions/{id}/events"}, strings.Contains(r.path, "/event-types/"):
			continue // makes one of that name in the workspace of the key
		case strings.HasPrefix(r.path, "/v1/conversations"):
			there = "of-conversation"
		case strings.HasPrefix(r.path, "/v1/workflows"):
			there = "flow"
		case strings.HasPrefix(r.path, "/v1/events/"):
			there, absent = session.ID, nowhere.String()
		case strings.HasPrefix(r.path, "/v1/keys"):
			there = key
		case strings.HasPrefix(r.path, "/v1/streams"):
			there = live.res.Header.Get("X-Connection-Id")
		case strings.HasPrefix(r.path, "/admin/v1/workspaces"):
			there = "ws_default"
		case strings.HasPrefix(r.path, "/admin/v1/dead-letters"):
			continue // there are none; TestDeadLettersAreListedToWhomTheyConcern
		}
		if absent == "" { // of the same form, and of the same node
			last := map[bool]string{true: "1", false: "0"}[strings.HasSuffix(there, "0")]
			absent = there[:len(there)-1] + last
		}
		body := ""
		if strings.HasSuffix(r.path, "/commands") {
			body = `{"op":"cancel","reason":"x"}`
		}
		header := http.Header{}
		if strings.HasSuffix(r.path, "/ws") || r.path == "/v1/calls/{id}/stream" {
			header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
		}
		a, b := g.ask(t, r.method, r.fill(there), g.stranger, body, header), g.ask(t, r.method, r.fill(absent), g.stranger, body, header)
		for _, x := range []*reply{&a, &b} {
			x.body = normal.ReplaceAllString(x.body, "")
			for _, name := range []string{"X-Request-Id", "Date", "X-Connection-Id", "X-Playhead-Cursor", "Sec-Websocket-Accept"} {
				x.header.Del(name)
			}
		}
		if a.status != b.status || a.body != b.body || fmt.Sprint(a.header) != fmt.Sprint(b.header) {
			t.Errorf("%s %s: a stranger sees %d %s %v of what there is, %d %s %v of what there is not",
				r.method, r.path, a.status, a.body, a.header, b.status, b.body, b.header)
		}
		if strings.Contains(a.body, "confidential") || a.status >= 500 || a.status < 300 && !strings.HasPrefix(r.path, "/v1/workflows") {
			t.Errorf("%s %s: a stranger is answered %d %s", r.method, r.path, a.status, a.body)
		}
		if r.method == "GET" && len(header) == 0 && !strings.HasPrefix(r.path, "/admin") {
			if own := g.ask(t, "GET", r.fill(there), owner, "", nil); own.status != 200 {
				t.Errorf("GET %s: the owner is answered %d %s; the test is of no use", r.path, own.status, own.body)
			}
		}
	}
	g.server.append("of-call", `{"type":"transcript.turn","payload":{}}`)
	if f, ok := live.next(20 * time.Second); !ok || f.event != "transcript.turn" {
		t.Errorf("after a stranger's commands the owner's stream says %+v", f)
	}
}

// statements stand between a node and ClickHouse and write down what it is asked.
type statements struct {
	mu   sync.Mutex // guards seen
	seen map[string]bool
}

// before puts them before the server of a DSN and returns the DSN to give to the node.
func (s *statements) before(t *testing.T, dsn string) string {
	t.Helper()
	target, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: target.Scheme, Host: target.Host})
	proxy.Transport = &http.Transport{} // what ClickHouse answers is not held against our document
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := r.URL.Query().Get("query")
		if text == "" { // else the body is rows
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			text = string(b)
			r.Body = io.NopCloser(bytes.NewReader(b))
		}
		s.mu.Lock()
		if s.seen == nil {
			s.seen = make(map[string]bool)
		}
		s.seen[text] = true
		s.mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	proxied := *target
	proxied.Host = strings.TrimPrefix(server.URL, "http://")
	return proxied.String()
}

// all returns the statements so far, each once.
func (s *statements) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for text := range s.seen {
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}
