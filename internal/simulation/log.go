package simulation

import (
	"slices"
	"sort"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Log is the events topic: partitions of records. Offsets may be missing, as those of
// transaction markers and aborted records are to readers. It is safe for concurrent use.
type Log struct {
	Epoch     uint8
	Placement schema.Placement
	Rule      schema.DedupeRule

	mu      sync.Mutex // guards what follows
	parts   []partition
	changed chan struct{} // closed by the next append to any partition
}

type partition struct {
	records    []*kgo.Record // all there ever were, in offset order
	judged     []Judged      // of records
	start, end int64         // what Kafka still has
	changed    chan struct{} // closed by the next append
}

// NewLog returns an empty log, in epoch 1.
func NewLog(placement schema.Placement, rule schema.DedupeRule) *Log {
	l := &Log{
		Epoch: 1, Placement: placement, Rule: rule, parts: make([]partition, placement.Partitions), changed: make(chan struct{}),
	}
	for i := range l.parts {
		l.parts[i].changed = make(chan struct{})
	}
	return l
}

// Append gives a record, whose partition is set, the next offset, and returns what it is.
func (l *Log) Append(r *kgo.Record) Judged {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.parts[r.Partition]
	r.Offset = p.end
	j := l.judge(p, r)
	p.records = append(p.records, r)
	p.judged = append(p.judged, j)
	l.grow(p, 1)
	return j
}

// Skip takes n offsets of a partition without a record.
func (l *Log) Skip(partition uint16, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grow(&l.parts[partition], n)
}

// grow adds n offsets to a partition. l.mu is held.
func (l *Log) grow(p *partition, n int64) {
	p.end += n
	close(p.changed)
	close(l.changed)
	p.changed, l.changed = make(chan struct{}), make(chan struct{})
}

// Changed returns what is closed by the next append to any partition.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Retain moves the log start offset of a partition up to start, if it lies below.
func (l *Log) Retain(partition uint16, start int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.parts[partition]
	p.start = max(p.start, min(start, p.end))
}

// Bounds returns [start, end) of a partition, and what is closed by the next append.
func (l *Log) Bounds(partition uint16) (start, end int64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.parts[partition]
	return p.start, p.end, p.changed
}

// Judged returns all records there ever were in a partition, in offset order.
func (l *Log) Judged(partition uint16) []Judged {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.parts[partition].judged)
}

// between returns at most limit records of [from, to), and the offset behind them: to, if
// they are all.
func (l *Log) between(partition uint16, from, to int64, limit int) (records []*kgo.Record, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.parts[partition].records
	i := sort.Search(len(all), func(i int) bool { return all[i].Offset >= from })
	j := sort.Search(len(all), func(i int) bool { return all[i].Offset >= to })
	if j-i > limit {
		return slices.Clip(all[i : i+limit]), all[i+limit-1].Offset + 1
	}
	return slices.Clip(all[i:max(i, j)]), max(from, to)
}

// forTime returns the first offset with a timestamp of ms or later, or the end.
func (l *Log) forTime(partition uint16, ms int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.parts[partition]
	for _, r := range p.records {
		if r.Offset >= p.start && r.Timestamp.UnixMilli() >= ms {
			return r.Offset
		}
	}
	return p.end
}
