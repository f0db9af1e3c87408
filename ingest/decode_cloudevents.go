package ingest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// CloudEvents 1.0 attributes become fields of an event:
//
//	type             type
//	id               message_id (its grammar is narrower than CloudEvents')
//	subject          session_id
//	time             client_time
//	datacontenttype  content_type
//	data             payload; data_base64 likewise
//	source           metadata.source, since our records have a source of their own
//	dataschema       metadata.dataschema
//	workflow, tms, frame, confidence, metadata: Playhead's extensions, as in its records
//	any other        metadata.<name>, as text
//
// specversion, id, source and type are required (CloudEvents 1.0.2, "Required attributes").

// cloudState is what an event's attributes say until all of them were read.
type cloudState struct {
	payload             payloadFields
	version, id, source bool
	extensions          map[string]string // what becomes metadata beside the metadata attribute
	metadata            map[string]string
	binary              bool // the attributes are HTTP headers
}

// field is the name by which the client knows an attribute.
func (s *cloudState) field(name string) string {
	if s.binary {
		return "ce-" + name
	}
	return name
}

// cloudEvent reads one event in the JSON format of CloudEvents. The returned error ends
// the body.
func (d *bodyDecoder) cloudEvent(item *Item) *httpapi.Error {
	var s cloudState
	err := d.readObject(item, func(item *Item, name []byte, value jsontext.Value) *httpapi.Error {
		switch string(name) {
		case "data":
			s.payload.json = value
			return nil
		case "data_base64":
			if value.Kind() == 'n' {
				return nil
			}
			return d.setBase64(&s.payload, "data_base64", value)
		}
		return d.cloudAttribute(item, &s, string(name), value)
	})
	if err != nil || item.Err != nil {
		return err
	}
	p, e := &s.payload, &item.Event
	if p.base64 != nil && p.json != nil {
		item.Err = d.invalid("data_base64", "is given beside data; want one of them")
		return nil
	}
	// CloudEvents JSON format 1.0.2, section 3.1: a string under a content type that is
	// not JSON stands for its own bytes.
	if p.typeSet && !schema.IsJSON(e.ContentType) && p.json.Kind() == '"' {
		p.json, p.base64 = nil, bytes.Clone(d.unquote(p.json))
	}
	item.Err = d.finishCloudEvent(item, &s)
	return nil
}

// cloudAttribute sets one attribute, given as a JSON value.
func (d *bodyDecoder) cloudAttribute(item *Item, s *cloudState, name string, value jsontext.Value) *httpapi.Error {
	e := &item.Event
	field := s.field(name)
	if value.Kind() == 'n' {
		return nil // an unset attribute (JSON format, section 2.2)
	}
	switch name {
	case "specversion":
		if text := string(d.unquote(value)); value.Kind() != '"' || text != "1.0" {
			return d.invalid(field, "is "+describe(value)+"; want \"1.0\"")
		}
		s.version = true
		return nil
	case "type":
		return d.setType(e, field, value)
	case "id":
		s.id = true
		return d.setID(&e.MessageID, nil, field, value)
	case "subject":
		return d.setID(&e.Session, &d.lastSession, field, value)
	case "time":
		if value.Kind() != '"' {
			return d.notString(field, value)
		}
		return d.setClientTime(e, field, value)
	case "datacontenttype":
		s.payload.typeSet = true
		return d.setContentType(e, field, value)
	case "workflow":
		return d.setID(&e.Workflow, &d.lastWorkflow, field, value)
	case "frame":
		return d.setFrameID(e, field, value)
	case "tms":
		return d.setTMs(item, field, d.number(value))
	case "confidence":
		return d.setConfidence(e, field, d.number(value))
	case "metadata":
		return d.cloudMetadata(s, field, value)
	case "workspace":
		return d.invalid(field, "is set by the API key; want it left out")
	}
	if !isAttributeName(name) {
		return d.bad(httpapi.CodeUnknownField, field, "is not an attribute's name; want a-z and 0-9 only (CloudEvents 1.0.2)")
	}
	if name == "source" {
		s.source = true
		if value.Kind() != '"' || len(value) == 2 {
			return d.invalid(field, "is "+describe(value)+"; want text that is not empty")
		}
	}
	switch value.Kind() {
	case '{', '[':
		return d.invalid(field, "is "+describe(value)+"; want text, a number or a boolean")
	}
	if s.extensions == nil {
		s.extensions = make(map[string]string)
	}
	if len(s.extensions) == schema.MaxMetadataKeys {
		return d.invalid(field, fmt.Sprintf("is one extension more than the %d allowed", schema.MaxMetadataKeys))
	}
	s.extensions[name] = string(d.unquote(value))
	return nil
}

// number unquotes a number: CloudEvents has none with a fraction, and headers are text.
func (d *bodyDecoder) number(value jsontext.Value) jsontext.Value {
	if value.Kind() != '"' {
		return value
	}
	text := jsontext.Value(d.unquote(value))
	if k := text.Kind(); k == '0' && text.IsValid() {
		return text
	}
	return value
}

// cloudMetadata reads the metadata attribute: an object, or the text of one.
func (d *bodyDecoder) cloudMetadata(s *cloudState, field string, value jsontext.Value) *httpapi.Error {
	if value.Kind() == '"' {
		text := jsontext.Value(d.unquote(value))
		if !text.IsValid() {
			return d.invalid(field, "is not the JSON text of an object of strings")
		}
		value = text
	}
	m, inner, why := decodeMetadata(value)
	if why != "" {
		return d.invalid(s.field(inner), why)
	}
	s.metadata = m
	return nil
}

// isAttributeName reports whether CloudEvents allows the name (1.0.2, "Naming conventions").
func isAttributeName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= schema.MaxMetadataKeyLen
}

func (d *bodyDecoder) finishCloudEvent(item *Item, s *cloudState) *httpapi.Error {
	e := &item.Event
	missing := ""
	switch {
	case !s.version:
		missing = "specversion"
	case !s.id:
		missing = "id"
	case !s.source:
		missing = "source"
	case e.Type == "":
		missing = "type"
	}
	if missing != "" {
		return d.invalid(s.field(missing), "is missing; CloudEvents 1.0 requires it")
	}
	if err := d.finishSession(e, s.field("subject")); err != nil {
		return err
	}
	e.Metadata = s.metadata
	for k, v := range s.extensions {
		if e.Metadata == nil {
			e.Metadata = make(map[string]string, len(s.extensions))
		}
		if _, taken := e.Metadata[k]; taken {
			return d.invalid(s.field("metadata"), fmt.Sprintf("has a key %s, which is an attribute of the event too", schema.Quote(k)))
		}
		e.Metadata[k] = v
	}
	if err := schema.CheckMetadata(e.Metadata); err != nil {
		return d.invalid(s.field("metadata"), err.Error())
	}
	if s.binary {
		return d.finishPayload(e, &s.payload, "body", "body", "Content-Type")
	}
	return d.finishPayload(e, &s.payload, "data", "data_base64", "datacontenttype")
}

// DecodeCloudEventHeaders reads a CloudEvent in HTTP's binary mode: attributes are the
// ce- headers, by name without that prefix and in lower case, the payload is the body
// as it is, contentType the Content-Type header. Otherwise it is as Decode.
func (d *Decoder) DecodeCloudEventHeaders(attributes map[string]string, contentType string, body []byte, session string) (*Batch, error) {
	b := d.pool.Get().(*bodyDecoder)
	defer func() {
		b.release()
		d.pool.Put(b)
	}()
	b.reset(body)
	b.session = session
	batch := &Batch{Items: make([]Item, 1), Single: true}
	batch.Items[0].Err = b.binaryEvent(&batch.Items[0], attributes, contentType, body)
	return batch, nil
}

func (d *bodyDecoder) binaryEvent(item *Item, attributes map[string]string, contentType string, body []byte) *httpapi.Error {
	if len(body) > d.limits.EventBytes {
		return d.tooLarge(int64(len(body)))
	}
	s := cloudState{binary: true}
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		value := attributes[name]
		// Header values are percent-encoded (HTTP binding 1.0.2, section 3.1.3.2).
		text, err := url.PathUnescape(value)
		if err != nil {
			return d.invalid(s.field(name), "is "+schema.Quote(value)+", which is not well percent-encoded")
		}
		quoted, err := json.Marshal(strings.ToValidUTF8(text, "\uFFFD"))
		if err != nil {
			return d.invalid(s.field(name), "is not text")
		}
		if err := d.cloudAttribute(item, &s, name, quoted); err != nil {
			return err
		}
	}
	if contentType != "" {
		s.payload.typeSet = true
		if err := schema.CheckContentType(contentType); err != nil {
			return d.invalid("Content-Type", err.Error())
		}
		item.Event.ContentType = contentType
	}
	if len(body) > 0 {
		s.payload.base64 = body
		if contentType == "" {
			item.Event.ContentType = schema.DefaultContentType
		}
	}
	return d.finishCloudEvent(item, &s)
}
