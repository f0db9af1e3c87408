package conform_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/internal/openapi/conform"
)

// TestWhatDiffersIsFound breaks a good answer in each way that the document can tell.
func TestWhatDiffersIsFound(t *testing.T) {
	good := func() conform.Answer {
		return conform.Answer{
			Method: "GET", Path: "/v1/events/count", Status: 200,
			Header: http.Header{"Content-Type": {"application/json; charset=utf-8"}, "X-Request-Id": {"req_1"}, "X-Ratelimit-Remaining": {"3"}},
			Body:   []byte(`{"count":1,"counts_by_type":{"a":1},"position":"evt_0100000000000040D20DBH81G0"}`),
		}
	}
	refused := func(status int, code string) func(*conform.Answer) {
		return func(a *conform.Answer) {
			a.Status = status
			a.Body = []byte(`{"error":{"code":"` + code + `","message":"m","details":{},"request_id":"req_1"}}`)
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(*conform.Answer)
		want  string // in the error; "" is none
	}{
		{"good", func(*conform.Answer) {}, ""},
		{"unknown member", func(a *conform.Answer) {
			a.Body = []byte(`{"count":1,"position":"evt_0100000000000040D20DBH81G0","x":1}`)
		}, "additional properties 'x'"},
		{"missing member", func(a *conform.Answer) { a.Body = []byte(`{"count":1}`) }, "missing property 'position'"},
		{"wrong type", func(a *conform.Answer) { a.Body = []byte(`{"count":"1","position":"evt_0100000000000040D20DBH81G0"}`) }, "want integer"},
		{"wrong form", func(a *conform.Answer) { a.Body = []byte(`{"count":1,"position":"evt_1"}`) }, "does not match pattern"},
		{"no JSON", func(a *conform.Answer) { a.Body = []byte(`{`) }, "not JSON"},
		{"another status", func(a *conform.Answer) { a.Status = 201 }, "no such status"},
		{"another media type", func(a *conform.Answer) { a.Header.Set("Content-Type", "text/html") }, "no text/html"},
		{"no request id", func(a *conform.Answer) { a.Header.Del("X-Request-Id") }, "X-Request-Id is missing"},
		{"a header that is no number", func(a *conform.Answer) { a.Header.Set("X-RateLimit-Remaining", "many") }, "X-RateLimit-Remaining"},
		{"an error", refused(404, "not_found"), ""},
		{"an error of another operation", refused(404, "session_ended"), "value must be"},
		{"an error of another status", refused(409, "not_found"), "no such status"},
		{"no time to come back", refused(503, "overloaded"), "Retry-After is missing"},
		{"another method", func(a *conform.Answer) { a.Method = "PUT" }, "no such operation"},
		{"another path", func(a *conform.Answer) { a.Path = "/v1/nothing" }, "no such operation"},
		{"an error in place of an operation", func(a *conform.Answer) {
			a.Path = "/v1/nothing"
			refused(404, "not_found")(a)
		}, ""},
		{"a path that another fits too", func(a *conform.Answer) { a.Path = "/v1/events/evt_0100000000000040D20DBH81G0" }, "missing properties"},
	} {
		a := good()
		tt.spoil(&a)
		switch err := conform.Check(a); {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
