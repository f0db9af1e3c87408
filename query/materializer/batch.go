package materializer

import (
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// limits says when a batch is full.
type limits struct {
	rows  int
	bytes int
}

// batch is rows of one partition on their way into one insert, by column, in offset
// order. Its slices are reused from batch to batch: see reset.
type batch struct {
	epoch     uint8
	partition uint16

	bytes        int
	end          int64 // offset after the last row, and after the marks of transactions behind it
	day          int64 // since 1970, of every row: an insert must make one part, by month or day
	minMs, maxMs int64 // of the rows
	kinds        kindCount

	workspace, session, workflow []string
	epochs                       []uint8
	partitions                   []uint16
	offset                       []uint64
	ts                           []int64  // Unix ms
	clientTS                     []*int64 // Unix ms
	tMs                          []uint64
	kind                         []string
	confidence                   []*float32
	frame, messageID             []string
	metadata                     []map[string]string
	contentType, payload         []string

	letters []*schema.DeadLetter // of its records; no part of the table
}

// kindCount counts a batch's rows by what became of the record.
type kindCount struct{ events, duplicates, deadLetters int }

func newBatch(epoch uint8, partition uint16) *batch {
	return &batch{epoch: epoch, partition: partition}
}

// reset empties b and keeps its memory, except what the rows point at.
func (b *batch) reset() {
	b.bytes, b.end, b.day, b.minMs, b.maxMs, b.kinds = 0, 0, 0, 0, 0, kindCount{}
	empty(&b.workspace)
	empty(&b.session)
	empty(&b.workflow)
	empty(&b.epochs)
	empty(&b.partitions)
	empty(&b.offset)
	empty(&b.ts)
	empty(&b.clientTS)
	empty(&b.tMs)
	empty(&b.kind)
	empty(&b.confidence)
	empty(&b.frame)
	empty(&b.messageID)
	empty(&b.metadata)
	empty(&b.contentType)
	empty(&b.payload)
	empty(&b.letters)
}

func empty[T any](s *[]T) {
	clear(*s)
	*s = (*s)[:0]
}

func (b *batch) len() int { return len(b.offset) }

// fits reports whether r may join b under l. The first row always may, however large.
func (b *batch) fits(r *row, l limits) bool {
	if b.len() == 0 {
		return true
	}
	return b.len() < l.rows && b.bytes+r.size() <= l.bytes && dayOf(r.ms) == b.day
}

// full reports whether b is worth inserting without waiting for more.
func (b *batch) full(l limits) bool {
	return b.len() >= l.rows || b.bytes >= l.bytes
}

func (b *batch) add(r *row) {
	if b.len() == 0 {
		b.day, b.minMs, b.maxMs = dayOf(r.ms), r.ms, r.ms
	}
	b.minMs, b.maxMs = min(b.minMs, r.ms), max(b.maxMs, r.ms)
	b.bytes, b.end = b.bytes+r.size(), r.offset+1
	switch r.kind {
	case schema.TypeDuplicate:
		b.kinds.duplicates++
	case schema.TypeDeadLetter:
		b.kinds.deadLetters++
	default:
		b.kinds.events++
	}
	b.workspace = append(b.workspace, r.workspace)
	b.session = append(b.session, r.session)
	b.workflow = append(b.workflow, r.workflow)
	b.epochs = append(b.epochs, b.epoch)
	b.partitions = append(b.partitions, b.partition)
	b.offset = append(b.offset, uint64(r.offset))
	b.ts = append(b.ts, r.ms)
	b.clientTS = append(b.clientTS, r.clientMs)
	b.tMs = append(b.tMs, uint64(r.tMs))
	b.kind = append(b.kind, r.kind)
	b.confidence = append(b.confidence, r.confidence)
	b.frame = append(b.frame, r.frame)
	b.messageID = append(b.messageID, r.messageID)
	b.metadata = append(b.metadata, r.metadata)
	b.contentType = append(b.contentType, r.contentType)
	b.payload = append(b.payload, r.payload)
	if r.letter != nil {
		b.letters = append(b.letters, r.letter)
	}
}

// row returns the i-th row.
func (b *batch) row(i int) row {
	return row{
		workspace: b.workspace[i], session: b.session[i], workflow: b.workflow[i],
		offset: int64(b.offset[i]), ms: b.ts[i], clientMs: b.clientTS[i], tMs: int64(b.tMs[i]),
		kind: b.kind[i], confidence: b.confidence[i], frame: b.frame[i], messageID: b.messageID[i],
		metadata: b.metadata[i], contentType: b.contentType[i], payload: b.payload[i],
	}
}

// without returns the rows of b whose offsets are not in present, which is ascending.
func (b *batch) without(present []int64) *batch {
	out := newBatch(b.epoch, b.partition)
	for i := range b.len() {
		offset := int64(b.offset[i])
		for len(present) > 0 && present[0] < offset {
			present = present[1:]
		}
		if len(present) > 0 && present[0] == offset {
			continue
		}
		r := b.row(i)
		out.add(&r)
	}
	return out
}

// intent announces b: the range from start to its end.
func (b *batch) intent(start int64) Intent {
	return Intent{Start: start, End: b.end, Records: b.len(), MinMs: b.minMs, MaxMs: b.maxMs}
}

func dayOf(ms int64) int64 { return ms / (24 * time.Hour).Milliseconds() }
