package simulation

import (
	"context"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Consumer is a Kafka client that reads partitions of the log without a group: it stands for
// *kgo.Client in tape.Deps. Records may come twice, as after a leader has moved; a place
// may be lost, to retention or to an unclean leader election.
type Consumer struct {
	view *View
	s    *Stream

	mu      sync.Mutex // guards what follows
	at      map[uint16]int64
	lost    map[uint16]error // partitions whose place is lost
	changed chan struct{}    // closed when a partition comes
}

// NewConsumer returns a consumer of no partitions.
func NewConsumer(w *World, v *View, name string) *Consumer {
	return &Consumer{
		view: v, s: w.Stream("%s/consumer", name), at: make(map[uint16]int64), lost: make(map[uint16]error), changed: make(chan struct{}),
	}
}

// AddConsumePartitions has the consumer read partitions, from exact offsets on.
func (c *Consumer) AddConsumePartitions(partitions map[string]map[int32]kgo.Offset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, o := range partitions[schema.TopicEvents] {
		c.at[uint16(p)] = o.EpochOffset().Offset
		delete(c.lost, uint16(p))
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// RemoveConsumePartitions has the consumer leave partitions.
func (c *Consumer) RemoveConsumePartitions(partitions map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range partitions[schema.TopicEvents] {
		delete(c.at, uint16(p))
		delete(c.lost, uint16(p))
	}
}

// SetOffsets is never called: every batch can be read.
func (*Consumer) SetOffsets(map[string]map[int32]kgo.EpochOffset) {
	panic("simulation: every batch can be read")
}

// Close does nothing.
func (*Consumer) Close() {}

// PollFetches waits until there is something to hand over, or ctx ends.
func (c *Consumer) PollFetches(ctx context.Context) kgo.Fetches {
	for {
		if err := c.view.Node.Gate(c.s); err != nil {
			<-ctx.Done() // the process is dead, and waits to be cleared away
			return kgo.NewErrFetch(context.Cause(ctx))
		}
		changed, added := c.view.Log.Changed(), c.added()
		if len(c.ready()) > 0 {
			// What is ready is looked at once more when the call is under way: appends of one
			// instant come one after the other.
			if err := c.view.Node.Step(ctx, c.s, minCall, maxCall); err == nil {
				if out := c.fetch(); out != nil {
					return out
				}
				continue
			}
			if ctx.Err() == nil {
				continue
			}
		}
		select {
		case <-changed:
		case <-added:
		case <-ctx.Done():
			return kgo.NewErrFetch(ctx.Err())
		}
	}
}

func (c *Consumer) added() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// ready returns the partitions of which there is something to hand over.
func (c *Consumer) ready() (of []uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, at := range c.at {
		if start, end, _ := c.view.Log.Bounds(p); c.lost[p] == nil && (at < start || at < end) {
			of = append(of, p)
		}
	}
	slices.Sort(of)
	return of
}

// fetch hands over what a fetch of one partition comes to, nil if nothing.
func (c *Consumer) fetch() kgo.Fetches {
	of := c.ready()
	if len(of) == 0 {
		return nil
	}
	p := of[c.s.IntN(len(of))]
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.at[p]
	if !ok {
		return nil // it was left meanwhile
	}
	if c.s.Fault(c.view.Errors / 20) {
		c.lost[p] = &kgo.ErrDataLoss{Topic: schema.TopicEvents, Partition: int32(p), ConsumedTo: at, ResetTo: at}
		return Fetches(p, nil, 0, c.lost[p])
	}
	if c.s.Fault(c.view.Errors / 10) {
		return Fetches(p, nil, 0, kerr.UnknownServerError)
	}
	if c.s.Fault(c.view.Errors / 4) {
		at = max(0, at-int64(c.s.IntN(10))) // of the new leader, once more
	}
	records, next, highWatermark, err := c.view.fetched(p, at, 1000)
	if err != nil {
		if start, _, _ := c.view.Log.Bounds(p); c.at[p] >= start {
			return nil // it was only the second look that failed
		}
		c.lost[p] = err
		return Fetches(p, nil, highWatermark, err)
	}
	c.at[p] = max(c.at[p], next)
	return Fetches(p, records, highWatermark, nil)
}
