package schema

import (
	"errors"
	"fmt"
)

// Reason says in one word why a record of the events topic is not an event. It is a label
// of metrics and a field of dead letters, so there are few, and none changes its meaning.
type Reason string

// The reasons there are.
const (
	ReasonTimestamp  Reason = "invalid_timestamp"
	ReasonVersion    Reason = "not_cloudevents"
	ReasonMissing    Reason = "missing_header"
	ReasonHeader     Reason = "invalid_header"
	ReasonRepeated   Reason = "repeated_header"
	ReasonReserved   Reason = "reserved_type"
	ReasonJSON       Reason = "invalid_json"
	ReasonTooLarge   Reason = "payload_too_large"
	ReasonPartition  Reason = "wrong_partition"
	ReasonWorkspace  Reason = "unknown_workspace"
	ReasonUnreadable Reason = "unreadable_batch"
)

// Reasons returns every reason.
func Reasons() []Reason {
	return []Reason{
		ReasonTimestamp, ReasonVersion, ReasonMissing, ReasonHeader, ReasonRepeated, ReasonReserved,
		ReasonJSON, ReasonTooLarge, ReasonPartition, ReasonWorkspace, ReasonUnreadable,
	}
}

// ErrRecord reports a Kafka record that is not an event of ours.
var ErrRecord = errors.New("record is not an event")

// RejectError is the error of a record that is not an event. It wraps ErrRecord. Its text
// quotes foreign input, cut and escaped.
type RejectError struct {
	Reason Reason
	Why    string
}

func (e *RejectError) Error() string { return ErrRecord.Error() + ": " + e.Why }

// Unwrap returns ErrRecord.
func (e *RejectError) Unwrap() error { return ErrRecord }

func reject(reason Reason, format string, args ...any) *RejectError {
	return &RejectError{Reason: reason, Why: fmt.Sprintf(format, args...)}
}

// DecodePlaced is DecodeRecord for a record whose place is known to be id's: every reader
// of the log takes a record for an event by it, or by nothing. So they agree on what is
// shown, counted and compared for repeats.
func DecodePlaced[H ~struct {
	Key   string
	Value []byte
}](id EventID, headers []H, value []byte, placement func(workspace string) Placement) (*Event, error) {
	e, err := DecodeRecord(id, headers, value)
	if err != nil {
		return nil, err
	}
	if err := CheckPlace(e, placement); err != nil {
		return nil, err
	}
	return e, nil
}

// CheckPlace reports, as a *RejectError, that e does not lie in its session's partition.
func CheckPlace(e *Event, placement func(workspace string) Placement) error {
	if want := placement(e.Workspace).Partition(e.Workspace, e.Session); want != e.ID.Partition {
		return reject(ReasonPartition, "session belongs in partition %d", want)
	}
	return nil
}
