package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/openapi/conform"
)

// logBuffer is a log that tests may read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type server struct {
	url string
	log *logBuffer
}

// serve runs an app made by NewApp on a free port until the test ends.
func serve(t *testing.T, cfg httpapi.Config, routes func(app *fiber.App)) server {
	t.Helper()
	logs := &logBuffer{}
	app := httpapi.NewApp(cfg, slog.New(slog.NewTextHandler(logs, nil)))
	routes(app)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- app.Listener(ln) }()
	t.Cleanup(func() {
		if err := app.ShutdownWithTimeout(5 * time.Second); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return server{url: "http://" + ln.Addr().String(), log: logs}
}

type answer struct {
	status int
	header http.Header
	body   []byte
	Error  struct {
		Code      string         `json:"code"`
		Message   string         `json:"message"`
		Details   map[string]any `json:"details"`
		Param     string         `json:"param"`
		RequestID string         `json:"request_id"`
	} `json:"error"`
}

func (s server) do(t *testing.T, method, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	if a.status >= 400 && method != http.MethodHead {
		if err := json.Unmarshal(a.body, &a); err != nil {
			t.Fatalf("%s %s = %d %q, want the envelope", method, path, a.status, a.body)
		}
		if a.Error.RequestID == "" || a.Error.RequestID != a.header.Get("X-Request-Id") || a.Error.Details == nil || a.Error.Message == "" {
			t.Errorf("%s %s = %s, want request_id %q, details and a message", method, path, a.body, a.header.Get("X-Request-Id"))
		}
	}
	at := conform.Answer{Method: method, Path: req.URL.EscapedPath(), Status: a.status, Header: a.header, Body: a.body}
	if ours := a.status >= 400 || len(a.body) > 2; ours && conform.Knows(method, at.Path) { // others are the test's own
		if err := conform.Check(at); err != nil {
			t.Error(err)
		}
	}
	return a
}

// raw sends request as it is and returns the whole answer; the server must close.
func (s server) raw(t *testing.T, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (a answer) want(t *testing.T, status int, code, param string) {
	t.Helper()
	if a.status != status || a.Error.Code != code || a.Error.Param != param {
		t.Errorf("answer = %d %s, want %d code %q param %q", a.status, a.body, status, code, param)
	}
}

func TestEveryErrorComesInTheEnvelope(t *testing.T) {
	cfg := httpapi.DefaultConfig()
	cfg.BodyLimit = 64 << 10
	secret := errors.New("password is hunter2")
	s := serve(t, cfg, func(app *fiber.App) {
		app.Get("/ok", func(c *fiber.Ctx) error { return c.SendString("ok") })
		app.Post("/body", func(c *fiber.Ctx) error { return c.SendString("ok") })
		app.Get("/panic", func(*fiber.Ctx) error { panic("boom") })
		app.Get("/cause", func(*fiber.Ctx) error { return fmt.Errorf("wrapped: %w", secret) })
		app.Get("/wrapped", func(*fiber.Ctx) error {
			return fmt.Errorf("while paging: %w", httpapi.HistoryUnavailable(1500*time.Millisecond).WithCause(secret))
		})
		app.Get("/details", func(*fiber.Ctx) error {
			return httpapi.InvalidParameter("since", "bad").WithDetail("broken", func() {})
		})
		app.Get("/ids/:id", func(c *fiber.Ctx) error { return c.SendString(c.Params("id")) })
	})
	s.do(t, "GET", "/nothing", "").want(t, 404, "not_found", "")
	s.do(t, "GET", "/OK", "").want(t, 404, "not_found", "")
	a := s.do(t, "DELETE", "/ok", "")
	a.want(t, 405, "method_not_allowed", "")
	if !strings.Contains(a.header.Get("Allow"), "GET") {
		t.Errorf("Allow = %q, want GET in it", a.header.Get("Allow"))
	}
	for _, method := range []string{"BREW", "QUERY", "TRACE"} { // the first two are none of fiber's
		a := s.do(t, method, "/ok", "")
		a.want(t, 405, "method_not_allowed", "")
		if a.header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: Allow = %q, want GET, HEAD", method, a.header.Get("Allow"))
		}
		s.do(t, method, "/nothing", "").want(t, 404, "not_found", "")
	}
	s.do(t, "POST", "/body", strings.Repeat("x", 65<<10)).want(t, 413, "body_too_large", "")
	s.do(t, "GET", "/ok", "", "X-Long", strings.Repeat("x", 32<<10)).want(t, 431, "headers_too_large", "")
	s.do(t, "GET", "/panic", "").want(t, 500, "internal_error", "")
	s.do(t, "GET", "/details", "").want(t, 400, "invalid_parameter", "since")

	for _, path := range []string{"/cause", "/wrapped"} {
		a := s.do(t, "GET", path, "", "X-Request-Id", "req:mine-1")
		if a.Error.RequestID != "req:mine-1" {
			t.Errorf("%s request_id = %q, want the client's", path, a.Error.RequestID)
		}
		if strings.Contains(string(a.body), "hunter2") {
			t.Errorf("%s tells its cause: %s", path, a.body)
		}
		if path == "/wrapped" && (a.status != 503 || a.header.Get("Retry-After") != "2") {
			t.Errorf("%s = %d Retry-After %q, want 503 and 2", path, a.status, a.header.Get("Retry-After"))
		}
	}
	if logs := s.log.String(); strings.Count(logs, "hunter2") != 2 || !strings.Contains(logs, "req:mine-1") || !strings.Contains(logs, "boom") {
		t.Errorf("log = %s, want both causes under the request id, and the panic", logs)
	}
	if a := s.do(t, "GET", "/ids/a%3Ab:c/", ""); a.status != 200 || string(a.body) != "a:b:c" {
		t.Errorf("escaped id = %d %q, want a:b:c", a.status, a.body)
	}
}

func TestRequestThatIsNotHTTPIsAnsweredInTheEnvelope(t *testing.T) {
	s := serve(t, httpapi.DefaultConfig(), func(*fiber.App) {})
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "NONSENSE\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(conn)
	if !bytes.HasPrefix(got, []byte("HTTP/1.1 400 ")) || !bytes.Contains(got, []byte(`"code":"bad_request"`)) || !bytes.Contains(got, []byte("X-Request-Id: req_")) {
		t.Errorf("answer = %q, want 400 in the envelope with a request id", got)
	}
}

func TestRequestIDsAreTakenOverOnlyWhenSane(t *testing.T) {
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Get("/", func(c *fiber.Ctx) error { return c.SendString(httpapi.RequestID(c)) })
	})
	f := func(sent string, kept bool) {
		t.Helper()
		a := s.do(t, "GET", "/", "", "X-Request-Id", sent)
		id := a.header.Get("X-Request-Id")
		if id == "" || id != string(a.body) || (id == sent) != kept {
			t.Errorf("X-Request-Id %q -> %q (handler saw %q), want kept %v", sent, id, a.body, kept)
		}
	}
	f("abc-123_X.y:z", true)
	f("", false)
	f("has space", false)
	f(strings.Repeat("x", 129), false)
	f(`"quoted"`, false)
}

// fakeKeys knows a few keys.
type fakeKeys struct{}

func (fakeKeys) Authenticate(key string) (control.Principal, error) {
	switch key {
	case "reader":
		return control.Principal{Workspace: "ws_1", KeyID: "key_1", Scopes: control.ScopeRead}, nil
	case "pk_tmp_page":
		return control.Principal{Workspace: "ws_1", KeyID: "key_page", Scopes: control.ScopeRead, Session: "s", Browser: true}, nil
	case "pk_tmp_named": // made with a text of its own, which does not make it a browser key
		return control.Principal{Workspace: "ws_1", KeyID: "key_named", Scopes: control.AllScopes}, nil
	case "expired":
		return control.Principal{}, control.ErrExpiredKey
	default:
		return control.Principal{}, control.ErrUnknownKey
	}
}

func TestAuthenticate(t *testing.T) {
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Get("/who", httpapi.Authenticate(fakeKeys{}), func(c *fiber.Ctx) error { return c.SendString(httpapi.From(c).KeyID) })
		app.Get("/write", httpapi.Authenticate(fakeKeys{}), httpapi.Require(control.ScopeIngest), func(c *fiber.Ctx) error { return nil })
	})
	ok := func(header ...string) {
		t.Helper()
		if a := s.do(t, "GET", "/who", "", header...); a.status != 200 || string(a.body) != "key_1" {
			t.Errorf("%v = %d %s, want key_1", header, a.status, a.body)
		}
	}
	refused := func(path, code, param string, header ...string) {
		t.Helper()
		a := s.do(t, "GET", path, "", header...)
		a.want(t, 401, code, param)
		if a.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("WWW-Authenticate = %q, want Bearer", a.header.Get("WWW-Authenticate"))
		}
	}
	ok("Authorization", "Bearer reader")
	ok("Authorization", "bearer reader")
	ok("X-Api-Key", "reader")
	ok("X-Api-Key", "reader", "Authorization", "Bearer reader")
	refused("/who", "missing_key", "")
	refused("/who", "invalid_key", "", "Authorization", "Bearer other")
	refused("/who", "invalid_key", "Authorization", "Authorization", "Basic reader")
	refused("/who", "missing_key", "", "Authorization", "Bearer ")
	refused("/who", "expired_key", "", "Authorization", "Bearer expired")
	refused("/who", "invalid_key", "", "Authorization", "Bearer reader", "X-Api-Key", "other")
	refused("/who?token=reader", "token_in_query_not_allowed", "token")
	refused("/who?token=reader", "token_in_query_not_allowed", "token", "Authorization", "Bearer reader")

	a := s.do(t, "GET", "/write", "", "Authorization", "Bearer reader")
	a.want(t, 403, "insufficient_scope", "")
	if got := fmt.Sprint(a.Error.Details["required"]); got != "[ingest]" {
		t.Errorf("details.required = %s, want [ingest]", got)
	}
}

func TestQueryIsReadStrictly(t *testing.T) {
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Get("/q", func(c *fiber.Ctx) error {
			q, err := httpapi.Query(c)
			if err != nil {
				return err
			}
			if err := httpapi.CheckParams(q, func(name string) bool { return name == "type" || strings.HasPrefix(name, "filters[") }); err != nil {
				return err
			}
			return c.JSON(q)
		})
	})
	if a := s.do(t, "GET", "/q?type=a&type=b&filters%5Bk%5D=v%3A1&_=123", ""); string(a.body) != `{"_":["123"],"filters[k]":["v:1"],"type":["a","b"]}` {
		t.Errorf("query = %d %s", a.status, a.body)
	}
	s.do(t, "GET", "/q?zeta=1&alpha=2", "").want(t, 400, "unknown_parameter", "alpha")
	s.do(t, "GET", "/q?type=%zz", "").want(t, 400, "invalid_query", "")
	s.do(t, "GET", "/q?type=a;b", "").want(t, 400, "invalid_query", "")
	s.do(t, "GET", "/q?type=%ff", "").want(t, 400, "invalid_query", "")
	s.do(t, "GET", "/q?"+strings.Repeat("type=a&", 300), "").want(t, 400, "invalid_query", "")
}

func TestHealth(t *testing.T) {
	reg := prometheus.NewRegistry()
	health := httpapi.NewHealth(slog.New(slog.DiscardHandler))
	cfg := httpapi.DefaultConfig()
	cfg.Registerer, cfg.Stopping = reg, health.Stopping
	s := serve(t, cfg, func(app *fiber.App) {
		health.Routes(app, reg)
		app.Get("/work", func(c *fiber.Ctx) error { return c.SendString("ok") })
	})
	var mu sync.Mutex
	var down error
	health.Add("kafka", func(context.Context) error { return nil })
	health.Add("clickhouse", func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		return down
	})
	if a := s.do(t, "GET", "/readyz", ""); a.status != 200 || string(a.body) != `{"checks":{"clickhouse":"ready","kafka":"ready"},"status":"ready"}` {
		t.Errorf("readyz = %d %s", a.status, a.body)
	}
	mu.Lock()
	down = errors.New("connection refused")
	mu.Unlock()
	a := s.do(t, "GET", "/readyz", "")
	a.want(t, 503, "not_ready", "")
	if got := fmt.Sprint(a.Error.Details["checks"]); got != "map[clickhouse:not ready kafka:ready]" {
		t.Errorf("details.checks = %s", got)
	}
	health.Stop()
	s.do(t, "GET", "/readyz", "").want(t, 503, "shutting_down", "")
	a = s.do(t, "GET", "/work", "")
	a.want(t, 503, "shutting_down", "")
	if a.header.Get("Retry-After") == "" {
		t.Error("shutting down without Retry-After")
	}
	if a := s.do(t, "GET", "/healthz", ""); a.status != 200 {
		t.Errorf("healthz while stopping = %d %s, want 200", a.status, a.body)
	}
	metrics := string(s.do(t, "GET", "/metrics", "").body)
	for _, want := range []string{
		`playhead_http_requests_total{method="GET",route="/readyz",status="200"} 1`,
		`playhead_http_errors_total{code="shutting_down"} 2`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestCodesAreListedOnce(t *testing.T) {
	seen := make(map[string]bool)
	last := 0
	for _, c := range httpapi.Codes() {
		if seen[c.Code] || c.Status < last || c.Meaning == "" {
			t.Errorf("code %s: repeated, out of order or without meaning", c.Code)
		}
		seen[c.Code], last = true, c.Status
	}
}

func TestConfigValidateNamesEveryProblem(t *testing.T) {
	if err := httpapi.DefaultConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	err := httpapi.Config{}.Validate()
	for _, key := range []string{"listen", "body_limit", "header_limit", "read_timeout", "write_timeout", "idle_timeout", "max_connections"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("Validate() = %v, want %s named", err, key)
		}
	}
}
