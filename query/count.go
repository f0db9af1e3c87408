package query

import (
	"net/url"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// countRequest is the query of a count or a histogram.
type countRequest struct {
	filter   schema.Filter
	interval time.Duration // of a bucket, whole milliseconds; 0: no buckets
	untyped  bool          // not by type
}

// isCountParam reports whether a count reads the query parameter.
func isCountParam(name string) bool {
	switch name {
	case "session_id", "workflow_id", "startTime", "endTime", "group_by":
		return true
	}
	return schema.IsFilterParam(name)
}

// countEvents answers GET /v1/events/count.
func (a *API) countEvents(c *fiber.Ctx) error {
	answer, req, err := a.answerCount(c, isCountParam)
	if err != nil {
		return err
	}
	b := append([]byte(`{"count":`), strconv.FormatUint(answer.tally.total(0), 10)...)
	if !req.untyped {
		b = answer.tally.appendTypes(append(b, `,"counts_by_type":`...), 0)
	}
	return answer.send(c, b)
}

// answerCount reads the query of a count or a histogram and counts.
func (a *API) answerCount(c *fiber.Ctx, known func(string) bool) (countAnswer, *countRequest, error) {
	who := httpapi.From(c)
	q, err := httpapi.Query(c)
	if err != nil {
		return countAnswer{}, nil, err
	}
	if err := httpapi.CheckParams(q, known); err != nil {
		return countAnswer{}, nil, err
	}
	req, err := parseCount(q, a.deps.types(who.Workspace), known("interval"))
	if err != nil {
		return countAnswer{}, nil, err
	}
	scope, err := countScope(q, who)
	if err != nil {
		return countAnswer{}, nil, err
	}
	answer, err := a.count(c.UserContext(), who, scope, &req)
	return answer, &req, err
}

// parseCount reads the query of a count, or of a histogram, but for its scope.
func parseCount(q url.Values, types schema.TypeTable, buckets bool) (countRequest, error) {
	var r countRequest
	var err error
	if r.filter, err = parsePageFilter(q, types); err != nil {
		return r, err
	}
	group, err := choice(q, "group_by", "type", "none")
	if err != nil {
		return r, err
	}
	r.untyped = group == "none"
	if !buckets {
		return r, nil
	}
	if r.interval, err = parseInterval(q); err != nil {
		return r, err
	}
	return r, checkBuckets(&r)
}

// countScope returns what the caller wants counted, and sees.
func countScope(q url.Values, who control.Principal) (schema.Scope, error) {
	workflow, err := parseWorkflow(q)
	if err != nil {
		return schema.Scope{}, err
	}
	session, err := httpapi.One(q, "session_id")
	if err != nil {
		return schema.Scope{}, err
	}
	switch {
	case !q.Has("session_id"):
		return narrow(who, workflow)
	case workflow != "":
		return schema.Scope{}, httpapi.InvalidParameter("session_id", "Parameters session_id and workflow_id are both given; one of them is allowed.")
	}
	if err := schema.CheckID(session); err != nil {
		return schema.Scope{}, httpapi.InvalidParameter("session_id", "Parameter session_id %v.", err)
	}
	if !mayExist(who, session) {
		return schema.Scope{}, errNoSession()
	}
	return schema.Scope{Workspace: who.Workspace, Session: session}, nil
}

// send answers with the object that b begins.
func (r *countAnswer) send(c *fiber.Ctx, b []byte) error {
	b = strconv.AppendQuote(append(b, `,"position":`...), r.position.String())
	if r.degraded {
		c.Set(headerDegraded, sourceDegraded)
		b = append(b, `,"degraded":true`...)
	}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSONCharsetUTF8)
	return c.Send(append(b, '}'))
}
