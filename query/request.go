package query

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/url"
	"strconv"
	"strings"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// defaultPageSize is the size of a page that names none, before the plan's bound.
const defaultPageSize = 100

// pageRequest is the query of a page, read but for its session.
type pageRequest struct {
	limit      int
	filter     schema.Filter
	cursor     schema.Cursor // zero: from the beginning, or from the end if descending
	descending bool
	payloads   bool
	types      schema.TypeTable // of the workspace, as it is now
}

// isPageParam reports whether a page reads the query parameter.
func isPageParam(name string) bool {
	switch name {
	case "pageSize", "limit", "cursor", "startTime", "endTime", "order", "include":
		return true
	}
	return schema.IsFilterParam(name)
}

// isScopePageParam is isPageParam for a page of the workspace.
func isScopePageParam(name string) bool { return name == "workflow_id" || isPageParam(name) }

// parseWorkflow reads the workflow that a page of the workspace is narrowed to; "" if none.
func parseWorkflow(q url.Values) (string, error) {
	v, err := httpapi.One(q, "workflow_id")
	if err != nil || !q.Has("workflow_id") {
		return "", err
	}
	if err := schema.CheckID(v); err != nil {
		return "", httpapi.InvalidParameter("workflow_id", "Parameter workflow_id %v.", err)
	}
	return v, nil
}

// parsePage reads the query of a page of at most maxPage events, but for its cursor; types
// resolves codes. Every error is a 400 that names the parameter.
func parsePage(q url.Values, maxPage int, types schema.TypeTable) (pageRequest, error) {
	r := pageRequest{types: types}
	var err error
	if r.limit, err = parsePageSize(q, maxPage); err != nil {
		return r, err
	}
	if r.filter, err = parsePageFilter(q, types); err != nil {
		return r, err
	}
	order, err := choice(q, "order", "asc", "desc")
	if err != nil {
		return r, err
	}
	r.descending = order == "desc"
	include, err := choice(q, "include", "", "payload")
	if err != nil {
		return r, err
	}
	r.payloads = include == "payload"
	return r, nil
}

func parsePageSize(q url.Values, maxPage int) (int, error) {
	values := append(append([]string(nil), q["pageSize"]...), q["limit"]...)
	name := "pageSize"
	if !q.Has(name) {
		name = "limit"
	}
	switch len(values) {
	case 0:
		return min(defaultPageSize, maxPage), nil
	case 1:
	default:
		return 0, httpapi.InvalidParameter(name, "The page size is given %d times, as pageSize or limit; once is allowed.", len(values))
	}
	n, err := strconv.Atoi(values[0])
	if errors.Is(err, strconv.ErrRange) && n > 0 {
		return maxPage, nil
	}
	if err != nil || n < 1 {
		return 0, httpapi.InvalidParameter(name, "Parameter %s is %s; want a whole number of at least 1.", name, schema.Quote(values[0]))
	}
	return min(n, maxPage), nil
}

// parsePageFilter reads the filter all streams and pages share, and this page's own
// spellings of times: startTime and endTime.
func parsePageFilter(q url.Values, types schema.TypeTable) (schema.Filter, error) {
	f, err := schema.ParseFilter(q, types)
	if err != nil {
		return schema.Filter{}, httpapi.BadParam(err)
	}
	if err := parsePageTime(q, "startTime", "since", &f.SinceMs); err != nil {
		return schema.Filter{}, err
	}
	if err := parsePageTime(q, "endTime", "until", &f.UntilMs); err != nil {
		return schema.Filter{}, err
	}
	return f, nil
}

// parsePageTime reads a bound in whole Unix milliseconds into bound, which our own
// spelling may have set already.
func parsePageTime(q url.Values, name, ours string, bound **int64) error {
	v, err := httpapi.One(q, name)
	if err != nil || !q.Has(name) {
		return err
	}
	if *bound != nil {
		return httpapi.InvalidParameter(name, "Parameters %s and %s are the same bound; give one of them.", name, ours)
	}
	ms, err := strconv.ParseInt(v, 10, 64)
	if err != nil || ms < 0 || ms > schema.MaxEventTimeMs {
		return httpapi.InvalidParameter(name, "Parameter %s is %s; want Unix milliseconds from 0 to %d.",
			name, schema.Quote(v), int64(schema.MaxEventTimeMs))
	}
	*bound = &ms
	return nil
}

// tag binds a cursor to the page's filters, its order and the workflow it is narrowed to.
func (r *pageRequest) tag(scope schema.Scope) uint32 {
	tag := r.filter.Tag(r.descending)
	if scope.Workflow == "" {
		return tag
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%08x %s", tag, scope.Workflow)
	return max(h.Sum32(), 1)
}

// parseCursor reads the cursor and checks that it was made for this scope with these
// filters. Only the page knows whether it says something about the scope's partitions.
func (r *pageRequest) parseCursor(q url.Values, scope schema.Scope) error {
	v, err := httpapi.One(q, "cursor")
	if err != nil || v == "" {
		return err
	}
	c, err := schema.ParseCursor(v)
	if err != nil {
		return invalidCursor("Parameter cursor is %v.", err)
	}
	if c.Filter != 0 && c.Filter != r.tag(scope) {
		return httpapi.Errorf(400, "cursor_mismatch",
			"The cursor belongs to a page with other filters or another order. Repeat those, or begin anew without it.").WithParam("cursor")
	}
	r.cursor = c
	return nil
}

func invalidCursor(format string, args ...any) *httpapi.Error {
	return httpapi.Errorf(400, "invalid_cursor", format, args...).WithParam("cursor")
}

// choice reads a parameter that takes one of a few words; the first is the default, and
// is not offered if it is "".
func choice(q url.Values, name string, words ...string) (string, error) {
	v, err := httpapi.One(q, name)
	if err != nil {
		return "", err
	}
	if !q.Has(name) {
		return words[0], nil
	}
	var offered []string
	for _, w := range words {
		if w == "" {
			continue
		}
		if v == w {
			return v, nil
		}
		offered = append(offered, w)
	}
	return "", httpapi.InvalidParameter(name, "Parameter %s is %s; want %s.", name, schema.Quote(v), strings.Join(offered, " or "))
}
