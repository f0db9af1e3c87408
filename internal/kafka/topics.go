package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/schema"
)

// deadLetterHeadroom is how much larger a dead letter may be than the record it wraps.
const deadLetterHeadroom = 64 << 10

// How long, and how many bytes of, dead letters are kept when their topic is made: a month,
// and a GiB, so that a producer that writes nothing else fills no disk with them.
const (
	deadLetterRetentionMs    = "2592000000"
	deadLetterRetentionBytes = "1073741824"
)

// presenceRetentionMs is ten minutes: counts of open streams are worth nothing after
// some seconds; the rest is for people who look.
const presenceRetentionMs = "600000"

// EnsureTopics makes the topics that are missing and waits until each has leaders:
// playhead.events (c.Partitions partitions), playhead.control (one partition,
// compacted but on the embedded broker), playhead.dead_letters (one partition) and playhead.presence (one partition,
// kept for minutes). Existing topics are left as they are. Safe when several nodes start
// at once.
func EnsureTopics(ctx context.Context, c Config) error {
	opts, err := c.Options()
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()

	batch := strconv.Itoa(c.MaxBatchBytes)
	control := map[string]string{"cleanup.policy": "compact"}
	if c.dial != nil {
		// kfake compacts by deleting the old segments before it writes the new ones: a kill in
		// between would take keys and workspaces with it. Uncompacted, the topic is small.
		control = map[string]string{"cleanup.policy": "delete", "retention.ms": "-1"}
	}
	create := []struct {
		topic      string
		partitions int
		configs    map[string]string
	}{
		{schema.TopicEvents, c.Partitions, map[string]string{
			"cleanup.policy": "delete", "message.timestamp.type": "CreateTime", "max.message.bytes": batch,
		}},
		{schema.TopicControl, 1, control},
		{schema.TopicDeadLetters, 1, map[string]string{
			"cleanup.policy": "delete", "max.message.bytes": strconv.Itoa(c.MaxBatchBytes + deadLetterHeadroom),
			"retention.ms": deadLetterRetentionMs, "retention.bytes": deadLetterRetentionBytes,
		}},
		// Only closed segments age, so they have to be short too.
		{schema.TopicPresence, 1, map[string]string{
			"cleanup.policy": "delete", "retention.ms": presenceRetentionMs, "segment.ms": presenceRetentionMs,
		}},
	}
	for _, t := range create {
		configs := make(map[string]*string)
		for k, v := range t.configs {
			configs[k] = kadm.StringPtr(v)
		}
		if c.ReplicationFactor >= 3 {
			configs["min.insync.replicas"] = kadm.StringPtr("2")
		}
		if t.topic == schema.TopicEvents && c.Retention != 0 {
			ms := int64(-1)
			if c.Retention > 0 {
				ms = max(1, c.Retention.Milliseconds())
			}
			configs["retention.ms"] = kadm.StringPtr(strconv.FormatInt(ms, 10))
		}
		if err := createTopic(ctx, cl, c.SASL.Username, t.topic, t.partitions, c.ReplicationFactor, configs); err != nil {
			return err
		}
	}
	for _, t := range create {
		if err := waitForLeaders(ctx, cl, t.topic); err != nil {
			return err
		}
	}
	return nil
}

// createTopic makes one topic unless it exists. user is who we are to Kafka, if anybody.
func createTopic(ctx context.Context, cl *kgo.Client, user, topic string, partitions, replicas int, configs map[string]*string) error {
	// Look first: a client that may not create topics can still use existing ones.
	if _, err := topicMetadata(ctx, cl, topic); err == nil {
		return nil
	} else if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("look for topic %s: %w", topic, err)
	}
	if replicas == 0 {
		replicas = -1 // the brokers' default (KIP-464)
	}
	made, err := kadm.NewClient(cl).CreateTopic(ctx, int32(partitions), int16(replicas), configs, topic)
	if err == nil {
		err = made.Err
	}
	if errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed) {
		return fmt.Errorf("topic %s does not exist: %w", topic, &MissingRightsError{User: user, Missing: []Right{OnTopic(kmsg.ACLOperationCreate, topic)}})
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s with %d partitions and replication factor %d: %w", topic, partitions, replicas, err)
	}
	return nil
}

// waitForLeaders polls until every partition of the topic has a leader.
func waitForLeaders(ctx context.Context, cl *kgo.Client, topic string) error {
	var b backoff
	for {
		t, err := topicMetadata(ctx, cl, topic)
		if err == nil && !slices.Contains(leadersOf(t, len(t.Partitions)), -1) {
			return nil
		}
		if err == nil {
			err = errNoLeader
		}
		if waitErr := b.wait(ctx); waitErr != nil {
			return fmt.Errorf("topic %s is not ready: %w (%w)", topic, err, waitErr)
		}
	}
}

// backoff waits longer each time: 10 ms doubling to 500 ms.
type backoff struct{ last time.Duration }

// wait sleeps, or returns ctx's cause.
func (b *backoff) wait(ctx context.Context) error {
	b.last = min(max(2*b.last, 10*time.Millisecond), 500*time.Millisecond)
	t := time.NewTimer(b.last)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
