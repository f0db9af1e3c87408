// Package openapi describes the public HTTP API in OpenAPI 3.1: openapi.yaml, written by
// hand, with what holds for many operations added by complete. GET /openapi.json serves it.
//
// Tests elsewhere hold it against the code: cmd compares it with the routes and with the
// query parameters that each of them takes, and what servers answer in tests is checked by
// package openapi/conform.
package openapi

import (
	"crypto/sha256"
	_ "embed" // the document
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// Path is where the document is served, to everybody.
const Path = "/openapi.json"

//go:embed openapi.yaml
var source []byte

// Document returns the document as JSON. Its members are in the order of their names.
// Callers must not change it.
func Document() []byte { return document() }

// document is made at the first call. An error is a mistake in openapi.yaml, which every
// test of it finds.
var document = sync.OnceValue(func() []byte {
	var doc map[string]any
	if err := yaml.Unmarshal(source, &doc); err != nil {
		panic(fmt.Sprintf("openapi: openapi.yaml: %v", err))
	}
	complete(doc)
	b, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("openapi: openapi.yaml is not JSON: %v", err))
	}
	return b
})

// Route adds Path to app, where no key is asked for.
func Route(app fiber.Router) {
	sum := sha256.Sum256(Document())
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	app.Get(Path, func(c *fiber.Ctx) error {
		if err := httpapi.NoParams(c); err != nil {
			return err
		}
		c.Set(fiber.HeaderETag, tag)
		c.Set(fiber.HeaderCacheControl, "no-cache") // to be asked for again, with the tag
		if matches(c.Get(fiber.HeaderIfNoneMatch), tag) {
			return c.SendStatus(fiber.StatusNotModified)
		}
		c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
		return c.Send(Document())
	})
}

// matches reports whether an If-None-Match names the tag (RFC 9110, 13.1.2).
func matches(header, tag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == tag {
			return true
		}
	}
	return false
}
