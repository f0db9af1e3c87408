package httpapi

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/schema"
)

// maxQueryParams bounds the values of one query.
const maxQueryParams = 256

// Query parses the query string, which must be well encoded UTF-8 without ";" between
// parameters. The result does not alias the request.
func Query(c *fiber.Ctx) (url.Values, error) {
	q, err := url.ParseQuery(string(c.Request().URI().QueryString()))
	if err != nil {
		return nil, Errorf(400, CodeInvalidQuery, "The query string is not well encoded.").WithCause(err)
	}
	n := 0
	for name, values := range q {
		if n += len(values); n > maxQueryParams {
			return nil, Errorf(400, CodeInvalidQuery, "The query has more than %d parameters.", maxQueryParams)
		}
		if !utf8.ValidString(name) || !utf8.ValidString(strings.Join(values, "")) {
			return nil, Errorf(400, CodeInvalidQuery, "Parameter %s is not UTF-8.", schema.Quote(name))
		}
	}
	return q, nil
}

// CheckParams reports the first parameter, by name, that allowed does not know, as 400
// unknown_parameter. Names that start with "_" are ignored: caches and proxies add them.
func CheckParams(q url.Values, allowed func(name string) bool) error {
	var unknown []string
	for name := range q {
		if !strings.HasPrefix(name, "_") && !allowed(name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	name := slices.Min(unknown)
	return Errorf(400, CodeUnknownParameter, "Parameter %s is not one of this path.", schema.Quote(name)).WithParam(cut(name))
}

// NoParams refuses query parameters on paths that take none.
func NoParams(c *fiber.Ctx) error {
	q, err := Query(c)
	if err != nil {
		return err
	}
	return CheckParams(q, func(string) bool { return false })
}

// One returns the only value of a parameter: "" if absent, an error if repeated.
func One(q url.Values, name string) (string, error) {
	values := q[name]
	if len(values) > 1 {
		return "", InvalidParameter(name, "Parameter %s is given %d times; once is allowed.", name, len(values))
	}
	return q.Get(name), nil
}

// BadParam makes the answer to a *schema.ParamError: 400, with the parameter's name and what
// is wrong with it. Other errors are returned as they are.
func BadParam(err error) error {
	if p, ok := errors.AsType[*schema.ParamError](err); ok {
		return InvalidParameter(p.Param, "Parameter %s %s.", p.Param, p.Why)
	}
	return err
}

// cut bounds client text that is echoed.
func cut(s string) string {
	if len(s) > 128 {
		return strings.ToValidUTF8(s[:128], "") + "…"
	}
	return s
}
