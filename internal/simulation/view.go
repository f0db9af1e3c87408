package simulation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// ErrKafka is the error of a call to Kafka that failed for good, after all its retries.
var ErrKafka = errors.New("simulation: kafka does not answer")

// Latencies of one call to Kafka.
const (
	minCall = 100 * time.Microsecond
	maxCall = 20 * time.Millisecond
)

// View is the log as one process reads it, with the semantics of kafka.Log: calls take
// their time, and fail.
type View struct {
	Log  *Log
	Node *Node
	// Errors is how often a call fails.
	Errors float64

	streams []*Stream // by partition
}

// NewView returns the log as node sees it. The name is that of its streams.
func NewView(w *World, l *Log, node *Node, name string, errs float64) *View {
	v := &View{Log: l, Node: node, Errors: errs}
	for p := range l.parts {
		v.streams = append(v.streams, w.Stream("%s/log%d", name, p))
	}
	return v
}

func (v *View) call(ctx context.Context, partition uint16) error {
	s := StreamOf(ctx, partition, v.streams[partition])
	if err := v.Node.Step(ctx, s, minCall, maxCall); err != nil {
		return err
	}
	if s.Fault(v.Errors) {
		// The client has tried for its timeout.
		if err := v.Node.Step(ctx, s, 0, 5*time.Second); err != nil {
			return err
		}
		return ErrKafka
	}
	return nil
}

// Bounds returns the log start offset and the last stable offset.
func (v *View) Bounds(ctx context.Context, partition uint16) (start, end int64, err error) {
	if err := v.call(ctx, partition); err != nil {
		return 0, 0, err
	}
	start, end, _ = v.Log.Bounds(partition)
	return start, end, nil
}

// HighWatermark returns the end of a partition.
func (v *View) HighWatermark(ctx context.Context, partition uint16) (int64, error) {
	_, end, err := v.Bounds(ctx, partition)
	return end, err
}

// OffsetForTime returns the first offset with a timestamp of ms or later, or the end.
func (v *View) OffsetForTime(ctx context.Context, partition uint16, ms int64) (int64, error) {
	if err := v.call(ctx, partition); err != nil {
		return 0, err
	}
	return v.Log.forTime(partition, ms), nil
}

// Read is kafka.Log.Read: a few fetches, any of which may fail or find that retention was
// faster.
func (v *View) Read(ctx context.Context, partition uint16, from, to int64, fn func(*kgo.Record) error) (next int64, err error) {
	for next = from; next < to; {
		if err := v.call(ctx, partition); err != nil {
			return next, err
		}
		start, end, _ := v.Log.Bounds(partition)
		if next < start || next > end {
			return next, fmt.Errorf("read: %w", &kafka.OffsetRangeError{Partition: partition, Offset: next, Start: start, End: end})
		}
		if next == end {
			return next, nil
		}
		records, after := v.Log.between(partition, next, min(to, end), StreamOf(ctx, partition, v.streams[partition]).Between(1, 60))
		for _, r := range records {
			if err := fn(r); err != nil {
				return r.Offset, err
			}
		}
		next = after
	}
	return next, nil
}

// Poll is what a consumer's poll of one partition comes to: at most limit records from
// offset from on, or an error. It waits until there is something, or ctx ends; then it
// returns neither. A nil ctx is not to wait.
func (v *View) Poll(ctx context.Context, partition uint16, from int64, limit int) (records []*kgo.Record, next, highWatermark int64, err error) {
	s := v.streams[partition]
	if ctx == nil {
		if v.Node.Dead() || s.Chance(0.5) {
			return nil, from, 0, nil // not fetched yet
		}
		return v.fetched(partition, from, limit)
	}
	for {
		start, end, changed := v.Log.Bounds(partition)
		if end > from || from < start {
			if err := v.Node.Step(ctx, s, minCall, maxCall); err != nil {
				return nil, from, end, dead(err)
			}
			if s.Fault(v.Errors / 4) {
				return nil, from, end, kerr.UnknownServerError
			}
			return v.fetched(partition, from, limit)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, from, end, dead(v.Node.Gate(s))
		}
	}
}

// dead keeps ErrDead of err.
func dead(err error) error {
	if errors.Is(err, ErrDead) {
		return err
	}
	return nil
}

func (v *View) fetched(partition uint16, from int64, limit int) (records []*kgo.Record, next, highWatermark int64, err error) {
	start, end, _ := v.Log.Bounds(partition)
	if from < start || from > end {
		return nil, from, end, kerr.OffsetOutOfRange
	}
	records, next = v.Log.between(partition, from, end, min(limit, v.streams[partition].Between(1, 80)))
	return records, next, end, nil
}

// Fetches makes a poll's result of what came of one partition. err stands beside the
// records, as it may in a real fetch.
func Fetches(partition uint16, records []*kgo.Record, highWatermark int64, err error) kgo.Fetches {
	return kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: schema.TopicEvents, Partitions: []kgo.FetchPartition{{
		Partition: int32(partition), Records: records, HighWatermark: highWatermark, LastStableOffset: highWatermark, Err: err,
	}}}}}}
}
