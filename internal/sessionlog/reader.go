// Package sessionlog reads the events of a session, a workflow or a workspace out of a Kafka
// partition, without repeats: what lies between ClickHouse and the tape, and all of the log
// while ClickHouse is away. Streams and pages both read it so.
package sessionlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// ErrForgotten reports an event of which nobody can tell whether it repeats an earlier
// one: Kafka no longer holds what it may repeat.
var ErrForgotten = errors.New("the log no longer holds what the event may repeat")

// ErrBehind reports a log that ends, and goes on ending, before records that are known to
// be in it.
var ErrBehind = errors.New("the log ends before records that were seen in it")

// A broker that has just become a partition's leader, or does not know yet that it is one no
// more, ends the log too early. It is asked again every behindPause for behindPatience.
const (
	behindPause    = 20 * time.Millisecond
	behindPatience = 10 * time.Second
)

// Log reads the events topic. *kafka.Log is one.
type Log interface {
	// Bounds returns the log start offset and the last stable offset.
	Bounds(ctx context.Context, partition uint16) (start, end int64, err error)
	// OffsetForTime returns the first offset whose record was appended at ms (Unix) or
	// later, or the end of the partition.
	OffsetForTime(ctx context.Context, partition uint16, ms int64) (int64, error)
	// Read calls fn for the records of [from, to) in offset order, read committed, and
	// returns the next offset to read: to, or where the log ends for the broker that answers.
	Read(ctx context.Context, partition uint16, from, to int64, fn func(*kgo.Record) error) (next int64, err error)
}

// Judge knows of recent events whether they repeat an earlier one. A tape is one.
type Judge interface {
	// Repeats reports whether e repeats an earlier record; known is false if the judge has
	// not seen enough of the log before e.
	Repeats(e *schema.Event) (repeats, known bool)
}

// Reader reads a scope's events. It keeps the dedupe window between reads that
// follow each other. It is not safe for concurrent use.
type Reader struct {
	Log       Log
	Rule      schema.DedupeRule
	Scope     schema.Scope
	Epoch     uint8
	Partition uint16
	// Placement says where a workspace's sessions lie; records elsewhere are left out.
	Placement func(workspace string) schema.Placement

	// Judge is asked first; nil if there is none.
	Judge Judge
	// Erased says which events the reader leaves out; nil: none.
	Erased schema.ErasedBelow
	// Spend is told of every record read, of other scopes and for warming up as well,
	// and of its value's bytes; its error ends the reading. nil sets no bound.
	Spend func(bytes int) error
	// Strict answers ErrForgotten where repeats cannot be told; otherwise what the log
	// still holds decides.
	Strict bool

	window *schema.Window // judges what Judge cannot; nil until it is needed, then fed every event
	seenTo int64          // where the last read ended
}

// Read calls emit for the scope's events of [from, to) in offset order, hidden ones
// included, without repeats and what was erased. The log must be known to reach to; where
// the brokers do not show that, Read waits for it, and returns ErrBehind in the end. It
// returns the offset to go on from: after an error of emit, which it returns as it is, that
// behind the event emit was given.
func (r *Reader) Read(ctx context.Context, from, to int64, emit func(*schema.Event) error) (next int64, err error) {
	if from >= to {
		return from, nil
	}
	if r.seenTo != from {
		r.window = nil // it would have a hole
	}
	next = from
	err = r.each(ctx, from, to, func(offset int64, e *schema.Event) error {
		next = offset + 1
		if e == nil {
			return nil
		}
		holds := r.Scope.Holds(e)
		if !holds && r.window == nil {
			return nil // a window that is warmed up later sees it then
		}
		repeats, err := r.repeats(ctx, e)
		if err != nil || repeats || !holds || r.Erased.Erased(e) {
			return err
		}
		return emit(e)
	})
	if err == nil {
		next = to
	}
	r.seenTo = next
	return next, err
}

// each calls fn with every record of [from, to); e is nil for those that no event of the
// scope can repeat.
func (r *Reader) each(ctx context.Context, from, to int64, fn func(offset int64, e *schema.Event) error) error {
	for deadline := time.Now().Add(behindPatience); from < to; {
		next, err := r.Log.Read(ctx, r.Partition, from, to, func(record *kgo.Record) error {
			if r.Spend != nil {
				if err := r.Spend(len(record.Value)); err != nil {
					return err
				}
			}
			return fn(record.Offset, r.decode(record))
		})
		if err != nil || next >= to {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: partition %d ends at %d, want %d", ErrBehind, r.Partition, next, to)
		}
		from = next
		select {
		case <-time.After(behindPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// decode returns the record's event if it is the scope's or may be repeated by one of the
// scope: an event of a workflow may repeat one from before its session was given that.
// Poison and misplaced records are the materialiser's to report.
func (r *Reader) decode(record *kgo.Record) *schema.Event {
	if record.Attrs.IsControl() || !schema.HasWorkspace(record.Headers, r.Scope.Workspace) ||
		r.Scope.Session != "" && !schema.HasSubject(record.Headers, r.Scope.Session) {
		return nil
	}
	e, err := schema.DecodePlaced(schema.EventID{
		Position: schema.Position{Epoch: r.Epoch, Partition: r.Partition, Offset: record.Offset},
		TimeMs:   record.Timestamp.UnixMilli(),
	}, record.Headers, record.Value, r.Placement)
	if err != nil || e.Workspace != r.Scope.Workspace || r.Scope.Session != "" && e.Session != r.Scope.Session {
		return nil
	}
	return e
}

// repeats reports whether e repeats an earlier event. The judge mostly knows. Where it
// does not, a window of our own does, which then sees every further event.
func (r *Reader) repeats(ctx context.Context, e *schema.Event) (bool, error) {
	if e.Type == schema.TypeErased && r.window != nil {
		r.window.Observe(e) // later events may use the ids of those before it again
	}
	if e.MessageID == "" {
		return false, nil
	}
	if r.window == nil {
		if r.Judge != nil {
			if repeats, known := r.Judge.Repeats(e); known {
				return repeats, nil
			}
		}
		if err := r.warmUp(ctx, e); err != nil {
			return false, err
		}
	}
	_, repeats := r.window.Observe(e)
	return repeats, nil
}

// warmUp begins the window with all that e, and any event after it, may repeat.
func (r *Reader) warmUp(ctx context.Context, e *schema.Event) error {
	start, _, err := r.Log.Bounds(ctx, r.Partition)
	if err != nil {
		return fmt.Errorf("warm up dedupe window: %w", err)
	}
	byTime, err := r.Log.OffsetForTime(ctx, r.Partition, max(0, e.ID.TimeMs-r.Rule.WarmUpAge().Milliseconds()))
	if err != nil {
		return fmt.Errorf("warm up dedupe window: %w", err)
	}
	from := max(e.ID.Offset-r.Rule.Offsets, byTime, 0)
	if r.Strict && start > 0 {
		// The first offset may have no record, as that of a transaction marker has none: that the
		// log goes back far enough is said by a record that is old enough.
		first, err := r.Log.OffsetForTime(ctx, r.Partition, 0)
		if err != nil {
			return fmt.Errorf("warm up dedupe window: %w", err)
		}
		if from <= max(start, first) {
			return fmt.Errorf("%w: %s", ErrForgotten, e.ID)
		}
	}
	window := schema.NewWindow(r.Rule)
	err = r.each(ctx, max(from, start), e.ID.Offset, func(_ int64, e *schema.Event) error {
		if e != nil {
			window.Observe(e)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("warm up dedupe window: %w", err)
	}
	r.window = window
	return nil
}
