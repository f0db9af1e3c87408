package httpapi_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/deadletters"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/openapi"
	"github.com/playhead-dev/playhead/internal/openapi/conform"
	"github.com/playhead-dev/playhead/schema"
)

// oneLetter does not remember what it was asked.
type oneLetter struct{ *testLetters }

func (oneLetter) Redrive(_ context.Context, e *deadletters.Entry, c schema.Correction, by string) (made *schema.Redrive, again bool, err error) {
	return new(testLetters).Redrive(context.Background(), e, c, by)
}

// Whatever bytes a client sends, the edge and its own paths answer as the document says, or
// hang up.
func FuzzHTTP(f *testing.F) {
	store := openStore(f)
	_, key := makeKey(f, store, control.KeySpec{Scopes: control.AllScopes, Text: "pk_test_0123456789abcdef"})
	cfg := httpapi.DefaultConfig()
	cfg.Keys, cfg.CORS.AllowedOrigins = store, []string{"https://a.example"}
	app := httpapi.NewApp(cfg, slog.New(slog.DiscardHandler))
	openapi.Route(app)
	limiter := httpapi.NewLimiter(func(string) control.Limits { return control.Unlimited() }, nil, nil)
	app.Use(httpapi.Authenticate(store), limiter.Handler)
	httpapi.KeyRoutes(app, store)
	httpapi.LimitRoutes(app, store, limiter, nil)
	httpapi.EventTypeRoutes(app, store)
	letter := entry(1, "ws_a", schema.ReasonPartition)
	httpapi.DeadLetterRoutes(app, oneLetter{&testLetters{
		entries: []*deadletters.Entry{letter},
		letter:  schema.NewDeadLetter(letter.At, errors.New("x"), 1, []byte{0xff}, []schema.Header{{Key: "c\xff", Value: []byte{0xfe}}}, nil),
	}})
	head := " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + "\r\n"
	for _, s := range []string{
		"", "\r\n\r\n", "GET", "GET / HTTP/1.1\r\n\r\n", "GET /v1/limits" + head + "\r\n", "GET /v1/keys?limit=1&cursor=x" + head + "\r\n",
		"POST /v1/keys" + head + "Content-Length: 21\r\n\r\n{\"scopes\":[\"control\"]}", "POST /v1/keys" + head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"POST /v1/keys" + head + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "DELETE /v1/keys/key_x" + head + "\r\n",
		"PUT /v1/event-types/a.b" + head + "Content-Length: 12\r\n\r\n{\"code\":200}", "DELETE /v1/event-types/click" + head + "\r\n", "GET /v1/event-types" + head + "\r\n",
		"PATCH /admin/v1/limits" + head + "Content-Length: 22\r\n\r\n{\"keys\":5,\"x\":1.5e400}", "GET /openapi.json HTTP/1.0\r\nIf-None-Match: *\r\n\r\n",
		"OPTIONS /v1/keys HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n\r\n",
		"GET /v1/limits?token=" + key + " HTTP/1.1\r\nHost: x\r\n\r\n", "BREW /v1/keys" + head + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
		"GET /v1/limits" + head + "\r\nGET /v1/limits" + head + "\r\n", "GET /%2e%2e/v1/%00 HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\r\n\r\n",
		"GET /admin/v1/dead-letters?reason=wrong_partition&partition=1&from=5&to=2026-01-01T00:00:00Z&redriven=false&limit=1&cursor=at_1" + head + "\r\n",
		"GET /admin/v1/dead-letters/" + schema.DeadLetterID(letter.At) + head + "\r\n",
		"POST /admin/v1/dead-letters/" + schema.DeadLetterID(letter.At) + "/redrive" + head + "Content-Length: 22\r\n\r\n{\"session_id\":\"call\"}\n",
		"POST /admin/v1/dead-letters/redrive?limit=5" + head + "Content-Length: 25\r\n\r\n{\"leave_out\":[\"ce_time\"]}",
		"POST /v1/keys" + head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "GET http://y/v1/limits?x" + head + "\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		if err := conform.CheckExchange(sent, conform.Exchange(app, sent)); err != nil {
			t.Error(err)
		}
	})
}

// Whatever a body is, it is decoded, or there is an answer that says what is wrong with it.
func FuzzDecodeJSON(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `null`, `[]`, `{"name":"x","scopes":["a"],"n":5,"deep":{"k":["v"]}}`, `{"name":1}`, `{"NAME":"x"}`, `{"name":"x","name":"y"}`, `{"n":1e400}`,
		`{"n":-9223372036854775809}`, `{"scopes":[null]}`, `{"x":{"y":{"z":1}}}`, `{"name":"\ud800"}`, "{\"name\":\"\xff\"}", `{"name":"x"} y`, `{"deep":{"k":"v"}}`, `"x"`, `{"n":01}`,
	} {
		f.Add([]byte(s))
	}
	app := fiber.New()
	f.Fuzz(func(t *testing.T, body []byte) {
		c := app.AcquireCtx(new(fasthttp.RequestCtx))
		defer app.ReleaseCtx(c)
		c.Request().SetBody(body)
		var into struct {
			Name   *string             `json:"name"`
			Scopes []string            `json:"scopes"`
			N      *int64              `json:"n"`
			Deep   map[string][]string `json:"deep"`
		}
		err := httpapi.DecodeJSON(c, &into)
		if err == nil {
			return
		}
		e, ok := errors.AsType[*httpapi.Error](err)
		if !ok || e.Status != 400 || e.Message == "" || !utf8.ValidString(e.Message) || !utf8.ValidString(e.Param) || len(e.Param) > 256 {
			t.Errorf("%q is %+v", body, err)
		}
	})
}
