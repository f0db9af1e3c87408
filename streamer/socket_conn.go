package streamer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gofiber/contrib/websocket"
	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

// Bounds of what a client sends on a socket.
const (
	maxMessageBytes  = 2 << 20 // an event of 1 MiB, in base64
	socketReadBuffer = 1024
	closeGrace       = 2 * time.Second // for the client to take its leave after a close frame
	missedPongs      = 3               // heartbeats without a word, after which the client counts as gone
)

// checkHandshake refuses what cannot become a WebSocket, before anything is opened for it:
// the library would refuse it too, but not in our envelope.
func checkHandshake(c *fiber.Ctx) error {
	if !httpapi.IsWebSocketUpgrade(c) || c.Method() != fiber.MethodGet {
		c.Set(fiber.HeaderUpgrade, "websocket")
		return httpapi.Errorf(fiber.StatusUpgradeRequired, "upgrade_required", "This path speaks WebSocket.")
	}
	if c.Get(fiber.HeaderSecWebSocketVersion) != "13" {
		c.Set(fiber.HeaderUpgrade, "websocket")
		c.Set(fiber.HeaderSecWebSocketVersion, "13") // RFC 6455, 4.2.2
		return httpapi.Errorf(fiber.StatusUpgradeRequired, "upgrade_required", "This path speaks version 13 of WebSocket (RFC 6455).").
			WithParam(fiber.HeaderSecWebSocketVersion)
	}
	if c.Get(fiber.HeaderSecWebSocketKey) == "" {
		return httpapi.Errorf(fiber.StatusBadRequest, httpapi.CodeBadRequest, "A WebSocket handshake wants a Sec-WebSocket-Key.").
			WithParam(fiber.HeaderSecWebSocketKey)
	}
	isUpgrade := func(token string) bool { return strings.EqualFold(strings.TrimSpace(token), "upgrade") }
	if !slices.ContainsFunc(strings.Split(c.Get(fiber.HeaderConnection), ","), isUpgrade) {
		return httpapi.Errorf(fiber.StatusBadRequest, httpapi.CodeBadRequest, "A WebSocket handshake wants Connection: Upgrade.").
			WithParam(fiber.HeaderConnection)
	}
	return nil
}

// upgrade answers the request with a WebSocket that carries the stream.
func (h *Hub) upgrade(c *fiber.Ctx, o opening) error {
	who := httpapi.From(c)
	c.Set(httpapi.HeaderConnectionID, o.id)
	t := h.takeOver(&o)
	err := websocket.New(func(conn *websocket.Conn) {
		if !t.take() {
			_ = conn.Close()
			return
		}
		h.wg.Add(1) // while the slot is held, so before Close waits
		defer h.wg.Done()
		h.serveSocket(conn, o, who)
	}, websocket.Config{
		Subprotocols: []string{httpapi.WebSocketProtocol}, ReadBufferSize: socketReadBuffer, WriteBufferSize: 1,
		RecoverHandler: func(*websocket.Conn) {}, // the library's would write to the connection
	})(c)
	if err != nil {
		if t.take() {
			o.release()
			h.Release()
		}
		c.Response().ResetBody()
		return httpapi.Errorf(fiber.StatusBadRequest, httpapi.CodeBadRequest, "The request is not a WebSocket handshake (RFC 6455, 4.2.1).")
	}
	return nil
}

// socketReader is the client's end of a socket: it reads what comes and has it done. What
// goes out is written by whoever runs the subscription, and by nobody else.
type socketReader struct {
	hub  *Hub
	sub  *subscription
	conn *websocket.Conn
	nc   net.Conn
	who  control.Principal

	patience time.Duration // without a sign of life, after which the client counts as gone
	muted    error         // what the library answers instead of writing

	binaryEvents binaryEvents
	binaries     int64 // binary messages received

	mu    sync.Mutex    // guards ended, late and the read deadline
	late  time.Time     // when the message that is arriving has taken too long; zero: none is
	ended bool          // the close frame is written: nothing is read from now on but the client's leave
	told  chan struct{} // closed when ended is set
}

// serveSocket runs a socket until it has ended.
func (h *Hub) serveSocket(conn *websocket.Conn, o opening, who control.Principal) {
	c := &socketReader{
		hub: h, conn: conn, nc: conn.NetConn(), who: who,
		patience: missedPongs * o.req.Heartbeat, told: make(chan struct{}),
	}
	defer c.nc.Close()
	c.mute()
	o.alive, o.finish = c.alive, c.finish
	c.sub = h.adopt(c.nc, o)
	c.sub.end(c.read())
	select {
	case <-c.told:
	case <-h.stop:
		select {
		case <-c.told: // before the hub stopped
		default:
			return // Close has given up: nobody runs the subscription any more
		}
	}
	c.leave()
}

// mute keeps the library from writing. Its reader answers protocol errors by itself, which
// could be in the middle of a frame of ours; but after a write that timed out it writes
// nothing any more (websocket.Conn.SetWriteDeadline). That write itself writes nothing, as
// its deadline is over before it begins.
func (c *socketReader) mute() {
	_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
	c.muted = c.conn.WriteMessage(websocket.BinaryMessage, nil)
	_ = c.nc.SetWriteDeadline(time.Time{}) // the library had set it
}

// alive gives the client time to be heard of again. It is called from the reader, and from
// whoever runs the subscription when the client has taken some of what it was slow to take:
// a heartbeat may be stuck behind that.
func (c *socketReader) alive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	deadline := time.Now().Add(c.patience)
	if !c.late.IsZero() && c.late.Before(deadline) {
		deadline = c.late
	}
	_ = c.nc.SetReadDeadline(deadline)
}

// arriving says that a message is arriving that must be there by late; zero: no longer.
func (c *socketReader) arriving(late time.Time) {
	c.mu.Lock()
	c.late = late
	c.mu.Unlock()
	c.alive()
}

// finish is called once the close frame is written.
func (c *socketReader) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	_ = c.nc.SetReadDeadline(time.Now().Add(closeGrace))
	close(c.told)
}

// leave lets the client read the close frame: a connection that is closed with bytes
// unread is reset, and what was written last is lost. So its end is awaited, for as long as
// finish says.
func (c *socketReader) leave() {
	if half, ok := c.sub.conn.Conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c.nc, maxMessageBytes))
}

// read takes the client's messages until the connection ends. Its error is why: a
// *closeError if the client is to be told, errHungUp otherwise. A panic, which is a bug of
// ours, ends only this socket.
func (c *socketReader) read() (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.hub.logger.Error("reader of a socket panicked", "stream", c.sub.id, "panic", r, "stack", string(debug.Stack()))
			err = &closeError{code: closeInternal}
		}
	}()
	c.conn.SetPingHandler(func(data string) error {
		c.alive()
		_ = c.sub.post(command{op: opAnswer, answer: answer{wanted: true, pong: []byte(data)}}) // too many pings: not all are answered
		return nil
	})
	c.conn.SetPongHandler(func(string) error { c.alive(); return nil })
	c.conn.SetCloseHandler(func(code int, _ string) error {
		if code == websocket.CloseNoStatusReceived {
			code = closeNormal
		}
		return &closeError{code: code}
	})
	for c.sub.ctx.Err() == nil {
		c.alive()
		kind, message, err := c.message()
		switch {
		case err != nil:
			return c.why(err)
		case kind == websocket.BinaryMessage:
			c.takeBinary(message)
		case utf8.Valid(message):
			c.takeText(message)
		default:
			return &closeError{code: closeBadUTF8, reason: "a text message is not UTF-8"}
		}
	}
	return context.Cause(c.sub.ctx)
}

// message reads a message, piece by piece, so that a client that sends it slowly is heard
// of all the same.
func (c *socketReader) message() (kind int, message []byte, err error) {
	kind, r, err := c.conn.NextReader()
	if err != nil {
		return 0, nil, err
	}
	late := time.Now().Add(c.hub.cfg.MessageTimeout)
	c.arriving(late)
	defer c.arriving(time.Time{})
	message = make([]byte, 0, 512)
	for {
		n, err := r.Read(message[len(message):cap(message)])
		message = message[:len(message)+n]
		switch {
		case !errors.Is(err, io.EOF) && !time.Now().Before(late):
			return 0, nil, &closeError{code: closeLate, reason: "a message may take " + c.hub.cfg.MessageTimeout.String()}
		case len(message) > maxMessageBytes:
			return 0, nil, &closeError{code: closeTooBig, reason: "a message has at most 2 MiB"}
		case errors.Is(err, io.EOF):
			return kind, message, nil
		case err != nil:
			return 0, nil, err
		}
		if len(message) == cap(message) {
			message = slices.Grow(message, 512)
		}
		c.alive()
	}
}

// why says what an error of the library means: it ends the reading in any case.
func (c *socketReader) why(err error) error {
	var lost net.Error
	switch {
	case errors.As(err, new(*closeError)):
		return err
	case errors.Is(err, c.muted):
		return &closeError{code: closeProtocol, reason: "not a client's frame (RFC 6455, 5.2): mask, reserved bits, opcode, length, fragments or close code"}
	case errors.As(err, &lost), errors.Is(err, io.EOF), websocket.IsCloseError(err, websocket.CloseAbnormalClosure):
		return fmt.Errorf("%w: %w", errHungUp, err)
	default:
		return &closeError{code: closeProtocol, reason: truncate(err.Error(), maxCloseReason)}
	}
}

// truncate cuts text to at most n bytes, between characters.
func truncate(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "")
}

// reply has an answer sent once all commands before it are done.
func (c *socketReader) reply(a answer) {
	a.wanted = true
	c.post(command{op: opAnswer, answer: a})
}

// post has a command carried out, waiting while too many wait: a client that sends faster
// than it reads waits for itself. A stream that has ended carries out nothing.
func (c *socketReader) post(cmd command) {
	for errors.Is(c.sub.post(cmd), errInboxFull) {
		select {
		case <-c.sub.ctx.Done():
			return
		case <-time.After(inboxPause):
		}
	}
}

// inboxPause is how long a reader whose commands are not done waits before it tries again.
const inboxPause = 5 * time.Millisecond
