package streamer

import (
	"context"
	"errors"
	"fmt"

	"github.com/playhead-dev/playhead/internal/sessionlog"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// History is the materialised part of the log.
type History interface {
	// ReadChunk returns the first visible events of a scope that f takes and whose position
	// p in the partition has from <= p < to, in log order, about maxBytes of them, and where
	// to read on: to itself when there are no more. The events are the caller's.
	ReadChunk(ctx context.Context, scope schema.Scope, partition uint16, from, to schema.Position,
		f *schema.Filter, maxBytes int) (events []*schema.Event, next schema.Position, err error)
	// SessionBase folds the session's records below to.
	SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error)
	// Watermark returns the first offset of the partition that is not materialised yet.
	Watermark(partition uint16) int64
}

// Log reads records of the events topic.
type Log interface {
	sessionlog.Log
	// HighWatermark returns the end of the partition, no older than the call.
	HighWatermark(ctx context.Context, partition uint16) (int64, error)
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
	// Erased says which events are left out; nil: none. History leaves them out by itself.
	Erased schema.ErasedBelow
	// ShortGap is how many offsets below the tape streams of several sessions read from Kafka,
	// if that still has them, rather than from ClickHouse.
	ShortGap int64
}

var _ tape.Past = (*Past)(nil)

// SessionBase folds all records of a session below to. With ClickHouse away it reads
// the partition from Kafka, if that still holds all of it and it is short.
func (p *Past) SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error) {
	watermark := min(p.History.Watermark(to.Partition), to.Offset)
	cut := to
	cut.Offset = watermark
	// A session whose materialised part is erased begins behind that, whether or not
	// ClickHouse can be asked.
	erased := p.Erased.Of(workspace, session)
	if !erased.IsZero() && !erased.Precedes(cut) {
		return p.foldRest(ctx, workspace, session, erased.Offset, to, schema.NewSession())
	}
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
	return p.foldRest(ctx, workspace, session, watermark, to, base)
}

// foldRest folds what Kafka has of a session in [from, to) behind base.
func (p *Past) foldRest(ctx context.Context, workspace, session string, from int64, to schema.Position, base schema.Session) (schema.Session, error) {
	if from < to.Offset {
		// What retention took away before it was materialised is in nobody's state.
		start, _, err := p.Log.Bounds(ctx, to.Partition)
		if err != nil {
			return schema.Session{}, fmt.Errorf("session base: %w", err)
		}
		from = max(from, start)
	}
	rest := schema.NewSession()
	if _, err := p.reader(schema.Scope{Workspace: workspace, Session: session}, to.Partition, nil).Read(ctx, from, to.Offset, func(e *schema.Event) error {
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

// reader reads a scope's records from Kafka. judge may be nil.
func (p *Past) reader(scope schema.Scope, partition uint16, judge sessionlog.Judge) *sessionlog.Reader {
	return &sessionlog.Reader{
		Log: p.Log, Rule: p.Rule, Judge: judge, Erased: p.Erased, Scope: scope, Epoch: p.Epoch, Partition: partition,
		Placement: p.Placement,
	}
}
