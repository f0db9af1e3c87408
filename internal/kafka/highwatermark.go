package kafka

import (
	"context"
	"fmt"
)

// lister asks one broker for the ends of partitions, one request at a time. Calls that
// come while a request is under way gather in the next one, so that an answer is never
// older than its call, and any number of callers cost one request a round trip.
type lister struct {
	next *listBatch // gathers; nil when nobody waits. Guarded by Log.mu
	busy bool       // a goroutine is asking. Guarded by Log.mu
}

// listBatch is one request of a lister, to be.
type listBatch struct {
	partitions map[uint16]struct{}
	callers    int               // guarded by Log.mu
	done       chan struct{}     // closed by the lister's goroutine
	answers    map[uint16]listed // written before done is closed
	err        error             // likewise
}

// HighWatermark returns the offset after the last record that a reader of committed
// records can see: the high watermark, or the last stable offset below it while a
// transaction is open. The answer is never older than the call. Cheap under many
// callers: they share requests.
func (l *Log) HighWatermark(ctx context.Context, partition uint16) (int64, error) {
	var offset int64
	err := l.retry(ctx, func(ctx context.Context) error {
		leader, err := l.leader(partition)
		if err != nil {
			return err
		}
		b := l.joinList(leader, partition)
		select {
		case <-b.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if b.err != nil {
			return b.err
		}
		offset, err = b.answers[partition].offset, b.answers[partition].err
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("high watermark of %s/%d: %w", l.topic, partition, err)
	}
	return offset, nil
}

// joinList puts the partition into the broker's next request.
func (l *Log) joinList(broker int32, partition uint16) *listBatch {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.listers[broker]
	if s == nil {
		s = &lister{}
		l.listers[broker] = s
	}
	if s.next == nil {
		s.next = &listBatch{partitions: make(map[uint16]struct{}), done: make(chan struct{})}
	}
	b := s.next
	b.partitions[partition] = struct{}{}
	b.callers++
	if !s.busy {
		s.busy = true
		l.wg.Go(func() { l.runLister(broker, s) })
	}
	return b
}

// runLister sends requests until nobody waits.
func (l *Log) runLister(broker int32, s *lister) {
	for {
		l.mu.Lock()
		b := s.next
		s.next = nil
		if b == nil {
			s.busy = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()

		partitions := make([]uint16, 0, len(b.partitions))
		for p := range b.partitions {
			partitions = append(partitions, p)
		}
		seen := l.leaders.generation()
		b.err = l.attempt(l.ctx, func(ctx context.Context) error {
			var err error
			b.answers, err = l.listOffsets(ctx, broker, partitions, listLatest)
			return err
		})
		if b.err != nil {
			// Not left to the callers: of a broker that hangs none may have waited for so long.
			_ = l.refreshLeaders(l.ctx, seen) // or the next call tries
		}
		close(b.done)
	}
}
