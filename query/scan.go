package query

import (
	"encoding/json"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// slabEvents is how many events are allocated at a time.
const slabEvents = 256

// rowScanner turns rows of eventColumns into events, those of the driver or in RowBinary.
// It belongs to one result.
type rowScanner struct {
	ref  SessionRef
	dest []any

	epoch     uint8
	partition uint16
	offset    uint64
	ms        int64
	clientMs  *int64
	tMs       uint64

	typ, workflow, messageID, frameID string
	confidence                        *float32
	metadata, contentType             string
	payloadSize                       uint64
	payload                           []byte

	slab   []schema.Event
	shared map[string]string // texts that repeat from row to row, held once
}

func newRowScanner(ref SessionRef) *rowScanner {
	s := &rowScanner{ref: ref, shared: make(map[string]string)}
	s.dest = []any{
		&s.epoch, &s.partition, &s.offset, &s.ms,
		&s.clientMs, &s.tMs, &s.typ, &s.workflow, &s.messageID, &s.frameID, &s.confidence,
		&s.metadata, &s.contentType, &s.payloadSize, &s.payload,
	}
	return s
}

// scan reads the current row, and the size of its payload into payloadSize. The event
// shares nothing with the result's buffers.
func (s *rowScanner) scan(rows driver.Rows) (*schema.Event, error) {
	if err := rows.Scan(s.dest...); err != nil {
		return nil, err
	}
	s.typ, s.workflow, s.contentType = s.share(s.typ), s.share(s.workflow), s.share(s.contentType)
	return s.event()
}

// decode is scan for a row in RowBinary.
func (s *rowScanner) decode(r *rowBinary) (*schema.Event, error) {
	// One a line: what peeked returns lasts until the next call.
	s.epoch = r.uint8()
	s.partition = r.uint16()
	s.offset = r.uint64()
	s.ms = r.int64()
	s.clientMs = r.nullableInt64()
	s.tMs = r.uint64()
	s.typ = s.shareBytes(r.peeked())
	s.workflow = s.shareBytes(r.peeked())
	s.messageID = string(r.peeked())
	s.frameID = string(r.peeked())
	s.confidence = r.nullableFloat32()
	s.metadata = string(r.peeked())
	s.contentType = s.shareBytes(r.peeked())
	s.payloadSize = r.uint64()
	s.payload = r.bytes()
	if r.err != nil {
		return nil, r.err
	}
	return s.event()
}

func (s *rowScanner) event() (*schema.Event, error) {
	if len(s.slab) == 0 {
		s.slab = make([]schema.Event, slabEvents)
	}
	e := &s.slab[0]
	s.slab = s.slab[1:]
	*e = schema.Event{
		ID: schema.EventID{
			Position: schema.Position{Epoch: s.epoch, Partition: s.partition, Offset: int64(s.offset)},
			TimeMs:   s.ms,
		},
		Workspace:    s.ref.Workspace,
		Session:      s.ref.Session,
		Workflow:     s.workflow,
		Type:         s.typ,
		MessageID:    s.messageID,
		TMs:          int64(s.tMs),
		ClientTimeMs: s.clientMs,
		Confidence:   s.confidence,
		FrameID:      s.frameID,
		ContentType:  schema.DefaultContentType,
		Payload:      s.payload,
	}
	if s.contentType != "" {
		e.ContentType = s.contentType
	}
	if s.metadata != "" {
		if err := json.Unmarshal([]byte(s.metadata), &e.Metadata); err != nil {
			return nil, fmt.Errorf("metadata of %s: %w", e.ID, err)
		}
	}
	return e, nil
}

// maxShared bounds the distinct texts held once; more are simply not shared.
const maxShared = 1024

func (s *rowScanner) share(text string) string {
	if held, ok := s.shared[text]; ok {
		return held
	}
	return s.hold(text)
}

// shareBytes is share without making a string of what is held.
func (s *rowScanner) shareBytes(text []byte) string {
	if held, ok := s.shared[string(text)]; ok {
		return held
	}
	return s.hold(string(text))
}

func (s *rowScanner) hold(text string) string {
	if len(s.shared) < maxShared {
		s.shared[text] = text
	}
	return text
}
