package streamer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/schema"
)

// tenant is one workspace of the isolation tests. All tenants use the same session and
// workflow ids, beside some of their own; every event of a tenant carries its mark in
// payload, type, metadata, frame, message id and, for some, session and workflow.
type tenant struct {
	workspace, mark string
	sessions        []string
	workflows       []string
	events          []*schema.Event
}

// world is several tenants on one log and the keys there are.
type world struct {
	*env
	rng     *rand.Rand
	tenants []*tenant
	keys    fakeKeys
	names   []string // of keys
	kinds   map[string]string
	flows   map[string]string // workspace/session: its workflow
	byID    map[string]*schema.Event
}

func newWorld(t *testing.T, seed uint64) *world {
	cfg := testConfig()
	cfg.Tape.MaxBytes = 6_000 // some 20 events: most are read from Kafka or history
	w := &world{
		env: startEnv(t, cfg, 8), rng: rand.New(rand.NewPCG(seed, 99)), keys: fakeKeys{},
		kinds: map[string]string{}, flows: map[string]string{}, byID: map[string]*schema.Event{},
	}
	for i := range 3 {
		mark := fmt.Sprintf("Mk%dxQz%dYw", i, w.rng.IntN(1000))
		tn := &tenant{workspace: fmt.Sprint("ws", i), mark: mark}
		for s := range 6 {
			tn.sessions = append(tn.sessions, fmt.Sprint("shared", s))
		}
		tn.sessions = append(tn.sessions, "ses-"+mark, "call-"+mark, "talk-"+mark)
		tn.workflows = []string{"flow", "flow-" + mark}
		w.tenants = append(w.tenants, tn)
		var made []*schema.Event
		for n, s := range tn.sessions {
			kind := []string{schema.KindSession, schema.KindCall, schema.KindConversation}[(n+i)%3]
			switch { // of its own ids the kind is known by name
			case strings.HasPrefix(s, "call-"):
				kind = schema.KindCall
			case strings.HasPrefix(s, "talk-"):
				kind = schema.KindConversation
			}
			flow := []string{"", "flow", "flow-" + mark}[w.rng.IntN(3)]
			w.kinds[tn.workspace+"/"+s], w.flows[tn.workspace+"/"+s] = kind, flow
			e := ofKind(s, kind)
			e.Workspace, e.Workflow = tn.workspace, flow
			made = append(made, e)
		}
		w.produce(made...)
		add := func(p control.Principal) {
			name := fmt.Sprintf("key-%d-%d", i, len(w.names))
			p.Workspace, p.KeyID = tn.workspace, name
			w.keys[name] = p
			w.names = append(w.names, name)
		}
		for _, scopes := range []control.Scopes{control.ScopeRead, control.AllScopes, control.ScopeIngest, control.ScopeControl | control.ScopeRead} {
			add(control.Principal{Scopes: scopes})
			add(control.Principal{Scopes: scopes, Session: tn.sessions[w.rng.IntN(len(tn.sessions))]})
			add(control.Principal{Scopes: scopes, Workflow: tn.workflows[w.rng.IntN(2)]})
		}
	}
	return w
}

// say appends n events of random tenants and sessions.
func (w *world) say(n int) {
	types := []string{"click", typeTurn, typeTranscription, "init", "message.created"}
	var events []*schema.Event
	for range n {
		tn := w.tenants[w.rng.IntN(len(w.tenants))]
		s := tn.sessions[w.rng.IntN(len(tn.sessions))]
		e := newEvent(s, types[w.rng.IntN(len(types))], "")
		if w.rng.IntN(4) == 0 {
			e.Type = "t." + tn.mark
		}
		e.Workspace, e.Workflow, e.TMs = tn.workspace, w.flows[tn.workspace+"/"+s], int64(w.rng.IntN(1000))
		e.Payload = fmt.Appendf(nil, `{"role":"%s","text":"%s"}`, tn.mark, tn.mark)
		if w.rng.IntN(5) == 0 {
			e.ContentType, e.Payload = "audio/"+tn.mark, []byte(tn.mark+tn.mark)
		}
		e.FrameID, e.Metadata = tn.mark, map[string]string{"k": tn.mark, tn.mark: "v"}
		tn.events = append(tn.events, e)
		events = append(events, e)
	}
	w.produce(events...)
	for _, e := range events {
		w.byID[e.ID.String()] = e
	}
}

// position returns a position of a tenant, in any of the forms clients hold.
func (w *world) position(tn *tenant) string {
	e := tn.events[w.rng.IntN(len(tn.events))]
	c := schema.Cursor{ID: e.ID}
	if w.rng.IntN(2) == 0 {
		for _, p := range w.placement.WorkspacePartitions(tn.workspace) {
			if p != e.ID.Partition {
				c.Others = append(c.Others, schema.NextOffset{Partition: p, Offset: w.rng.Int64N(w.ends[p] + 1)})
			}
		}
		slices.SortFunc(c.Others, func(a, b schema.NextOffset) int { return int(a.Partition) - int(b.Partition) })
	}
	if w.rng.IntN(5) == 0 {
		c.Filter = 7
	}
	return []string{"", "", "heartbeat_", "error_"}[w.rng.IntN(4)] + c.String()
}

// request is one request of the property test.
type isolationRequest struct {
	key    string
	view   *View
	id     string // of the path
	query  url.Values
	header string // Last-Event-ID
}

func (r *isolationRequest) path(id string) string {
	path := r.view.Paths[0]
	path = strings.Replace(path, ":id", url.PathEscape(id), 1)
	return path + "?" + r.query.Encode()
}

// random makes up a request: of any key, for any view, of an own, foreign or unknown id,
// from an own or foreign position, with any filter.
func (w *world) random() *isolationRequest {
	all := views()
	key := w.names[w.rng.IntN(len(w.names))]
	for range 2 { // most may listen, to something
		if p := w.keys[key]; !p.Scopes.Has(control.ScopeRead) || p.Session != "" || p.Workflow != "" {
			key = w.names[w.rng.IntN(len(w.names))]
		}
	}
	r := &isolationRequest{key: key, view: all[w.rng.IntN(len(all))], query: url.Values{}}
	anybody := func() *tenant { return w.tenants[w.rng.IntN(len(w.tenants))] }
	own := w.tenants[slices.IndexFunc(w.tenants, func(tn *tenant) bool { return tn.workspace == w.keys[r.key].Workspace })]
	some := func() *tenant {
		if w.rng.IntN(4) > 0 {
			return own
		}
		return anybody()
	}
	tn := some()
	switch r.view.Of {
	case OfSession:
		r.id = append(slices.Clone(tn.sessions), "nobody")[w.rng.IntN(len(tn.sessions)+1)]
		if w.rng.IntN(2) == 0 && w.keys[r.key].Session != "" {
			r.id = w.keys[r.key].Session
		}
	case OfWorkflow:
		r.id = append(slices.Clone(tn.workflows), "nobody")[w.rng.IntN(len(tn.workflows)+1)]
	case OfWorkspace:
	}
	switch w.rng.IntN(7) {
	case 0, 1:
		r.query.Set("from", "start")
	case 2:
		r.query.Set("last_event_id", w.position(some()))
	case 3:
		r.header = w.position(some())
	case 4:
		r.query.Set("since", "0")
	case 5:
		r.query.Set("from_t_ms", fmt.Sprint(w.rng.IntN(500)))
	}
	switch w.rng.IntN(6) {
	case 0:
		r.query.Set("type", "t."+anybody().mark+",click")
	case 1:
		r.query.Set("filters[k]", anybody().mark)
	case 2:
		r.query.Set("frame_id", anybody().mark)
	}
	if w.rng.IntN(3) == 0 {
		r.query.Set("notices", "1")
	}
	if r.view.Envelope != nil && w.rng.IntN(2) == 0 {
		r.query.Set("envelope", "1")
	}
	return r
}

// upgradeHead ask for a WebSocket.
var upgradeHead = []string{
	"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
}

func (w *world) dialRequest(r *isolationRequest, id string) (*client, error) {
	headers := []string{"X-Request-Id: same"}
	if r.header != "" {
		headers = append(headers, "Last-Event-ID: "+r.header)
	}
	if r.view.WebSocket {
		headers = append(headers, upgradeHead...)
	}
	return w.dial(r.path(id), r.key, headers...)
}

// answerText is all that an answer tells, but for its date.
func answerText(c *client) string {
	header := make(map[string][]string)
	for name, values := range c.header {
		if name != "Date" {
			header[name] = values
		}
	}
	text, _ := json.Marshal(header)
	return fmt.Sprintf("%d %s %s", c.status, text, c.body())
}

// masked is a text message as a client sends it.
func masked(text string) []byte {
	b := []byte{0x80 | opcodeText}
	if len(text) < 126 {
		b = append(b, 0x80|byte(len(text)))
	} else {
		b = append(b, 0x80|126, byte(len(text)>>8), byte(len(text)))
	}
	b = append(b, 0, 0, 0, 0) // a mask of zeros
	return append(b, text...)
}

// messageIDs finds the ids of the events in WebSocket messages; no payload here has any.
var messageIDs = regexp.MustCompile(`"(?:id|event_id)":"(evt_[0-9A-Z]{26})"`)

// No byte of a workspace reaches another, whatever is asked for; a bound key gets what it
// is bound to; and what is refused is refused as if it did not exist.
func TestWorkspacesAreIsolated(t *testing.T) {
	checkGoroutines(t)
	seeds, requests := 3, 150
	if raceEnabled {
		seeds, requests = 2, 80
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testIsolation(t, uint64(seed), requests) })
	}
}

func testIsolation(t *testing.T, seed uint64, requests int) {
	w := newWorld(t, seed)
	w.say(400)
	w.history.setWatermark(20)
	w.serveWith(w.keys, nil)
	type stream struct {
		*isolationRequest
		c *client
	}
	var open []stream
	refused := 0
	for range requests {
		r := w.random()
		c, err := w.dialRequest(r, r.id)
		if err != nil {
			t.Fatal(err)
		}
		if c.status == 200 || c.status == 101 {
			open = append(open, stream{r, c})
			continue
		}
		refused++
		body := answerText(c)
		c.close()
		w.checkNoForeignMark(r, []byte(body))
		if c.status != 404 && !(c.status == 403 && !w.keys[r.key].Scopes.Has(control.ScopeRead)) && c.status != 400 {
			t.Errorf("%s by %+v is answered %s", r.path(r.id), w.keys[r.key], body)
		}
		if c.status != 404 {
			continue
		}
		nobody, err := w.dialRequest(r, "nobody-at-all")
		if err != nil {
			t.Fatal(err)
		}
		if r.view.Of == OfSession {
			if text := answerText(nobody); text != body {
				t.Errorf("%s by %+v is told apart from what does not exist:\n%s\n%s", r.path(r.id), w.keys[r.key], body, text)
			}
		}
		nobody.close()
	}
	w.live(len(open))
	for i, s := range open {
		if s.view.WebSocket { // and by commands
			orders := []string{
				fmt.Sprintf(`{"op":"seek","ref":%d,"last_event_id":%q}`, i, w.position(w.tenants[w.rng.IntN(3)])),
				fmt.Sprintf(`{"op":"subscribe","ref":%d,"from":"start","type":["t.%s","click"]}`, i, w.tenants[w.rng.IntN(3)].mark),
			}
			if _, err := s.c.nc.Write(masked(orders[w.rng.IntN(2)])); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.say(200)
	w.live(len(open))
	var wg sync.WaitGroup
	outputs := make([][]byte, len(open))
	for i, s := range open {
		wg.Go(func() { outputs[i], _ = io.ReadAll(s.c.br) })
	}
	eventually(t, "what was appended is delivered", func() bool { return w.atRest() })
	w.closeHub()
	for _, s := range open {
		s.c.close()
	}
	wg.Wait()
	delivered := 0
	for i, s := range open {
		delivered += w.checkOutput(s.isolationRequest, outputs[i])
	}
	t.Logf("%d streams got %d events, %d requests were refused", len(open), delivered, refused)
	if delivered == 0 || refused == 0 {
		t.Error("nothing was tested")
	}
}

// atRest reports whether every stream has passed the end of its partitions and rests.
func (w *world) atRest() bool {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for _, s := range w.hub.subs {
		if s.sched.Load() != resting {
			return false
		}
	}
	w.env.mu.Lock()
	defer w.env.mu.Unlock()
	for p, end := range w.ends {
		if t, err := w.tapes.Open(w.t.Context(), p); err != nil || t.Next() < end {
			return false
		}
	}
	return true
}

// checkNoForeignMark looks for another tenant's mark, plain and in base64, in what a
// request was answered; what the client said itself does not count.
func (w *world) checkNoForeignMark(r *isolationRequest, out []byte) {
	w.t.Helper()
	said := r.path(r.id) + r.header
	for _, tn := range w.tenants {
		if tn.workspace == w.keys[r.key].Workspace {
			continue
		}
		inBase64 := base64.StdEncoding.EncodeToString([]byte(tn.mark + tn.mark))
		for _, mark := range []string{tn.mark, inBase64[:12]} {
			if bytes.Contains(out, []byte(mark)) && !strings.Contains(said, mark) {
				w.t.Errorf("%s by %+v shows %s of %s:\n%.2000s", r.path(r.id), w.keys[r.key], mark, tn.workspace, out)
			}
		}
	}
}

// checkOutput judges all that a stream has sent, and returns how many events there were.
func (w *world) checkOutput(r *isolationRequest, out []byte) int {
	w.t.Helper()
	who := w.keys[r.key]
	for _, tn := range w.tenants {
		if tn.workspace != who.Workspace && bytes.Contains(out, []byte(tn.mark)) {
			w.t.Errorf("%s by %+v shows the mark of %s:\n%.2000s", r.path(r.id), who, tn.workspace, out)
		}
	}
	scope := r.view.scope(who.Workspace, r.id)
	ids := sentIDs(w.t, r, out)
	for _, id := range ids {
		e := w.byID[id]
		if e == nil || !scope.Holds(e) || !who.MaySee(e.Session, w.flows[e.Workspace+"/"+e.Session]) {
			w.t.Errorf("%s by %+v shows %s: %+v", r.path(r.id), who, id, e)
		}
	}
	return len(ids)
}

// sentIDs returns the ids of the events that a stream sent.
func sentIDs(t testing.TB, r *isolationRequest, out []byte) (ids []string) {
	t.Helper()
	if r.view.WebSocket {
		for _, m := range messageIDs.FindAllSubmatch(out, -1) {
			ids = append(ids, string(m[1]))
		}
		return ids
	}
	blocks, err := parseSSE(out)
	if err != nil {
		t.Errorf("%s: %v", r.path(r.id), err)
	}
	for _, b := range blocks {
		if b.hasData && b.hasID && b.event != "heartbeat" && b.event != "error" {
			id, _, _ := strings.Cut(b.id, "~")
			ids = append(ids, id)
		}
	}
	return ids
}

// Bound keys, exhaustively: a key sees the sessions it is bound to by every path, and
// nothing by any other.
func TestBoundKeysSeeWhatTheyAreBoundTo(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 4)
	e.produce(ofKind("phone", schema.KindCall), ofKind("talk", schema.KindConversation))
	e.produce(withWorkflow("flow", said("in", "a", `1`, 1), said("phone", "a", `1`, 1))...)
	e.produce(said("out", "a", `1`, 1), said("talk", "a", `1`, 1))
	all := control.AllScopes
	e.serveWith(fakeKeys{
		"session":  {Workspace: "w", KeyID: "k1", Scopes: all, Session: "in"},
		"call":     {Workspace: "w", KeyID: "k2", Scopes: all, Session: "phone"},
		"workflow": {Workspace: "w", KeyID: "k3", Scopes: all, Workflow: "flow"},
		"both":     {Workspace: "w", KeyID: "k4", Scopes: all, Session: "talk", Workflow: "flow"}, // which talk is not of
		"free":     {Workspace: "w", KeyID: "k5", Scopes: all},
	}, nil)
	may := map[string]string{ // path: the keys that may
		"/v1/sessions/in/events/stream":       "session workflow free",
		"/v1/sessions/out/events/stream":      "free",
		"/v1/sessions/phone/events/stream":    "call workflow free",
		"/v1/sessions/talk/events/stream":     "free",
		"/v1/calls/phone/transcript/stream":   "call workflow free",
		"/v1/conversations/talk/stream":       "free",
		"/v1/workflows/flow/events/stream":    "workflow free",
		"/v1/workflows/other/events/stream":   "free",
		"/v1/stream":                          "free",
		"/api/v1/stream":                      "free",
		"/v1/sessions/in/events/ws":           "session workflow free",
		"/v1/sessions/out/events/ws":          "free",
		"/v1/workflows/flow/events/ws":        "workflow free",
		"/v1/workflows/other/events/ws":       "free",
		"/v1/stream/ws":                       "free",
		"/v1/calls/phone/stream":              "call workflow free",
		"/v1/sessions/nobody/events/stream":   "",
		"/v1/calls/in/transcript/stream":      "",
		"/v1/conversations/in/stream":         "",
		"/v1/sessions/IN/events/stream":       "",
		"/v1/sessions/in%2F/events/stream":    "",
		"/v1/sessions/in%00/events/stream":    "",
		"/v1/sessions/../in/events/stream":    "",
		"/v1/sessions/%2e%2e/events/stream":   "",
		"/v1/workflows/flow%20/events/stream": "",
	}
	for path, keys := range may {
		for _, key := range []string{"session", "call", "workflow", "both", "free"} {
			var headers []string
			want := 404
			if slices.Contains(strings.Fields(keys), key) {
				want = 200
			}
			if strings.HasSuffix(path, "/ws") || path == "/v1/calls/phone/stream" {
				headers = upgradeHead
				if want == 200 {
					want = 101
				}
			}
			c := e.get(path, key, headers...)
			if c.status != want {
				t.Errorf("%s by key %s = %d, want %d", path, key, c.status, want)
			}
			c.close()
		}
	}
}

// What a position of partitions that are not the caller's is answered tells nothing of
// them: not where they end, nor whether there is anything.
func TestForeignPositionsTellNothing(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 16)
	foreign := newEvent("x", "a", "")
	foreign.Workspace = "other"
	e.produce(newEvent("s", "a", ""), foreign)
	own := e.placement.WorkspacePartitions("w")
	for i := range 50 { // some partition of the other is not one of ours
		ev := newEvent(fmt.Sprint("x", i), "a", "")
		ev.Workspace = "other"
		e.produce(ev)
	}
	e.serveWith(limitKeys, nil)
	used, unused := -1, -1
	for p := range uint16(16) {
		switch {
		case slices.Contains(own, p):
		case e.ends[p] > 0:
			used = int(p)
		default:
			unused = int(p)
		}
	}
	if used < 0 || unused < 0 {
		t.Skipf("the workspaces lie in the same partitions: %v", own)
	}
	ask := func(path string, p int, offset int64) string {
		id := schema.EventID{Position: schema.Position{Epoch: 1, Partition: uint16(p), Offset: offset}, TimeMs: time.Now().UnixMilli()}
		c := e.get(path+"?last_event_id="+id.String(), "one", "X-Request-Id: same")
		defer c.close()
		if c.status != 400 {
			t.Errorf("%s from partition %d, offset %d = %d, want 400", path, p, offset, c.status)
		}
		return answerText(c)
	}
	for _, path := range []string{"/v1/sessions/s/events/stream", "/v1/stream", "/v1/workflows/flow/events/stream"} {
		want := ask(path, unused, 0)
		for _, got := range []string{ask(path, unused, 1<<30), ask(path, used, 0), ask(path, used, e.ends[uint16(used)]+5)} {
			if got != want {
				t.Errorf("%s: positions of others are told apart:\n%s\n%s", path, got, want)
			}
		}
	}
	// A cursor that names others' partitions beside one's own goes by one's own.
	c := schema.Cursor{ID: e.visible["s"][0].ID}
	for _, p := range []int{used, unused} {
		c.Others = append(c.Others, schema.NextOffset{Partition: uint16(p), Offset: 1 << 40})
	}
	slices.SortFunc(c.Others, func(a, b schema.NextOffset) int { return int(a.Partition) - int(b.Partition) })
	s := e.get("/v1/stream?last_event_id="+c.String(), "one")
	defer s.close()
	if s.status != 200 {
		t.Errorf("a cursor with others' partitions is answered %d %s", s.status, s.body())
	}
}

// Unknown and foreign sessions take the same time, by order of magnitude.
func TestForeignAndUnknownTakeTheSameTime(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 4)
	const n = 60
	var events []*schema.Event
	for i := range n {
		ev := newEvent(fmt.Sprint("foreign", i), "a", "")
		ev.Workspace = "other"
		events = append(events, ev)
	}
	e.produce(events...)
	e.produce(newEvent("s", "a", ""))
	e.serveWith(limitKeys, nil)
	e.get("/v1/stream?from=start", "one").close() // its tapes are there
	medianOf := func(prefix string) time.Duration {
		var took []time.Duration
		for i := range n {
			began := time.Now()
			c := e.get(fmt.Sprintf("/v1/sessions/%s%d/events/stream", prefix, i), "one")
			took = append(took, time.Since(began))
			if c.status != 404 {
				t.Fatalf("%s%d = %d", prefix, i, c.status)
			}
			c.close()
		}
		slices.Sort(took)
		return took[n/2]
	}
	foreign, unknown := medianOf("foreign"), medianOf("unknown")
	t.Logf("foreign %v, unknown %v", foreign, unknown)
	if foreign > 5*unknown || unknown > 5*foreign {
		t.Errorf("a foreign session takes %v, an unknown one %v", foreign, unknown)
	}
}

// The id of a stream does not tell how many there are.
func TestIDsOfStreamsAreNoNumbers(t *testing.T) {
	h := &Hub{node: newNodeID()}
	seen := make(map[string]bool)
	for range 1000 {
		id, ok := strings.CutPrefix(h.newID(), idPrefix+h.node)
		if !ok || len(id) != ownIDLen || seen[id] {
			t.Fatalf("id %s after %d others", id, len(seen))
		}
		seen[id] = true
	}
	if schema.CheckID(h.newID()) != nil || (&Hub{node: h.node}).mayBeElsewhere(h.newID()) {
		t.Error("the node does not know its own ids")
	}
}
