package query

import (
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// slabValues is how many events, and other values of one size, are allocated at a time.
const slabValues = 256

// rowScanner turns rows of eventColumns into events, those of the driver or in RowBinary.
// It belongs to one result.
type rowScanner struct {
	scope schema.Scope
	dest  []any

	session   string
	epoch     uint8
	partition uint16
	offset    uint64
	ms        int64
	clientMs  *int64
	tMs       uint64

	typ, workflow, messageID, frameID string
	confidence                        *float32
	metadata                          map[string]string
	contentType                       string
	payloadSize                       uint64
	payload                           []byte

	events      slab[schema.Event]
	times       slab[int64]
	confidences slab[float32]
	shared      map[string]string // texts that repeat from row to row, held once
}

// newRowScanner returns a scanner for rows of a scope: they name their session unless
// the scope does.
func newRowScanner(scope schema.Scope) *rowScanner {
	s := &rowScanner{scope: scope, session: scope.Session, shared: make(map[string]string)}
	s.dest = []any{
		&s.session, &s.epoch, &s.partition, &s.offset, &s.ms,
		&s.clientMs, &s.tMs, &s.typ, &s.workflow, &s.messageID, &s.frameID, &s.confidence,
		&s.metadata, &s.contentType, &s.payloadSize, &s.payload,
	}
	if scope.Session != "" {
		s.dest = s.dest[1:]
	}
	return s
}

// scan reads the current row, and the size of its payload into payloadSize. The event
// shares nothing with the result's buffers.
func (s *rowScanner) scan(rows driver.Rows) (*schema.Event, error) {
	s.metadata = nil // or the last event's map would be filled again
	if err := rows.Scan(s.dest...); err != nil {
		return nil, err
	}
	if len(s.metadata) == 0 {
		s.metadata = nil
	}
	s.session, s.typ, s.workflow, s.contentType = s.share(s.session), s.share(s.typ), s.share(s.workflow), s.share(s.contentType)
	return s.event(), nil
}

// decode is scan for a row in RowBinary. The event's payload keeps the block of bytes
// alive that the row was read into.
func (s *rowScanner) decode(r *rowBinary) (*schema.Event, error) {
	if s.scope.Session == "" {
		s.session = s.shareBytes(r.bytes())
	}
	s.epoch = r.uint8()
	s.partition = r.uint16()
	s.offset = r.uint64()
	s.ms = r.int64()
	s.clientMs = nil
	if !r.null() {
		s.clientMs = s.times.next()
		*s.clientMs = r.int64()
	}
	s.tMs = r.uint64()
	s.typ = s.shareBytes(r.bytes())
	s.workflow = s.shareBytes(r.bytes())
	s.messageID = string(r.bytes())
	s.frameID = string(r.bytes())
	s.confidence = nil
	if !r.null() {
		s.confidence = s.confidences.next()
		*s.confidence = r.float32()
	}
	s.metadata = s.decodeMetadata(r)
	s.contentType = s.shareBytes(r.bytes())
	s.payloadSize = r.uint64()
	s.payload = r.bytes()
	if r.err != nil {
		return nil, r.err
	}
	return s.event(), nil
}

func (s *rowScanner) decodeMetadata(r *rowBinary) map[string]string {
	n := r.length()
	if n == 0 {
		return nil
	}
	m := make(map[string]string, min(n, schema.MaxMetadataKeys))
	for range n {
		key := s.shareBytes(r.bytes())
		m[key] = string(r.bytes())
		if r.err != nil {
			break
		}
	}
	return m
}

// event returns what was read last as an event.
func (s *rowScanner) event() *schema.Event {
	e := s.events.next()
	*e = schema.Event{
		ID: schema.EventID{
			Position: schema.Position{Epoch: s.epoch, Partition: s.partition, Offset: int64(s.offset)},
			TimeMs:   s.ms,
		},
		Workspace:    s.scope.Workspace,
		Session:      s.session,
		Workflow:     s.workflow,
		Type:         s.typ,
		MessageID:    s.messageID,
		TMs:          int64(s.tMs),
		ClientTimeMs: s.clientMs,
		Confidence:   s.confidence,
		FrameID:      s.frameID,
		Metadata:     s.metadata,
		ContentType:  schema.DefaultContentType,
		Payload:      s.payload,
	}
	if s.contentType != "" {
		e.ContentType = s.contentType
	}
	return e
}

// slab hands out zero values that are allocated together, and live as long as any.
type slab[T any] struct{ free []T }

func (s *slab[T]) next() *T {
	if len(s.free) == 0 {
		s.free = make([]T, slabValues)
	}
	v := &s.free[0]
	s.free = s.free[1:]
	return v
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
	if len(text) == 0 {
		return ""
	}
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
