package httpapi

import (
	"bytes"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// checkHead refuses what two readers of one connection could read differently (RFC 9112, 3.2,
// 5.1, 5.2, 6.1 and 6.3), as a proxy before us would be the other reader: a length beside
// chunks, a field that goes on in the next line, control characters in a field, no Host or
// several. The server that we stand on takes all of these. It has read a body, so the
// connection must end.
func checkHead(h *fasthttp.RequestHeader) *Error {
	var hosts, lengths, codings int
	for line := range bytes.Lines(h.RawHeaders()) {
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) == 0 {
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			return badHead("a header that goes on in the next line")
		}
		if bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return badHead("a control character in a header")
		}
		name, _, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte(fiber.HeaderHost)):
			hosts++
		case bytes.EqualFold(name, []byte(fiber.HeaderContentLength)):
			lengths++
		case bytes.EqualFold(name, []byte(fiber.HeaderTransferEncoding)):
			codings++
		}
	}
	switch {
	case codings > 0 && lengths > 0:
		return badHead("both Content-Length and Transfer-Encoding").WithParam(fiber.HeaderTransferEncoding)
	case codings > 1:
		return badHead("Transfer-Encoding more than once").WithParam(fiber.HeaderTransferEncoding)
	case codings > 0 && !h.IsHTTP11():
		return badHead("Transfer-Encoding, which HTTP/1.0 does not have").WithParam(fiber.HeaderTransferEncoding)
	case hosts > 1:
		return badHead("Host more than once").WithParam(fiber.HeaderHost)
	case hosts == 0 && h.IsHTTP11():
		return badHead("no Host").WithParam(fiber.HeaderHost)
	}
	return nil
}

func badHead(what string) *Error { return Errorf(400, CodeBadRequest, "The request has %s.", what) }
