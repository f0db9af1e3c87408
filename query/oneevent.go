package query

import (
	"context"
	"errors"
	"slices"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// getEvent answers GET /v1/events/{id}: one event, with its payload, as a page shows it.
func (a *API) getEvent(c *fiber.Ctx) error {
	who, text := httpapi.From(c), string([]byte(c.Params("id"))) // the router's string dies with the handler
	if err := httpapi.NoParams(c); err != nil {
		return err
	}
	id, err := schema.ParseEventID(text)
	if err != nil {
		return errNoEvent()
	}
	item, err := a.event(c.UserContext(), who.Workspace, id)
	if err != nil {
		return err
	}
	if e := item.event; e == nil || e.ID != id || e.Hidden() || !who.MaySee(e.Session, e.Workflow) {
		return errNoEvent()
	}
	answer := pageAnswer{req: &pageRequest{payloads: true, types: a.deps.types(who.Workspace)}}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSONCharsetUTF8)
	return c.Send(answer.appendItem(nil, item))
}

// errNoEvent is the one answer for ids that name no event, and those of others.
func errNoEvent() error { return httpapi.NotFound("event") }

// event returns the event at the position of an id; none if there is none there.
func (a *API) event(ctx context.Context, workspace string, id schema.EventID) (pageItem, error) {
	own := a.deps.Placement(workspace).WorkspacePartitions(workspace)
	if id.Epoch > a.deps.Epoch || id.Epoch == a.deps.Epoch && !slices.Contains(own, id.Partition) {
		return pageItem{}, nil
	}
	scope := schema.Scope{Workspace: workspace}
	at := id.Position
	q := scopeRows{scope: scope, partition: id.Partition, from: at, to: after(at), filter: &schema.Filter{}}
	l := &leg{partition: id.Partition, at: at, rows: after(at), far: after(at)}
	if id.Epoch == a.deps.Epoch {
		v, err := a.openPartition(ctx, id.Partition)
		if err != nil {
			return pageItem{}, httpapi.LogUnavailable(err)
		}
		if id.Offset >= v.end {
			return pageItem{}, nil
		}
		if l.view = v; id.Offset >= v.committed {
			l.rows = at
		}
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout+a.cfg.LogScan.Timeout+answerGrace)
	defer cancel()
	req := pageRequest{limit: 1, payloads: true}
	r := pageReader{api: a, scope: scope, req: &req, scans: make(map[uint16]*logScan)}
	if r.inRows(l) {
		_, err := a.deps.History.readSession(ctx, q, 1, func(e *schema.Event, size int) error { return r.take(l, e, size) })
		if errors.Is(err, ErrUnavailable) {
			err = r.standIn(ctx, l, err)
		}
		if err != nil {
			return pageItem{}, historyError(err)
		}
	}
	if len(l.items) == 0 && !r.inRows(l) && !r.done(l) {
		if err := r.fillHot(ctx, l); err != nil {
			return pageItem{}, historyError(err)
		}
	}
	if len(l.items) == 0 {
		return pageItem{}, nil
	}
	return l.items[0], nil
}
