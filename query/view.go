package query

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/schema"
)

// Tape is the recent past of one Kafka partition, kept in memory by a reader that
// follows its tail. Whoever opened it owns it; it is safe for concurrent use.
type Tape interface {
	// WaitFor blocks until the tape holds all records below next.
	WaitFor(ctx context.Context, next int64) error
	// Session returns the state of a session, everything on the tape included. It may
	// ask History for what lies below.
	Session(ctx context.Context, workspace, session string) (schema.Session, error)
	// ScopeEvents returns at most limit events of a scope at or above offset from in
	// offset order, without hidden ones and repeats, and the offsets that the tape covers:
	// [start, next).
	ScopeEvents(scope schema.Scope, from int64, limit int) (events []*schema.Event, start, next int64)
	// ScopeRecords is ScopeEvents with hidden events, of which sessions consist as well.
	ScopeRecords(scope schema.Scope, from int64, limit int) (events []*schema.Event, start, next int64)
	// Repeats judges an event read from Kafka below the tape; known is false if the tape
	// has not seen enough of the log to tell.
	Repeats(e *schema.Event) (repeats, known bool)
}

// Tapes opens the tape of a partition, starting to follow it at the first call.
type Tapes interface {
	Open(ctx context.Context, partition uint16) (Tape, error)
}

// Log reads the events topic. *kafka.Log is one.
type Log interface {
	// Bounds returns the offsets that a partition holds: [start, end).
	Bounds(ctx context.Context, partition uint16) (start, end int64, err error)
	// HighWatermark returns the end of a partition, never older than the call.
	HighWatermark(ctx context.Context, partition uint16) (int64, error)
	// OffsetForTime returns the first offset with a timestamp of at least ms.
	OffsetForTime(ctx context.Context, partition uint16, ms int64) (int64, error)
	// Read calls fn with the committed records of [from, to) in offset order.
	Read(ctx context.Context, partition uint16, from, to int64, fn func(*kgo.Record) error) (next int64, err error)
}

// Committed knows the materialiser's committed offsets. *Watermarks is one.
type Committed interface {
	// Get returns the first offset of a partition that may not be a row yet.
	Get(partition uint16) int64
}

// view is one Kafka partition as one request sees it: fixed when the request came.
type view struct {
	partition uint16
	epoch     uint8
	tape      Tape
	end       int64 // the high watermark when the request came, which the tape has passed
	committed int64 // rows below it are final; at most end
}

// at returns a position of the current epoch.
func (v *view) at(offset int64) schema.Position {
	return schema.Position{Epoch: v.epoch, Partition: v.partition, Offset: offset}
}

// open returns the views of the partitions that a scope lies in; a session need not exist.
// It waits, for at most Config.SyncTimeout, until the tapes hold everything that was in the
// log when it was called, so that what an append acknowledged before is seen.
func (a *API) open(ctx context.Context, scope schema.Scope) ([]*view, error) {
	partitions := scope.Partitions(a.deps.Placement(scope.Workspace))
	views := make([]*view, len(partitions))
	group, ctx := errgroup.WithContext(ctx)
	for i, partition := range partitions {
		group.Go(func() error {
			v, err := a.openPartition(ctx, partition)
			views[i] = v
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return views, nil
}

func (a *API) openPartition(ctx context.Context, partition uint16) (*view, error) {
	tape, err := a.openTape(ctx, partition)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, a.cfg.SyncTimeout)
	defer cancel()
	end, err := a.deps.Log.HighWatermark(ctx, partition)
	if err != nil {
		return nil, err
	}
	if err := tape.WaitFor(ctx, end); err != nil {
		return nil, fmt.Errorf("wait for offset %d of partition %d on the tape: %w", end, partition, err)
	}
	a.metrics.syncWaits.Observe(time.Since(began).Seconds())
	return &view{
		partition: partition,
		epoch:     a.deps.Epoch,
		tape:      tape,
		end:       end,
		committed: min(a.deps.Committed.Get(partition), end),
	}, nil
}

// openTimeout bounds the wait for a tape that this request is the first to use: it
// warms up over the dedupe window, which may be a million records.
const openTimeout = 10 * time.Second

func (a *API) openTape(ctx context.Context, partition uint16) (Tape, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	tape, err := a.deps.Tapes.Open(ctx, partition)
	if err != nil {
		return nil, fmt.Errorf("open tape of partition %d: %w", partition, err)
	}
	return tape, nil
}
