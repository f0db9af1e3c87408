package httpapi_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// seen is what a handler behind Authenticate sees of its request.
type seen struct {
	KeyID string
	Query url.Values
	URL   string
}

// serveTokens runs an app whose paths take tokens as their names say.
func serveTokens(t *testing.T) server {
	return serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(fakeKeys{}, func(path string) httpapi.TokenRule {
			switch {
			case strings.HasPrefix(path, "/any"):
				return httpapi.TokenAnyKey
			case strings.HasPrefix(path, "/browser"):
				return httpapi.TokenBrowserKey
			default:
				return httpapi.TokenNever
			}
		}))
		app.Get("/*", func(c *fiber.Ctx) error {
			q, err := httpapi.Query(c)
			if err != nil {
				return err
			}
			if err := httpapi.CheckParams(q, func(name string) bool { return name == "type" }); err != nil {
				return err
			}
			return c.JSON(seen{KeyID: httpapi.From(c).KeyID, Query: q, URL: c.OriginalURL()})
		})
	})
}

func TestTokenRules(t *testing.T) {
	s := serveTokens(t)
	ok := func(target, keyID, seenURL string, header ...string) {
		t.Helper()
		a := s.do(t, "GET", target, "", header...)
		var got seen
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || got.KeyID != keyID || got.URL != seenURL {
			t.Errorf("GET %s %v = %d %s, want %s at %s", target, header, a.status, a.body, keyID, seenURL)
		}
		if got.Query.Has("token") {
			t.Errorf("GET %s: the handler sees the token: %v", target, got.Query)
		}
	}
	refused := func(target, code, param string, header ...string) {
		t.Helper()
		a := s.do(t, "GET", target, "", header...)
		a.want(t, 401, code, param)
		if strings.Contains(string(a.body), "reader") || strings.Contains(string(a.body), "pk_tmp_") {
			t.Errorf("GET %s tells a key: %s", target, a.body)
		}
	}
	const notAllowed = "token_in_query_not_allowed"

	ok("/any?token=reader", "key_1", "/any")
	ok("/any/a%2Fb?type=x&token=reader&type=%79", "key_1", "/any/a%2Fb?type=x&type=%79")
	ok("/any?%74oken=reader&type=x", "key_1", "/any?type=x")
	ok("/any?token=%72eader", "key_1", "/any")
	ok("/any?token=pk_tmp_page", "key_page", "/any")
	ok("/any?token=reader&token=reader", "key_1", "/any")
	ok("/any?token=reader", "key_1", "/any", "Authorization", "Bearer reader")
	ok("/any?token=", "key_1", "/any", "Authorization", "Bearer reader")
	ok("/any", "key_1", "/any", "X-Api-Key", "reader")
	ok("/%61ny?token=reader", "key_1", "/%61ny") // the rule is asked with the decoded path

	ok("/browser?token=pk_tmp_page&type=x", "key_page", "/browser?type=x")
	ok("/browser", "key_1", "/browser", "Authorization", "Bearer reader")
	refused("/browser?token=reader", notAllowed, "token")
	refused("/browser?token=reader", notAllowed, "token", "Authorization", "Bearer reader")
	refused("/browser?token=pk_live_unknown", notAllowed, "token")
	refused("/browser?token=expired", notAllowed, "token")
	refused("/browser?token=pk_tmp_unknown", "invalid_key", "")
	refused("/browser?token=pk_tmp_named", notAllowed, "token")

	refused("/never?token=pk_tmp_page", notAllowed, "token")
	refused("/never?token=", notAllowed, "token", "Authorization", "Bearer reader")
	refused("/never?%74oken=reader", notAllowed, "token")

	refused("/any?token=other", "invalid_key", "")
	refused("/any?token=expired", "expired_key", "")
	refused("/any?token=", "missing_key", "")
	refused("/any?token=reader", "invalid_key", "", "Authorization", "Bearer pk_tmp_page")
	refused("/any?token=reader", "invalid_key", "", "X-Api-Key", "pk_tmp_page")
	refused("/any?token=reader&token=pk_tmp_page", "invalid_key", "token")
	refused("/any?token=%zz", "invalid_key", "token")

	// What is wrong with the rest of the query is still seen.
	s.do(t, "GET", "/any?token=reader&type=%zz", "").want(t, 400, "invalid_query", "")
	s.do(t, "GET", "/any?token=reader&Token=x", "").want(t, 400, "unknown_parameter", "Token")

	if logs := s.log.String(); logs != "" {
		t.Errorf("log = %s, want nothing", logs)
	}
}

// A panic is logged with its stack, under a request that carried a key in its URL.
func TestTokensStayOutOfTheLog(t *testing.T) {
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(fakeKeys{}, func(string) httpapi.TokenRule { return httpapi.TokenAnyKey }))
		app.Get("/panic", func(c *fiber.Ctx) error { panic("at " + c.OriginalURL() + " " + c.Context().String()) })
	})
	s.do(t, "GET", "/panic?token=reader", "").want(t, 500, "internal_error", "")
	if logs := s.log.String(); !strings.Contains(logs, "at /panic") || strings.Contains(logs, "reader") {
		t.Errorf("log = %s, want the panic and not the key", logs)
	}
}

func TestWebSocketUpgradesCarryKeysInOtherHeaders(t *testing.T) {
	s := serveTokens(t)
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "WebSocket"}
	ok := func(keyID string, header ...string) {
		t.Helper()
		a := s.do(t, "GET", "/never", "", append(header, upgrade...)...)
		var got seen
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || got.KeyID != keyID {
			t.Errorf("%v = %d %s, want %s", header, a.status, a.body, keyID)
		}
	}
	refused := func(code string, header ...string) {
		t.Helper()
		s.do(t, "GET", "/never", "", header...).want(t, 401, code, "")
	}
	const protocol = "Sec-WebSocket-Protocol"
	ok("key_1", "Authorization-Token", "reader")
	ok("key_1", protocol, "playhead.v1, key.reader")
	ok("key_1", protocol, "key.reader,playhead.v1")
	ok("key_1", "Authorization", "Bearer reader", "Authorization-Token", "reader", protocol, "playhead.v1, key.reader")
	ok("key_1", "Authorization", "Bearer reader", protocol, "playhead.v1")

	refused("missing_key", append(upgrade, protocol, "playhead.v1")...)
	refused("missing_key", append(upgrade, protocol, "playhead.v1, key.")...)
	refused("invalid_key", append(upgrade, protocol, "playhead.v1, key.other")...)
	refused("invalid_key", append(upgrade, protocol, "key.reader, key.pk_tmp_page")...)
	refused("invalid_key", append(upgrade, "Authorization-Token", "reader", "X-Api-Key", "pk_tmp_page")...)
	// Without an upgrade they are headers like any other.
	refused("missing_key", "Authorization-Token", "reader")
	refused("missing_key", protocol, "playhead.v1, key.reader")
}

func FuzzTokenInQuery(f *testing.F) {
	f.Add("token=reader&type=x")
	f.Add("type=%zz&&token=&=&%74oken=a+b")
	f.Add("a;token=b&token")
	f.Fuzz(func(t *testing.T, query string) {
		app := fiber.New()
		rctx := new(fasthttp.RequestCtx)
		rctx.Request.SetRequestURI("/p?" + query)
		c := app.AcquireCtx(rctx)
		defer app.ReleaseCtx(c)
		before := string(c.Request().URI().QueryString())
		key, given, _ := httpapi.TakeToken(c)
		after := string(c.Request().URI().QueryString())
		if !given && after != before {
			t.Errorf("%q became %q without a token in it", before, after)
		}
		q, err := url.ParseQuery(after)
		if err == nil && q.Has("token") {
			t.Errorf("%q: %q still holds the token %q", before, after, key)
		}
		if _, again, _ := httpapi.TakeToken(c); again {
			t.Errorf("%q: a second look at %q finds another token", before, after)
		}
	})
}
