package importer

import (
	"context"
	"time"

	"github.com/zeebo/xxh3"
)

const (
	// queuedBatches may wait for a lane, so that it does not wait for the dispatcher.
	queuedBatches = 2
	// flushAfter bounds how long an event from a slow pipe waits for company.
	flushAfter = time.Second
	// maxLagBatches bounds how far, in batches' worth of lines, the reader may run ahead
	// of the first line of a batch that fills slowly: the checkpoint cannot pass it.
	maxLagBatches = 16
)

// lanes shards sessions over queues of batches. All events of one session go through one
// queue, in order.
type lanes struct {
	cfg    Config
	track  *tracker
	queues []chan *batch // closed by dispatch
	open   []*batch      // being filled; nil if empty
}

func newLanes(cfg Config, track *tracker) *lanes {
	l := &lanes{cfg: cfg, track: track, open: make([]*batch, cfg.Lanes)}
	for range cfg.Lanes {
		l.queues = append(l.queues, make(chan *batch, queuedBatches))
	}
	return l
}

// dispatch fills batches from in and queues them until in is closed, then queues the
// rest. It ends early, without an error of its own, when ctx does.
func (l *lanes) dispatch(ctx context.Context, in <-chan line) error {
	defer func() {
		for _, q := range l.queues {
			close(q)
		}
	}()
	tick := time.NewTicker(flushAfter / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case next, ok := <-in:
			if !ok {
				_ = l.flush(ctx, func(int, *batch) bool { return true }) // fails with ctx only
				return nil
			}
			if err := l.add(ctx, next); err != nil {
				return nil
			}
		case now := <-tick.C:
			// A lane with work to do is not helped by a smaller batch.
			err := l.flush(ctx, func(i int, b *batch) bool {
				return len(l.queues[i]) == 0 && now.Sub(b.began) >= flushAfter
			})
			if err != nil {
				return nil
			}
		}
	}
}

func (l *lanes) add(ctx context.Context, next line) error {
	i := int(xxh3.HashString(next.session) % uint64(len(l.queues)))
	if b := l.open[i]; b != nil && len(b.body)+len(next.data)+1 > l.cfg.BatchBytes {
		if err := l.queue(ctx, i); err != nil {
			return err
		}
	}
	if l.open[i] == nil {
		l.open[i] = &batch{began: time.Now()}
		l.track.begin(i, next.number)
	}
	l.open[i].add(next)
	l.track.advance(next.number)

	maxLag := int64(maxLagBatches * l.cfg.BatchEvents)
	return l.flush(ctx, func(_ int, b *batch) bool {
		return b.len() >= l.cfg.BatchEvents || next.number-b.lines[0] >= maxLag
	})
}

// flush queues the open batches that are due.
func (l *lanes) flush(ctx context.Context, due func(lane int, b *batch) bool) error {
	for i, b := range l.open {
		if b != nil && due(i, b) {
			if err := l.queue(ctx, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// queue hands lane i its open batch, waiting for room.
func (l *lanes) queue(ctx context.Context, i int) error {
	select {
	case l.queues[i] <- l.open[i]:
		l.open[i] = nil
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
