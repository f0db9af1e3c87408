package query

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/url"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Orders of the list of sessions.
const (
	orderRecency = "recency" // by the append time of the last record, the newest first
	orderStart   = "start"   // by the append time of the first record
)

// listRequest is the query of a list of sessions.
type listRequest struct {
	limit      int
	orderBy    string
	descending bool
	cursor     listKey // zero: from the beginning

	status, kind    string // "" takes all
	workflow        string // "" takes all
	after, before   *int64 // Unix ms: started at or after, and before
	tag             uint32 // of all of the above but the limit and the cursor
	cursorWasAbsent bool
}

func isListParam(name string) bool {
	switch name {
	case "pageSize", "limit", "cursor", "order_by", "order", "status", "kind", "workflow_id", "started_after", "started_before":
		return true
	}
	return false
}

// listSessions answers GET /v1/sessions.
func (a *API) listSessions(c *fiber.Ctx) error {
	who := httpapi.From(c)
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	if err := httpapi.CheckParams(q, isListParam); err != nil {
		return err
	}
	req, err := parseList(q, a.deps.PageSize(who.Workspace))
	if err != nil {
		return err
	}
	scope, err := narrow(who, req.workflow)
	if err != nil {
		return err
	}
	req.workflow = scope.Workflow
	if err := req.parseCursor(q); err != nil {
		return err
	}
	list, err := a.sessionList(c.UserContext(), who, scope, &req)
	if err != nil {
		return err
	}
	source := sourceHistory
	if list.Degraded {
		source = sourceDegraded
		c.Set(headerDegraded, sourceDegraded)
	}
	a.metrics.pages.WithLabelValues(source).Inc()
	return c.JSON(list)
}

// parseList reads the query of a list of at most maxPage sessions, but for its cursor.
// Every error is a 400 that names the parameter.
func parseList(q url.Values, maxPage int) (listRequest, error) {
	var r listRequest
	var err error
	if r.limit, err = parsePageSize(q, maxPage); err != nil {
		return r, err
	}
	if r.orderBy, err = choice(q, "order_by", orderRecency, orderStart); err != nil {
		return r, err
	}
	orders := []string{"desc", "asc"}
	if r.orderBy == orderRecency {
		orders = orders[:1] // the other way a session that is active while one pages comes again and again
	}
	order, err := choice(q, "order", orders...)
	if err != nil {
		return r, err
	}
	r.descending = order == "desc"
	if r.status, err = choice(q, "status", "", schema.StatusActive, schema.StatusEnded); err != nil {
		return r, err
	}
	if r.kind, err = choice(q, "kind", "", schema.KindSession, schema.KindCall, schema.KindConversation); err != nil {
		return r, err
	}
	if r.workflow, err = parseWorkflow(q); err != nil {
		return r, err
	}
	if r.after, err = parseListTime(q, "started_after"); err != nil {
		return r, err
	}
	r.before, err = parseListTime(q, "started_before")
	return r, err
}

func parseListTime(q url.Values, name string) (*int64, error) {
	v, err := httpapi.One(q, name)
	if err != nil || !q.Has(name) {
		return nil, err
	}
	ms, err := schema.ParseTime(v)
	if err != nil {
		return nil, httpapi.InvalidParameter(name, "Parameter %s %v.", name, err)
	}
	return &ms, nil
}

// parseCursor reads the cursor, once the workflow is narrowed to what the key sees.
func (r *listRequest) parseCursor(q url.Values) error {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %v %q %q %q", r.orderBy, r.descending, r.status, r.kind, r.workflow)
	for _, ms := range []*int64{r.after, r.before} {
		if ms != nil {
			fmt.Fprintf(h, " %d", *ms)
		} else {
			fmt.Fprint(h, " -")
		}
	}
	r.tag = max(h.Sum32(), 1)
	v, err := httpapi.One(q, "cursor")
	if err != nil || v == "" {
		r.cursorWasAbsent = true
		return err
	}
	key, tag, ok := parseListCursor(v)
	if !ok {
		return invalidCursor("Parameter cursor is %s; want nextCursor of a list of sessions.", schema.Quote(v))
	}
	if tag != r.tag {
		return httpapi.Errorf(400, "cursor_mismatch",
			"The cursor belongs to a list with other filters or another order. Repeat those, or begin anew without it.").WithParam("cursor")
	}
	r.cursor = key
	return nil
}

// key returns where a session stands in the list.
func (r *listRequest) key(id string, s *schema.Session) listKey {
	if r.orderBy == orderStart {
		return listKey{s.StartedMs, id}
	}
	return listKey{s.LastMs, id}
}

// takes reports whether a session is on the list.
func (r *listRequest) takes(s *schema.Session) bool {
	status := schema.StatusActive
	if s.Ended() {
		status = schema.StatusEnded
	}
	return s.Exists() &&
		(r.status == "" || r.status == status) &&
		(r.kind == "" || r.kind == s.Kind) &&
		(r.workflow == "" || r.workflow == s.Workflow) &&
		(r.after == nil || s.StartedMs >= *r.after) &&
		(r.before == nil || s.StartedMs < *r.before)
}

// sessionPage is a page of the list as clients read it.
type sessionPage struct {
	Data       []schema.SessionView `json:"data"`
	Pagination struct {
		NextCursor *string `json:"nextCursor"`
		HasMore    bool    `json:"hasMore"`
		Limit      int     `json:"limit"`
	} `json:"pagination"`
	Partial  bool `json:"partial,omitempty"`
	Degraded bool `json:"degraded,omitempty"`
}

// sessionList reads one page of the list.
func (a *API) sessionList(ctx context.Context, who control.Principal, scope schema.Scope, req *listRequest) (sessionPage, error) {
	views, err := a.open(ctx, scope)
	if err != nil {
		return sessionPage{}, httpapi.LogUnavailable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout+a.cfg.LogScan.Timeout+answerGrace)
	defer cancel()
	r := listReader{
		api: a, workspace: scope.Workspace, views: views, req: req,
		until: time.Now().Add(a.cfg.QueryTimeout / 2), bounds: defaultListBounds(),
	}
	if scope.Session != "" {
		err = r.readOne(ctx, who, scope.Session)
	} else {
		err = r.read(ctx)
	}
	if err != nil {
		return sessionPage{}, historyError(err)
	}
	return r.answer(), nil
}

// answer makes the page of what was read.
func (r *listReader) answer() sessionPage {
	p := sessionPage{Data: make([]schema.SessionView, len(r.listed)), Partial: r.partial, Degraded: r.degraded}
	for i := range r.listed {
		p.Data[i] = r.listed[i].state.View(r.listed[i].key.id)
	}
	p.Pagination.Limit, p.Pagination.HasMore = r.req.limit, r.more
	next := r.req.cursor
	switch n := len(r.listed); {
	case r.partial:
		next = r.at
	case n > 0:
		next = r.listed[n-1].key
	case r.req.cursorWasAbsent:
		return p
	}
	cursor := next.cursor(r.req.tag)
	p.Pagination.NextCursor = &cursor
	return p
}
