package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/playhead-dev/playhead/schema"
)

// fault is what goes wrong with one request.
type fault int

const (
	noFault        fault = iota
	resetBefore          // the connection ends before the server took anything
	resetAfter           // the server took all, then the connection ends
	cutAnswer            // the server took all, the answer stops halfway
	busy                 // 503 with Retry-After, nothing taken
	tooFast              // 429, nothing taken
	broken               // 500, all taken
	half                 // 503, the first half taken
	halfItems            // 207, the second half failed, to be retried
	badGatewayHTML       // 502 of a proxy
	faultKinds
	overQuota // 429 with Retry-After, nothing taken; takes a second
)

// fakeServer imitates POST /v1/events: a log per session, dedupe by message id for ever,
// and whatever goes wrong by order of the test.
type fakeServer struct {
	t *testing.T

	// fault decides about the n-th request (from 1) that carries events. May be nil. It is
	// set before the server starts.
	fault func(n int) fault
	// refuse says why an event is not taken; "" takes it. May be nil.
	refuse func(sentEvent) (code string)
	// refuseBatch answers 400 for a whole batch that holds an event it is true of.
	refuseBatch func(sentEvent) bool

	mu       sync.Mutex
	requests int
	events   int                    // offered, in requests that were read
	byID     map[string]string      // session and message id -> event id
	logs     map[string][]sentEvent // by session
	serving  map[*http.Request]sentBatch
	keys     map[string]bool // Authorization headers seen
}

// sentBatch is a request being served.
type sentBatch struct {
	text     string
	sessions map[string]bool
}

type sentEvent struct {
	Session string          `json:"session_id"`
	Message string          `json:"message_id"`
	Payload json.RawMessage `json:"payload"`
}

func newFakeServer(t *testing.T) *fakeServer {
	return &fakeServer{
		t: t, byID: map[string]string{}, logs: map[string][]sentEvent{},
		serving: map[*http.Request]sentBatch{}, keys: map[string]bool{},
	}
}

// start serves until the test ends and returns the base URL.
func (f *fakeServer) start() string {
	server := httptest.NewServer(f)
	f.t.Cleanup(server.Close)
	return server.URL
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(workspaceHeader, "ws_test")
	if r.Method != http.MethodPost || r.URL.Path != "/v1/events" || r.URL.RawQuery != "dedupe=history&lane=backfill" {
		f.t.Errorf("request = %s %s", r.Method, r.URL)
	}
	if got := r.Header.Get("Content-Type"); got != "application/x-ndjson" {
		f.t.Errorf("content type = %q", got)
	}
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "zstd" {
		z, err := zstd.NewReader(r.Body)
		if err != nil {
			f.t.Error(err)
			return
		}
		defer z.Close()
		body = z
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return // the client is gone
	}
	if len(text) == 0 {
		answer(w, 400, errorBody("empty_body", "the body is empty"))
		return
	}
	events := decodeLines(f.t, text)

	n, release := f.enter(r, string(text), events)
	defer release()
	what := noFault
	if f.fault != nil {
		what = f.fault(n)
	}
	switch what {
	case resetBefore:
		panic(http.ErrAbortHandler)
	case busy:
		w.Header().Set("Retry-After", "0")
		answer(w, 503, errorBody("shutting_down", "This node is shutting down."))
		return
	case overQuota:
		w.Header().Set("Retry-After", "1")
		answer(w, 429, errorBody("rate_limited", "Too many events."))
		return
	case tooFast:
		answer(w, 429, errorBody("rate_limited", "Too many requests."))
		return
	case badGatewayHTML:
		w.WriteHeader(502)
		fmt.Fprint(w, "<html>Bad gateway</html>")
		return
	case half:
		f.take(events[:len(events)/2])
		answer(w, 503, errorBody("log_unavailable", "The log took a part only."))
		return
	case halfItems:
		taken := len(events) / 2
		results := f.take(events[:taken])
		for range events[taken:] {
			results = append(results, result{Error: &itemError{Code: "log_unavailable", Message: "The log did not answer."}})
		}
		answer(w, 207, map[string]any{"results": results})
		return
	}
	if f.refuseBatch != nil && slices.ContainsFunc(events, f.refuseBatch) {
		answer(w, 400, errorBody("invalid_field", "one of them is wrong"))
		return
	}
	results := f.take(events)
	switch what {
	case resetAfter:
		panic(http.ErrAbortHandler)
	case broken:
		answer(w, 500, errorBody("internal_error", "Something went wrong."))
	case cutAnswer:
		whole, err := json.Marshal(map[string]any{"results": results})
		if err != nil {
			f.t.Error(err)
		}
		_, _ = w.Write(whole[:len(whole)/2])
	default:
		status := 200
		if slices.ContainsFunc(results, func(r result) bool { return r.Error != nil }) {
			status = 207
		}
		answer(w, status, map[string]any{"results": results})
	}
}

// enter counts a request and checks that no other one carries any of its sessions. Only
// the same batch may come again while the server still serves an attempt whose connection
// has ended.
func (f *fakeServer) enter(r *http.Request, text string, events []sentEvent) (n int, release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests++
	f.events += len(events)
	f.keys[r.Header.Get("Authorization")] = true
	b := sentBatch{text: text, sessions: map[string]bool{}}
	for _, e := range events {
		b.sessions[e.Session] = true
	}
	for _, other := range f.serving {
		if other.text == text {
			continue
		}
		for s := range b.sessions {
			if other.sessions[s] {
				f.t.Errorf("session %s is in two requests at once", s)
			}
		}
	}
	f.serving[r] = b
	return f.requests, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.serving, r)
	}
}

// take appends events and returns their results.
func (f *fakeServer) take(events []sentEvent) []result {
	f.mu.Lock()
	defer f.mu.Unlock()
	results := make([]result, 0, len(events))
	for _, e := range events {
		if f.refuse != nil {
			if code := f.refuse(e); code != "" {
				results = append(results, result{Error: &itemError{Code: code, Message: "refused"}})
				continue
			}
		}
		key := e.Session + "\n" + e.Message
		id, duplicate := f.byID[key]
		if !duplicate {
			id = schema.EventID{
				Position: schema.Position{Epoch: 1, Offset: int64(len(f.byID))}, TimeMs: time.Now().UnixMilli(),
			}.String()
			f.byID[key] = id
			f.logs[e.Session] = append(f.logs[e.Session], e)
		}
		results = append(results, result{ID: id, Duplicate: duplicate})
	}
	return results
}

// holds reports whether an event was taken.
func (f *fakeServer) holds(session, message string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.byID[session+"\n"+message]
	return ok
}

// stats returns how many requests came, how many events they carried and how many events
// the logs hold.
func (f *fakeServer) stats() (requests, offered, held int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests, f.events, len(f.byID)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func errorBody(code, message string) map[string]any {
	return map[string]any{"error": map[string]any{"code": code, "message": message, "details": map[string]any{}}}
}

func decodeLines(t *testing.T, text []byte) []sentEvent {
	t.Helper()
	var events []sentEvent
	for line := range bytes.Lines(text) {
		var e sentEvent
		if err := json.Unmarshal(line, &e); err != nil {
			t.Errorf("sent a line that is not JSON: %v", err)
		}
		if e.Session == "" || e.Message == "" {
			t.Errorf("sent %q, without a session or a message id", line)
		}
		events = append(events, e)
	}
	return events
}

// corpus is a file of events: n lines over some sessions, interleaved, with and without
// message ids. Each session's payloads count from 0.
func corpus(n, sessions int) (text string, perSession map[string]int) {
	var b strings.Builder
	perSession = map[string]int{}
	for i := range n {
		session := fmt.Sprintf("s-%d", (i*7+i/11)%sessions)
		k := perSession[session]
		perSession[session]++
		if k%3 == 0 {
			fmt.Fprintf(&b, `{"session_id":%q,"type":"tick","payload":%d}`+"\n", session, k)
		} else {
			fmt.Fprintf(&b, `{"session_id":%q,"type":"tick","message_id":"m-%d","payload":%d}`+"\n", session, k, k)
		}
	}
	return b.String(), perSession
}

// wantLogs checks that every session holds its payloads once, in file order.
func (f *fakeServer) wantLogs(perSession map[string]int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for session, n := range perSession {
		if len(f.logs[session]) != n {
			f.t.Errorf("session %s holds %d events, want %d", session, len(f.logs[session]), n)
		}
		for i, e := range f.logs[session] {
			if got, want := string(e.Payload), strconv.Itoa(i); got != want {
				f.t.Errorf("event %d of session %s is %s, want %s", i, session, got, want)
				break
			}
		}
	}
	if len(f.logs) != len(perSession) {
		f.t.Errorf("sessions = %d, want %d", len(f.logs), len(perSession))
	}
}

// testConfig retries fast.
func testConfig(t *testing.T, url string) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.URL, cfg.Key = url, "pk_test"
	cfg.BatchEvents = 40
	cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, 5*time.Millisecond
	cfg.RetryFor = 30 * time.Second
	cfg.StateDir = t.TempDir()
	return cfg
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// restartable serves a handler on one address, with interruptions.
type restartable struct {
	t       *testing.T
	handler http.Handler
	address string
	server  *http.Server
	done    chan error
}

func startRestartable(t *testing.T, handler http.Handler) *restartable {
	t.Helper()
	r := &restartable{t: t, handler: handler, address: "127.0.0.1:0"}
	r.up()
	t.Cleanup(r.down)
	return r
}

func (r *restartable) up() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.address = l.Addr().String()
	r.server = &http.Server{Handler: r.handler}
	r.done = make(chan error, 1)
	go func() { r.done <- r.server.Serve(l) }()
}

// down ends all connections at once, as a kill does.
func (r *restartable) down() {
	_ = r.server.Close()
	if err := <-r.done; !errors.Is(err, http.ErrServerClosed) {
		r.t.Errorf("serving ended with %v", err)
	}
}
