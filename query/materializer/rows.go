package materializer

import (
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// deadLetterContentType is the content type of a dead letter's payload: bytes that we
// know nothing about.
const deadLetterContentType = "application/octet-stream"

// row is one record as the table holds it.
type row struct {
	workspace, session, workflow string
	offset                       int64
	ms                           int64 // append time, Unix ms
	clientMs                     *int64
	tMs                          int64
	kind                         string // the type
	confidence                   *float32
	frame, messageID             string
	metadata                     map[string]string
	contentType                  string
	payload                      string

	// letter is what is kept of the record besides, if it is no event, or nobody's; nil
	// otherwise. It is no part of the table.
	letter *schema.DeadLetter
}

// size is what the row counts towards a batch's bytes.
func (r *row) size() int {
	n := 64 + len(r.workspace) + len(r.session) + len(r.workflow) + len(r.kind) + len(r.frame) +
		len(r.messageID) + len(r.contentType) + len(r.payload)
	for k, v := range r.metadata {
		n += len(k) + len(v) + 16
	}
	if r.letter != nil {
		n += r.letter.Size()
	}
	return n
}

// judge makes rows of the records of one partition, fed in offset order. A row depends
// on its record, on the dedupe window before it, and on whether it was erased, and on
// nothing else (no clock, no random). So whoever reads the same range again makes the same
// rows, but for those that were erased meanwhile; they have the same places, so counting
// does not see the difference, and query.Eraser mends what was inserted before.
type judge struct {
	epoch     uint8
	partition uint16
	placement func(workspace string) schema.Placement
	window    *schema.Window
	erased    schema.ErasedBelow

	// known reports whether there is a workspace, as far as this process has heard; nil: all
	// there are. It has no say in rows: only in whether an event gets a letter.
	known     func(workspace string) bool
	lastKnown string
}

// row returns the record's row: an event, a repeat, a dead letter or what is left of an
// erased event. There is no error:
// the offsets of the table have no holes.
func (j *judge) row(r *kgo.Record) row {
	ms := r.Timestamp.UnixMilli()
	id := schema.EventID{
		Position: schema.Position{Epoch: j.epoch, Partition: j.partition, Offset: r.Offset},
		TimeMs:   ms,
	}
	e, err := schema.DecodeRecord(id, r.Headers, r.Value)
	if err != nil {
		return j.deadLetter(r, id, err)
	}
	err = schema.CheckPlace(e, j.placement)
	if j.erased.Erased(e) { // whatever it would be otherwise, a dead letter too
		if err == nil {
			j.window.Observe(e)
		}
		return row{workspace: e.Workspace, offset: r.Offset, ms: ms, kind: schema.TypeErased}
	}
	if err != nil {
		return j.deadLetter(r, id, err)
	}
	if _, repeat := j.window.Observe(e); repeat {
		return row{
			workspace: e.Workspace, session: e.Session, offset: r.Offset, ms: ms, kind: schema.TypeDuplicate,
		}
	}
	return row{
		workspace: e.Workspace, session: e.Session, workflow: e.Workflow,
		offset: r.Offset, ms: ms, clientMs: clampClientTime(e.ClientTimeMs), tMs: e.TMs,
		kind: e.Type, confidence: e.Confidence, frame: e.FrameID, messageID: e.MessageID,
		metadata: e.Metadata, contentType: e.ContentType, payload: view(e.Payload), letter: j.nobodys(r, e),
	}
}

// nobodys returns the letter of an event whose workspace nobody knows: nobody can read it.
// Its row stays an event's, should the workspace be made later.
func (j *judge) nobodys(r *kgo.Record, e *schema.Event) *schema.DeadLetter {
	if j.known == nil || e.Workspace == j.lastKnown || e.Hidden() {
		return nil
	}
	if j.known(e.Workspace) {
		j.lastKnown = e.Workspace
		return nil
	}
	return schema.NewDeadLetter(e.ID.Position, schema.Rejected(schema.ReasonWorkspace, "there is no workspace "+schema.Quote(e.Workspace)),
		e.ID.TimeMs, r.Key, r.Headers, r.Value)
}

// view shows a record's bytes as a string, without a copy: records are ours alone, and
// nobody writes to them. It keeps the fetch that the record came with in memory until
// the row's batch is in the table, which the batch's bounds bound.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// deadLetter returns the row of a record that is not an event. What says that it is of an
// erased session, or workspace, leaves no more behind than an event would.
func (j *judge) deadLetter(r *kgo.Record, id schema.EventID, err error) row {
	ms := min(max(id.TimeMs, 0), schema.MaxEventTimeMs)
	letter := schema.NewDeadLetter(id.Position, err, id.TimeMs, r.Key, r.Headers, r.Value)
	if letter.Workspace != "" && id.Precedes(j.erased.Of(letter.Workspace, letter.Session)) {
		return row{workspace: letter.Workspace, offset: r.Offset, ms: ms, kind: schema.TypeErased}
	}
	return row{
		offset: r.Offset, ms: ms, kind: schema.TypeDeadLetter,
		metadata:    map[string]string{"reason": letter.Why},
		contentType: deadLetterContentType, payload: view(r.Value), letter: letter,
	}
}

// clampClientTime keeps a producer's time within what the column holds. It says nothing
// about order and prunes nothing: an event is not refused for it.
func clampClientTime(ms *int64) *int64 {
	if ms == nil || *ms >= 0 && *ms <= schema.MaxEventTimeMs {
		return ms
	}
	c := min(max(*ms, 0), schema.MaxEventTimeMs)
	return &c
}
