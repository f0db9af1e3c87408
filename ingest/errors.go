package ingest

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Codes of this role's own, beside those of httpapi.
const (
	codeReservedType    = "reserved_type"
	codePayloadTooDeep  = "payload_too_deep"
	codeEventTooLarge   = "event_too_large"
	codeTooManyEvents   = "too_many_events"
	codeInvalidEncoding = "invalid_encoding"
	codeSessionEnded    = "session_ended"
	codeSessionExists   = "session_exists"
	codeOverloaded      = "overloaded"
)

// retryAfter is when to come back after a refusal that passes by itself.
const retryAfter = time.Second

// refuse makes a refusal that concerns one parameter or field.
func refuse(status int, code, param, format string, args ...any) *httpapi.Error {
	return httpapi.Errorf(status, code, format, args...).WithParam(param)
}

func notFound(param string) *httpapi.Error { return httpapi.NotFound("session").WithParam(param) }

func overloaded(what string) *httpapi.Error {
	return httpapi.Errorf(503, codeOverloaded, "This node has as many %s under way as it may; nothing of this request was appended.", what).
		WithRetryAfter(retryAfter)
}

// produceError turns what Kafka's client said of one record into an answer.
func produceError(err error) *httpapi.Error {
	switch {
	case errors.Is(err, kerr.MessageTooLarge):
		return httpapi.Errorf(413, codeEventTooLarge, "Kafka takes no record as large as this event.").WithCause(err)
	case errors.Is(err, kgo.ErrMaxBuffered):
		return overloaded("events").WithCause(err)
	case errors.Is(err, kgo.ErrClientClosed), errors.Is(err, kgo.ErrAborting):
		return httpapi.ShuttingDown().WithCause(err)
	default:
		return httpapi.LogUnavailable(err)
	}
}

// cut bounds a client's text that is echoed as a parameter's name.
func cut(s string) string {
	if len(s) > 128 {
		return strings.ToValidUTF8(s[:128], "") + "…"
	}
	return s
}

// path names a field of the event being decoded, such as events[3].t_ms; field "" is
// the event itself.
func (d *bodyDecoder) path(field string) string {
	field = cut(field)
	if d.index < 0 {
		return field
	}
	p := d.list + "[" + strconv.Itoa(d.index) + "]"
	if field == "" {
		return p
	}
	return p + "." + field
}

// subject begins a sentence about the event as a whole.
func (d *bodyDecoder) subject() string {
	switch {
	case d.line > 0:
		return "Line " + strconv.Itoa(d.line)
	case d.index >= 0:
		return d.path("")
	default:
		return "The body"
	}
}

// bad refuses a field of the event being decoded. The sentence begins with the field's
// path; why goes on with what was given and what is allowed, without a full stop.
func (d *bodyDecoder) bad(code, field, why string) *httpapi.Error {
	e := refuse(400, code, d.path(field), "%s %s.", d.path(field), why)
	if d.line > 0 {
		e.WithDetail("line", d.line)
	}
	return e
}

func (d *bodyDecoder) invalid(field, why string) *httpapi.Error {
	return d.bad(httpapi.CodeInvalidField, field, why)
}

// syntaxError turns what the JSON reader found into an answer.
func (d *bodyDecoder) syntaxError(err error) *httpapi.Error {
	syntactic, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok { // the end of the body, where a value was wanted
		return d.located(httpapi.Errorf(400, httpapi.CodeInvalidJSON, "%s ends before its JSON does.", d.whole()), int64(len(d.body)))
	}
	offset := syntactic.ByteOffset
	param := d.pointerPath(syntactic.JSONPointer, maxPathDepth)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return d.located(refuse(400, httpapi.CodeInvalidJSON, param, "%s ends before its JSON does, at byte %d.", d.whole(), offset), offset)
	case errors.Is(err, jsontext.ErrDuplicateName):
		return d.located(refuse(400, httpapi.CodeInvalidJSON, param, "%s is given twice.", param), offset)
	case depth(d.body[:min(offset, int64(len(d.body)))]) > d.limits.JSONDepth+envelopeDepth:
		return d.located(d.tooDeep(d.pointerPath(syntactic.JSONPointer, d.fieldDepth())), offset)
	case !utf8.Valid(d.body):
		return d.located(refuse(400, httpapi.CodeInvalidJSON, param, "%s is not valid UTF-8, at byte %d.", d.whole(), offset), offset)
	default:
		return d.located(refuse(400, httpapi.CodeInvalidJSON, param, "%s is not JSON: %v, at byte %d.", d.whole(), syntactic.Err, offset), offset)
	}
}

func (d *bodyDecoder) located(e *httpapi.Error, offset int64) *httpapi.Error {
	if d.line > 0 {
		e.WithDetail("line", d.line)
	}
	return e.WithDetail("offset", offset)
}

// whole begins a sentence about the text the JSON reader was given.
func (d *bodyDecoder) whole() string {
	if d.line > 0 {
		return d.subject()
	}
	return "The body"
}

// maxPathDepth bounds how many steps of a path are named.
const maxPathDepth = 16

// fieldDepth is how many steps of a JSON pointer lead to an event's field.
func (d *bodyDecoder) fieldDepth() int {
	switch {
	case d.line > 0 || d.index < 0:
		return 1
	case d.list == "":
		return 2
	default:
		return envelopeDepth
	}
}

// pointerPath writes the first steps of a JSON pointer the way path does.
func (d *bodyDecoder) pointerPath(p jsontext.Pointer, steps int) string {
	var b strings.Builder
	if d.line > 0 {
		b.WriteString(d.path(""))
	}
	for token := range p.Tokens() {
		if steps--; steps < 0 {
			break
		}
		if _, err := strconv.Atoi(token); err == nil {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(token)
	}
	return cut(b.String())
}

// describe says in a few words what a JSON value is, for "x is …".
func describe(raw jsontext.Value) string {
	switch raw.Kind() {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		if text, err := jsontext.AppendUnquote(nil, raw); err == nil {
			return schema.Quote(string(text))
		}
		return "a string"
	default:
		return cut(string(raw))
	}
}
