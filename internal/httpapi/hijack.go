package httpapi

import (
	"strings"

	"github.com/gofiber/fiber/v2"
)

// HeaderWorkspace names the caller's workspace on the answers to requests with a key, so
// that a client such as the importer can tell two servers at one address apart.
const HeaderWorkspace = "X-Playhead-Workspace"

// HeaderConnectionID names a stream on its answer, for commands to it.
const HeaderConnectionID = "X-Connection-Id"

// AppendHijackHeaders appends to dst the headers that the edge has put on the response
// and that an answer must carry which writes its own head on a hijacked connection:
// X-Request-Id, X-Playhead-Workspace, X-RateLimit-*, Access-Control-* and Vary, one
// "Name: value\r\n" each. Call it in the handler: the response dies with it.
func AppendHijackHeaders(dst []byte, c *fiber.Ctx) []byte {
	c.Response().Header.VisitAll(func(key, value []byte) {
		if !belongsToEdge(string(key)) {
			return
		}
		dst = append(dst, key...)
		dst = append(dst, ": "...)
		dst = append(dst, value...)
		dst = append(dst, "\r\n"...)
	})
	return dst
}

func belongsToEdge(header string) bool {
	for _, name := range []string{fiber.HeaderXRequestID, HeaderWorkspace, fiber.HeaderVary} {
		if strings.EqualFold(header, name) {
			return true
		}
	}
	for _, prefix := range []string{rateHeaderPrefix, "Access-Control-"} {
		if len(header) > len(prefix) && strings.EqualFold(header[:len(prefix)], prefix) {
			return true
		}
	}
	return false
}
