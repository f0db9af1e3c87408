package streamer

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/playhead-dev/playhead/schema"
)

// sseBlock is one thing that a stream says.
type sseBlock struct {
	comment         string // of a comment, which stands alone
	event, id, data string
	retry           int
	hasData, hasID  bool
}

// parseSSE reads what a stream has sent, more strictly than clients do: UTF-8; lines that
// end in \n alone; known fields, each once a frame, with one blank behind the colon; frames
// that end in exactly one blank line; and comments and retry lines between frames, with none.
func parseSSE(raw []byte) (out []sseBlock, err error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("not UTF-8")
	}
	if bytes.ContainsAny(raw, "\r\x00") || bytes.HasPrefix(raw, []byte("\ufeff")) {
		return nil, errors.New("a carriage return, a NUL or a byte order mark")
	}
	if len(raw) > 0 && raw[len(raw)-1] != '\n' {
		return nil, errors.New("the last line has no end")
	}
	var b sseBlock
	seen := make(map[string]bool)
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSuffix(line, "\n")
		name, value, ok := strings.Cut(line, ": ")
		switch {
		case line == "" && len(seen) == 0:
			return nil, fmt.Errorf("a blank line after none of a frame, behind %+v", out)
		case line == "":
			out = append(out, b)
			b = sseBlock{}
			clear(seen)
			continue
		case !ok || seen[name]:
			return nil, fmt.Errorf("line %q", line)
		case name == "":
			if len(seen) > 0 {
				return nil, fmt.Errorf("comment %q within a frame", value)
			}
			out = append(out, sseBlock{comment: value})
			continue
		case name == "retry":
			ms, err := strconv.Atoi(value)
			if err != nil || len(seen) > 0 {
				return nil, fmt.Errorf("line %q", line)
			}
			out = append(out, sseBlock{retry: ms})
			continue
		}
		seen[name] = true
		switch name {
		case "event":
			b.event = value
		case "id":
			b.id, b.hasID = value, true
		case "data":
			b.data, b.hasData = value, true
		default:
			return nil, fmt.Errorf("line %q", line)
		}
	}
	if len(seen) > 0 {
		return nil, fmt.Errorf("the last frame has no end: %+v", b)
	}
	return out, nil
}

func mustParseSSE(t testing.TB, raw []byte) []sseBlock {
	t.Helper()
	out, err := parseSSE(raw)
	if err != nil {
		t.Fatalf("%q is no event stream: %v", raw, err)
	}
	return out
}

func TestTheStrictParserIsStrict(t *testing.T) {
	for _, bad := range []string{
		"data: 1\n", "data: 1\n\n\n", ": x\n\n", "data:1\n\n", "data: 1\r\n\r\n", "data: 1\ndata: 2\n\n", "x: 1\n\n", "id: 1\n: c\n\n", "retry: 5\n\n", "id: 1\nretry: 5\n\n", "retry: x\n",
		"\n", "data: \xff\n\n", "data: 1\n\nda",
	} {
		if out, err := parseSSE([]byte(bad)); err == nil {
			t.Errorf("parseSSE(%q) = %+v, want an error", bad, out)
		}
	}
}

// restingStream returns a subscription whose cursor is known, of a view.
func restingStream(t *testing.T, name string) *subscription {
	t.Helper()
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	tp := e.warm("s")
	s := &subscription{id: "conn_x1", req: Request{View: frameView(name)}}
	s.legs = s.one[:]
	s.legs[0] = leg{sub: s, tape: tp, pos: schema.Position{Epoch: 1, Partition: 0, Offset: 5}}
	return s
}

// What streams say beside events, byte by byte, but for the times in it.
func TestWhatSSESaysBesideEvents(t *testing.T) {
	checkGoroutines(t)
	s := restingStream(t, "session")
	at := schema.EventID{Position: schema.Position{Epoch: 1, Offset: 4}, TimeMs: 1}
	limited := rateLimited(1500 * time.Millisecond)
	const withTime = "\x00" // stands for an id of now, or a time
	f := func(view string, say func(w wire) []byte, want string) {
		t.Helper()
		s.req.View = frameView(view)
		got := string(say(sse{s.req.View}))
		parts := strings.Split(want, withTime)
		rest, ok := strings.CutPrefix(got, parts[0])
		for _, p := range parts[1:] {
			i := strings.Index(rest, p)
			ok = ok && i >= 0
			if ok {
				rest = rest[i+len(p):]
			}
		}
		if !ok || rest != "" {
			t.Errorf("%s says %q, want %q", view, got, want)
		}
		for _, b := range mustParseSSE(t, []byte(got)) {
			if !b.hasID || b.id == "" {
				continue
			}
			c, err := schema.ParseCursor(b.id)
			if next, ok := c.Next(0); err != nil || !ok || next != 5 {
				t.Errorf("%s: id %q resumes at %d, %v; want 5", view, b.id, next, err)
			}
		}
	}
	heartbeat := func(w wire) []byte { return w.heartbeat(nil, s) }
	failure := func(w wire) []byte { return w.failure(nil, s, limited) }
	goodbye := func(reason error) func(w wire) []byte {
		return func(w wire) []byte { return w.goodbye(nil, s, reason) }
	}
	for _, view := range []string{"session", "workflow", "transcript", "conversation"} {
		f(view, heartbeat, ": keepalive\n")
	}
	for _, view := range []string{"workspace", "workspace_envelope"} {
		f(view, heartbeat, "event: heartbeat\nid: heartbeat_evt_"+withTime+"\ndata: {\"timestamp\":\""+withTime+
			"Z\",\"status\":\"healthy\",\"connection_id\":\"conn_x1\"}\n\n")
		f(view, failure, "event: error\nid: error_evt_"+withTime+
			"\ndata: {\"code\":\"RATE_LIMITED\",\"message\":\""+limited.message+"\",\"retry_after\":1500}\n\n")
		f(view, goodbye(errKeyEnded), "event: error\nid: error_evt_"+withTime+
			"\ndata: {\"code\":\"AUTH_ERROR\",\"message\":\"the API key was revoked or has expired\",\"retry_after\":0}\n\n")
	}
	for _, view := range []string{"session", "workflow", "conversation"} {
		f(view, goodbye(errKeyEnded),
			"event: error\ndata: {\"code\":\"AUTH_ERROR\",\"message\":\"the API key was revoked or has expired\",\"retry_after\":0}\n\n")
		f(view, goodbye(errHistoryAway),
			"event: error\ndata: {\"code\":\"CONNECTION_ERROR\",\"message\":\"history is unavailable; resume later from the last id\",\"retry_after\":5000}\n\n")
	}
	f("transcript", goodbye(errKeyEnded), "event: error\ndata: {\"error_code\":\"AUTH_ERROR\",\"message\":\"the API key was revoked or has expired\"}\n\n")
	f("transcript", goodbye(fmt.Errorf("x: %w", errLogAway)),
		"event: error\ndata: {\"error_code\":\"CONNECTION_ERROR\",\"message\":\"the log cannot be read now; resume later from the last id\"}\n\n")
	for name := range sseViewPaths {
		f(name, func(w wire) []byte { return w.caughtUp(nil, s) }, "event: playhead.caught_up\ndata: {}\n\n")
		f(name, func(w wire) []byte { return w.position(nil, s) }, "id: evt_"+withTime+"\n\n")
		f(name, func(w wire) []byte { return w.dropped(nil, 12) }, ": dropped 12\n")
		f(name, func(w wire) []byte { return w.gap(nil, at, at) },
			"event: playhead.gap\ndata: {\"from\":\""+at.String()+"\",\"to\":\""+at.String()+"\",\"reason\":\"expired\"}\n\n")
		f(name, goodbye(errShutdown), "retry: "+withTime+"\n")
		f(name, goodbye(errSessionEnded), "")
		f(name, goodbye(errHungUp), "")
		f(name, func(w wire) []byte { return w.answer(nil, answer{wanted: true}) }, "")
	}
	f("conversation", goodbye(&cancelledError{byServer: true, reason: "moved \"on\"\n\nid: x"}),
		"event: error\ndata: {\"code\":\"CANCELLED\",\"message\":\"moved \\\"on\\\"\\n\\nid: x\",\"retry_after\":0}\n\n")
}

// Who comes back to a node that stops is spread.
func TestGoodbyesAreSpread(t *testing.T) {
	seen := make(map[time.Duration]bool)
	for range 100 {
		_, retry := farewell(errShutdown)
		if retry < minReturn || retry > maxReturn {
			t.Fatalf("come back after %v, want %v to %v", retry, minReturn, maxReturn)
		}
		seen[retry.Truncate(250*time.Millisecond)] = true
	}
	if len(seen) < 5 {
		t.Errorf("a hundred come back at %d times of a quarter second; want them spread", len(seen))
	}
}

// A workspace's heartbeat becomes the browser's last id, and resumes exactly: of every
// partition, wherever the stream stands.
func TestHeartbeatsOfWorkspacesResumeExactly(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.KeepAlive = 100 * time.Millisecond
	e := startEnv(t, cfg, 4)
	e.produce(numbered("a", 0, 3)...)
	e.serveWith(viewKeys, nil)
	for _, before := range []int{0, 3} { // partitions without events, and with some
		c := e.get("/v1/stream", "reader")
		var live []*schema.Event
		for i := range before {
			live = append(live, said(fmt.Sprint("s", i), "a", `1`, 0))
		}
		e.live(1)
		e.produce(live...)
		id := ""
		for n := 0; n < before || id == ""; {
			f, err := c.event()
			switch {
			case err != nil:
				t.Fatal(err)
			case f.event == "heartbeat":
				if id = f.id; n < before {
					id = "" // not of all
				}
			default:
				n++
			}
		}
		c.close()
		var missed []*schema.Event
		for i := range 10 {
			missed = append(missed, said(fmt.Sprint("t", i), "b", `1`, 0))
		}
		e.produce(missed...)
		c = e.get("/v1/stream", "reader", "Last-Event-ID: "+id)
		if c.status != 200 {
			t.Fatalf("back with %s: %d %s", id, c.status, c.body())
		}
		want := make(map[string]bool)
		for _, ev := range missed {
			want[ev.ID.String()] = true
		}
		for len(want) > 0 {
			f, err := c.event()
			if err != nil {
				t.Fatalf("%d are missing: %v", len(want), err)
			}
			if f.event == "heartbeat" {
				continue
			}
			id, _, _ := strings.Cut(f.id, "~")
			if !want[id] {
				t.Fatalf("%+v is not wanted, or comes twice", f)
			}
			delete(want, id)
		}
		c.close()
	}
}

// Everything a stream sends is an event stream to the byte, heartbeats and notices among
// the events included.
func TestRawBytesAreStrictSSE(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.KeepAlive = 20 * time.Millisecond
	e := serveViews(t, cfg)
	for name, path := range sseViewPaths {
		c := e.get(addParam(path, "from=start&notices=1"), "reader")
		var raw []byte
		for beats := 0; beats < 4; {
			b, err := c.block()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			raw = append(raw, b...)
			if bytes.HasPrefix(b, []byte(": keepalive")) || bytes.HasPrefix(b, []byte("event: heartbeat")) {
				beats++
			}
		}
		c.close()
		for _, b := range mustParseSSE(t, raw) {
			if b.comment == "" && b.event == "error" {
				t.Errorf("%s: %+v", name, b)
			}
		}
	}
}
