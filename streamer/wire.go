package streamer

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// wire is how a stream is written: as Server-Sent Events or as WebSocket messages. Every
// method appends whole frames to dst and returns it. A wire belongs to one subscription
// and is called by whoever runs that.
type wire interface {
	// event appends an event's frame; tail is what follows its id in the cursor.
	event(dst []byte, f tape.Frame, e *schema.Event, tail []byte) []byte
	// heartbeat says that the stream lives.
	heartbeat(dst []byte, s *subscription) []byte
	// caughtUp says that all that there was is sent.
	caughtUp(dst []byte, s *subscription) []byte
	// position tells the client the cursor to resume from, without an event.
	position(dst []byte, s *subscription) []byte
	// dropped says that n events were lost here.
	dropped(dst []byte, n int64) []byte
	// gap says that what lies between two positions is gone.
	gap(dst []byte, from, to schema.EventID) []byte
	// failure tells of an error. The stream may go on.
	failure(dst []byte, s *subscription, f failure) []byte
	// answer answers a command of the client.
	answer(dst []byte, a answer) []byte
	// goodbye ends the stream for the given reason.
	goodbye(dst []byte, s *subscription, reason error) []byte
}

// Codes of failures on a stream.
const (
	codeConnection  = "CONNECTION_ERROR"
	codeAuth        = "AUTH_ERROR"
	codeErased      = "SESSION_ERASED"
	codeRateLimited = "RATE_LIMITED"
	codeCancelled   = "CANCELLED"
)

// failure is an error as a stream tells it.
type failure struct {
	code       string
	message    string
	retryAfter time.Duration // when to come back; 0: there is no point
}

// appendData appends {"code","message","retry_after"}, the last in milliseconds.
func (f failure) appendData(dst []byte) []byte {
	dst = append(dst, `{"code":`...)
	dst = appendString(dst, f.code)
	dst = append(dst, `,"message":`...)
	dst = appendString(dst, f.message)
	dst = append(dst, `,"retry_after":`...)
	dst = strconv.AppendInt(dst, f.retryAfter.Milliseconds(), 10)
	return append(dst, '}')
}

// appendGapData appends the data of a gap.
func appendGapData(dst []byte, from, to schema.EventID) []byte {
	dst = append(dst, `{"from":"`...)
	dst = from.AppendText(dst)
	dst = append(dst, `","to":"`...)
	dst = to.AppendText(dst)
	return append(dst, `","reason":"expired"}`...)
}

// sse writes Server-Sent Events (HTML standard, 9.2).
type sse struct{ view *View }

func (w sse) event(dst []byte, f tape.Frame, _ *schema.Event, tail []byte) []byte {
	if f.Cut < 0 || len(tail) == 0 {
		return append(dst, f.Bytes...)
	}
	dst = append(dst, f.Bytes[:f.Cut]...)
	dst = append(dst, tail...)
	return append(dst, f.Bytes[f.Cut:]...)
}

func (w sse) heartbeat(dst []byte, s *subscription) []byte {
	if w.view.Heartbeat == nil {
		// One newline: some clients dispatch an empty event at the second.
		return append(dst, ": keepalive\n"...)
	}
	now := time.Now()
	return w.view.Heartbeat(dst, beat{cursor: s.cursor(now.UnixMilli()), at: now, connection: s.id})
}

func (sse) caughtUp(dst []byte, _ *subscription) []byte {
	return append(dst, "event: playhead.caught_up\ndata: {}\n\n"...)
}

func (sse) position(dst []byte, s *subscription) []byte {
	c := s.cursor(time.Now().UnixMilli())
	if c.IsZero() {
		return dst
	}
	dst = append(dst, "id: "...)
	dst = append(dst, c.String()...)
	return append(dst, "\n\n"...)
}

func (sse) dropped(dst []byte, n int64) []byte {
	dst = append(dst, ": dropped "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, '\n')
}

func (sse) gap(dst []byte, from, to schema.EventID) []byte {
	dst = append(dst, "event: playhead.gap\ndata: "...)
	dst = appendGapData(dst, from, to)
	return append(dst, "\n\n"...)
}

func (w sse) failure(dst []byte, s *subscription, f failure) []byte {
	if w.view.Failure != nil {
		return w.view.Failure(dst, s.cursor(time.Now().UnixMilli()), f)
	}
	dst = append(dst, "event: error\ndata: "...)
	dst = f.appendData(dst)
	return append(dst, "\n\n"...)
}

// answer tells nothing: what a command did shows on the stream, and its answer goes to
// whoever sent it.
func (sse) answer(dst []byte, _ answer) []byte { return dst }

func (w sse) goodbye(dst []byte, s *subscription, reason error) []byte {
	f, retry := farewell(reason)
	if f != nil {
		dst = w.failure(dst, s, *f)
	}
	if retry > 0 {
		// One newline, as with comments: it is no event.
		dst = append(dst, "retry: "...)
		dst = strconv.AppendInt(dst, retry.Milliseconds(), 10)
		dst = append(dst, '\n')
	}
	return dst
}

// marshal writes v as JSON; only types that always marshal are given to it.
func marshal(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}
