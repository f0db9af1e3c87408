package presence

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

const (
	produceTimeout = 2 * time.Second
	goodbyeTimeout = time.Second
)

// publisher is the state of the goroutine that publishes; nobody else touches it until
// that has ended.
type publisher struct {
	node    string
	seq     uint64 // of the last record
	silent  bool   // the others know that nothing is open here
	failing bool
}

// runPublisher publishes changes soon and everything at every heartbeat, until ctx ends.
func (c *Counter) runPublisher(ctx context.Context) {
	heartbeat := time.NewTicker(c.timing.heartbeat)
	defer heartbeat.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C: // the publications' distance
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-heartbeat.C:
			c.publishAll()
		}
		c.publishNext(ctx)
		pause.Reset(c.timing.publish)
	}
}

// publishAll makes the next publication a snapshot.
func (c *Counter) publishAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ledger.publishAll()
}

// publishNext writes what is to be published. Should that fail, a snapshot will follow.
func (c *Counter) publishNext(ctx context.Context) {
	c.mu.Lock()
	open, snapshot := c.ledger.take()
	c.mu.Unlock()
	p := &c.publish
	if len(open) == 0 && (p.silent || !snapshot) {
		return
	}
	values, err := encode(p.node, p.seq+1, open, snapshot)
	if err == nil {
		// Counted even if it fails: a record that was given up may have been written.
		p.seq += uint64(len(values))
		err = c.produce(ctx, values)
	}
	if ctx.Err() != nil {
		c.publishAll() // some of it may be written, or not
		p.silent = false
		return
	}
	if failed := err != nil; failed != p.failing {
		p.failing = failed
		if failed {
			c.log.Warn("counts of open streams cannot be published; other nodes will not know of them", "error", err)
		} else {
			c.log.Info("counts of open streams are published again")
		}
	}
	if err != nil {
		c.metrics.failures.WithLabelValues("publish").Inc()
		// Drops what still waits in the client, and makes it look for the topic again,
		// which may have been deleted and made anew.
		c.producer.PurgeTopicsFromProducing(schema.TopicPresence)
		c.publishAll()
		p.silent = false
		return
	}
	kind := "change"
	if snapshot {
		kind = "snapshot"
	}
	c.metrics.published.WithLabelValues(kind).Add(float64(len(values)))
	p.silent = snapshot && len(open) == 0
}

// produce writes the records in order. When it gives up, some may yet be written.
func (c *Counter) produce(ctx context.Context, values [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	written := make(chan error, len(values)) // room for all: nobody may be there to take them
	for _, v := range values {
		r := &kgo.Record{Topic: schema.TopicPresence, Key: []byte(c.publish.node), Value: v}
		c.producer.Produce(ctx, r, func(_ *kgo.Record, err error) { written <- err })
	}
	for range values {
		// The client tells of a context that ended only after its own retries.
		select {
		case err := <-written:
			if err != nil {
				return fmt.Errorf("produce %s: %w", schema.TopicPresence, err)
			}
		case <-ctx.Done():
			return fmt.Errorf("produce %s: %w", schema.TopicPresence, context.Cause(ctx))
		}
	}
	return nil
}

// sayGoodbye publishes that nothing is open here. The publisher has ended.
func (c *Counter) sayGoodbye(ctx context.Context) {
	p := &c.publish
	if p.silent {
		return
	}
	values, err := encode(p.node, p.seq+1, nil, true)
	if err == nil {
		err = c.produce(ctx, values)
	}
	if err != nil {
		c.log.Warn("could not take leave of the other nodes; they count this one's streams until it times out", "error", err)
	}
}
