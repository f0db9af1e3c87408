package httpapi

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/settings"
)

// Bounds and defaults of CORSConfig.
const (
	DefaultCORSMaxAge = time.Hour
	maxCORSMaxAge     = 24 * time.Hour
	anyOrigin         = "*"
	subdomains        = "*."
)

// What a page of another origin may send, and read of an answer (Fetch standard, 3.3).
const (
	corsMethods = "GET, HEAD, POST, PUT, PATCH, DELETE"
	corsHeaders = "Authorization, X-Api-Key, Content-Type, Content-Encoding, Last-Event-ID, X-Request-Id, " +
		"Idempotency-Key, Cache-Control, X-Requested-With, Traceparent, Tracestate"
	corsExposed = "X-Request-Id, Retry-After, Location, " + HeaderWorkspace + ", " + HeaderConnectionID + ", " +
		HeaderExportCursor + ", " + HeaderExportNext + ", " + HeaderExportBehind + ", " +
		headerRateLimit + ", " + headerRateRemaining + ", " + headerRateReset
)

// CORSConfig says which web pages may use the API from a browser. Keys are what
// authorises a request and browsers do not send them by themselves, so there are no
// credentials in the sense of CORS; no origin at all is the default even so.
type CORSConfig struct {
	// AllowedOrigins are the pages' origins: https://app.example.com, with the port if it
	// is not the scheme's own; https://*.example.com for every subdomain; * for all.
	// Default empty: no answer carries a CORS header. Operations paths never do.
	AllowedOrigins []string `yaml:"allowed_origins"`
	// MaxAge is how long a browser may keep the answer to a preflight. Default 1 h, 0 s
	// to 24 h; browsers have bounds of their own (2 h in Chromium). A long one delays what
	// is taken out of AllowedOrigins, a short one costs a request each time it runs out.
	MaxAge time.Duration `yaml:"max_age"`
}

// Validate reports every setting that is wrong, joined.
func (c CORSConfig) Validate() error {
	var errs []error
	for _, o := range c.AllowedOrigins {
		if err := checkOrigin(o); err != nil {
			errs = append(errs, fmt.Errorf("cors.allowed_origins has %.100q, %w", o, err))
		}
	}
	return errors.Join(append(errs, settings.InRange("cors.max_age", c.MaxAge, 0, maxCORSMaxAge))...)
}

// checkOrigin reports why o is not an origin as browsers write it, which is what it is
// compared with.
func checkOrigin(o string) error {
	if o == anyOrigin {
		return nil
	}
	u, err := url.Parse(o)
	switch {
	case err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || !strings.EqualFold(o, u.Scheme+"://"+u.Host):
		return errors.New("which is not an origin; want scheme://host, with :port if it is not the default")
	case u.Scheme == "http" && u.Port() == "80", u.Scheme == "https" && u.Port() == "443":
		return errors.New("which names its default port; browsers leave that out")
	case strings.Contains(strings.TrimPrefix(u.Host, subdomains), "*"):
		return errors.New("where * is not a whole first part of the host, as in https://*.example.com")
	}
	return nil
}

// cors answers browsers. One that allows no origin does nothing.
type cors struct {
	all      bool
	origins  []string    // lower case
	suffixes [][2]string // scheme:// and .example.com
	maxAge   string
}

func newCORS(cfg CORSConfig) *cors {
	c := &cors{maxAge: strconv.FormatInt(wholeSeconds(cfg.MaxAge), 10)}
	for _, o := range cfg.AllowedOrigins {
		o = strings.ToLower(o)
		switch scheme, host, found := strings.Cut(o, "://"+subdomains); {
		case o == anyOrigin:
			c.all = true
		case found:
			c.suffixes = append(c.suffixes, [2]string{scheme + "://", "." + host})
		default:
			c.origins = append(c.origins, o)
		}
	}
	return c
}

func (o *cors) enabled(c *fiber.Ctx) bool {
	return (o.all || len(o.origins)+len(o.suffixes) > 0) && !isOperations(c.Path())
}

func (o *cors) allows(origin string) bool {
	if o.all || slices.Contains(o.origins, origin) {
		return true
	}
	return slices.ContainsFunc(o.suffixes, func(s [2]string) bool {
		return len(origin) > len(s[0])+len(s[1]) && strings.HasPrefix(origin, s[0]) && strings.HasSuffix(origin, s[1]) &&
			isHost(origin[len(s[0]):len(origin)-len(s[1])])
	})
}

// notASCII: lower case makes ASCII of some letters that are none.
func notASCII(r rune) bool { return r <= ' ' || r > '~' }

// isHost reports whether s, of lower case, may be part of a host's name as browsers write it:
// an allowed origin is copied into the answer's head.
func isHost(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}

// setHeaders lets the page that made the request read the answer, whatever it will be.
// Doing so twice changes nothing.
func (o *cors) setHeaders(c *fiber.Ctx) {
	if !o.enabled(c) {
		return
	}
	if !o.all {
		c.Vary(fiber.HeaderOrigin) // also without an Origin, or a cache would keep that answer for all
	}
	origin := c.Get(fiber.HeaderOrigin)
	if origin == "" || strings.ContainsFunc(origin, notASCII) || !o.allows(strings.ToLower(origin)) {
		return
	}
	if o.all {
		origin = anyOrigin
	}
	c.Set(fiber.HeaderAccessControlAllowOrigin, origin)
	c.Set(fiber.HeaderAccessControlExposeHeaders, corsExposed)
}

// isPreflight reports whether a browser asks if it may send a request.
func (o *cors) isPreflight(c *fiber.Ctx) bool {
	return c.Method() == fiber.MethodOptions && o.enabled(c) &&
		c.Get(fiber.HeaderOrigin) != "" && c.Get(fiber.HeaderAccessControlRequestMethod) != ""
}

// answerPreflight says what may be sent. A page that may not gets the same 204 without
// the headers, which is what browsers look at.
func (o *cors) answerPreflight(c *fiber.Ctx) error {
	if len(c.Response().Header.Peek(fiber.HeaderAccessControlAllowOrigin)) > 0 {
		c.Response().Header.Del(fiber.HeaderAccessControlExposeHeaders) // says nothing here
		c.Set(fiber.HeaderAccessControlAllowMethods, corsMethods)
		c.Set(fiber.HeaderAccessControlAllowHeaders, corsHeaders)
		c.Set(fiber.HeaderAccessControlMaxAge, o.maxAge)
	}
	return c.SendStatus(fiber.StatusNoContent)
}
