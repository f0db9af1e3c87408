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

// principalKey is the Locals key of the request's Principal.
type principalKey struct{}

// Authenticate lets requests pass that carry a known key, in Authorization: Bearer or
// x-api-key, and keeps its Principal for From. Others are 401: missing_key,
// invalid_key, expired_key, or token_in_query_not_allowed for a key in the URL, where
// it would end in logs.
func Authenticate(keys Authenticator) fiber.Handler {
	return func(c *fiber.Ctx) error {
		if c.Context().QueryArgs().Has("token") {
			return Errorf(401, CodeTokenInQuery, "This path takes no key in its URL. Send it in the Authorization header, and replace this key: URLs end in logs.").WithParam("token")
		}
		key, err := requestKey(c)
		if err != nil {
			return err
		}
		p, err := keys.Authenticate(key)
		switch {
		case errors.Is(err, control.ErrExpiredKey):
			return Errorf(401, CodeExpiredKey, "The API key has expired.")
		case errors.Is(err, control.ErrUnknownKey):
			return Errorf(401, CodeInvalidKey, "The API key is not known, or was revoked.")
		case err != nil:
			return err
		}
		c.Locals(principalKey{}, p)
		return c.Next()
	}
}

// requestKey finds the key of a request. The text may alias the request's buffers.
func requestKey(c *fiber.Ctx) (string, error) {
	header, apiKey := c.Get(fiber.HeaderAuthorization), c.Get("X-Api-Key")
	bearer := ""
	if header != "" {
		scheme, rest, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return "", Errorf(401, CodeInvalidKey, "The Authorization header does not say Bearer.").WithParam("Authorization")
		}
		bearer = strings.TrimSpace(rest)
	}
	switch {
	case bearer == "" && apiKey == "":
		return "", Errorf(401, CodeMissingKey, "Send an API key as Authorization: Bearer <key>.")
	case bearer != "" && apiKey != "" && bearer != apiKey:
		return "", Errorf(401, CodeInvalidKey, "Authorization and x-api-key carry different keys.")
	case bearer != "":
		return bearer, nil
	default:
		return apiKey, nil
	}
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
