package query

import (
	"cmp"
	"context"
	"errors"
	"net/url"
	"slices"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// headerDegraded marks pages that were answered without ClickHouse.
const headerDegraded = "X-Playhead-Degraded"

// listSessionEvents answers GET /v1/sessions/{id}/events.
func (a *API) listSessionEvents(c *fiber.Ctx) error {
	who, session := httpapi.From(c), string([]byte(c.Params("id"))) // the router's string dies with the handler
	return a.answerPage(c, isPageParam, func(url.Values) (schema.Scope, error) {
		if !mayExist(who, session) {
			return schema.Scope{}, errNoSession()
		}
		return schema.Scope{Workspace: who.Workspace, Session: session}, nil
	})
}

// listWorkflowEvents answers GET /v1/workflows/{id}/events. A workflow that nobody has used
// is an empty page: it may begin at any time.
func (a *API) listWorkflowEvents(c *fiber.Ctx) error {
	who, workflow := httpapi.From(c), string([]byte(c.Params("id")))
	return a.answerPage(c, isPageParam, func(url.Values) (schema.Scope, error) {
		if schema.CheckID(workflow) != nil {
			return schema.Scope{}, httpapi.NotFound("workflow")
		}
		return narrow(who, workflow)
	})
}

// listEvents answers GET /v1/events.
func (a *API) listEvents(c *fiber.Ctx) error {
	who := httpapi.From(c)
	return a.answerPage(c, isScopePageParam, func(q url.Values) (schema.Scope, error) {
		workflow, err := parseWorkflow(q)
		if err != nil {
			return schema.Scope{}, err
		}
		return narrow(who, workflow)
	})
}

// narrow returns what a caller sees of a workflow, or of the workspace if it is "". A key
// that is bound to one session or workflow sees no more than that; another's is unknown to it.
func narrow(who control.Principal, workflow string) (schema.Scope, error) {
	s := schema.Scope{Workspace: who.Workspace, Workflow: workflow}
	switch {
	case who.Session != "" && workflow != "":
		return s, httpapi.NotFound("workflow")
	case who.Session != "":
		s.Session = who.Session
	case who.Workflow != "" && workflow != "" && workflow != who.Workflow:
		return s, httpapi.NotFound("workflow")
	case who.Workflow != "":
		s.Workflow = who.Workflow
	}
	return s, nil
}

// answerPage reads the page of the scope that the query asks for.
func (a *API) answerPage(c *fiber.Ctx, known func(string) bool, scopeOf func(url.Values) (schema.Scope, error)) error {
	who := httpapi.From(c)
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	if err := httpapi.CheckParams(q, known); err != nil {
		return err
	}
	req, err := parsePage(q, a.deps.PageSize(who.Workspace), a.deps.types(who.Workspace))
	if err != nil {
		return err
	}
	scope, err := scopeOf(q)
	if err != nil {
		return err
	}
	if err := req.parseCursor(q, scope); err != nil {
		return err
	}
	answer, err := a.page(c.UserContext(), who, scope, &req)
	if err != nil {
		return err
	}
	if answer.page.degraded {
		c.Set(headerDegraded, sourceDegraded)
		a.metrics.pages.WithLabelValues(sourceDegraded).Inc()
	} else {
		a.metrics.pages.WithLabelValues(sourceHistory).Inc()
	}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSONCharsetUTF8)
	return c.Send(answer.appendJSON(nil))
}

// pageAnswer is a page with what its JSON says beside the events.
type pageAnswer struct {
	page   page
	req    *pageRequest
	state  schema.Session // of a page of one session
	cursor schema.Cursor  // to go on from; zero if the session has no event yet
}

// page reads one page.
func (a *API) page(ctx context.Context, who control.Principal, scope schema.Scope, req *pageRequest) (pageAnswer, error) {
	views, err := a.open(ctx, scope)
	if err != nil {
		return pageAnswer{}, httpapi.LogUnavailable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout+a.cfg.LogScan.Timeout+answerGrace)
	defer cancel()
	r := pageReader{api: a, scope: scope, views: views, req: req}
	if scope.Session == "" {
		return r.scopePage(ctx)
	}
	return r.sessionPage(ctx, who)
}

// scopePage reads a page of a workflow or a workspace.
func (r *pageReader) scopePage(ctx context.Context) (pageAnswer, error) {
	if err := r.beginScope(ctx); err != nil {
		return pageAnswer{}, historyError(err)
	}
	p, err := r.read(ctx)
	if err != nil {
		return pageAnswer{}, historyError(err)
	}
	return pageAnswer{page: p, req: r.req, cursor: r.scopeCursor()}, nil
}

// scopeCursor returns the position to go on from: where each of the legs is.
func (r *pageReader) scopeCursor() schema.Cursor {
	next := make([]schema.NextOffset, len(r.legs))
	for i, l := range r.legs {
		next[i] = schema.NextOffset{Partition: l.partition, Offset: l.at.Offset}
		if len(l.items) > 0 {
			next[i].Offset = l.items[0].event.ID.Offset
			if r.req.descending {
				next[i].Offset++
			}
		}
	}
	ms := r.req.cursor.ID.TimeMs
	if n := len(r.page.items); n > 0 {
		ms = r.page.items[n-1].event.ID.TimeMs
	}
	c := cursorAt(r.epoch, next, ms)
	c.Filter = r.req.tag(r.scope)
	return c
}

// cursorAt is schema.CursorAt for offsets in any order, which it sorts.
func cursorAt(epoch uint8, next []schema.NextOffset, timeMs int64) schema.Cursor {
	slices.SortFunc(next, func(a, b schema.NextOffset) int { return cmp.Compare(a.Partition, b.Partition) })
	return schema.CursorAt(epoch, next, timeMs)
}

// sessionPage reads a page of one session, and meanwhile the session's state.
func (r *pageReader) sessionPage(ctx context.Context, who control.Principal) (pageAnswer, error) {
	if err := r.beginSession(); err != nil {
		return pageAnswer{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.stated = make(chan struct{})
	go func() { // which is waited for
		defer close(r.stated)
		r.state, r.stateErr = r.views[0].tape.Session(ctx, r.scope.Workspace, r.scope.Session)
	}()
	p, err := r.read(ctx)
	if err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrScanTooLarge) {
		cancel()
	}
	known := r.known()
	switch {
	case known && (!r.state.Exists() || !who.MaySee(r.scope.Session, r.state.Workflow)):
		return pageAnswer{}, errNoSession()
	case err != nil:
	case !known && !errors.Is(r.stateErr, ErrUnavailable) && !errors.Is(r.stateErr, ErrScanTooLarge):
		err = r.stateErr
	case !known:
		err = r.checkFound(who)
	}
	if err != nil {
		return pageAnswer{}, historyError(err)
	}
	return pageAnswer{page: p, req: r.req, state: r.state, cursor: r.sessionCursor()}, nil
}

// position returns where the page begins: the first position it may show or, if it is
// descending, the one after that; zero without a cursor.
func (v *view) position(req *pageRequest) (schema.Position, error) {
	c := req.cursor
	if c.IsZero() {
		return schema.Position{}, nil
	}
	next, ok := c.Next(v.partition)
	switch {
	case c.ID.Epoch > v.epoch:
		return schema.Position{}, invalidCursor("The cursor is of a log that does not exist yet.")
	case c.ID.Epoch < v.epoch && len(c.Others) == 0:
		next = c.ID.Offset + 1 // that log may have placed the session in another partition
	case !ok:
		return schema.Position{}, invalidCursor("The cursor says nothing about this session: it is of another partition of the log.")
	case c.ID.Epoch == v.epoch && next > v.end:
		return schema.Position{}, invalidCursor("The cursor lies beyond the end of the log.")
	}
	at := schema.Position{Epoch: c.ID.Epoch, Partition: v.partition, Offset: next}
	if req.descending && next == c.ID.Offset+1 {
		at.Offset-- // below the event itself
	}
	return at, nil
}

// checkFound decides about a session whose state could not be had, from what was found
// of it: an event is proof that it exists. What cannot be decided is an error.
func (r *pageReader) checkFound(who control.Principal) error {
	if who.Workflow != "" || len(r.page.items) == 0 {
		return &UnavailableError{RetryAfter: retryHistory, Cause: errNotInKafka}
	}
	return nil
}

// sessionCursor returns the position to go on from: the last event shown; without one, the
// cursor that was given; without that, the session's last event in view, which the
// filter did not take, so that a stream begun there misses nothing.
func (r *pageReader) sessionCursor() schema.Cursor {
	c := r.req.cursor
	if n := len(r.page.items); n > 0 {
		c = schema.Cursor{ID: r.page.items[n-1].event.ID}
	} else if c.IsZero() && r.known() {
		for _, id := range []schema.EventID{r.state.Last, r.state.First} {
			if !id.IsZero() && before(id.Position, r.views[0].at(r.views[0].end)) {
				c.ID = id
				break
			}
		}
	}
	if !c.IsZero() {
		c.Filter = r.req.tag(r.scope)
	}
	return c
}
