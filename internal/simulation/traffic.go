package simulation

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Traffic is what ingest nodes append to a log: events of a few sessions, repeats of their
// message ids near and far, also by two nodes in the same instant; ends; and, from foreign
// producers, records that are no events or lie in the wrong partition. The nodes' clocks
// differ and are set now and then, by less than the minute that DedupeRule allows.
type Traffic struct {
	World    *World
	Log      *Log
	Sessions []SessionName
	// Ids is how many message ids a session has to choose from: few make many repeats.
	Ids int
	// Pause is the longest time between two appends of a node.
	Pause time.Duration
	// Erase is told of the erasure of a session, whose record was just appended; nil: there
	// are none.
	Erase func(schema.Erasure)
	// Appended is told of every record, in the log's order; nil: nobody asks.
	Appended func(Judged)
}

// SessionName names a session and its workflow.
type SessionName struct{ Workspace, Session, Workflow string }

// maxSkew is how far a node's clock is from the world's at most: two of them are less than a
// minute apart.
const maxSkew = 28 * time.Second

// Run appends records as the node of the given name for a time.
func (t *Traffic) Run(name string, length time.Duration) {
	s := t.World.Stream("ingest/%s", name)
	skew := s.Duration(-maxSkew, maxSkew)
	for n := 0; t.World.Now() < length; n++ {
		s.Rest(0, t.Pause)
		if s.Chance(0.02) {
			skew = s.Duration(-maxSkew, maxSkew) // the clock was set
		}
		for range s.Between(1, 6) {
			t.append(s, time.Now().Add(skew), fmt.Sprintf("%s-%d", name, n))
			n++
		}
	}
}

func (t *Traffic) append(s *Stream, at time.Time, unique string) {
	session := t.Sessions[s.IntN(len(t.Sessions))]
	partition := t.Log.Placement.Partition(session.Workspace, session.Session)
	e := &schema.Event{
		Workspace: session.Workspace, Session: session.Session, Workflow: session.Workflow, Type: "tick", TMs: int64(s.IntN(1000)),
		ContentType: schema.DefaultContentType, Payload: fmt.Appendf(nil, `{"n":%q}`, unique),
	}
	if s.Chance(0.6) {
		e.MessageID = fmt.Sprint("m", s.IntN(t.Ids))
	}
	switch p := s.IntN(100); {
	case p < 10:
		e.Type = "memory.updated"
	case p < 13:
		e.Type = schema.TypeSessionEnded
	case p < 15:
		e.Type = schema.TypeSessionCreated // a record that is shown to nobody
	case p < 18:
		t.Log.Skip(partition, int64(s.Between(1, 3)))
	case p < 20 && t.Erase != nil:
		e.Type, e.MessageID = schema.TypeErased, ""
	case p < 22: // of a foreign producer, in a partition where it does not belong
		partition = uint16(s.IntN(t.Log.Placement.Partitions))
	}
	r := &kgo.Record{
		Topic: schema.TopicEvents, Partition: int32(partition), Timestamp: time.UnixMilli(at.UnixMilli()), Value: e.Payload,
		Key: schema.RecordKey(e.Workspace, e.Session), Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, unique),
	}
	if s.Chance(0.02) {
		r.Headers = r.Headers[1:] // without the version it is no CloudEvent
	}
	j := t.Log.Append(r)
	t.World.Tracef("log", "%d/%d %s %s %q kind %d", partition, r.Offset, e.Session, e.Type, e.MessageID, j.Kind)
	if t.Appended != nil {
		t.Appended(j)
	}
	if e.Type == schema.TypeErased && j.Kind == Event {
		t.Erase(schema.Erasure{
			ID: fmt.Sprint("era_", unique), Workspace: e.Workspace, Session: e.Session, Below: j.Event.ID.Position,
		})
	}
}
