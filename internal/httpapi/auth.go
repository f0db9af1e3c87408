package httpapi

import (
	"errors"
	"strings"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
)

// Authenticator tells who a key stands for. *control.Store is one.
type Authenticator interface {
	Authenticate(key string) (control.Principal, error)
}

// TokenRule says which keys a path takes in its URL, as ?token=, where they end in logs
// and histories: only for clients that cannot set a header.
type TokenRule uint8

// The rules there are.
const (
	TokenNever      TokenRule = iota // no key
	TokenBrowserKey                  // a browser key: it lives an hour at most and reads one session or workflow
	TokenAnyKey                      // any key
)

// principalKey is the Locals key of the request's Principal.
type principalKey struct{}

// Authenticate lets requests pass that carry a known key and keeps its Principal for
// From. A key travels as Authorization: Bearer or X-Api-Key; as ?token= where rule, asked
// with the decoded path, allows it; and on WebSocket upgrades also as Authorization-Token
// or as the subprotocol key.<key>, since browsers set no headers there. rule must not
// keep the path; without one the answer is TokenNever.
//
// Others are 401: missing_key, invalid_key (also for two different keys), expired_key, or
// token_in_query_not_allowed. A token is cut out of the request here: handlers, Query and
// whatever logs a URL never see it.
func Authenticate(keys Authenticator, rule ...func(path string) TokenRule) fiber.Handler {
	return func(c *fiber.Ctx) error {
		token, err := takeToken(c)
		if err != nil {
			return err
		}
		allowed := TokenNever
		if len(rule) > 0 && rule[0] != nil {
			allowed = rule[0](c.Path())
		}
		if token.given && allowed == TokenNever {
			return tokenNotAllowed("This path takes no key in its URL.")
		}
		wantBrowserKey := token.given && allowed == TokenBrowserKey
		key, err := requestKey(c, token.key)
		if err != nil {
			return err
		}
		// By its text first, so that the answer does not tell whether the key is a good one.
		if wantBrowserKey && !strings.HasPrefix(key, control.BrowserKeyPrefix) {
			return tokenNotAllowed("Only a browser key may be in this URL.")
		}
		p, err := keys.Authenticate(key)
		if err != nil {
			return keyRefusal(err)
		}
		if wantBrowserKey && !p.Browser {
			return tokenNotAllowed("Only a browser key may be in this URL.")
		}
		c.Locals(principalKey{}, p)
		return c.Next()
	}
}

// keyRefusal is the answer to a key that an Authenticator refused.
func keyRefusal(err error) error {
	switch {
	case errors.Is(err, control.ErrExpiredKey):
		return Errorf(401, CodeExpiredKey, "The API key has expired.")
	case errors.Is(err, control.ErrUnknownKey):
		return Errorf(401, CodeInvalidKey, "The API key is not known, or was revoked.")
	default:
		return err
	}
}

func missingKey() *Error {
	return Errorf(401, CodeMissingKey, "Send an API key as Authorization: Bearer <key>.")
}

func tokenNotAllowed(why string) *Error {
	return Errorf(401, CodeTokenInQuery, "%s Send it in the Authorization header, and replace this key: URLs end in logs.", why).
		WithParam(tokenParam)
}

// From returns who makes the request. It panics on a path without Authenticate.
func From(c *fiber.Ctx) control.Principal {
	p, ok := c.Locals(principalKey{}).(control.Principal)
	if !ok {
		panic("httpapi: From on a path without Authenticate")
	}
	return p
}

// Require lets requests pass whose key has every scope of want; others are 403.
func Require(want control.Scopes) fiber.Handler {
	return func(c *fiber.Ctx) error {
		p := From(c)
		if !p.Scopes.Has(want) {
			return insufficientScope(want)
		}
		return c.Next()
	}
}

func insufficientScope(want control.Scopes) *Error {
	return Errorf(403, CodeInsufficientScope, "The API key lacks the scope %s.", want).WithDetail("required", want.Names())
}
