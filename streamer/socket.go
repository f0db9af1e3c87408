package streamer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// Opcodes of WebSocket frames (RFC 6455, 5.2).
const (
	opcodeText   = 0x1
	opcodeBinary = 0x2
	opcodeClose  = 0x8
	opcodePing   = 0x9
	opcodePong   = 0xA
)

// Close codes of ours, and what the client should do. Those below 4000 are RFC 6455's.
const (
	closeNormal       = 1000
	closeProtocol     = 1002
	closeBadUTF8      = 1007
	closeLate         = 1008 // a message took too long
	closeTooBig       = 1009
	closeInternal     = 1011 // a mistake of ours: come back
	closeSessionEnded = 4000 // the session has ended: there is nothing to come back for
	closeKeyEnded     = 4001 // the key was revoked or has expired: come back with another
	closeCancelled    = 4002 // ended on somebody's order: do not come back
	closeStopping     = 4003 // the node is stopping: come back after the time in the reason
	closeHistoryAway  = 4004 // history cannot be read: come back after the time in the reason
	closeLogAway      = 4005 // the log cannot be read: come back after the time in the reason
	closeErased       = 4006 // the session was erased: there is nothing to come back for
)

// maxCloseReason is the longest reason of a close frame (RFC 6455, 5.5).
const maxCloseReason = 123

// closeError ends a socket with a code of its own.
type closeError struct {
	code   int
	reason string
}

func (e *closeError) Error() string { return fmt.Sprintf("close %d: %s", e.code, e.reason) }

// closing returns the close code and reason for what ended a stream.
func closing(reason error) (code int, text string) {
	var closed *closeError
	var cancelled *cancelledError
	switch {
	case errors.As(reason, &closed):
		return closed.code, closed.reason
	case errors.As(reason, &cancelled) && cancelled.byServer:
		return closeCancelled, cancelled.reason
	case errors.As(reason, &cancelled):
		return closeNormal, "cancelled"
	case errors.Is(reason, errSessionEnded):
		return closeSessionEnded, "session ended"
	}
	f, retry := farewell(reason)
	switch {
	case errors.Is(reason, errShutdown):
		return closeStopping, "node is stopping; retry in " + strconv.FormatInt(retry.Milliseconds(), 10) + " ms"
	case f == nil:
		return closeInternal, ""
	case f.code == codeAuth:
		return closeKeyEnded, f.message
	case f.code == codeErased:
		return closeErased, f.message
	case errors.Is(reason, errHistoryAway):
		code = closeHistoryAway
	default:
		code = closeLogAway
	}
	return code, "retry in " + strconv.FormatInt(f.retryAfter.Milliseconds(), 10) + " ms"
}

// socket writes WebSocket messages: the wire of the socket views.
type socket struct {
	view   *View
	binary bool // payloads that are not JSON go as binary messages of their own
	text   []byte
}

// appendFrameHeader appends the header of an unmasked, final frame (RFC 6455, 5.2).
func appendFrameHeader(dst []byte, opcode byte, size int) []byte {
	dst = append(dst, 0x80|opcode)
	switch {
	case size < 126:
		return append(dst, byte(size))
	case size <= 0xFFFF:
		return binary.BigEndian.AppendUint16(append(dst, 126), uint16(size))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 127), uint64(size))
	}
}

func appendFrame(dst []byte, opcode byte, payload []byte) []byte {
	return append(appendFrameHeader(dst, opcode, len(payload)), payload...)
}

func (w *socket) event(dst []byte, f tape.Frame, e *schema.Event, tail []byte) []byte {
	if w.binary && !e.JSONPayload() {
		// In the payload's place stands what the binary message is that follows.
		announced := *e
		announced.ContentType = schema.DefaultContentType
		announced.Payload = append(appendString([]byte(`{"binary":`+strconv.Itoa(len(e.Payload))+`,"content_type":`), e.ContentType), '}')
		dst = w.message(dst, w.view.frame(&announced), e.ID, tail)
		return appendFrame(dst, opcodeBinary, e.Payload)
	}
	return w.message(dst, f, e.ID, tail)
}

// message appends a text message, with the cursor in its place if it is more than the id.
func (w *socket) message(dst []byte, f tape.Frame, id schema.EventID, tail []byte) []byte {
	if f.Cut < 0 || len(tail) == 0 {
		return appendFrame(dst, opcodeText, f.Bytes)
	}
	w.text = append(w.text[:0], `,"cursor":"`...)
	w.text = id.AppendText(w.text)
	w.text = append(w.text, tail...)
	w.text = append(w.text, '"')
	dst = appendFrameHeader(dst, opcodeText, len(f.Bytes)+len(w.text))
	dst = append(dst, f.Bytes[:f.Cut]...)
	dst = append(dst, w.text...)
	return append(dst, f.Bytes[f.Cut:]...)
}

func (w *socket) heartbeat(dst []byte, _ *subscription) []byte {
	return appendFrame(dst, opcodePing, nil)
}

// notice appends a message that is not of the log: a type, perhaps a cursor, and data.
func (w *socket) notice(dst []byte, typ string, at schema.Cursor, data []byte) []byte {
	b := append(w.text[:0], `{"type":"`...)
	b = append(b, typ...)
	b = append(b, '"')
	if !at.IsZero() {
		b = append(b, `,"cursor":"`...)
		b = append(b, at.String()...)
		b = append(b, '"')
	}
	b = append(b, `,"data":`...)
	b = append(b, data...)
	b = append(b, '}')
	w.text = b
	return appendFrame(dst, opcodeText, b)
}

func (w *socket) caughtUp(dst []byte, s *subscription) []byte {
	return w.notice(dst, "playhead.caught_up", s.cursor(time.Now().UnixMilli()), []byte("{}"))
}

func (w *socket) position(dst []byte, s *subscription) []byte {
	c := s.cursor(time.Now().UnixMilli())
	if c.IsZero() {
		return dst
	}
	return w.notice(dst, "playhead.position", c, []byte("{}"))
}

func (w *socket) dropped(dst []byte, n int64) []byte {
	return w.notice(dst, "playhead.dropped", schema.Cursor{}, []byte(`{"count":`+strconv.FormatInt(n, 10)+`}`))
}

func (w *socket) gap(dst []byte, from, to schema.EventID) []byte {
	return w.notice(dst, "playhead.gap", schema.Cursor{}, appendGapData(nil, from, to))
}

func (w *socket) failure(dst []byte, _ *subscription, f failure) []byte {
	return w.notice(dst, "error", schema.Cursor{}, f.appendData(nil))
}

func (w *socket) answer(dst []byte, a answer) []byte {
	if a.pong != nil {
		return appendFrame(dst, opcodePong, a.pong)
	}
	out := map[string]any{"ack": a.ref}
	if a.err != nil {
		out = map[string]any{"error": a.err, "ref": a.ref}
	}
	for name, value := range a.data {
		out[name] = value
	}
	return appendFrame(dst, opcodeText, marshal(out))
}

func (w *socket) goodbye(dst []byte, _ *subscription, reason error) []byte {
	if errors.Is(reason, errHungUp) {
		return dst
	}
	code, text := closing(reason)
	text = truncate(text, maxCloseReason)
	return appendFrame(dst, opcodeClose, append(binary.BigEndian.AppendUint16(nil, uint16(code)), text...))
}
