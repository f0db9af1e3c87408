package query

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Deps are what the query role's paths stand on. All of them are their maker's to close.
type Deps struct {
	History   *History
	Tapes     Tapes
	Log       Log
	Committed Committed
	Placement func(workspace string) schema.Placement
	PageSize  func(workspace string) int              // largest page of the workspace's plan, in events
	Types     func(workspace string) schema.TypeTable // codes of the workspace's event types; nil: the built-in ones
	Epoch     uint8                                   // of the log
	Dedupe    schema.DedupeRule
	Erased    schema.ErasedBelow // which events are not shown; nil: all are
	Logger    *slog.Logger
	Metrics   *Metrics
}

func (d *Deps) types(workspace string) schema.TypeTable {
	if d.Types == nil {
		return schema.TypeTable{}
	}
	return d.Types(workspace)
}

// API answers the paths of the query role. It is safe for concurrent use.
type API struct {
	cfg     Config
	deps    Deps
	metrics *Metrics

	admission *admission
}

// NewAPI returns the paths over deps.
func NewAPI(cfg Config, deps Deps) *API {
	return &API{cfg: cfg, deps: deps, metrics: deps.Metrics, admission: newAdmission(cfg.Admission, deps.Metrics)}
}

// Routes adds the paths to app, which must authenticate before them.
func (a *API) Routes(app fiber.Router) {
	read := httpapi.Require(control.ScopeRead)
	app.Get("/v1/sessions", read, a.admitPage, a.listSessions)
	app.Get("/v1/sessions/:id", read, a.admitPage, a.getSession)
	app.Get("/v1/sessions/:id/details", read, a.admitPage, a.getDetails)
	app.Get("/v1/sessions/:id/events", read, a.admitPage, a.listSessionEvents)
	app.Get("/v1/workflows/:id/events", read, a.admitPage, a.listWorkflowEvents)
	app.Get("/v1/events", read, a.admitPage, a.listEvents)
	app.Get("/v1/events/count", read, a.countEvents) // before the one with :id
	app.Get("/v1/events/histogram", read, a.histogram)
	app.Get("/v1/events/:id", read, a.admitPage, a.getEvent)
	app.Get("/v1/watermarks", read, a.listWatermarks)
}

// getSession answers GET /v1/sessions/{id}.
func (a *API) getSession(c *fiber.Ctx) error {
	who, session := httpapi.From(c), string([]byte(c.Params("id"))) // the router's string dies with the handler
	if err := httpapi.NoParams(c); err != nil {
		return err
	}
	if !mayExist(who, session) {
		return errNoSession()
	}
	ctx := c.UserContext()
	views, err := a.open(ctx, schema.Scope{Workspace: who.Workspace, Session: session})
	if err != nil {
		return httpapi.LogUnavailable(err)
	}
	state, err := views[0].tape.Session(ctx, who.Workspace, session)
	if err != nil {
		return historyError(err)
	}
	if !state.Exists() || !who.MaySee(session, state.Workflow) {
		return errNoSession()
	}
	return c.JSON(state.View(session))
}

// mayExist is false for ids that no session of the caller can have.
func mayExist(who control.Principal, session string) bool {
	return schema.CheckID(session) == nil && (who.Session == "" || who.Session == session)
}

// errNoSession is the one answer for sessions that do not exist and those of others.
func errNoSession() error { return httpapi.NotFound("session") }

// historyError maps what History, the tape or the log answered to the client's error.
func historyError(err error) error {
	var unavailable *UnavailableError
	var tooLarge *scanTooLargeError
	switch {
	case errors.As(err, &unavailable):
		return httpapi.HistoryUnavailable(spread(unavailable.RetryAfter)).WithCause(err)
	case errors.As(err, &tooLarge):
		return tooLarge.answer()
	case errors.Is(err, errLogFailed):
		return httpapi.LogUnavailable(err)
	case errors.Is(err, errNotInKafka), errors.Is(err, errScanBudget), errors.Is(err, context.DeadlineExceeded):
		return httpapi.HistoryUnavailable(retryHistory).WithCause(err)
	case errors.Is(err, ErrScanTooLarge):
		return httpapi.Errorf(422, "scan_too_large", "Answering this would read too much history. Narrow it by startTime and endTime, or go on from a cursor.").WithCause(err)
	default:
		return err
	}
}

// retryHistory is when to come back where nothing better is known.
const retryHistory = 2 * time.Second
