package query

import (
	"context"
	"errors"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// headerDegraded marks pages that were answered without ClickHouse.
const headerDegraded = "X-Playhead-Degraded"

// listEvents answers GET /v1/sessions/{id}/events.
func (a *API) listEvents(c *fiber.Ctx) error {
	who, session := httpapi.From(c), string([]byte(c.Params("id"))) // the router's string dies with the handler
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	req, err := parsePage(q, a.deps.PageSize(who.Workspace))
	if err != nil {
		return err
	}
	if !mayExist(who, session) {
		return errNoSession()
	}
	answer, err := a.page(c.UserContext(), who, session, &req)
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
	state  schema.Session
	cursor schema.Cursor // to go on from; zero if the session has no event yet
}

// page reads one page.
func (a *API) page(ctx context.Context, who control.Principal, session string, req *pageRequest) (pageAnswer, error) {
	v, err := a.open(ctx, who.Workspace, session)
	if err != nil {
		return pageAnswer{}, httpapi.LogUnavailable(err)
	}
	at, err := v.position(req)
	if err != nil {
		return pageAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout+a.cfg.LogScan.Timeout+answerGrace)
	defer cancel()
	r := pageReader{api: a, view: &v, req: req, known: true}
	if r.state, err = v.tape.Session(ctx, who.Workspace, session); err != nil {
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrScanTooLarge) {
			return pageAnswer{}, historyError(err)
		}
		r.known = false
	}
	if r.known && (!r.state.Exists() || !who.MaySee(session, r.state.Workflow)) {
		return pageAnswer{}, errNoSession()
	}
	p, err := r.read(ctx, at)
	if err == nil && !r.known {
		err = r.checkFound(who)
	}
	if err != nil {
		return pageAnswer{}, historyError(err)
	}
	answer := pageAnswer{page: p, req: req, state: r.state}
	answer.cursor = r.nextCursor()
	return answer, nil
}

// position returns where the page begins: the first position it may show or, if it is
// descending, the one after that; zero without a cursor.
func (v *view) position(req *pageRequest) (schema.Position, error) {
	c := req.cursor
	if c.IsZero() {
		return schema.Position{}, nil
	}
	next, ok := c.Next(v.ref.Partition)
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
	at := schema.Position{Epoch: c.ID.Epoch, Partition: v.ref.Partition, Offset: next}
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

// nextCursor returns the position to go on from: the last event shown; without one, the
// cursor that was given; without that, the session's last event in view, which the
// filter did not take, so that a stream begun there misses nothing.
func (r *pageReader) nextCursor() schema.Cursor {
	c := r.req.cursor
	if n := len(r.page.items); n > 0 {
		c = schema.Cursor{ID: r.page.items[n-1].event.ID}
	} else if c.IsZero() && r.known {
		for _, id := range []schema.EventID{r.state.Last, r.state.First} {
			if !id.IsZero() && before(id.Position, r.view.at(r.view.end)) {
				c.ID = id
				break
			}
		}
	}
	if !c.IsZero() {
		c.Filter = r.req.filter.Tag(r.req.descending)
	}
	return c
}
