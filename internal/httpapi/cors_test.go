package httpapi_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

const page = "https://app.example.com"

// serveCORS runs an app that pages of these origins may use. stopping may be nil.
func serveCORS(t *testing.T, stopping func() bool, origins ...string) server {
	t.Helper()
	cfg := httpapi.DefaultConfig()
	cfg.BodyLimit = 64 << 10
	cfg.CORS.AllowedOrigins = origins
	cfg.CORS.MaxAge = 10 * time.Minute
	cfg.Stopping = stopping
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	limits := control.Limits{AppendsPerSecond: 0.001}
	return serve(t, cfg, func(app *fiber.App) {
		httpapi.NewHealth(nil).Routes(app, prometheus.NewRegistry())
		app.Use(httpapi.Authenticate(fakeKeys{}), httpapi.NewLimiter(sameLimits(&limits), nil, nil).Handler)
		app.Get("/ok", func(c *fiber.Ctx) error { c.Vary(fiber.HeaderAcceptEncoding); return c.SendString("ok") })
		app.Post("/append", func(*fiber.Ctx) error { return nil })
		app.Get("/panic", func(*fiber.Ctx) error { panic("boom") })
	})
}

func TestPreflightNeedsNoKey(t *testing.T) {
	s := serveCORS(t, nil, page, "https://*.example.org")
	ask := []string{"Origin", page, "Access-Control-Request-Method", "PATCH", "Access-Control-Request-Headers", "authorization,last-event-id"}
	for _, path := range []string{"/ok", "/append", "/nothing/of/this/name"} {
		a := s.do(t, "OPTIONS", path, "", ask...)
		if a.status != 204 || len(a.body) != 0 || a.header.Get("Access-Control-Allow-Origin") != page ||
			a.header.Get("Access-Control-Max-Age") != "600" || a.header.Get("Vary") != "Origin" || a.header.Get("X-Request-Id") == "" {
			t.Errorf("preflight of %s = %d %v %q", path, a.status, a.header, a.body)
		}
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			if !listed(a.header.Get("Access-Control-Allow-Methods"), method) {
				t.Errorf("Allow-Methods = %q, want %s in it", a.header.Get("Access-Control-Allow-Methods"), method)
			}
		}
		for _, h := range []string{"Authorization", "X-Api-Key", "Content-Type", "Content-Encoding", "Last-Event-ID", "X-Request-Id", "Idempotency-Key"} {
			if !listed(a.header.Get("Access-Control-Allow-Headers"), h) {
				t.Errorf("Allow-Headers = %q, want %s in it", a.header.Get("Access-Control-Allow-Headers"), h)
			}
		}
		if a.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Error("credentials are allowed")
		}
	}
	ask[1] = "https://evil.example"
	a := s.do(t, "OPTIONS", "/ok", "", ask...)
	if a.status != 204 || a.header.Get("Vary") != "Origin" || strings.Contains(fmt.Sprint(a.header), "Access-Control") {
		t.Errorf("preflight of another page = %d %v, want 204 without CORS headers", a.status, a.header)
	}
	// OPTIONS that is not a preflight is a method like any other.
	s.do(t, "OPTIONS", "/ok", "", "Origin", page).want(t, 401, "missing_key", "")
	s.do(t, "OPTIONS", "/ok", "", "Origin", page, "X-Api-Key", "reader", "Access-Control-Request-Methods", "GET").want(t, 405, "method_not_allowed", "")
}

// listed reports whether a comma list holds item.
func listed(list, item string) bool {
	for s := range strings.SplitSeq(list, ", ") {
		if s == item {
			return true
		}
	}
	return false
}

func TestEveryAnswerCanBeReadByThePage(t *testing.T) {
	s := serveCORS(t, nil, page)
	f := func(method, path, body string, status int, header ...string) answer {
		t.Helper()
		a := s.do(t, method, path, body, append(header, "Origin", page)...)
		if a.status != status || a.header.Get("Access-Control-Allow-Origin") != page || !strings.HasPrefix(a.header.Get("Vary"), "Origin") {
			t.Errorf("%s %s = %d %v, want %d that %s may read", method, path, a.status, a.header, status, page)
		}
		for _, h := range []string{"X-Request-Id", "Retry-After", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Playhead-Workspace", "X-Connection-Id"} {
			if !listed(a.header.Get("Access-Control-Expose-Headers"), h) {
				t.Errorf("%s %s: Expose-Headers = %q, want %s in it", method, path, a.header.Get("Access-Control-Expose-Headers"), h)
			}
		}
		return a
	}
	if a := f("GET", "/ok", "", 200, "X-Api-Key", "reader"); a.header.Get("Vary") != "Origin, Accept-Encoding" {
		t.Errorf("Vary = %q, want the handler's too", a.header.Get("Vary"))
	}
	f("GET", "/ok", "", 401)
	f("GET", "/nothing", "", 404, "X-Api-Key", "reader")
	f("DELETE", "/ok", "", 405, "X-Api-Key", "reader")
	f("POST", "/append", "", 429, "X-Api-Key", "reader")
	f("GET", "/panic", "", 500, "X-Api-Key", "reader")
	f("POST", "/append", strings.Repeat("x", 65<<10), 413, "X-Api-Key", "reader") // refused before any handler
}

func TestNodesThatStopStillAnswerPages(t *testing.T) {
	s := serveCORS(t, func() bool { return true }, page)
	if a := s.do(t, "OPTIONS", "/ok", "", "Origin", page, "Access-Control-Request-Method", "GET"); a.status != 204 {
		t.Errorf("preflight while stopping = %d, want 204: the page is to read the 503", a.status)
	}
	a := s.do(t, "GET", "/ok", "", "Origin", page)
	a.want(t, 503, "shutting_down", "")
	if a.header.Get("Access-Control-Allow-Origin") != page {
		t.Errorf("503 = %v, want it to be readable", a.header)
	}
}

func TestOrigins(t *testing.T) {
	f := func(origins []string, origin, wantAllowed, wantVary string) {
		t.Helper()
		a := serveCORS(t, nil, origins...).do(t, "GET", "/ok", "", "X-Api-Key", "reader", "Origin", origin)
		got, exposed := a.header.Get("Access-Control-Allow-Origin"), a.header.Get("Access-Control-Expose-Headers")
		if got != wantAllowed || (exposed != "") != (wantAllowed != "") || strings.TrimSuffix(a.header.Get("Vary"), "Accept-Encoding") != wantVary {
			t.Errorf("origins %v, Origin %q: allowed %q (exposed %q), Vary %q, want %q and %q", origins, origin, got, exposed, a.header.Get("Vary"), wantAllowed, wantVary)
		}
	}
	none, vary := "", "Origin, "
	f(nil, page, none, none)
	f([]string{"*"}, page, "*", none)
	f([]string{"*"}, "null", "*", none)
	f([]string{"*"}, "", none, none)
	f([]string{page, "*"}, "http://localhost:3000", "*", none)
	f([]string{page}, page, page, vary)
	f([]string{page}, "HTTPS://App.Example.com", "HTTPS://App.Example.com", vary)
	f([]string{page}, "", none, vary)
	f([]string{page}, "null", none, vary)
	f([]string{page}, "http://app.example.com", none, vary)
	f([]string{page}, page+":8443", none, vary)
	f([]string{page}, page+".evil.example", none, vary)
	f([]string{"http://localhost:3000", page}, "http://localhost:3000", "http://localhost:3000", vary)
	f([]string{"https://*.example.com"}, page, page, vary)
	f([]string{"https://*.example.com"}, "https://a.b.example.com", "https://a.b.example.com", vary)
	f([]string{"https://*.example.com"}, "https://example.com", none, vary)
	f([]string{"https://*.example.com"}, "https://.example.com", none, vary)
	f([]string{"https://*.example.com"}, "https://evilexample.com", none, vary)
	f([]string{"https://*.example.com"}, "http://app.example.com", none, vary)
	f([]string{"https://*.example.com"}, "https://app.example.com:444", none, vary)
	for _, no := range []string{"a b", "u:p@a", "evil.example/", "evil.example:1/a", "a?b", "\xff", "\u212a"} { // the host's end is right
		f([]string{"https://*.example.com"}, "https://"+no+".example.com", none, vary)
	}
	f([]string{"https://*.example.com:444"}, "https://app.example.com:444", "https://app.example.com:444", vary)
	f([]string{"capacitor://localhost"}, "capacitor://localhost", "capacitor://localhost", vary)
}

func TestOperationsAreNotForPages(t *testing.T) {
	s := serveCORS(t, nil, "*")
	for _, path := range []string{"/metrics", "/metrics/", "/healthz"} {
		if a := s.do(t, "GET", path, "", "Origin", page); a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s = %d %v, want it without CORS headers", path, a.status, a.header)
		}
	}
}

func TestWrongOriginsAreRefused(t *testing.T) {
	f := func(origin string, ok bool) {
		t.Helper()
		cfg := httpapi.DefaultConfig()
		cfg.CORS.AllowedOrigins = []string{origin}
		if err := cfg.Validate(); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "cors.allowed_origins") {
			t.Errorf("origin %q: %v, want accepted %v", origin, err, ok)
		}
	}
	f("*", true)
	f("https://example.com", true)
	f("https://*.example.com", true)
	f("http://localhost:3000", true)
	f("http://[::1]:3000", true)
	f("chrome-extension://abcdef", true)
	f("", false)
	f("null", false)
	f("example.com", false)
	f("https://", false)
	f("https://example.com/", false)
	f("https://example.com/path", false)
	f("https://example.com?x", false)
	f("https://user@example.com", false)
	f("https://example.com:443", false)
	f("http://example.com:80", false)
	f("https://app.*.com", false)
	f("https://*example.com", false)
	f("https://*.*.com", false)
	f("https://a.com, https://b.com", false)

	cfg := httpapi.DefaultConfig()
	cfg.CORS.MaxAge = -time.Second
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "cors.max_age") {
		t.Errorf("negative max_age: %v", err)
	}
}

func TestHijackedAnswersCarryTheEdgesHeaders(t *testing.T) {
	cfg := httpapi.DefaultConfig()
	cfg.CORS.AllowedOrigins = []string{page}
	limits := control.Limits{ReadsPerSecond: 10}
	s := serve(t, cfg, func(app *fiber.App) {
		app.Use(httpapi.Authenticate(fakeKeys{}), httpapi.NewLimiter(sameLimits(&limits), newClock().now, nil).Handler)
		app.Get("/stream", func(c *fiber.Ctx) error {
			c.Set(httpapi.HeaderWorkspace, "ws_1")
			c.Set("X-Of-The-Handler", "1")
			head := httpapi.AppendHijackHeaders([]byte("HTTP/1.1 200 OK\r\n"), c)
			return c.Send(head)
		})
	})
	a := s.do(t, "GET", "/stream", "", "X-Api-Key", "reader", "Origin", page, "X-Request-Id", "mine")
	got := strings.Split(strings.TrimSuffix(string(a.body), "\r\n"), "\r\n")
	want := []string{
		"HTTP/1.1 200 OK", "X-Request-Id: mine", "Vary: Origin", "Access-Control-Allow-Origin: " + page,
		"Access-Control-Expose-Headers: " + a.header.Get("Access-Control-Expose-Headers"),
		"X-RateLimit-Limit: 20", "X-RateLimit-Remaining: 19", "X-RateLimit-Reset: 1", "X-Playhead-Workspace: ws_1",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("head = %q, want %q", got, want)
	}
}
