package ingest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// eventFields lists the fields of an event, for messages.
const eventFields = "type, payload, t_ms, client_time, frame_id, confidence, metadata, message_id, session_id, workflow_id, content_type, payload_base64"

// maxClientTimeMs is the end of the year 2299, the last that ClickHouse's DateTime64 holds.
const maxClientTimeMs = 10_413_791_999_999

// envelopeDepth is how deep an event's payload can lie in a body: {"events":[{"payload":
const envelopeDepth = 3

// defaultBytesType is the content type of payload_base64 without a content_type.
const defaultBytesType = "application/octet-stream"

var (
	newline     = []byte("\n")
	nullPayload = []byte("null")
)

// payloadFields are the parts of an event that say what its payload is, until finish
// has seen all of them.
type payloadFields struct {
	json    jsontext.Value // nil if absent
	base64  []byte         // decoded; nil if absent
	typeSet bool
}

// readObject reads the members of an event's object and hands them to field, which
// returns what is wrong with one. After the first such error the rest is only skipped.
// The returned error ends the body: it is not JSON.
func (d *bodyDecoder) readObject(item *Item, field func(item *Item, name []byte, value jsontext.Value) *httpapi.Error) *httpapi.Error {
	if d.json.PeekKind() != '{' {
		raw, err := d.json.ReadValue()
		if err != nil {
			return d.syntaxError(err)
		}
		item.Err = refuse(400, httpapi.CodeInvalidField, d.path(""), "%s is %s; want an object: an event.", d.subject(), describe(raw))
		return nil
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.syntaxError(err)
	}
	start := d.json.InputOffset() - 1
	for d.json.PeekKind() != '}' {
		name, err := d.json.ReadValue()
		if err != nil {
			return d.syntaxError(err)
		}
		value, err := d.json.ReadValue()
		if err != nil {
			return d.syntaxError(err)
		}
		if item.Err == nil {
			item.Err = field(item, d.unquote(name), value)
		}
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.syntaxError(err)
	}
	if size := d.json.InputOffset() - start; size > int64(d.limits.EventBytes) {
		item.Err = d.tooLarge(size)
	}
	return nil
}

func (d *bodyDecoder) tooLarge(size int64) *httpapi.Error {
	return refuse(413, codeEventTooLarge, d.path(""), "%s has %d bytes; at most %d are allowed an event.", d.subject(), size, d.limits.EventBytes).
		WithDetail("bytes", size).WithDetail("limit", d.limits.EventBytes)
}

// event reads one event in Playhead's own form. The returned error ends the body.
func (d *bodyDecoder) event(item *Item) *httpapi.Error {
	var p payloadFields
	err := d.readObject(item, func(item *Item, name []byte, value jsontext.Value) *httpapi.Error {
		return d.eventField(item, &p, name, value)
	})
	if err != nil || item.Err != nil {
		return err
	}
	item.Err = d.finish(item, &p)
	return nil
}

func (d *bodyDecoder) eventField(item *Item, p *payloadFields, name []byte, value jsontext.Value) *httpapi.Error {
	e := &item.Event
	if value.Kind() == 'n' && string(name) != "type" && string(name) != "payload" {
		if !isEventField(name) {
			return d.unknown(name)
		}
		return nil // null is the same as absent
	}
	switch string(name) {
	case "type":
		return d.setType(e, "type", value)
	case "payload":
		p.json = value
		return nil
	case "t_ms":
		return d.setTMs(item, "t_ms", value)
	case "client_time":
		return d.setClientTime(e, "client_time", value)
	case "frame_id":
		return d.setFrameID(e, "frame_id", value)
	case "confidence":
		return d.setConfidence(e, "confidence", value)
	case "metadata":
		return d.setMetadata(e, value)
	case "message_id":
		return d.setID(&e.MessageID, nil, "message_id", value)
	case "session_id":
		return d.setID(&e.Session, &d.lastSession, "session_id", value)
	case "workflow_id":
		return d.setID(&e.Workflow, &d.lastWorkflow, "workflow_id", value)
	case "content_type":
		p.typeSet = true
		return d.setContentType(e, "content_type", value)
	case "payload_base64":
		return d.setBase64(p, "payload_base64", value)
	default:
		return d.unknown(name)
	}
}

func isEventField(name []byte) bool {
	switch string(name) {
	case "t_ms", "client_time", "frame_id", "confidence", "metadata", "message_id", "session_id",
		"workflow_id", "content_type", "payload_base64":
		return true
	}
	return false
}

func (d *bodyDecoder) unknown(name []byte) *httpapi.Error {
	return d.bad(httpapi.CodeUnknownField, string(name), "is not a field of an event; put it into payload or metadata. The fields are "+eventFields)
}

// finish checks what an event must have once all of its fields were read.
func (d *bodyDecoder) finish(item *Item, p *payloadFields) *httpapi.Error {
	e := &item.Event
	if e.Type == "" {
		return d.invalid("type", "is missing; every event has one")
	}
	if err := d.finishSession(e, "session_id"); err != nil {
		return err
	}
	if p.base64 != nil && p.json != nil && p.json.Kind() != 'n' {
		return d.invalid("payload_base64", "is given beside payload; want one of them")
	}
	return d.finishPayload(e, p, "payload", "payload_base64", "content_type")
}

func (d *bodyDecoder) finishSession(e *schema.Event, field string) *httpapi.Error {
	switch {
	case e.Session == "" && d.session == "":
		return d.invalid(field, "is missing; it says which session the event belongs to")
	case e.Session == "":
		e.Session = d.session
	case d.session != "" && e.Session != d.session:
		return d.invalid(field, fmt.Sprintf("is %s; want none, or %s as in the path", schema.Quote(e.Session), schema.Quote(d.session)))
	}
	return nil
}

// finishPayload gives e its payload. An absent payload is the JSON value null, since a
// Kafka record without a value would be a deletion.
func (d *bodyDecoder) finishPayload(e *schema.Event, p *payloadFields, jsonField, base64Field, typeField string) *httpapi.Error {
	if p.base64 != nil {
		e.Payload = p.base64
		if e.ContentType == "" {
			e.ContentType = defaultBytesType
		}
		if !schema.IsJSON(e.ContentType) {
			return nil
		}
		if !jsontext.Value(p.base64).IsValid() {
			return d.invalid(base64Field, fmt.Sprintf("is not JSON, as %s %s says", typeField, schema.Quote(e.ContentType)))
		}
		return d.checkDepth(base64Field, e.Payload)
	}
	if p.typeSet && !schema.IsJSON(e.ContentType) {
		return d.invalid(typeField, fmt.Sprintf("is %s, which is not JSON; give the bytes in %s", schema.Quote(e.ContentType), base64Field))
	}
	if e.ContentType == "" {
		e.ContentType = schema.DefaultContentType
	}
	if p.json == nil {
		e.Payload = nullPayload[:len(nullPayload):len(nullPayload)]
		return nil
	}
	e.Payload = p.json
	return d.checkDepth(jsonField, e.Payload)
}

// unquote returns the text of a JSON string, which the reader has found valid. It
// aliases the body, or scratch until the next call.
func (d *bodyDecoder) unquote(raw jsontext.Value) []byte {
	if len(raw) < 2 || raw[0] != '"' {
		return raw
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	text, err := jsontext.AppendUnquote(d.text[:0], raw)
	if err != nil {
		return raw // not reached: the reader refuses such strings
	}
	d.text = text
	return text
}

func (d *bodyDecoder) notString(field string, value jsontext.Value) *httpapi.Error {
	return d.invalid(field, "is "+describe(value)+"; want a string")
}

func (d *bodyDecoder) setType(e *schema.Event, field string, value jsontext.Value) *httpapi.Error {
	if value.Kind() != '"' {
		return d.notString(field, value)
	}
	text := d.unquote(value)
	if d.lastType != "" && d.lastType == string(text) { // checked before
		e.Type = d.lastType
		return nil
	}
	t := string(text)
	if err := schema.CheckType(t); err != nil {
		return d.invalid(field, err.Error())
	}
	if schema.IsReservedType(t) {
		return d.bad(codeReservedType, field, fmt.Sprintf("is %s, which Playhead and SSE clients use themselves; want another name than error, open, heartbeat or playhead.*", schema.Quote(t)))
	}
	e.Type, d.lastType = t, t
	return nil
}

// setID reads a session, workflow or message id. last, if not nil, is the one that was
// read before and is often the same.
func (d *bodyDecoder) setID(id, last *string, field string, value jsontext.Value) *httpapi.Error {
	if value.Kind() != '"' {
		return d.notString(field, value)
	}
	text := d.unquote(value)
	if last != nil && *last != "" && *last == string(text) {
		*id = *last
		return nil
	}
	s := string(text)
	if err := schema.CheckID(s); err != nil {
		return d.invalid(field, err.Error())
	}
	*id = s
	if last != nil {
		*last = s
	}
	return nil
}

func (d *bodyDecoder) setTMs(item *Item, field string, value jsontext.Value) *httpapi.Error {
	ms, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil || ms > schema.MaxTimeMs {
		return d.invalid(field, fmt.Sprintf("is %s; want a whole number of milliseconds from 0 to %d", describe(value), int64(schema.MaxTimeMs)))
	}
	item.Event.TMs, item.TMsGiven = int64(ms), true
	return nil
}

func (d *bodyDecoder) setClientTime(e *schema.Event, field string, value jsontext.Value) *httpapi.Error {
	if kind := value.Kind(); kind != '"' && kind != '0' {
		return d.invalid(field, "is "+describe(value)+"; want RFC 3339 text or Unix milliseconds")
	}
	text := string(d.unquote(value))
	ms, err := schema.ParseTime(text)
	if err != nil {
		return d.invalid(field, err.Error())
	}
	if ms > maxClientTimeMs {
		return d.invalid(field, fmt.Sprintf("is %s; want a time from 1970 to 2299", schema.Quote(text)))
	}
	e.ClientTimeMs = &ms
	return nil
}

func (d *bodyDecoder) setFrameID(e *schema.Event, field string, value jsontext.Value) *httpapi.Error {
	if value.Kind() != '"' {
		return d.notString(field, value)
	}
	s := string(d.unquote(value))
	if err := schema.CheckText(s, schema.MaxFrameIDLen); err != nil {
		return d.invalid(field, err.Error())
	}
	e.FrameID = s
	return nil
}

func (d *bodyDecoder) setConfidence(e *schema.Event, field string, value jsontext.Value) *httpapi.Error {
	// Parsed at the width it is kept in, so that what is stored reads back the same.
	f, err := strconv.ParseFloat(string(value), 32)
	if err != nil || value.Kind() != '0' || !(f >= 0 && f <= 1) {
		return d.invalid(field, "is "+describe(value)+"; want a number from 0 to 1")
	}
	c := float32(math.Abs(f)) // -0 is 0
	e.Confidence = &c
	return nil
}

func (d *bodyDecoder) setContentType(e *schema.Event, field string, value jsontext.Value) *httpapi.Error {
	if value.Kind() != '"' {
		return d.notString(field, value)
	}
	s := string(d.unquote(value))
	if err := schema.CheckContentType(s); err != nil {
		return d.invalid(field, err.Error())
	}
	e.ContentType = s
	return nil
}

func (d *bodyDecoder) setBase64(p *payloadFields, field string, value jsontext.Value) *httpapi.Error {
	if value.Kind() != '"' {
		return d.notString(field, value)
	}
	text := d.unquote(value)
	out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(out, text)
	if err != nil {
		return d.invalid(field, "is not standard base64 with padding (RFC 4648, section 4)")
	}
	p.base64 = out[:n:n]
	return nil
}

func (d *bodyDecoder) setMetadata(e *schema.Event, value jsontext.Value) *httpapi.Error {
	m, field, why := decodeMetadata(value)
	if why != "" {
		return d.invalid(field, why)
	}
	e.Metadata = m
	return nil
}

// decodeMetadata reads a JSON object of strings. If why is not empty it says what is
// wrong with field.
func decodeMetadata(value jsontext.Value) (m map[string]string, field, why string) {
	if value.Kind() != '{' {
		return nil, "metadata", "is " + describe(value) + "; want an object of strings"
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(value))
	if _, err := dec.ReadToken(); err != nil {
		return nil, "metadata", "is not JSON"
	}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, "metadata", "is not JSON"
		}
		key := name.String()
		v, err := dec.ReadToken()
		if err != nil {
			return nil, "metadata", "is not JSON"
		}
		if v.Kind() != '"' {
			return nil, "metadata." + key, "is " + describeToken(v) + "; want a string"
		}
		if m == nil {
			m = make(map[string]string)
		}
		if len(m) == schema.MaxMetadataKeys {
			return nil, "metadata", fmt.Sprintf("has more than %d keys, which is the limit", schema.MaxMetadataKeys)
		}
		m[key] = v.String()
	}
	if err := schema.CheckMetadata(m); err != nil {
		return nil, "metadata", err.Error()
	}
	return m, "", ""
}

func describeToken(t jsontext.Token) string {
	switch t.Kind() {
	case '{':
		return "an object"
	case '[':
		return "an array"
	default:
		return cut(t.String())
	}
}

// checkDepth refuses a payload that nests too deep for the readers of the log.
func (d *bodyDecoder) checkDepth(field string, payload []byte) *httpapi.Error {
	// Counting brackets is much cheaper than nesting them, and nearly always enough.
	if bytes.Count(payload, openBrace)+bytes.Count(payload, openBracket) <= d.limits.JSONDepth {
		return nil
	}
	if depth(payload) <= d.limits.JSONDepth {
		return nil
	}
	return d.tooDeep(d.path(field))
}

func (d *bodyDecoder) tooDeep(param string) *httpapi.Error {
	return refuse(400, codePayloadTooDeep, param, "%s nests deeper than %d objects and arrays, which is the limit.", param, d.limits.JSONDepth).
		WithDetail("limit", d.limits.JSONDepth)
}

var openBrace, openBracket = []byte("{"), []byte("[")

// depth returns how deep the objects and arrays of a JSON text nest.
func depth(text []byte) int {
	level, deepest, inString := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			inString = !inString
		case inString:
			if c == '\\' {
				i++
			}
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}
