package main

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// kafkaRights returns what the node's roles need of Kafka to work at all; docs/operations.md
// has the table, with what is needed now and then.
func (c Config) kafkaRights() []kafka.Right {
	const read, write, describe = kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe
	rights := []kafka.Right{ // of every node: tapes, control, counts of streams, watermarks
		kafka.OnTopic(read, schema.TopicEvents),
		kafka.OnTopic(read, schema.TopicControl),
		kafka.OnTopic(read, schema.TopicPresence),
		kafka.OnGroup(describe, schema.GroupMaterializer),
	}
	if c.has(roleIngest) {
		rights = append(rights,
			kafka.OnTopic(write, schema.TopicEvents), kafka.OnTopic(write, schema.TopicControl),
			kafka.OnTopic(read, schema.TopicDeadLetters), kafka.OnTopic(write, schema.TopicDeadLetters))
	}
	if c.has(roleStreamer) {
		rights = append(rights, kafka.OnTopic(write, schema.TopicPresence))
	}
	if c.has(roleQuery) && !c.has(roleIngest) { // erasures that are done
		rights = append(rights, kafka.OnTopic(write, schema.TopicControl))
	}
	if c.has(roleMaterializer) {
		rights = append(rights, kafka.OnGroup(read, schema.GroupMaterializer), kafka.OnGroup(describe, schema.GroupRebuild))
	}
	switch { // who writes or reads it may look whether it is there
	case c.has(roleIngest): // which has both above
	case c.has(roleMaterializer):
		rights = append(rights, kafka.OnTopic(write, schema.TopicDeadLetters))
	default:
		rights = append(rights, kafka.OnTopic(describe, schema.TopicDeadLetters))
	}
	return rights
}

// openTopics makes the topics that are missing. It refuses to go on without a right that the
// roles need: half of a node would fail, some time later, in ways that do not say why.
func (n *node) openTopics(ctx context.Context) error {
	rights := n.cfg.kafkaRights()
	// Before, so that one answer names all that is missing, and after, of topics just made.
	if err := kafka.CheckRights(ctx, n.cfg.Kafka, rights); err != nil {
		return err
	}
	if err := kafka.EnsureTopics(ctx, n.cfg.Kafka); err != nil {
		return err
	}
	return kafka.CheckRights(ctx, n.cfg.Kafka, rights)
}
