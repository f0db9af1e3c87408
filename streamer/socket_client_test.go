package streamer

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

var socketKeys = fakeKeys{
	"reader":     {Workspace: "w", KeyID: "key_reader", Scopes: control.ScopeRead},
	"talker":     {Workspace: "w", KeyID: "key_talker", Scopes: control.ScopeRead | control.ScopeIngest},
	"caller":     {Workspace: "w", KeyID: "key_caller", Scopes: control.ScopeRead | control.ScopeControl},
	"controller": {Workspace: "w", KeyID: "key_controller", Scopes: control.ScopeControl},
	"admin":      {Workspace: "w", KeyID: "key_admin", Scopes: control.ScopeAdmin},
	"writer":     {Workspace: "w", KeyID: "key_writer", Scopes: control.ScopeIngest},
	"elsewhere":  {Workspace: "w", KeyID: "key_elsewhere", Scopes: control.ScopeRead | control.ScopeControl, Session: "t"},
	"flow":       {Workspace: "w", KeyID: "key_flow", Scopes: control.ScopeRead, Workflow: "flow"},
	"stranger":   {Workspace: "other", KeyID: "key_stranger", Scopes: control.AllScopes},
	"pk_tmp_s":   {Workspace: "w", KeyID: "key_browser", Scopes: control.ScopeRead, Session: "s", Browser: true},
}

const socketPath = "/v1/sessions/s/events/ws"

// upgradeHeaders are those of a handshake without its key.
const upgradeHeaders = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="

// socketClient is a listener over a WebSocket, by a client library.
type socketClient struct {
	t        testing.TB
	conn     *websocket.Conn
	response *http.Response
}

// message is what a socket says.
type message struct {
	Type, ID, Cursor string
	Session          string `json:"session_id"`
	Data             json.RawMessage

	// Of call streams.
	EventID   string `json:"event_id"`
	EventType string `json:"event_type"`
	Payload   json.RawMessage

	// Answers.
	Ack, Ref, Result, Binary json.RawMessage
	Connection               string `json:"connection_id"`
	Error                    *struct {
		Code, Message, Param string
	}

	text   string
	binary []byte // of a binary message; all else is empty
}

// socket opens a WebSocket and fails the test if it is refused. header is of pairs.
func (e *env) socket(path, key string, header ...string) *socketClient {
	e.t.Helper()
	h := http.Header{"X-Api-Key": {key}}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	d := websocket.Dialer{HandshakeTimeout: testDeadline}
	conn, response, err := d.DialContext(context.Background(), "ws://"+e.addr+path, h)
	if err != nil {
		if response != nil {
			body, _ := io.ReadAll(response.Body)
			e.t.Fatalf("socket %s: %v, %s", path, err, body)
		}
		e.t.Fatalf("socket %s: %v", path, err)
	}
	_ = response.Body.Close()
	_ = conn.SetReadDeadline(time.Now().Add(2 * testDeadline))
	c := &socketClient{t: e.t, conn: conn, response: response}
	e.t.Cleanup(c.close)
	return c
}

func (c *socketClient) close() { _ = c.conn.Close() }

func (c *socketClient) id() string { return c.response.Header.Get("X-Connection-Id") }

// next reads a message.
func (c *socketClient) next() (message, error) {
	kind, b, err := c.conn.ReadMessage()
	if err != nil {
		return message{}, err
	}
	if kind == websocket.BinaryMessage {
		return message{binary: b}, nil
	}
	m := message{text: string(b)}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("message %q: %w", b, err)
	}
	return m, nil
}

func (c *socketClient) mustNext() message {
	c.t.Helper()
	m, err := c.next()
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// expect reads exactly the events of these ids.
func (c *socketClient) expect(ids []string) {
	c.t.Helper()
	for i, id := range ids {
		m, err := c.next()
		if err != nil {
			c.t.Fatalf("event %d of %d: %v", i, len(ids), err)
		}
		if m.ID+m.EventID != id {
			c.t.Fatalf("event %d of %d is %s, want %s", i, len(ids), m.text, offsetText(id))
		}
	}
}

func (c *socketClient) send(text string) {
	c.t.Helper()
	if err := c.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// do sends a command and returns the answer, which must come next.
func (c *socketClient) do(command string) message {
	c.t.Helper()
	c.send(command)
	return c.mustNext()
}

// ack sends a command that must be acknowledged next.
func (c *socketClient) ack(command string) {
	c.t.Helper()
	if m := c.do(command); m.Ack == nil || m.Error != nil {
		c.t.Fatalf("%s is answered %s, want an ack", command, m.text)
	}
}

// closed reads up to the end and returns its code and reason.
func (c *socketClient) closed() (code int, reason string) {
	c.t.Helper()
	for {
		_, err := c.next()
		if closed, ok := errors.AsType[*websocket.CloseError](err); ok {
			return closed.Code, closed.Text
		}
		if err != nil {
			c.t.Fatalf("the socket ends with %v, want a close frame", err)
		}
	}
}

func (c *socketClient) mustClose(code int, reason string) {
	c.t.Helper()
	if gotCode, gotReason := c.closed(); gotCode != code || !strings.Contains(gotReason, reason) {
		c.t.Errorf("closed with %d %q, want %d %q", gotCode, gotReason, code, reason)
	}
}

// rawFrame is one frame as it travels.
type rawFrame struct {
	final   bool
	opcode  byte
	payload []byte
}

// appendClientFrame appends a frame with a mask.
func appendClientFrame(dst []byte, f rawFrame) []byte {
	at := len(dst)
	dst = appendFrameHeader(dst, f.opcode, len(f.payload))
	if !f.final {
		dst[at] &^= 0x80
	}
	dst[at+1] |= 0x80
	mask := [4]byte{1, 2, 3, 4}
	dst = append(dst, mask[:]...)
	for i, b := range f.payload {
		dst = append(dst, b^mask[i%4])
	}
	return dst
}

func text(s string) []byte {
	return appendClientFrame(nil, rawFrame{final: true, opcode: opcodeText, payload: []byte(s)})
}

// readFrame reads a frame of the server.
func readFrame(br *bufio.Reader) (rawFrame, error) {
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return rawFrame{}, err
	}
	if head[0]&0x70 != 0 || head[1]&0x80 != 0 {
		return rawFrame{}, fmt.Errorf("frame begins with %x: reserved bits or a mask", head)
	}
	f := rawFrame{final: head[0]&0x80 != 0, opcode: head[0] & 0xf}
	switch f.opcode {
	case opcodeText, opcodeBinary, opcodeClose, opcodePing, opcodePong:
	default:
		return f, fmt.Errorf("opcode %d", f.opcode)
	}
	size := uint64(head[1])
	switch size {
	case 126:
		var b [2]byte
		if _, err := io.ReadFull(br, b[:]); err != nil {
			return f, err
		}
		size = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		if _, err := io.ReadFull(br, b[:]); err != nil {
			return f, err
		}
		size = binary.BigEndian.Uint64(b[:])
	}
	if size > 64<<20 {
		return f, fmt.Errorf("a frame of %d bytes", size)
	}
	f.payload = make([]byte, size)
	_, err := io.ReadFull(br, f.payload)
	return f, err
}

// rawSocket opens a WebSocket without a client library.
func (e *env) rawSocket(path, key string) *client {
	e.t.Helper()
	c := e.get(path, key, upgradeHeaders)
	e.t.Cleanup(c.close)
	if c.status != http.StatusSwitchingProtocols {
		e.t.Fatalf("socket %s is answered %d %s", path, c.status, c.body())
	}
	return c
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// closeFrame reads up to the close frame and checks that the connection ends behind it.
func (c *client) closeFrame() (code int, reason string, err error) {
	for {
		f, err := readFrame(c.br)
		if err != nil {
			return 0, "", err
		}
		if f.opcode != opcodeClose {
			continue
		}
		if len(f.payload) < 2 || len(f.payload) > 125 {
			return 0, "", fmt.Errorf("a close frame of %d bytes", len(f.payload))
		}
		if _, err := readFrame(c.br); !errors.Is(err, io.EOF) {
			return 0, "", fmt.Errorf("behind the close frame: %w, want the end", err)
		}
		return int(binary.BigEndian.Uint16(f.payload)), string(f.payload[2:]), nil
	}
}

// fakeAppender takes events as ingest would, into the log of the env. It knows the sessions
// that have ended.
type fakeAppender struct {
	e *env

	mu    sync.Mutex // e.produce is for one at a time
	taken []string   // the events as they were given
	by    []control.Principal
}

func (a *fakeAppender) AppendJSON(_ context.Context, who control.Principal, event []byte) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var in struct {
		Session     string          `json:"session_id"`
		Type        string          `json:"type"`
		Payload     json.RawMessage `json:"payload"`
		Base64      []byte          `json:"payload_base64"`
		ContentType string          `json:"content_type"`
		TMs         int64           `json:"t_ms"`
	}
	if err := json.Unmarshal(event, &in); err != nil {
		return nil, httpapi.Errorf(400, httpapi.CodeInvalidJSON, "%v", err)
	}
	a.taken, a.by = append(a.taken, string(event)), append(a.by, who)
	switch {
	case schema.CheckType(in.Type) != nil:
		return nil, httpapi.InvalidField("type", "type is wrong.")
	case in.Type == "panic":
		panic("as asked")
	case in.Session == "ended":
		return nil, httpapi.Errorf(409, "session_ended", "The session has ended.")
	case in.Session == "broken":
		return nil, errors.New("some secret")
	case in.Session == "busy":
		return nil, httpapi.LogUnavailable(errors.New("some secret")).WithRetryAfter(1500 * time.Millisecond)
	}
	ev := &schema.Event{
		Workspace: who.Workspace, Session: in.Session, Type: in.Type, TMs: in.TMs,
		ContentType: schema.DefaultContentType, Payload: in.Payload,
	}
	if in.ContentType != "" {
		ev.ContentType, ev.Payload = in.ContentType, in.Base64
	}
	a.e.produce(ev)
	return fmt.Appendf(nil, `{"id":%q}`, ev.ID.String()), nil
}

// serveSockets serves a workspace with a session s, and an appender.
func (e *env) serveSockets() *env {
	e.t.Helper()
	return e.serveWith(socketKeys, func(d *Deps) { d.Appender = &fakeAppender{e: e} })
}
