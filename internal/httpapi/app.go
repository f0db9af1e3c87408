package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// NewApp returns a fiber app with the edge in place: request ids, CORS, the error envelope
// (for unknown paths, wrong methods, bodies and headers over the limit and requests
// that do not parse as well), panics answered 500, and metrics. cfg must be valid. Paths are case
// sensitive, a final slash does not matter, and %XX in a path is decoded before routes
// and parameters see it.
//
// KeepHijackedConns is set on the server: whoever hijacks a connection closes it.
// Strings that fiber hands out die with the handler; copy what is kept.
func NewApp(cfg Config, log *slog.Logger) *fiber.App {
	e := &edge{cfg: cfg, log: log, metrics: newMetrics(cfg.Registerer), cors: newCORS(cfg.CORS), arrivals: newArrivals(cfg)}
	app := fiber.New(fiber.Config{
		CaseSensitive:                true,
		UnescapePath:                 true,
		BodyLimit:                    cfg.BodyLimit,
		ReadBufferSize:               cfg.HeaderLimit,
		ReadTimeout:                  cfg.HeaderTimeout, // headReceived sets that of the body
		WriteTimeout:                 cfg.WriteTimeout,
		IdleTimeout:                  cfg.IdleTimeout,
		Concurrency:                  cfg.MaxConnections,
		ErrorHandler:                 e.handleError,
		DisableStartupMessage:        true,
		DisablePreParseMultipartForm: true,
	})
	server := app.Server()
	server.KeepHijackedConns = true
	server.HeaderReceived = e.arrivals.headReceived
	server.Handler = e.receive(app, onlyKnownMethods(server.Handler))
	server.ErrorHandler = e.broken(app, server.ErrorHandler)
	app.Use(e.wrap)
	return app
}

// edge is what every request passes through.
type edge struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	cors    *cors

	arrivals *arrivals
}

// receive is called when a request has arrived whole.
func (e *edge) receive(app *fiber.App, next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(rctx *fasthttp.RequestCtx) {
		done, _ := e.arrivals.arrived(&rctx.Request.Header)
		defer done()
		if err := checkHead(&rctx.Request.Header); err != nil {
			rctx.SetConnectionClose()
			e.answer(app, rctx, err)
			return
		}
		next(rctx)
	}
}

// broken is called when a request did not arrive whole.
func (e *edge) broken(app *fiber.App, next func(*fasthttp.RequestCtx, error)) func(*fasthttp.RequestCtx, error) {
	return func(rctx *fasthttp.RequestCtx, err error) {
		done, refusal := e.arrivals.arrived(&rctx.Request.Header)
		defer done()
		tooLarge := errors.Is(err, fasthttp.ErrBodyTooLarge)
		if refusal != nil && tooLarge {
			e.answer(app, rctx, refusal)
		} else {
			next(rctx, err)
		}
		if tooLarge || errors.As(err, new(*fasthttp.ErrSmallBuffer)) {
			e.linger(rctx)
		}
	}
}

// answer answers with an error, before fiber has seen the request.
func (e *edge) answer(app *fiber.App, rctx *fasthttp.RequestCtx, err *Error) {
	c := app.AcquireCtx(rctx)
	defer app.ReleaseCtx(c)
	_ = e.handleError(c, err)
}

// wrap is the first handler of every request.
func (e *edge) wrap(c *fiber.Ctx) (err error) {
	began := time.Now()
	ensureRequestID(c)
	if e.cfg.BaseContext != nil {
		c.SetUserContext(e.cfg.BaseContext)
	}
	defer func() {
		if r := recover(); r != nil {
			e.log.Error("handler panicked", "request_id", RequestID(c), "panic", r, "stack", string(debug.Stack()))
			err = e.handleError(c, Errorf(500, CodeInternal, internalMessage))
		}
		e.metrics.observe(c, time.Since(began))
	}()
	e.cors.setHeaders(c)
	switch {
	case e.cors.isPreflight(c): // before keys are asked for: browsers send none with it
		return e.cors.answerPreflight(c)
	case e.cfg.Stopping != nil && e.cfg.Stopping() && !isOperations(c.Path()):
		err = ShuttingDown()
	default:
		err = c.Next()
	}
	if err != nil { // answered here, so that the metrics see the status
		err = e.handleError(c, err)
	}
	return err
}

func isOperations(path string) bool {
	path = strings.TrimRight(path, "/") // as the router does
	return path == PathHealth || path == PathReady || path == PathMetrics
}

// onlyKnownMethods has methods that fiber does not know answered as TRACE is, which no path
// takes: 405 with the methods that the path does take. Fiber would answer in plain text
// before any handler runs.
func onlyKnownMethods(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	known := make(map[string]bool, len(fiber.DefaultMethods))
	for _, m := range fiber.DefaultMethods {
		known[m] = true
	}
	return func(rctx *fasthttp.RequestCtx) {
		if !known[string(rctx.Method())] {
			rctx.Request.Header.SetMethod(fiber.MethodTrace)
		}
		next(rctx)
	}
}

const internalMessage = "Something went wrong on our side. The request id finds it in our logs."

// handleError writes err as the envelope. It is the only place that does.
func (e *edge) handleError(c *fiber.Ctx, err error) error {
	ensureRequestID(c)
	e.cors.setHeaders(c) // or scripts could not read the error; it may not have come through wrap
	answer := asError(err)
	id := RequestID(c)
	if answer.Status >= 500 {
		level := slog.LevelError
		if answer.Status == fiber.StatusServiceUnavailable {
			level = slog.LevelWarn
		}
		if answer.Cause != nil {
			e.log.Log(context.Background(), level, "request ended in an error",
				"request_id", id, "code", answer.Code, "method", c.Method(), "route", c.Route().Path, "error", answer.Cause)
		}
	}
	e.metrics.countError(answer.Code)

	body, err := json.Marshal(answer.envelope(id))
	if err != nil { // details that do not marshal are our bug
		e.log.Error("error details do not marshal", "request_id", id, "code", answer.Code, "error", err)
		answer.Details = nil
		body, _ = json.Marshal(answer.envelope(id))
	}
	if answer.RetryAfter > 0 {
		c.Set(fiber.HeaderRetryAfter, strconv.Itoa(answer.retryAfterSeconds()))
	}
	if answer.Status == fiber.StatusUnauthorized {
		c.Set(fiber.HeaderWWWAuthenticate, "Bearer")
	}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSONCharsetUTF8)
	return c.Status(answer.Status).Send(body)
}

// asError turns whatever a handler, fiber or the server returned into an answer.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	f, ok := errors.AsType[*fiber.Error](err)
	if !ok {
		return Errorf(500, CodeInternal, internalMessage).WithCause(err)
	}
	switch f.Code {
	case fiber.StatusNotFound:
		return Errorf(404, CodeNotFound, "There is no such path.")
	case fiber.StatusMethodNotAllowed:
		return Errorf(405, CodeMethodNotAllowed, "This path does not take that method.")
	case fiber.StatusRequestEntityTooLarge:
		return Errorf(413, CodeBodyTooLarge, "The request body is too large.")
	case fiber.StatusRequestHeaderFieldsTooLarge:
		return Errorf(431, CodeHeadersTooLarge, "Request line and headers are too large.")
	case fiber.StatusRequestTimeout:
		return Errorf(408, CodeRequestTimeout, "The request did not arrive in time.")
	case fiber.StatusUpgradeRequired:
		return Errorf(426, "upgrade_required", "This path speaks WebSocket.")
	default:
		if f.Code >= 400 && f.Code < 500 || f.Code == fiber.StatusBadGateway {
			// 502 is what fiber makes of a client whose connection broke while it sent.
			return Errorf(400, CodeBadRequest, "The request could not be read.").WithCause(err)
		}
		return Errorf(500, CodeInternal, internalMessage).WithCause(err)
	}
}

// requestIDKey is the Locals key of the request id.
type requestIDKey struct{}

// RequestID returns the id of the request, safe to keep.
func RequestID(c *fiber.Ctx) string {
	id, _ := c.Locals(requestIDKey{}).(string)
	return id
}

// ensureRequestID takes over the client's X-Request-Id if it is 1 to 128 of
// A-Z a-z 0-9 _ . : - and makes one otherwise, and puts it on the response.
func ensureRequestID(c *fiber.Ctx) {
	id := RequestID(c)
	if id == "" {
		id = strings.Clone(c.Get(fiber.HeaderXRequestID))
		if !validRequestID(id) {
			id = newRequestID()
		}
		c.Locals(requestIDKey{}, id)
	}
	c.Set(fiber.HeaderXRequestID, id)
}
