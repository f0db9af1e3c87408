package streamer

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// History is the materialised part of the log.
type History interface {
	// ReadSession calls emit for the visible, matching events of a session whose position
	// p has from <= p < to, in log order, at most limit of them. An error of emit ends it
	// and is returned as it is.
	ReadSession(ctx context.Context, workspace, session string, partition uint16, from, to schema.Position,
		f *schema.Filter, limit int, emit func(*schema.Event) error) (n int, err error)
	// SessionBase folds the session's records below to.
	SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error)
	// Watermark returns the first offset of the partition that is not materialised yet.
	Watermark(partition uint16) int64
}

// Log reads records of the events topic.
type Log interface {
	tape.Log
	// HighWatermark returns the end of the partition, no older than the call.
	HighWatermark(ctx context.Context, partition uint16) (int64, error)
	// Read calls fn for the records of [from, to) in offset order, read committed, and
	// returns the next offset to read.
	Read(ctx context.Context, partition uint16, from, to int64, fn func(*kgo.Record) error) (next int64, err error)
}

// errHistoryAway reports that a replay needs what only ClickHouse has, and cannot have it.
var errHistoryAway = errors.New("history is unavailable")

// Past reads what lies below the tape: ClickHouse up to the watermark, Kafka from there.
type Past struct {
	History   History
	Log       Log
	Epoch     uint8
	Placement func(workspace string) schema.Placement
	Rule      schema.DedupeRule
}

var _ tape.Past = (*Past)(nil)

// SessionBase folds all records of a session below to. With ClickHouse away it reads
// the partition from Kafka, if that still holds all of it and it is short.
func (p *Past) SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error) {
	watermark := min(p.History.Watermark(to.Partition), to.Offset)
	cut := to
	cut.Offset = watermark
	base, err := p.History.SessionBase(ctx, workspace, session, cut)
	if err != nil {
		if ctx.Err() != nil {
			return schema.Session{}, err
		}
		start, _, berr := p.Log.Bounds(ctx, to.Partition)
		if berr != nil || start > 0 || to.Offset > maxColdFold || p.Epoch > 1 {
			return schema.Session{}, err
		}
		base, watermark = schema.NewSession(), 0
	}
	if watermark < to.Offset {
		// What retention took away before it was materialised is in nobody's state.
		start, _, err := p.Log.Bounds(ctx, to.Partition)
		if err != nil {
			return schema.Session{}, fmt.Errorf("session base: %w", err)
		}
		watermark = max(watermark, start)
	}
	rest := schema.NewSession()
	scan := sessionScan{past: p, workspace: workspace, session: session, partition: to.Partition}
	if _, err := scan.read(ctx, watermark, to.Offset, func(e *schema.Event) error {
		rest.Apply(e)
		return nil
	}); err != nil {
		return schema.Session{}, err
	}
	return base.Merge(rest), nil
}

// maxColdFold is how long a partition may be to be folded from Kafka instead of
// ClickHouse: well below a second's read.
const maxColdFold = 200_000

// sessionScan reads one session's records out of a Kafka partition.
type sessionScan struct {
	past      *Past
	workspace string
	session   string
	partition uint16
	tape      *tape.Tape // judges recent repeats; may be nil

	window *schema.Window // judges the others; begun at the first need, and fed from there on
	seenTo int64          // where the last read ended
}

// read emits the session's records of [from, to), hidden ones included, without
// repeats, and returns the next offset to read: after an error of emit, that of the
// record after the one emit was given.
func (s *sessionScan) read(ctx context.Context, from, to int64, emit func(*schema.Event) error) (int64, error) {
	if from >= to {
		return from, nil
	}
	if s.seenTo != from {
		s.window = nil // it has a hole; begun again at the first need
	}
	last := from
	_, err := s.past.Log.Read(ctx, s.partition, from, to, func(r *kgo.Record) error {
		last = r.Offset + 1
		e := s.decode(r)
		if e == nil {
			return nil
		}
		repeats, err := s.repeats(ctx, e)
		if err != nil || repeats {
			return err
		}
		return emit(e)
	})
	s.seenTo = last
	if err != nil {
		return last, err
	}
	return to, nil
}

// decode returns the record's event if it is one of the session's.
func (s *sessionScan) decode(r *kgo.Record) *schema.Event {
	if r.Attrs.IsControl() || !schema.HasSubject(r.Headers, s.session) {
		return nil
	}
	e, err := schema.DecodeRecord(schema.EventID{
		Position: schema.Position{Epoch: s.past.Epoch, Partition: s.partition, Offset: r.Offset},
		TimeMs:   max(r.Timestamp.UnixMilli(), 0),
	}, r.Headers, r.Value)
	if err != nil || e.Workspace != s.workspace || e.Session != s.session {
		return nil // poison and misplaced records are the materialiser's to report
	}
	return e
}

func (s *sessionScan) repeats(ctx context.Context, e *schema.Event) (bool, error) {
	if e.MessageID == "" {
		return false, nil
	}
	if s.window == nil {
		if s.tape != nil {
			if repeats, known := s.tape.Repeats(e); known {
				return repeats, nil
			}
		}
		if err := s.warmUp(ctx, e.ID.Offset); err != nil {
			return false, err
		}
	}
	_, repeats := s.window.Observe(e)
	return repeats, nil
}

// warmUp has the window see what a record at offset could repeat.
func (s *sessionScan) warmUp(ctx context.Context, offset int64) error {
	s.window = schema.NewWindow(s.past.Rule)
	start, _, err := s.past.Log.Bounds(ctx, s.partition)
	if err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	from := max(start, offset-s.past.Rule.Offsets)
	if from >= offset {
		return nil
	}
	_, err = s.past.Log.Read(ctx, s.partition, from, offset, func(r *kgo.Record) error {
		if e := s.decode(r); e != nil {
			s.window.Observe(e)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return nil
}
