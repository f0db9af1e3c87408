package streamer

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

// Routes adds the streams' paths to app, which must authenticate before them.
func (h *Hub) Routes(app fiber.Router) {
	for _, v := range h.views {
		for _, path := range v.Paths {
			app.Get(path, httpapi.Require(control.ScopeRead), func(c *fiber.Ctx) error { return h.serveStream(c, v) })
		}
	}
	app.Post("/v1/streams/:id/commands", h.takeCommand)
}

// TokenRule returns what says which keys a path takes in its URL: on streams, which
// browsers open without a way to set headers, a browser key, or any.
func TokenRule() func(path string) httpapi.TokenRule {
	all := views()
	return func(path string) httpapi.TokenRule {
		v := viewOf(all, path)
		switch {
		case v == nil:
			return httpapi.TokenNever
		case v.AnyKeyInURL:
			return httpapi.TokenAnyKey
		default:
			return httpapi.TokenBrowserKey
		}
	}
}

// matchesRoute reports whether path is of a route whose segments that begin with ":" stand
// for any.
func matchesRoute(route, path string) bool {
	path = strings.TrimSuffix(path, "/")
	for {
		want, moreRoute, routeGoesOn := strings.Cut(route, "/")
		have, morePath, pathGoesOn := strings.Cut(path, "/")
		if want != have && !(strings.HasPrefix(want, ":") && have != "") || routeGoesOn != pathGoesOn {
			return false
		}
		if !routeGoesOn {
			return true
		}
		route, path = moreRoute, morePath
	}
}

// serveStream answers a request for a stream of a view.
func (h *Hub) serveStream(c *fiber.Ctx, v *View) error {
	if v.WebSocket {
		if err := checkHandshake(c); err != nil {
			return err
		}
	}
	o, done, err := h.open(c, v)
	if err != nil {
		return err
	}
	if done && !v.WebSocket { // a socket's close code says it
		// Nothing is left and nothing will come. 204 tells an EventSource not to come back
		// (HTML standard, 9.2.3).
		return c.SendStatus(http.StatusNoContent)
	}
	if c.Method() == fiber.MethodHead {
		c.Set(fiber.HeaderContentType, "text/event-stream")
		c.Set(fiber.HeaderCacheControl, "no-cache, no-transform")
		c.Set("X-Accel-Buffering", "no")
		return nil
	}
	if err := h.admit(&o, c.Path()); err != nil {
		return err
	}
	if v.WebSocket {
		return h.upgrade(c, o)
	}
	o.head = streamHead(c, o.id)
	t := h.takeOver(&o)
	c.Context().HijackSetNoResponse(true)
	c.Context().Hijack(func(nc net.Conn) {
		if !t.take() {
			_ = nc.Close()
			return
		}
		h.adopt(nc, o)
	})
	return nil
}

// streamHead is the response before the first frame. Without a length and without
// chunks the body ends with the connection, so frames go out as they are shared.
func streamHead(c *fiber.Ctx, id string) []byte {
	b := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" +
		"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nConnection: close\r\n")
	b = append(b, httpapi.HeaderConnectionID+": "+id+"\r\nDate: "...)
	b = time.Now().UTC().AppendFormat(b, http.TimeFormat)
	b = append(b, "\r\n"...)
	b = httpapi.AppendHijackHeaders(b, c)
	return append(b, "\r\n"...)
}

// takeOverTimeout is how long a slot waits for its connection, which the server hands
// over as soon as earlier answers on it are flushed.
const takeOverTimeout = 3 * time.Second

// takeOver is the wait for a connection. The server drops a hijack without a word if the
// connection breaks first; then what was taken for the stream is given back.
type takeOver struct {
	done  atomic.Bool
	timer *time.Timer
}

func (h *Hub) takeOver(o *opening) *takeOver {
	t := new(takeOver)
	release := o.release
	t.timer = time.AfterFunc(takeOverTimeout, func() {
		if !t.done.Swap(true) {
			release()
			h.Release()
		}
	})
	return t
}

// take reports whether the connection came in time.
func (t *takeOver) take() bool {
	t.timer.Stop()
	return !t.done.Swap(true)
}
