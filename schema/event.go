package schema

import "time"

// DefaultContentType is the content type of a payload given as JSON.
const DefaultContentType = "application/json"

// Event is one record of a session's log, decoded. An Event that was read from the
// log is shared by every reader of it and must not be changed.
type Event struct {
	// ID is where the record lies and when it was appended. It is zero until Kafka
	// has acknowledged the record.
	ID EventID

	Workspace string
	Session   string
	Workflow  string // "" if the session belongs to none
	Type      string
	MessageID string // the producer's own id, for dedupe; "" if none

	TMs          int64    // milliseconds since the session began, 0 or more
	ClientTimeMs *int64   // the producer's event time, Unix ms; nil if none
	Confidence   *float32 // 0 to 1; nil if none
	FrameID      string
	Metadata     map[string]string

	ContentType string // DefaultContentType unless the producer said otherwise
	Payload     []byte // as it arrived; JSON text if ContentType is JSON
}

// Time returns the append time in UTC, to the millisecond.
func (e *Event) Time() time.Time { return e.ID.Time() }

// Hidden reports whether e is bookkeeping that no stream and no page shows.
func (e *Event) Hidden() bool { return IsHiddenType(e.Type) }

// JSONPayload reports whether the payload is JSON text, which readers send as it is.
// Any other payload is sent as a base64 string.
func (e *Event) JSONPayload() bool { return IsJSON(e.ContentType) }

// eventOverhead is what an Event costs in memory beside its variable parts: the
// struct, its pointers' targets and its place in the tape's indexes.
const eventOverhead = 320

// MinEventSize is the least that Size returns.
const MinEventSize = eventOverhead

// Size estimates the bytes of memory e holds, for bounds on tapes and buffers.
func (e *Event) Size() int {
	n := eventOverhead + len(e.Payload) + len(e.Type) + len(e.Session) + len(e.MessageID) + len(e.FrameID)
	for k, v := range e.Metadata {
		n += len(k) + len(v) + 48
	}
	return n
}
