package httpapi

import (
	"bytes"
	"net/url"
	"strings"

	"github.com/gofiber/fiber/v2"
)

// How keys travel beside Authorization.
const (
	// WebSocketProtocol is the subprotocol that the server speaks and answers an upgrade
	// with. A browser offers it together with key.<key>, which must not be answered: it
	// would put the key into the response.
	WebSocketProtocol = "playhead.v1"

	keyProtocolPrefix = "key."
	headerAPIKey      = "X-Api-Key"
	headerAuthToken   = "Authorization-Token"
	tokenParam        = "token"
)

// IsWebSocketUpgrade reports whether the request asks to become a WebSocket.
func IsWebSocketUpgrade(c *fiber.Ctx) bool {
	return strings.EqualFold(c.Get(fiber.HeaderUpgrade), "websocket")
}

// requestKey finds the key of a request; token is what its URL carried, or "". Keys in
// several places must be equal. The text may alias the request's buffers.
func requestKey(c *fiber.Ctx, token string) (string, error) {
	key, place := token, tokenParam
	var differ *Error
	add := func(k, from string) {
		switch {
		case k == "" || k == key:
		case key == "":
			key, place = k, from
		default:
			differ = Errorf(401, CodeInvalidKey, "The request carries different keys, in %s and in %s.", place, from)
		}
	}
	bearer, err := bearerKey(c)
	if err != nil {
		return "", err
	}
	add(bearer, fiber.HeaderAuthorization)
	add(c.Get(headerAPIKey), headerAPIKey)
	if IsWebSocketUpgrade(c) {
		add(c.Get(headerAuthToken), headerAuthToken)
		for _, list := range c.Request().Header.PeekAll(fiber.HeaderSecWebSocketProtocol) {
			for protocol := range strings.SplitSeq(string(list), ",") {
				if k, ok := strings.CutPrefix(strings.TrimSpace(protocol), keyProtocolPrefix); ok {
					add(k, fiber.HeaderSecWebSocketProtocol)
				}
			}
		}
	}
	switch {
	case differ != nil:
		return "", differ
	case key == "":
		return "", missingKey()
	default:
		return key, nil
	}
}

func bearerKey(c *fiber.Ctx) (string, error) {
	header := c.Get(fiber.HeaderAuthorization)
	if header == "" {
		return "", nil
	}
	scheme, rest, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", Errorf(401, CodeInvalidKey, "The Authorization header does not say Bearer.").WithParam(fiber.HeaderAuthorization)
	}
	return strings.TrimSpace(rest), nil
}

// token is the key of a URL.
type token struct {
	given bool // the parameter is there, perhaps empty
	key   string
}

// takeToken returns the token parameter of the query and cuts it out of the request. What
// else the query holds stays as it was sent, byte for byte: it is not yet known to be
// well encoded.
func takeToken(c *fiber.Ctx) (token, error) {
	var t token
	uri := c.Request().URI()
	query := uri.QueryString()
	if len(query) == 0 {
		return t, nil
	}
	var rest []byte
	differ := false
	for pair := range bytes.SplitSeq(query, []byte("&")) {
		name, value, _ := bytes.Cut(pair, []byte("="))
		if text, err := url.QueryUnescape(string(name)); err != nil || text != tokenParam {
			if len(rest) > 0 {
				rest = append(rest, '&')
			}
			rest = append(rest, pair...)
			continue
		}
		key, err := url.QueryUnescape(string(value))
		differ = differ || err != nil || t.given && key != t.key
		t.given, t.key = true, key
	}
	if !t.given {
		return t, nil
	}
	uri.SetQueryStringBytes(rest)
	target := bytes.Clone(uri.PathOriginal())
	if len(rest) > 0 {
		target = append(append(target, '?'), rest...)
	}
	c.Request().Header.SetRequestURIBytes(target)
	if differ {
		return t, Errorf(401, CodeInvalidKey, "The URL carries more than one key, or one that does not decode.").WithParam(tokenParam)
	}
	return t, nil
}
