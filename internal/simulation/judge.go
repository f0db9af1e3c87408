package simulation

import (
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Kind is what a record of the log is to every reader.
type Kind int

// The kinds of record.
const (
	Event      Kind = iota
	Duplicate       // it repeats an earlier record
	DeadLetter      // it is no event, or does not belong into the partition
)

// Judged is a record and what it is.
type Judged struct {
	Record *kgo.Record
	Kind   Kind
	Event  *schema.Event // nil if the record is no event; not to be changed

	Repeats int64 // of a Duplicate: the offset of the latest record that it repeats
}

// Visible reports whether streams and pages show the record.
func (j *Judged) Visible() bool { return j.Kind == Event && !j.Event.Hidden() }

// judge says what r, the partition's next record, is: by the words of schema.DedupeRule, and
// by looking back at all of the log that they speak of. l.mu is held.
func (l *Log) judge(p *partition, r *kgo.Record) Judged {
	j := Judged{Record: r, Kind: DeadLetter}
	e, err := schema.DecodeRecord(schema.EventID{
		Position: schema.Position{Epoch: l.Epoch, Partition: uint16(r.Partition), Offset: r.Offset},
		TimeMs:   r.Timestamp.UnixMilli(),
	}, r.Headers, r.Value)
	if err != nil {
		return j
	}
	j.Event = e
	if l.Placement.Partition(e.Workspace, e.Session) != uint16(r.Partition) {
		return j
	}
	j.Kind = Event
	if e.Type == schema.TypeErased || e.MessageID == "" {
		return j
	}
	for i := len(p.judged) - 1; i >= 0; i-- {
		earlier := &p.judged[i]
		if e.ID.Offset-earlier.Record.Offset > l.Rule.Offsets {
			return j
		}
		if earlier.Kind == DeadLetter || earlier.Event.Workspace != e.Workspace || earlier.Event.Session != e.Session {
			continue
		}
		if earlier.Event.Type == schema.TypeErased {
			return j
		}
		if earlier.Event.MessageID == e.MessageID && e.ID.TimeMs-earlier.Event.ID.TimeMs <= l.Rule.Age.Milliseconds() {
			j.Kind, j.Repeats = Duplicate, earlier.Record.Offset
			return j
		}
	}
	return j
}
