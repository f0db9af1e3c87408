package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Header is a Kafka record header. It has the shape of every Kafka client's header
// type, so that this package needs none of them.
type Header = struct {
	Key   string
	Value []byte
}

// Headers of an event's record: CloudEvents 1.0, Kafka protocol binding, binary mode
// (the payload is the record's value, untouched). Those below headerSubject are
// extension attributes of ours. They are read in any case, and written in lower case.
const (
	headerSpecVersion = "ce_specversion"
	headerID          = "ce_id"
	headerSource      = "ce_source"
	headerType        = "ce_type"
	headerTime        = "ce_time"    // the producer's event time, RFC 3339
	headerSubject     = "ce_subject" // the session
	headerWorkspace   = "ce_workspace"
	headerWorkflow    = "ce_workflow"
	headerTMs         = "ce_tms"
	headerFrame       = "ce_frame"
	headerConfidence  = "ce_confidence"
	headerMetadata    = "ce_metadata" // a JSON object of strings
	headerContentType = "content-type"
)

// CloudEventsSource is the source attribute of records that Playhead's ingest writes.
const CloudEventsSource = "/playhead/ingest"

// generatedIDPrefix starts the ce_id of an event whose producer gave no message id.
// CloudEvents wants an id in every event; '~' cannot begin a message id.
const generatedIDPrefix = "~"

var (
	specVersion = []byte("1.0")
	source      = []byte(CloudEventsSource)
)

// RecordKey returns the Kafka key of a session's records.
func RecordKey(workspace, session string) []byte {
	b := make([]byte, 0, len(workspace)+1+len(session))
	b = append(b, workspace...)
	b = append(b, '/')
	return append(b, session...)
}

// AppendHeaders appends the record headers of e to dst; the record's value is
// e.Payload and its timestamp e.ID.TimeMs. generatedID must be unique and is used
// only if e has no message id. The header values may alias e's strings' copies, never
// e.Payload.
func AppendHeaders[H ~struct {
	Key   string
	Value []byte
}](dst []H, e *Event, generatedID string) []H {
	add := func(k string, v []byte) { dst = append(dst, H(Header{Key: k, Value: v})) }
	add(headerSpecVersion, specVersion)
	if e.MessageID != "" {
		add(headerID, []byte(e.MessageID))
	} else {
		add(headerID, []byte(generatedIDPrefix+generatedID))
	}
	add(headerSource, source)
	add(headerType, []byte(e.Type))
	add(headerSubject, []byte(e.Session))
	add(headerWorkspace, []byte(e.Workspace))
	add(headerTMs, strconv.AppendInt(nil, e.TMs, 10))
	if e.Workflow != "" {
		add(headerWorkflow, []byte(e.Workflow))
	}
	if e.ClientTimeMs != nil {
		add(headerTime, time.UnixMilli(*e.ClientTimeMs).UTC().AppendFormat(nil, "2006-01-02T15:04:05.000Z07:00"))
	}
	if e.FrameID != "" {
		add(headerFrame, []byte(e.FrameID))
	}
	if e.Confidence != nil {
		add(headerConfidence, strconv.AppendFloat(nil, float64(*e.Confidence), 'g', -1, 32))
	}
	if len(e.Metadata) > 0 {
		b, _ := json.Marshal(e.Metadata) // a map of strings always marshals
		add(headerMetadata, b)
	}
	if e.ContentType != "" {
		add(headerContentType, []byte(e.ContentType))
	}
	return dst
}

// MaxPayloadBytes bounds the value of an event's record. It is part of the log's contract,
// as every reader has to hold it: not a setting.
const MaxPayloadBytes = 16 << 20

// DecodeRecord reads an event from a Kafka record's headers and value. id is where
// the record lies and its timestamp. The event's payload aliases value.
//
// Records of foreign producers are welcome if they speak CloudEvents in binary mode
// and carry ce_subject and ce_workspace; a missing ce_tms counts as 0. Everything else
// is a *RejectError that names the header. Whether the record lies in the partition of its
// session is not looked at: see DecodePlaced.
func DecodeRecord[H ~struct {
	Key   string
	Value []byte
}](id EventID, headers []H, value []byte) (*Event, error) {
	e := &Event{ID: id, Payload: value, ContentType: DefaultContentType}
	d := headerDecoder{event: e}
	for i := range headers {
		h := Header(headers[i])
		if err := d.take(h.Key, h.Value); err != nil {
			return nil, err
		}
	}
	switch {
	case id.TimeMs < 0 || id.TimeMs > MaxEventTimeMs:
		return nil, reject(ReasonTimestamp, "timestamp is %d; want Unix milliseconds from 1970 to 2299", id.TimeMs)
	case !bytes.Equal(d.version, specVersion):
		return nil, reject(ReasonVersion, "header %s is %s; want \"1.0\"", headerSpecVersion, Quote(string(d.version)))
	case e.Type == "":
		return nil, reject(ReasonMissing, "header %s is missing", headerType)
	case e.Session == "":
		return nil, reject(ReasonMissing, "header %s is missing", headerSubject)
	case e.Workspace == "":
		return nil, reject(ReasonMissing, "header %s is missing", headerWorkspace)
	case IsReservedType(e.Type) && !isLogType(e.Type):
		return nil, reject(ReasonReserved, "header %s is %s, a type of Playhead's own", headerType, Quote(e.Type))
	case len(value) > MaxPayloadBytes:
		return nil, reject(ReasonTooLarge, "value has %d bytes; at most %d are allowed", len(value), MaxPayloadBytes)
	case e.JSONPayload() && !ValidJSON(value):
		return nil, reject(ReasonJSON, "value is not JSON, as its content type says")
	}
	return e, nil
}

// isLogType reports whether t is one of the reserved types that stand in sessions' logs.
func isLogType(t string) bool {
	return t == TypeSessionCreated || t == TypeSessionEnded || t == TypeErased
}

// headerDecoder takes the headers of one record into its event.
type headerDecoder struct {
	event   *Event
	version []byte
	seen    uint16 // a bit for each header of ours
}

// take takes one header. Those of others are passed over.
func (d *headerDecoder) take(key string, value []byte) error {
	known, err := d.decode(key, value)
	if known == 0 {
		lower := lowerASCII(key)
		if lower == key {
			return nil
		}
		if known, err = d.decode(lower, value); known == 0 {
			return nil
		}
	}
	if err != nil {
		return reject(ReasonHeader, "header %s %v", key, err)
	}
	if d.seen&known != 0 {
		return reject(ReasonRepeated, "header %s is given twice", key)
	}
	d.seen |= known
	return nil
}

// Bits of headerDecoder.seen.
const (
	seenSpecVersion uint16 = 1 << iota
	seenID
	seenSource
	seenType
	seenTime
	seenSubject
	seenWorkspace
	seenWorkflow
	seenTMs
	seenFrame
	seenConfidence
	seenMetadata
	seenContentType
)

// decode takes one header whose key is in lower case; known is 0 if it is none of ours. It
// makes a string of a value only where the event keeps it: every record of every reader
// comes by here.
func (d *headerDecoder) decode(key string, value []byte) (known uint16, err error) {
	e := d.event
	switch key {
	case headerSpecVersion:
		d.version = value
		return seenSpecVersion, nil
	case headerSource:
		return seenSource, nil // whoever wrote it, the rest decides
	case headerID:
		if bytes.HasPrefix(value, []byte(generatedIDPrefix)) {
			return seenID, nil
		}
		e.MessageID = string(value)
		return seenID, CheckID(e.MessageID)
	case headerType:
		e.Type = string(value)
		return seenType, CheckType(e.Type)
	case headerSubject:
		e.Session = string(value)
		return seenSubject, CheckID(e.Session)
	case headerWorkspace:
		e.Workspace = string(value)
		return seenWorkspace, CheckID(e.Workspace)
	case headerWorkflow:
		e.Workflow = string(value)
		return seenWorkflow, CheckID(e.Workflow)
	case headerTMs:
		e.TMs, err = strconv.ParseInt(string(value), 10, 64)
		if err != nil || e.TMs < 0 {
			err = fmt.Errorf("is %s; want milliseconds, 0 or more", Quote(string(value)))
		}
		return seenTMs, err
	case headerTime:
		e.ClientTimeMs, err = decodeTime(value)
		return seenTime, err
	case headerFrame:
		e.FrameID = string(value)
		return seenFrame, CheckText(e.FrameID, MaxFrameIDLen)
	case headerConfidence:
		c, ok := parseUnit(string(value))
		if !ok {
			return seenConfidence, fmt.Errorf("is %s; want a number from 0 to 1", Quote(string(value)))
		}
		e.Confidence = &c
		return seenConfidence, nil
	case headerMetadata:
		if e.Metadata, err = decodeMetadata(value); err != nil {
			return seenMetadata, err
		}
		return seenMetadata, CheckMetadata(e.Metadata)
	case headerContentType:
		if string(value) == DefaultContentType {
			e.ContentType = DefaultContentType
			return seenContentType, nil
		}
		e.ContentType = string(value)
		return seenContentType, CheckContentType(e.ContentType)
	}
	return 0, nil
}

// decodeTime reads the producer's time.
func decodeTime(value []byte) (*int64, error) {
	t, err := time.Parse(time.RFC3339Nano, string(value))
	if err != nil {
		return nil, fmt.Errorf("is %s; want RFC 3339", Quote(string(value)))
	}
	ms := t.UnixMilli()
	if ms < 0 || ms > MaxEventTimeMs {
		return nil, fmt.Errorf("is %s; want a time from 1970 to 2299", Quote(string(value)))
	}
	return &ms, nil
}

// lowerASCII returns s with A-Z made small, itself if there are none. Letters beyond ASCII
// stay: that some of them fold to one of ours must not make a header ours.
func lowerASCII(s string) string {
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if b[i] >= 'A' && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// decodeMetadata reads a JSON object of strings; an empty one gives nil.
func decodeMetadata(b []byte) (map[string]string, error) {
	if m, ok := decodePlainMetadata(b); ok {
		return m, nil
	}
	var values map[string]*string
	if err := json.Unmarshal(b, &values); err != nil || values == nil {
		return nil, errors.New("is not a JSON object of strings")
	}
	if len(values) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(values))
	for k, v := range values {
		if v == nil {
			return nil, errors.New("is not a JSON object of strings")
		}
		m[k] = *v
	}
	return m, nil
}

// decodePlainMetadata reads an object as AppendHeaders writes most: no blanks, no
// escapes. It takes a fifth of encoding/json's time, and says false to all else.
func decodePlainMetadata(b []byte) (map[string]string, bool) {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' || !utf8.Valid(b) {
		return nil, false
	}
	if len(b) == 2 {
		return nil, true
	}
	m := make(map[string]string, min(1+bytes.Count(b, []byte(`,"`)), MaxMetadataKeys))
	for s := string(b[1:]); ; s = s[1:] {
		key, rest, ok := cutPlainString(s)
		if !ok || rest[0] != ':' {
			return nil, false
		}
		value, rest, ok := cutPlainString(rest[1:])
		if !ok {
			return nil, false
		}
		m[key] = value
		if rest == "}" {
			return m, true
		}
		if rest[0] != ',' {
			return nil, false
		}
		s = rest
	}
}

// cutPlainString cuts a JSON string without escapes off the front of s. rest is never
// empty if ok.
func cutPlainString(s string) (text, rest string, ok bool) {
	if len(s) < 2 || s[0] != '"' {
		return "", "", false
	}
	for i := 1; i < len(s)-1; i++ {
		switch c := s[i]; {
		case c == '"':
			return s[1:i], s[i+1:], true
		case c == '\\' || c < ' ':
			return "", "", false
		}
	}
	return "", "", false
}

// ValidJSON reports whether payload may go out as JSON text: one value of RFC 8259 in
// valid UTF-8. Names of an object may repeat, and an escape may be half a surrogate
// pair, as a browser sends it that cuts a text within an emoji. DecodeRecord asks it of
// every JSON payload, so what an append accepts must pass it.
func ValidJSON(payload []byte) bool {
	// AllowInvalidUTF8 is for the escapes; the bytes are looked at by utf8.Valid.
	return utf8.Valid(payload) &&
		jsontext.Value(payload).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// CheckContentType reports why s cannot be a payload's content type, or nil.
func CheckContentType(s string) error {
	if err := CheckText(s, MaxContentTypeLen); err != nil {
		return err
	}
	if media, _, err := mime.ParseMediaType(s); err != nil || !strings.Contains(media, "/") {
		return fmt.Errorf("is %s; want a media type such as audio/wav", Quote(s))
	}
	return nil
}

// IsJSON reports whether a content type, one that CheckContentType lets pass, says JSON
// text: application/json, text/json or any +json type (RFC 6839). None says so too.
func IsJSON(contentType string) bool {
	if contentType == DefaultContentType || contentType == "" {
		return true
	}
	media, _, _ := strings.Cut(contentType, ";") // cheaper than mime.ParseMediaType; asked for every event sent
	media = strings.ToLower(strings.TrimSpace(media))
	return media == DefaultContentType || media == "text/json" || strings.HasSuffix(media, "+json")
}

// HasSubject reports whether a record's headers name the session, without decoding
// the record. Of a header that is repeated it sees the first: such a record is no event.
func HasSubject[H ~struct {
	Key   string
	Value []byte
}](headers []H, session string) bool {
	return hasHeader(headers, headerSubject, session)
}

// HasWorkspace reports whether a record's headers name the workspace, without decoding the
// record.
func HasWorkspace[H ~struct {
	Key   string
	Value []byte
}](headers []H, workspace string) bool {
	return hasHeader(headers, headerWorkspace, workspace)
}

func hasHeader[H ~struct {
	Key   string
	Value []byte
}](headers []H, key, value string) bool {
	for i := range headers {
		if h := Header(headers[i]); h.Key == key || len(h.Key) == len(key) && lowerASCII(h.Key) == key {
			return string(h.Value) == value
		}
	}
	return false
}
