package presence

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// follower is the state of the goroutine that reads the topic; nobody else touches it
// while that runs.
type follower struct {
	topic    *kafka.Log
	next     int64     // offset to read on from; -1: to be found by time
	lastRead time.Time // end of the last read without an error
	failing  bool
}

// load opens the topic and folds what the others said lately.
func (c *Counter) load(ctx context.Context) error {
	f := &c.follow
	f.next = -1
	return c.poll(ctx)
}

// runFollower keeps the counts of others current until ctx ends.
func (c *Counter) runFollower(ctx context.Context) {
	f := &c.follow
	tick := time.NewTicker(c.timing.poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := c.poll(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.metrics.failures.WithLabelValues("read").Inc()
		}
		if failed := err != nil; failed != f.failing {
			f.failing = failed
			if failed {
				c.log.Warn("presence topic cannot be read; other nodes' streams count until they time out", "error", err)
			} else {
				c.log.Info("presence topic is read again")
			}
		}
	}
}

// poll folds what is new.
func (c *Counter) poll(ctx context.Context) error {
	f := &c.follow
	if f.topic == nil {
		topic, err := kafka.OpenTopic(ctx, c.cfg, schema.TopicPresence)
		if err != nil {
			return err
		}
		f.topic, f.next = topic, -1
	}
	err := c.readOn(ctx)
	switch _, gone := errors.AsType[*kafka.OffsetRangeError](err); {
	case err == nil:
		f.lastRead = c.now()
	case errors.Is(err, kafka.ErrTopicRecreated):
		f.topic.Close()
		f.topic = nil
	case gone, c.now().Sub(f.lastRead) > c.timing.timeout:
		// What lies in between is outdated: all who live have spoken since.
		f.next = -1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(c.now())
	return err
}

// readOn reads to the end of the topic.
func (c *Counter) readOn(ctx context.Context) error {
	f := &c.follow
	catchUp := f.next < 0
	if catchUp {
		// A heartbeat would do, were all clocks the same.
		from := c.now().Add(-c.timing.timeout)
		next, err := f.topic.OffsetForTime(ctx, 0, from.UnixMilli())
		if err != nil {
			return err
		}
		f.next = next
	}
	next, err := f.topic.Read(ctx, 0, f.next, math.MaxInt64, func(r *kgo.Record) error {
		heard := c.now()
		if catchUp && r.Timestamp.Before(heard) {
			heard = r.Timestamp // its node may have died since
		}
		if !c.deliver(r.Value, catchUp) {
			c.fold(r, heard)
		}
		return nil
	})
	f.next = next
	return err
}

// fold takes in one record, or counts why not.
func (c *Counter) fold(r *kgo.Record, heard time.Time) {
	m, err := decode(r.Value)
	if err != nil {
		reason := "corrupt"
		switch {
		case errors.Is(err, errUnknownVersion):
			reason = "unknown_version"
		case errors.Is(err, errTooLarge):
			reason = "too_large"
		}
		c.metrics.skipped.WithLabelValues(reason).Inc()
		c.log.Debug("presence record skipped", "offset", r.Offset, "reason", reason, "error", err)
		return
	}
	if m.Node == c.publish.node {
		return
	}
	c.mu.Lock()
	dropped := c.ledger.fold(m, heard)
	c.mu.Unlock()
	c.metrics.folded.Inc()
	c.metrics.dropped.Add(float64(dropped))
}
