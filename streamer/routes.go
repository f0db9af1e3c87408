package streamer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// openTimeout bounds what happens between a request for a stream and its first byte.
const openTimeout = 10 * time.Second

// takeOverTimeout is how long a slot waits for its connection, which the server hands
// over as soon as earlier answers on it are flushed.
const takeOverTimeout = 3 * time.Second

// Routes adds the streams' paths to app, which must authenticate before them.
func (h *Hub) Routes(app fiber.Router) {
	view := sessionView()
	app.Get("/v1/sessions/:id/events/stream", httpapi.Require(control.ScopeRead), func(c *fiber.Ctx) error {
		return h.streamSession(c, view)
	})
}

// streamParams are the query parameters of a stream, beside those of the filter.
func isStreamParam(name string) bool {
	switch name {
	case "last_event_id", "from", "on_slow", "close", "notices":
		return true
	}
	return schema.IsFilterParam(name)
}

// streamSession answers GET /v1/sessions/{id}/events/stream.
func (h *Hub) streamSession(c *fiber.Ctx, view *View) error {
	who := httpapi.From(c)
	session := string([]byte(c.Params("id"))) // the router's string dies with the handler
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	if err := httpapi.CheckParams(q, isStreamParam); err != nil {
		return err
	}
	req := Request{Workspace: who.Workspace, Session: session, View: view}
	if err := parseOptions(&req, q); err != nil {
		return err
	}
	begin, err := parseBegin(q, c.Get("Last-Event-ID"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), openTimeout)
	defer cancel()
	t, state, end, err := h.openSession(ctx, who, session)
	if err != nil {
		return err
	}
	if req.From, err = begin.position(t, &req.Filter, end); err != nil {
		return err
	}
	if req.CloseAtEnd && state.Ended() && req.From.Epoch == t.Epoch() && req.From.Offset > lastOffset(state, t.Epoch()) {
		// Nothing is left and nothing will come. 204 tells an EventSource not to come back
		// (HTML standard, 9.2.3).
		return c.SendStatus(http.StatusNoContent)
	}
	if c.Method() == fiber.MethodHead {
		c.Set(fiber.HeaderContentType, "text/event-stream")
		return nil
	}
	if err := h.Reserve(); err != nil {
		if errors.Is(err, errShutdown) {
			return httpapi.ShuttingDown()
		}
		return httpapi.Errorf(http.StatusServiceUnavailable, "overloaded",
			"this node holds as many streams as it may (%d)", h.cfg.MaxStreams).WithRetryAfter(time.Second)
	}
	head := streamHead(httpapi.RequestID(c))
	// The server drops the hijack without a word if the connection breaks first.
	var taken atomic.Bool
	unused := time.AfterFunc(takeOverTimeout, func() {
		if !taken.Swap(true) {
			h.Release()
		}
	})
	c.Context().HijackSetNoResponse(true)
	c.Context().Hijack(func(nc net.Conn) {
		if taken.Swap(true) {
			_ = nc.Close()
			return
		}
		unused.Stop()
		h.Adopt(nc, head, t, req)
	})
	return nil
}

// lastOffset is the offset of an ended session's last event. It lies before the end's own
// record, which clients never see, or behind it if the event came late.
func lastOffset(state schema.Session, epoch uint8) int64 {
	if state.Last.Epoch == epoch {
		return state.Last.Offset
	}
	return state.EndedAt
}

// streamHead is the response before the first frame. Without a length and without
// chunks the body ends with the connection, so frames go out as they are shared.
func streamHead(requestID string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+
		"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"+
		"X-Request-Id: %s\r\nConnection: close\r\n\r\n", requestID)
}

// openSession returns the tape and the state of a session the caller may read, and the
// log's end at the time of the request. Unknown and foreign sessions are the same 404.
func (h *Hub) openSession(ctx context.Context, who control.Principal, session string) (t *tape.Tape, state schema.Session, end int64, err error) {
	if schema.CheckID(session) != nil || who.Session != "" && who.Session != session {
		return nil, state, 0, httpapi.NotFound("session")
	}
	t, err = h.tapes.Open(ctx, h.past.Placement(who.Workspace).Partition(who.Workspace, session))
	if err != nil {
		return nil, state, 0, httpapi.LogUnavailable(err)
	}
	end, err = h.past.Log.HighWatermark(ctx, t.Partition())
	if err != nil {
		return nil, state, 0, httpapi.LogUnavailable(err)
	}
	if err := t.WaitFor(ctx, end); err != nil {
		return nil, state, 0, httpapi.LogUnavailable(err)
	}
	state, err = t.Session(ctx, who.Workspace, session)
	switch {
	case err != nil:
		return nil, state, 0, httpapi.HistoryUnavailable(historyRetryAfter).WithCause(err)
	case !state.Exists(), !who.MaySee(session, state.Workflow):
		return nil, state, 0, httpapi.NotFound("session")
	}
	return t, state, end, nil
}

// historyRetryAfter is when to come back while ClickHouse does not answer.
const historyRetryAfter = 5 * time.Second

func parseOptions(req *Request, q url.Values) error {
	var err error
	if req.Filter, err = schema.ParseFilter(q); err != nil {
		return badParam(err)
	}
	onSlow, err := choice(q, "on_slow", "drop", "replay")
	if err != nil {
		return err
	}
	req.ReplayWhenSlow = onSlow == "replay"
	closing, err := choice(q, "close", "", "end")
	if err != nil {
		return err
	}
	req.CloseAtEnd = closing == "end"
	notices, err := choice(q, "notices", "0", "1")
	req.Notices = notices == "1"
	return err
}

// choice reads a parameter with two values; the first is the default, and may be ""
// if only the second can be given.
func choice(q url.Values, name, otherwise, value string) (string, error) {
	v, err := httpapi.One(q, name)
	switch {
	case err != nil:
		return "", err
	case v == value:
		return value, nil
	case !q.Has(name) || v == otherwise && otherwise != "":
		return otherwise, nil
	case otherwise == "":
		return "", httpapi.InvalidParameter(name, "Parameter %s is %s; want %s.", name, schema.Quote(v), value)
	default:
		return "", httpapi.InvalidParameter(name, "Parameter %s is %s; want %s or %s.", name, schema.Quote(v), otherwise, value)
	}
}

func badParam(err error) error {
	var p *schema.ParamError
	if errors.As(err, &p) {
		return httpapi.InvalidParameter(p.Param, "Parameter %s %s.", p.Param, p.Why)
	}
	return err
}

// begin is where a client wants a stream to begin.
type begin struct {
	param  string // where the cursor was given
	cursor schema.Cursor
	start  bool
}

// parseBegin reads the place to begin. A browser that reconnects sends both the URL's
// parameters and the header: the header is newer, and wins.
func parseBegin(q url.Values, header string) (begin, error) {
	from, err := httpapi.One(q, "from")
	if err != nil {
		return begin{}, err
	}
	if q.Has("from") && from != "start" {
		return begin{}, httpapi.InvalidParameter("from", "Parameter from is %s; want start.", schema.Quote(from))
	}
	b := begin{start: from == "start"}
	text := header
	b.param = "Last-Event-ID"
	if text == "" {
		if text, err = httpapi.One(q, "last_event_id"); err != nil {
			return begin{}, err
		}
		b.param = "last_event_id"
	}
	if text == "" {
		return b, nil
	}
	if b.cursor, err = schema.ParseCursor(text); err != nil {
		return begin{}, httpapi.Errorf(http.StatusBadRequest, "invalid_cursor", "%s is %v", b.param, err).WithParam(b.param)
	}
	return b, nil
}

// position returns the first record to deliver. end is the log's end: a position that
// has not been written yet is refused, never taken for "now".
func (b begin) position(t *tape.Tape, f *schema.Filter, end int64) (schema.Position, error) {
	pos := schema.Position{Epoch: t.Epoch(), Partition: t.Partition(), Offset: end}
	beginning := schema.Position{Epoch: 1, Partition: t.Partition()}
	if b.cursor.IsZero() {
		if b.start || f.SinceMs != nil || f.FromTMs != nil {
			return beginning, nil
		}
		return pos, nil
	}
	invalid := func(why string) error {
		return httpapi.Errorf(http.StatusBadRequest, "invalid_cursor", "%s %s.", b.param, why).WithParam(b.param)
	}
	next, ok := b.cursor.Next(t.Partition())
	if b.cursor.ID.Epoch < t.Epoch() {
		next = b.cursor.ID.Offset + 1 // the session lay where the id says then
	}
	switch epoch := b.cursor.ID.Epoch; {
	case epoch == t.Epoch() && !ok:
		return pos, invalid("is a position of another session")
	case epoch > t.Epoch(), epoch == t.Epoch() && next > end:
		return pos, invalid("is a position that the log has not reached")
	default:
		return schema.Position{Epoch: epoch, Partition: t.Partition(), Offset: next}, nil
	}
}
