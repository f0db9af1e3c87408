package streamer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/presence"
	"github.com/playhead-dev/playhead/schema"
)

// socketWorld serves a session s, a call, and a workflow of two sessions.
func socketWorld(t *testing.T) *env {
	t.Helper()
	e := startEnv(t, testConfig(), 4)
	e.produce(
		ofKind("phone", schema.KindCall),
		said("s", "init", `null`, 1), said("s", "click", `{"x":1}`, 2),
		said("phone", "call.dtmf", `{"digit":"5"}`, 100),
	)
	e.produce(withWorkflow("flow", said("a", "click", `{"n":1}`, 5), said("b", "click", `{"n":2}`, 6))...)
	return e.serveSockets()
}

func TestSocketMessages(t *testing.T) {
	checkGoroutines(t)
	e := socketWorld(t)
	first := e.visible["s"][0]
	second := e.visible["s"][1]
	f := func(path, want string) {
		t.Helper()
		c := e.socket(path, "reader")
		defer c.close()
		if m := c.mustNext(); m.text != want {
			t.Errorf("%s: %s, want %s", path, m.text, want)
		}
	}
	f(socketPath+"?from=start", fmt.Sprintf(`{"type":"init","id":"%v","data":{"t_ms":1,"payload":null}}`, first.ID))
	f(socketPath+"?from=start&type=click", fmt.Sprintf(`{"type":"click","id":"%v","data":{"t_ms":2,"payload":{"x":1}}}`, second.ID))
	f(socketPath+"?last_event_id="+first.ID.String(), fmt.Sprintf(`{"type":"click","id":"%v","data":{"t_ms":2,"payload":{"x":1}}}`, second.ID))
	digit := e.visible["phone"][0]
	f("/v1/calls/phone/stream?from=start", fmt.Sprintf(
		`{"event_id":"%v","event_type":"call.dtmf","workspace_id":"w","session_id":"phone","created_at":%s,"payload":{"digit":"5"}}`,
		digit.ID, appendTime(nil, digit.Time())))

	// Streams of several partitions say the cursor where the id does not say it all.
	c := e.socket("/v1/workflows/flow/events/ws?from=start", "reader")
	got := map[string]bool{}
	for range 2 {
		m := c.mustNext()
		got[m.Session] = true
		cursor, err := schema.ParseCursor(m.Cursor)
		if err != nil || cursor.ID.String() != m.ID || m.Cursor == m.ID {
			t.Errorf("%s: cursor %q, %v", m.text, m.Cursor, err)
		}
		if want := fmt.Sprintf(`{"type":"click","id":"%s","cursor":"%s","session_id":"%s","data":{"t_ms":`, m.ID, m.Cursor, m.Session); !strings.HasPrefix(m.text, want) {
			t.Errorf("%s, want it to begin with %s", m.text, want)
		}
	}
	if !got["a"] || !got["b"] {
		t.Errorf("the workflow's sessions are %v", got)
	}
}

// A client that comes back with what the last message said gets exactly the rest.
func TestSocketsOfManySessionsResume(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 8)
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		e.produce(numbered(fmt.Sprintf("s%d", rng.IntN(9)), n, 1)...)
	}
	e.history.setWatermark(20)
	e.serveSockets()
	total := 0
	for _, all := range e.visible {
		total += len(all)
	}
	got := map[string][]string{}
	at := "?from=start"
	header := []string{}
	for seen := 0; seen < total; {
		c := e.socket("/v1/stream/ws"+at, "reader", header...)
		for range min(1+rng.IntN(40), total-seen) {
			m := c.mustNext()
			got[m.Session] = append(got[m.Session], m.ID)
			if at, header = "?last_event_id="+m.Cursor, nil; rng.IntN(2) == 0 {
				at, header = "", []string{"Last-Event-ID", m.Cursor}
			}
			seen++
		}
		c.close()
	}
	for session := range e.visible {
		if have, want := strings.Join(got[session], " "), strings.Join(e.want(session, -1), " "); have != want {
			t.Errorf("session %s: got\n%s, want\n%s", session, have, want)
		}
	}
}

func TestSocketHandshakes(t *testing.T) {
	checkGoroutines(t)
	e := socketWorld(t)
	const h = upgradeHeaders
	without := func(line string) string {
		return strings.Replace(h, line, "X-Nothing: "+strconv.Itoa(len(line)), 1)
	}
	f := func(path, key, headers string, status int, code string) {
		t.Helper()
		c := e.get(path, key, headers)
		defer c.close()
		if c.status != status {
			t.Errorf("%s %q: %d %s, want %d", path, headers, c.status, c.body(), status)
			return
		}
		if status == http.StatusSwitchingProtocols {
			if c.header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || c.header.Get("X-Connection-Id") == "" || c.header.Get("X-Request-Id") == "" {
				t.Errorf("%s: headers %v", path, c.header)
			}
			return
		}
		var body struct{ Error struct{ Code string } }
		if text := c.body(); json.Unmarshal([]byte(text), &body) != nil || body.Error.Code != code {
			t.Errorf("%s %q: %s, want the code %s", path, headers, text, code)
		}
	}
	for _, path := range []string{socketPath, "/v1/workflows/flow/events/ws", "/v1/stream/ws", "/v1/calls/phone/stream"} {
		f(path, "reader", h, 101, "")
		f(path, "reader", strings.ToLower(h[:19])+h[19:], 101, "")
		f(path, "reader", "Accept: */*", 426, "upgrade_required")
		f(path, "reader", strings.Replace(h, ": 13", ": 8", 1), 426, "upgrade_required")
		f(path, "reader", without("Sec-WebSocket-Version: 13"), 426, "upgrade_required")
		f(path, "reader", without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400, "bad_request")
		f(path, "reader", without("Connection: Upgrade"), 400, "bad_request")
		f(path, "writer", h, 403, "insufficient_scope")
		f(path, "nobody", h, 401, "invalid_key")
		f(path+"?from=end", "reader", h, 400, "invalid_parameter")
		f(path+"?colour=red", "reader", h, 400, "unknown_parameter")
		f(path+"?last_event_id=evt_x", "reader", h, 400, "invalid_cursor")
		f(path+"?token=reader", "reader", h, map[bool]int{true: 101, false: 401}[strings.Contains(path, "calls")], "token_in_query_not_allowed")
	}
	f("/v1/sessions/unknown/events/ws", "reader", h, 404, "not_found")
	f("/v1/sessions/unknown/events/ws", "reader", "Accept: */*", 426, "upgrade_required")
	f(socketPath, "stranger", h, 404, "not_found")
	f(socketPath, "elsewhere", h, 404, "not_found")
	f(socketPath, "flow", h, 404, "not_found")
	f("/v1/calls/s/stream", "reader", h, 404, "not_found")
	f("/v1/stream/ws", "elsewhere", h, 404, "not_found")
	f("/v1/workflows/flow/events/ws", "elsewhere", h, 404, "not_found")
	f("/v1/workflows/flow/events/ws", "flow", h, 101, "")
	f("/v1/workflows/nobody/events/ws", "reader", h, 101, "")
	if c := e.get(socketPath, "reader", strings.Replace(h, ": 13", ": 8", 1)); c.header.Get("Sec-WebSocket-Version") != "13" {
		t.Errorf("another version is answered %v", c.header)
	} else {
		c.close()
	}
	eventually(t, "all slots are free", func() bool { return e.streams() == 0 })
}

func TestKeysOfSockets(t *testing.T) {
	checkGoroutines(t)
	e := socketWorld(t)
	f := func(path, key, protocol string, headers ...string) {
		t.Helper()
		c := e.get(path, key, append(headers, upgradeHeaders)...)
		defer c.close()
		if c.status != 101 || c.header.Get("Sec-WebSocket-Protocol") != protocol {
			t.Errorf("%s %q: %d, protocol %q, want %q", path, headers, c.status, c.header.Get("Sec-WebSocket-Protocol"), protocol)
		}
		for name, values := range c.header {
			if strings.Contains(strings.Join(values, ","), "reader") {
				t.Errorf("%s: the header %s gives the key back: %q", path, name, values)
			}
		}
	}
	f(socketPath, "reader", "")
	f(socketPath, "reader", "playhead.v1", "Sec-WebSocket-Protocol: playhead.v1")
	f(socketPath, "reader", "playhead.v1", "Sec-WebSocket-Protocol: key.reader, playhead.v1")
	f(socketPath, "reader", "", "Sec-WebSocket-Protocol: chat")

	// By the others alone: the client library sends no Authorization.
	dial := func(path string, h http.Header, protocols ...string) (int, string) {
		d := websocket.Dialer{Subprotocols: protocols, HandshakeTimeout: testDeadline}
		conn, response, err := d.DialContext(t.Context(), "ws://"+e.addr+path, h)
		if err != nil {
			if response == nil {
				t.Fatal(err)
			}
			return response.StatusCode, ""
		}
		defer conn.Close() //nolint:errcheck // a test
		return response.StatusCode, conn.Subprotocol()
	}
	for _, test := range []struct {
		path      string
		header    http.Header
		protocols []string
		status    int
		protocol  string
	}{
		{socketPath, http.Header{"X-Api-Key": {"reader"}}, nil, 101, ""},
		{socketPath, http.Header{"Authorization-Token": {"reader"}}, nil, 101, ""},
		{socketPath, nil, []string{"playhead.v1", "key.reader"}, 101, "playhead.v1"},
		{socketPath, nil, []string{"key.reader"}, 101, ""},
		{socketPath, nil, []string{"playhead.v1", "key.wrong"}, 401, ""},
		{socketPath, nil, nil, 401, ""},
		{socketPath + "?token=reader", nil, nil, 401, ""},
		{socketPath + "?token=pk_tmp_s", nil, nil, 101, ""},
		{"/v1/stream/ws?token=pk_tmp_s", nil, nil, 404, ""},
		{"/v1/calls/phone/stream?token=reader", nil, nil, 101, ""},
		{"/v1/calls/phone/stream?token=reader", http.Header{"X-Api-Key": {"talker"}}, nil, 401, ""},
	} {
		if status, protocol := dial(test.path, test.header, test.protocols...); status != test.status || protocol != test.protocol {
			t.Errorf("%s %v %q: %d %q, want %d %q", test.path, test.header, test.protocols, status, protocol, test.status, test.protocol)
		}
	}
}

// countingCounts allows so many streams.
type countingCounts struct {
	most atomic.Int64
	open atomic.Int64
}

func (c *countingCounts) Acquire(_, _, _ string, _ presence.Limits) (func(), error) {
	if c.open.Add(1) > c.most.Load() {
		c.open.Add(-1)
		return nil, &presence.LimitError{Of: presence.OfKey, Limit: int(c.most.Load()), Open: int(c.most.Load())}
	}
	return func() { c.open.Add(-1) }, nil
}

// However a socket ends, everything that it had is free again.
func TestEndedSocketsFreeTheirPlaces(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(numbered("s", 0, 5)...)
	counts := new(countingCounts)
	counts.most.Store(2)
	e.serveWith(socketKeys, func(d *Deps) { d.Counts = counts })
	free := func(what string) {
		t.Helper()
		eventually(t, what+": all is free", func() bool { return e.streams() == 0 && counts.open.Load() == 0 })
	}
	a, b := e.socket(socketPath, "reader"), e.socket(socketPath, "reader")
	c := e.get(socketPath, "reader", upgradeHeaders)
	if c.status != 429 || c.header.Get("Retry-After") == "" || !strings.Contains(c.body(), "stream_limit_exceeded") {
		t.Errorf("one too many = %d", c.status)
	}
	c.close()
	e.live(2)
	_ = a.conn.NetConn().(*net.TCPConn).SetLinger(0)
	a.close()
	b.close()
	free("a reset and an end without a word")

	d := e.socket(socketPath, "reader")
	_ = d.conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4321, "bye"))
	d.mustClose(4321, "")
	free("a close")

	half := e.rawSocket(socketPath, "reader")
	half.write(text(`{"op":"pause"}`)[:5])
	half.close()
	free("half a frame")

	shut := e.rawSocket(socketPath, "reader")
	_ = shut.nc.(*net.TCPConn).CloseWrite()
	if _, err := io.ReadAll(shut.br); err != nil {
		t.Error(err)
	}
	free("a half-closed connection")

	// Broken between the handler and the take-over.
	for range 50 {
		nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.(*net.TCPConn).SetLinger(0)
		request := "GET " + socketPath + " HTTP/1.1\r\nHost: t\r\nx-api-key: reader\r\n" + upgradeHeaders + "\r\n\r\n"
		if _, err := nc.Write([]byte(strings.Replace(request, "/ws", "/ws?colour=red", 1) + request)); err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
	}
	free("broken take-overs")
}

func TestSocketHeartbeats(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.KeepAlive = 40 * time.Millisecond
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 1)...)
	e.serveSockets()

	// A client that answers, by its library, stays.
	stays := e.socket(socketPath+"?notices=1", "reader")
	var pings atomic.Int64
	answer := stays.conn.PingHandler()
	stays.conn.SetPingHandler(func(data string) error { pings.Add(1); return answer(data) })
	positions := 0
	for pings.Load() < 12 {
		m := stays.mustNext()
		switch m.Type {
		case "playhead.position":
			if positions++; m.Cursor == "" {
				t.Errorf("%s has no cursor", m.text)
			}
		case "playhead.caught_up":
		default:
			t.Fatalf("a quiet stream says %s", m.text)
		}
	}
	if positions == 0 {
		t.Error("no position with the heartbeats")
	}

	// One that says nothing is gone.
	began := time.Now()
	silent := e.rawSocket(socketPath, "reader")
	if _, err := io.Copy(io.Discard, silent.br); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < missedPongs*cfg.KeepAlive {
		t.Errorf("gone after %v, want at least %v", took, missedPongs*cfg.KeepAlive)
	}

	// One that sends a long message slowly has no way to answer, and stays.
	slow := e.rawSocket(socketPath, "talker")
	frame := text(`{"op":"pause","ref":1}` + strings.Repeat(" ", 500))
	for began := time.Now(); len(frame) > 0; {
		n := min(len(frame), 1+len(frame)*20/500)
		slow.write(frame[:n])
		frame = frame[n:]
		wait := time.Now().Add(20 * time.Millisecond)
		eventually(t, "the next piece is due", func() bool { return time.Now().After(wait) })
		if time.Since(began) > testDeadline {
			t.Fatal("too slow")
		}
	}
	for {
		f, err := readFrame(slow.br)
		if err != nil {
			t.Fatalf("a slow writer was cut: %v", err)
		}
		if f.opcode == opcodeText {
			if string(f.payload) != `{"ack":1}` {
				t.Errorf("answered %s", f.payload)
			}
			break
		}
	}
	slow.close()
	stays.close()
	eventually(t, "all are gone", func() bool { return e.streams() == 0 })
}

// A client's ping is answered with what it says.
func TestSocketAnswersPings(t *testing.T) {
	checkGoroutines(t)
	e := socketWorld(t)
	c := e.rawSocket(socketPath, "reader")
	for _, says := range []string{"", "hello", strings.Repeat("x", 125)} {
		c.write(appendClientFrame(nil, rawFrame{true, opcodePing, []byte(says)}))
		if f, err := readFrame(c.br); err != nil || f.opcode != opcodePong || string(f.payload) != says {
			t.Errorf("ping %q is answered %+v, %v", says, f, err)
		}
	}
	// In the middle of a message that comes in fragments.
	b := appendClientFrame(nil, rawFrame{false, opcodeText, []byte(`{"op":"pau`)})
	b = appendClientFrame(b, rawFrame{true, opcodePing, []byte("now")})
	b = appendClientFrame(b, rawFrame{false, 0, nil})
	b = appendClientFrame(b, rawFrame{true, 0, []byte(`se","ref":"ü"}`)})
	c.write(b)
	for _, want := range []string{"now", `{"ack":"ü"}`} {
		if f, err := readFrame(c.br); err != nil || string(f.payload) != want {
			t.Errorf("got %+v %s, %v, want %s", f, f.payload, err, want)
		}
	}
}

func TestSocketCloseCodes(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(numbered("s", 0, 3)...)
	e.produce(numbered("done", 0, 2)...)
	ended := newEvent("done", schema.TypeSessionEnded, "")
	e.produce(ended)
	e.produce(numbered("t", 0, 1)...)
	e.serveSockets()

	// What the client does wrong.
	frames := func(all ...rawFrame) (b []byte) {
		for _, f := range all {
			b = appendClientFrame(b, f)
		}
		return b
	}
	closeWith := func(b ...byte) []byte { return frames(rawFrame{true, opcodeClose, b}) }
	unmasked := appendFrame(nil, opcodeText, []byte(`{}`))
	reserved := text(`{}`)
	reserved[0] |= 0x40
	for _, test := range []struct {
		name  string
		bytes []byte
		code  int
	}{
		{"no UTF-8", text("\"\xff\""), 1007},
		{"a character cut by the end", frames(rawFrame{false, opcodeText, []byte("\xc3")}, rawFrame{true, 0, []byte("x")}), 1007},
		{"too long", text(strings.Repeat("x", maxMessageBytes+1)), 1009},
		{"too long in fragments", frames(rawFrame{false, opcodeText, make([]byte, maxMessageBytes)}, rawFrame{true, 0, make([]byte, 1)}), 1009},
		{"no mask", unmasked, 1002},
		{"reserved bits", reserved, 1002},
		{"unknown opcode", frames(rawFrame{true, 3, nil}), 1002},
		{"continuation of nothing", frames(rawFrame{true, 0, nil}), 1002},
		{"message within a message", frames(rawFrame{false, opcodeText, nil}, rawFrame{true, opcodeText, nil}), 1002},
		{"fragmented ping", frames(rawFrame{false, opcodePing, nil}), 1002},
		{"long ping", frames(rawFrame{true, opcodePing, make([]byte, 126)}), 1002},
		{"length beyond all", []byte{0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, 1002},
		{"bad close code", closeWith(0x03, 0xed), 1002},
		{"bad close reason", closeWith(0x03, 0xe8, 0xff), 1002},
		{"close", closeWith(0x03, 0xe8, 'b', 'y', 'e'), 1000},
		{"close without a code", closeWith(), 1000},
		{"going away", closeWith(0x03, 0xe9), 1001},
		{"a code of its own", closeWith(0x0f, 0xff), 4095},
	} {
		c := e.rawSocket(socketPath, "reader")
		c.write(test.bytes)
		if code, reason, err := c.closeFrame(); code != test.code || err != nil {
			t.Errorf("%s: closed with %d %q, %v, want %d", test.name, code, reason, err, test.code)
		}
		c.close()
	}

	// What becomes of the stream.
	c := e.socket("/v1/sessions/done/events/ws?from=start&close=end", "reader")
	c.expect(e.want("done", -1))
	c.mustClose(closeSessionEnded, "session ended")
	c = e.socket("/v1/sessions/done/events/ws?close=end", "reader") // nothing is left to send
	c.mustClose(closeSessionEnded, "session ended")
	c = e.socket("/v1/sessions/t/events/ws?close=end", "reader")
	e.live(1)
	e.produce(newEvent("t", schema.TypeSessionEnded, ""))
	c.mustClose(closeSessionEnded, "session ended")

	c = e.socket(socketPath, "reader")
	other := e.socket(socketPath, "talker")
	e.live(2)
	e.hub.EndKey("key_reader")
	c.mustClose(closeKeyEnded, "revoked or has expired")

	other.ack(`{"op":"pause"}`) // it is still there
	if _, reason := func() (int, string) { e.closeHub(); return other.closed() }(); !strings.HasPrefix(reason, "node is stopping; retry in ") {
		t.Errorf("a stopping node says %q", reason)
	}
	if c := e.get(socketPath, "reader", upgradeHeaders); c.status != 503 {
		t.Errorf("a socket after Close = %d", c.status)
	} else {
		c.close()
	}
}

// What a replay cannot read: the socket says when to come back, and what was lost for good.
func TestSocketsSayWhatCannotBeRead(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 100)...)
	e.deleteRecords(0, 50)
	e.serveSockets()
	e.warm("s")
	c := e.socket(socketPath+"?last_event_id="+cursorAt(10), "reader")
	want := fmt.Sprintf(`{"type":"playhead.gap","data":{"from":%q,"to":%q,"reason":"expired"}}`, gapID(11), gapID(50))
	if m := c.mustNext(); m.text != want {
		t.Errorf("got %s, want %s", m.text, want)
	}
	c.expect(e.want("s", 49))
	c.close()
	e.history.setWatermark(80)
	c = e.socket(socketPath, "reader") // the state is known now
	e.history.failing.Store(true)
	c.ack(`{"op":"seek","last_event_id":"` + cursorAt(10) + `"}`)
	c.mustClose(closeHistoryAway, "retry in 5000 ms")
	c = e.socket(socketPath+"?last_event_id="+cursorAt(60), "reader")
	c.expect(e.want("s", 60))
	e.tapes.Close()
	c.mustClose(closeLogAway, "retry in 1000 ms")
}

// A stopping node waits for its clients to read the close frame, whatever they are sending:
// to close with something unread would take it away from them.
func TestSendingClientsReadTheGoodbye(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(numbered("s", 0, 1)...)
	e.serveSockets()
	var clients []*client
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 6 {
		c := e.rawSocket(socketPath, "reader")
		clients = append(clients, c)
		wg.Go(func() {
			command := text(`{"op":"resume"}`)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.nc.Write(command); err != nil {
					return
				}
			}
		})
	}
	results := make(chan error, len(clients))
	for _, c := range clients {
		wg.Go(func() {
			for {
				f, err := readFrame(c.br)
				if err == nil && f.opcode == opcodeClose {
					if code := int(f.payload[0])<<8 | int(f.payload[1]); code != closeStopping {
						err = fmt.Errorf("closed with %d", code)
					}
					results <- err
					_ = c.nc.(*net.TCPConn).CloseWrite()
					return
				}
				if err != nil {
					results <- err
					return
				}
			}
		})
	}
	e.closeHub()
	for range clients {
		if err := <-results; err != nil {
			t.Errorf("a client's socket ends with %v", err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestSocketEndsWithItsKey(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(numbered("s", 0, 1)...)
	e.serveWith(fakeKeys{"short": {
		Workspace: "w", KeyID: "key_short", Scopes: control.ScopeRead, ExpiresAt: time.Now().Add(300 * time.Millisecond),
	}}, nil)
	c := e.socket(socketPath, "short")
	c.mustClose(closeKeyEnded, "revoked or has expired")
}

// Close codes and reasons fit into a control frame, and every reason has one.
func TestEveryEndingHasACloseCode(t *testing.T) {
	t.Parallel()
	w := new(socket)
	long := strings.Repeat("ü", 200)
	for _, test := range []struct {
		reason error
		code   int
	}{
		{errShutdown, closeStopping},
		{errKeyEnded, closeKeyEnded},
		{errSessionEnded, closeSessionEnded},
		{fmt.Errorf("x: %w", errHistoryAway), closeHistoryAway},
		{fmt.Errorf("x: %w", errTapeFailed), closeLogAway},
		{errLogAway, closeLogAway},
		{&cancelledError{reason: long}, closeNormal},
		{&cancelledError{byServer: true, reason: long}, closeCancelled},
		{&closeError{code: 1009, reason: long}, 1009},
		{errors.New(long), closeInternal},
	} {
		b := w.goodbye(nil, nil, test.reason)
		if b[0] != 0x80|opcodeClose || int(b[1]) != len(b)-2 || len(b) > 2+125 {
			t.Errorf("%v: frame %q", test.reason, b)
		}
		if code := int(b[2])<<8 | int(b[3]); code != test.code {
			t.Errorf("%v: code %d, want %d", test.reason, code, test.code)
		}
		if reason := string(b[4:]); strings.ToValidUTF8(reason, "?") != reason {
			t.Errorf("%v: reason %q", test.reason, reason)
		}
	}
	if b := w.goodbye(nil, nil, errHungUp); len(b) > 0 {
		t.Errorf("who has hung up is told %q", b)
	}
}
