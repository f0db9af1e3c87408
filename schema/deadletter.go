package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Bounds of what a dead letter keeps of its record. What is larger is cut, which
// DeadLetter.Whole tells; the topic's max.message.bytes must allow all of it.
const (
	MaxLetterValueBytes  = 1 << 20
	MaxLetterHeaderBytes = 32 << 10 // of all headers, with letterHeaderOverhead each
	MaxLetterKeyBytes    = 8 << 10
	maxLetterWhyBytes    = 512

	letterHeaderOverhead = 8
)

// DeadLetterIDPrefix starts the text of every dead letter's id.
const DeadLetterIDPrefix = "dl_"

// DeadLetter is a record of the events topic that is not an event, kept in
// playhead.dead_letters for people to look at and to append again. There is one for each
// position at most: who reads the topic takes the first and passes over the others, which
// a crash of the materialiser may leave behind it.
type DeadLetter struct {
	At     Position // of the record
	Next   int64    // the offset behind it; of an unreadable batch that behind its last
	Reason Reason
	Why    string // a sentence's end, as of RejectError
	TimeMs int64  // the record's timestamp, Unix ms, which may be any number

	Claim

	Key     []byte   // nil if the record has none
	Headers []Header // as they came
	Value   []byte   // nil if the record has none

	// What the record has, of which the above may be a part.
	KeyBytes, HeaderCount, ValueBytes int
}

// Claim is what a record that is not an event says of itself: parts that would be right in
// an event, and are given once; "" otherwise.
type Claim struct{ Workspace, Session, Type string }

// ClaimOf reads the claim of a record's headers.
func ClaimOf[H ~struct {
	Key   string
	Value []byte
}](headers []H) Claim {
	var c Claim
	for key, part := range map[string]struct {
		into  *string
		check func(string) error
	}{headerWorkspace: {&c.Workspace, CheckID}, headerSubject: {&c.Session, CheckID}, headerType: {&c.Type, CheckType}} {
		seen := 0
		for i := range headers {
			h := Header(headers[i])
			if len(h.Key) != len(key) || lowerASCII(h.Key) != key {
				continue
			}
			if seen++; part.check(string(h.Value)) == nil {
				*part.into = string(h.Value)
			}
		}
		if seen > 1 {
			*part.into = ""
		}
	}
	return c
}

// NewDeadLetter makes the dead letter of a record at a position, cut to the bounds. It
// shares the record's bytes.
func NewDeadLetter[H ~struct {
	Key   string
	Value []byte
}](at Position, err error, timeMs int64, key []byte, headers []H, value []byte) *DeadLetter {
	l := &DeadLetter{
		At: at, Next: at.Offset + 1, Reason: ReasonHeader, Why: err.Error(), TimeMs: timeMs, Claim: ClaimOf(headers),
		Key: key, Value: value, KeyBytes: len(key), HeaderCount: len(headers), ValueBytes: len(value),
	}
	var rejected *RejectError
	if errors.As(err, &rejected) {
		l.Reason, l.Why = rejected.Reason, rejected.Why
	}
	if len(l.Why) > maxLetterWhyBytes {
		l.Why = l.Why[:maxLetterWhyBytes]
	}
	l.Key = key[:min(len(key), MaxLetterKeyBytes)]
	l.Value = value[:min(len(value), MaxLetterValueBytes)]
	room := MaxLetterHeaderBytes
	for i := range headers {
		h := Header(headers[i])
		if room -= len(h.Key) + len(h.Value) + letterHeaderOverhead; room < 0 {
			break
		}
		l.Headers = append(l.Headers, h)
	}
	return l
}

// Rejected returns the error of a record that would be an event and cannot be one for a
// reason that is not in the record.
func Rejected(reason Reason, why string) *RejectError { return &RejectError{Reason: reason, Why: why} }

// Whole reports whether l has all of its record.
func (l *DeadLetter) Whole() bool {
	return len(l.Key) == l.KeyBytes && len(l.Headers) == l.HeaderCount && len(l.Value) == l.ValueBytes
}

// ID returns the id of the letter.
func (l *DeadLetter) ID() string { return DeadLetterID(l.At) }

// Size is about what the letter takes in memory and in the topic.
func (l *DeadLetter) Size() int {
	n := 512 + len(l.Why) + len(l.Key) + len(l.Value)
	for _, h := range l.Headers {
		n += len(h.Key) + len(h.Value) + letterHeaderOverhead
	}
	return n
}

// DeadLetterID returns the id of the dead letter of the record at a position: dl_ and 26
// characters, which sort as the positions do.
func DeadLetterID(at Position) string {
	return string(appendBase32([]byte(DeadLetterIDPrefix), EventID{Position: at}.bytes()))
}

// ErrDeadLetterID reports text that is not the id of a dead letter.
var ErrDeadLetterID = errors.New("not the id of a dead letter: want dl_ and 26 characters of Crockford base32")

// ParseDeadLetterID reads the text of DeadLetterID.
func ParseDeadLetterID(s string) (Position, error) {
	if len(s) != len(DeadLetterIDPrefix)+26 || s[:len(DeadLetterIDPrefix)] != DeadLetterIDPrefix {
		return Position{}, fmt.Errorf("%w, got %s", ErrDeadLetterID, Quote(s))
	}
	id, err := ParseEventID(EventIDPrefix + s[len(DeadLetterIDPrefix):])
	if err != nil || id.TimeMs != 0 {
		return Position{}, fmt.Errorf("%w, got %s", ErrDeadLetterID, Quote(s))
	}
	return id.Position, nil
}

// Redrive notes that a dead letter was appended again, as an event.
type Redrive struct {
	At          Position `json:"-"` // the letter's
	EventID     string   `json:"event_id"`
	WorkspaceID string   `json:"workspace_id"`
	SessionID   string   `json:"session_id"`
	Type        string   `json:"type"`
	AtMs        int64    `json:"at_ms"`
	By          string   `json:"by"` // id of the key that asked for it
}

// LetterErasure says that no letter of a session's, or of a workspace's if SessionID is "",
// whose record is not younger than AtMs, is shown any more.
type LetterErasure struct {
	WorkspaceID string `json:"workspace_id"`
	SessionID   string `json:"session_id,omitempty"`
	AtMs        int64  `json:"at_ms"`
}

// LetterRecord is a record of playhead.dead_letters: one of its fields is set.
type LetterRecord struct {
	Letter  *DeadLetter
	Redrive *Redrive
	Erasure *LetterErasure
}

// Headers of the records of playhead.dead_letters. Those of a letter come before the
// record's own, of which the last, letterHeaders, gives the number.
const (
	letterVersion   = "dl_version"
	letterReason    = "dl_reason"
	letterWhy       = "dl_why"
	letterTimestamp = "dl_timestamp"
	letterWorkspace = "dl_workspace"
	letterSession   = "dl_session"
	letterType      = "dl_type"
	letterNext      = "dl_next"
	letterKey       = "dl_key" // absent: the record has none
	letterKeySize   = "dl_key_bytes"
	letterValueSize = "dl_value_bytes"
	letterHeaders   = "dl_headers"

	letterRedriven = "dl_redriven" // the value is a Redrive
	letterErased   = "dl_erased"   // the value is a LetterErasure

	letterRecordVersion = "1"
	letterErasureKey    = "erasure"
)

// ErrLetterRecord reports a record of playhead.dead_letters that is none of ours.
var ErrLetterRecord = errors.New("not a record of the dead letters")

// Encode returns key, headers and value of r's record. They share r's bytes.
func (r LetterRecord) Encode() (key []byte, headers []Header, value []byte, err error) {
	add := func(k, v string) { headers = append(headers, Header{Key: k, Value: []byte(v)}) }
	add(letterVersion, letterRecordVersion)
	switch {
	case r.Redrive != nil:
		add(letterRedriven, "")
		value, err = json.Marshal(r.Redrive)
		return []byte(DeadLetterID(r.Redrive.At)), headers, value, err
	case r.Erasure != nil:
		add(letterErased, "")
		value, err = json.Marshal(r.Erasure)
		return []byte(letterErasureKey), headers, value, err
	}
	l := r.Letter
	add(letterReason, string(l.Reason))
	add(letterWhy, l.Why)
	add(letterTimestamp, strconv.FormatInt(l.TimeMs, 10))
	add(letterWorkspace, l.Workspace)
	add(letterSession, l.Session)
	add(letterType, l.Type)
	add(letterNext, strconv.FormatInt(l.Next, 10))
	if l.Key != nil {
		headers = append(headers, Header{Key: letterKey, Value: l.Key})
	}
	add(letterKeySize, strconv.Itoa(l.KeyBytes))
	add(letterValueSize, strconv.Itoa(l.ValueBytes))
	add(letterHeaders, strconv.Itoa(l.HeaderCount))
	return []byte(l.ID()), append(headers, l.Headers...), l.Value, nil
}

// DecodeLetterRecord reads a record of playhead.dead_letters. What it returns shares the
// record's bytes.
func DecodeLetterRecord[H ~struct {
	Key   string
	Value []byte
}](key []byte, own []H, value []byte) (r LetterRecord, err error) {
	headers := make([]Header, len(own))
	for i := range own {
		headers[i] = Header(own[i])
	}
	if len(headers) < 2 || headers[0].Key != letterVersion || string(headers[0].Value) != letterRecordVersion {
		return r, fmt.Errorf("%w: version is missing, or not %s", ErrLetterRecord, letterRecordVersion)
	}
	if headers[1].Key == letterErased {
		r.Erasure = new(LetterErasure)
		if err := json.Unmarshal(value, r.Erasure); err != nil {
			return LetterRecord{}, fmt.Errorf("%w: %w", ErrLetterRecord, err)
		}
		return r, nil
	}
	at, err := ParseDeadLetterID(string(key))
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrLetterRecord, err)
	}
	if headers[1].Key == letterRedriven {
		r.Redrive = new(Redrive)
		if err := json.Unmarshal(value, r.Redrive); err != nil {
			return LetterRecord{}, fmt.Errorf("%w: %w", ErrLetterRecord, err)
		}
		r.Redrive.At = at
		return r, nil
	}
	l := &DeadLetter{At: at, Value: value}
	for i, h := range headers {
		if err := l.decodeHeader(h); err != nil {
			return r, fmt.Errorf("%w: header %s: %w", ErrLetterRecord, Quote(h.Key), err)
		}
		if h.Key == letterHeaders {
			l.Headers = headers[i+1:]
			if !slices.Contains(Reasons(), l.Reason) || l.Next <= at.Offset {
				return r, fmt.Errorf("%w: reason %s, next offset %d", ErrLetterRecord, Quote(string(l.Reason)), l.Next)
			}
			return LetterRecord{Letter: l}, nil
		}
	}
	return r, fmt.Errorf("%w: header %s is missing", ErrLetterRecord, letterHeaders)
}

// decodeHeader takes one of the letter's own headers.
func (l *DeadLetter) decodeHeader(h Header) (err error) {
	switch text := string(h.Value); h.Key {
	case letterReason:
		l.Reason = Reason(text)
	case letterWhy:
		l.Why = text
	case letterTimestamp:
		l.TimeMs, err = strconv.ParseInt(text, 10, 64)
	case letterWorkspace:
		l.Workspace = text
	case letterSession:
		l.Session = text
	case letterType:
		l.Type = text
	case letterNext:
		l.Next, err = strconv.ParseInt(text, 10, 64)
	case letterKey:
		if l.Key = h.Value; l.Key == nil {
			l.Key = []byte{}
		}
	case letterKeySize:
		l.KeyBytes, err = strconv.Atoi(text)
	case letterValueSize:
		l.ValueBytes, err = strconv.Atoi(text)
	case letterHeaders:
		l.HeaderCount, err = strconv.Atoi(text)
	}
	return err
}

// Correction is what somebody says of a dead letter's event that its record does not say, or
// says wrongly; "" keeps what the record says.
type Correction struct {
	Workspace, Session, Type, ContentType string
	LeaveOut                              []string // headers in lower case, such as ce_confidence
}

// IsZero reports whether c corrects nothing.
func (c Correction) IsZero() bool {
	return c.Workspace == "" && c.Session == "" && c.Type == "" && c.ContentType == "" && len(c.LeaveOut) == 0
}

// LeavableHeaders are the headers that Correction.LeaveOut may name: an event can be
// without each.
func LeavableHeaders() []string {
	return []string{headerWorkflow, headerTMs, headerTime, headerFrame, headerConfidence, headerMetadata}
}

// Event returns the event that l would be with c. Its message id is l's own, so that it is
// appended once, however often somebody tries. The record's time, where it is one and the
// record names no other, is the producer's. What keeps it from being an event is a
// *RejectError that names the header.
func (l *DeadLetter) Event(c Correction) (*Event, error) {
	e := &Event{Payload: l.Value, ContentType: DefaultContentType}
	d := headerDecoder{event: e}
	corrected := map[string]string{headerWorkspace: c.Workspace, headerSubject: c.Session, headerType: c.Type, headerContentType: c.ContentType}
	for _, h := range l.Headers {
		key := lowerASCII(h.Key)
		if key == headerSpecVersion || key == headerID || corrected[key] != "" || slices.Contains(c.LeaveOut, key) {
			continue
		}
		if err := d.take(h.Key, h.Value); err != nil {
			return nil, err
		}
	}
	for _, key := range []string{headerWorkspace, headerSubject, headerType, headerContentType} {
		if v := corrected[key]; v != "" {
			if err := d.take(key, []byte(v)); err != nil {
				return nil, err
			}
		}
	}
	if e.Payload == nil {
		e.Payload = []byte{} // without a value a record would be a deletion
	}
	e.MessageID = l.ID()
	if e.ClientTimeMs == nil && l.TimeMs >= 0 && l.TimeMs <= MaxEventTimeMs {
		e.ClientTimeMs = &l.TimeMs
	}
	switch {
	case e.Type == "":
		return nil, reject(ReasonMissing, "header %s is missing", headerType)
	case e.Session == "":
		return nil, reject(ReasonMissing, "header %s is missing", headerSubject)
	case e.Workspace == "":
		return nil, reject(ReasonMissing, "header %s is missing", headerWorkspace)
	case IsReservedType(e.Type):
		return nil, reject(ReasonReserved, "header %s is %s, a type of Playhead's own", headerType, Quote(e.Type))
	case e.JSONPayload() && !ValidJSON(e.Payload):
		return nil, reject(ReasonJSON, "value is not JSON, as its content type says")
	}
	return e, nil
}
