package query

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// maxExportRows bounds max_rows: the rows before the end of a part are counted before it
// begins.
const maxExportRows = 100_000_000

// exportRequest is the query of an export, read but for its scope.
type exportRequest struct {
	format   *exportFormat
	coding   string // "", gzip or zstd: of the whole body
	inner    string // compression within the format, by ClickHouse's name
	filter   schema.Filter
	workflow string         // of a workspace's export; "" for all
	cursor   schema.Cursor  // begin after this position; zero: at the beginning
	after    schema.EventID // go on after this event; zero: not a continuation
	end      schema.Cursor  // end at this position; zero: at what is acknowledged now
	maxRows  int            // 0: all
}

// isExportParam reports whether an export reads the query parameter.
func isExportParam(name string) bool {
	switch name {
	case "format", "compression", "cursor", "after", "end", "max_rows", "startTime", "endTime":
		return true
	}
	return schema.IsFilterParam(name)
}

func isWorkspaceExportParam(name string) bool { return name == "workflow_id" || isExportParam(name) }

// parseExport reads the query of an export. Every error is a 400 that names the parameter.
func (x *Exports) parseExport(q url.Values, acceptEncoding string, types schema.TypeTable) (exportRequest, error) {
	var r exportRequest
	var names []string
	for _, f := range x.formats {
		names = append(names, f.name)
	}
	name, err := choice(q, "format", names...)
	if err != nil {
		return r, err
	}
	r.format = x.formats[slices.Index(names, name)]
	if err := r.parseCompression(q, acceptEncoding); err != nil {
		return r, err
	}
	if r.filter, err = parsePageFilter(q, types); err != nil {
		return r, err
	}
	if r.workflow, err = httpapi.One(q, "workflow_id"); err != nil {
		return r, err
	}
	if q.Has("workflow_id") {
		if err := schema.CheckID(r.workflow); err != nil {
			return r, httpapi.InvalidParameter("workflow_id", "Parameter workflow_id %v.", err)
		}
	}
	return r, r.parsePositions(q)
}

func (r *exportRequest) parseCompression(q url.Values, acceptEncoding string) error {
	offered := []string{"none", "gzip", "zstd"}
	if !r.format.coded {
		offered = nil
		for name := range r.format.inner {
			if name != "" {
				offered = append(offered, name)
			}
		}
		slices.Sort(offered)
		r.inner = r.format.inner[""]
	}
	if !q.Has("compression") {
		if r.format.coded {
			r.coding = acceptedCoding(acceptEncoding)
		}
		return nil
	}
	name, err := choice(q, "compression", offered...)
	if err != nil {
		return err
	}
	switch {
	case !r.format.coded:
		r.inner = r.format.inner[name]
	case name != "none":
		r.coding = name
	}
	return nil
}

// acceptedCoding chooses zstd, gzip or none by an Accept-Encoding (RFC 9110, 12.5.3).
func acceptedCoding(header string) string {
	best, bestWeight := "", 0.0
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(part, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		weight := 1.0
		if text, ok := strings.CutPrefix(strings.ReplaceAll(strings.ToLower(params), " ", ""), "q="); ok {
			weight, _ = strconv.ParseFloat(text, 64) // what is no number refuses
		}
		if name != "gzip" && name != "zstd" || weight <= 0 {
			continue
		}
		if weight > bestWeight || weight == bestWeight && name == "zstd" {
			best, bestWeight = name, weight
		}
	}
	return best
}

func (r *exportRequest) parsePositions(q url.Values) error {
	for _, p := range []struct {
		name string
		into *schema.Cursor
	}{{"cursor", &r.cursor}, {"end", &r.end}} {
		v, err := httpapi.One(q, p.name)
		if err != nil {
			return err
		}
		if v == "" {
			continue
		}
		if *p.into, err = schema.ParseCursor(v); err != nil {
			return invalidPosition(p.name, "Parameter %s is %v.", p.name, err)
		}
	}
	v, err := httpapi.One(q, "after")
	if err != nil {
		return err
	}
	if v != "" {
		if r.after, err = schema.ParseEventID(v); err != nil {
			return invalidPosition("after", "Parameter after is %v.", err)
		}
	}
	if v, err = httpapi.One(q, "max_rows"); err != nil || !q.Has("max_rows") {
		return err
	}
	r.maxRows, err = strconv.Atoi(v)
	if err != nil || r.maxRows < 1 || r.maxRows > maxExportRows {
		return httpapi.InvalidParameter("max_rows", "Parameter max_rows is %s; want a whole number from 1 to %d.", schema.Quote(v), maxExportRows)
	}
	return nil
}

func invalidPosition(param, format string, args ...any) *httpapi.Error {
	return httpapi.Errorf(400, "invalid_cursor", format, args...).WithParam(param)
}
