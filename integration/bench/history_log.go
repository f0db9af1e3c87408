package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// alignLog makes the embedded broker's events topic agree with a filled table: every
// partition of the workspace has had d.perPartition records, all of them are materialised,
// and all are deleted, as retention does in time. One real event follows in each, which
// the materialiser has still to copy when the server starts: without one the broker would
// forget at a restart how far its log had come.
func alignLog(ctx context.Context, dir string, d *historyData) (err error) {
	broker, err := kafka.StartEmbedded(dir, "127.0.0.1:0", d.placement.Partitions, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	topics, err := admin.ListTopics(ctx, schema.TopicEvents)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", schema.TopicEvents, err)
	}
	topic := topics[schema.TopicEvents]
	if len(topic.Partitions) != d.placement.Partitions {
		return fmt.Errorf("%s has %d partitions, want %d", schema.TopicEvents, len(topic.Partitions), d.placement.Partitions)
	}
	var deleted, committed kadm.Offsets
	for _, p := range d.partitions {
		if err := produceUnread(ctx, client, topic.ID, int32(p), d.perPartition); err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
		deleted.AddOffset(schema.TopicEvents, int32(p), d.perPartition, -1)
		committed.AddOffset(schema.TopicEvents, int32(p), d.perPartition, -1)
	}
	gone, err := admin.DeleteRecords(ctx, deleted)
	if err == nil {
		err = gone.Error()
	}
	if err != nil {
		return fmt.Errorf("delete the log's past: %w", err)
	}
	if err := admin.CommitAllOffsets(ctx, schema.GroupMaterializer, committed); err != nil {
		return fmt.Errorf("commit for the materialiser: %w", err)
	}
	// What stays must outlive the broker's usual week.
	forever := kadm.AlterConfig{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("-1")}
	altered, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{forever}, schema.TopicEvents)
	if err == nil {
		_, err = altered.On(schema.TopicEvents, nil)
	}
	if err != nil {
		return fmt.Errorf("keep the log: %w", err)
	}
	return produceMarkers(ctx, client, d)
}

// produceUnread has a partition of the embedded broker count n records that are not there:
// a batch that says so of itself. The broker, a stand-in for Kafka, believes it.
func produceUnread(ctx context.Context, client *kgo.Client, topic kadm.TopicID, partition int32, n int64) error {
	for n > 0 {
		records := int32(min(n, 1<<30))
		batch := kmsg.NewRecordBatch()
		batch.PartitionLeaderEpoch, batch.Magic = -1, 2
		batch.LastOffsetDelta, batch.NumRecords = records-1, records
		batch.FirstTimestamp, batch.MaxTimestamp = historyStart.UnixMilli(), historyStart.UnixMilli()
		batch.ProducerID, batch.ProducerEpoch, batch.FirstSequence = -1, -1, -1
		const lengthEnd, crcEnd = 12, 21 // of the head of a batch
		raw := batch.AppendTo(nil)
		batch.Length = int32(len(raw) - lengthEnd)
		raw = batch.AppendTo(nil)
		batch.CRC = int32(crc32.Checksum(raw[crcEnd:], crc32.MakeTable(crc32.Castagnoli)))

		part := kmsg.NewProduceRequestTopicPartition()
		part.Partition, part.Records = partition, batch.AppendTo(nil)
		into := kmsg.NewProduceRequestTopic()
		into.Topic, into.TopicID, into.Partitions = schema.TopicEvents, topic, []kmsg.ProduceRequestTopicPartition{part}
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis, req.Topics = -1, 10_000, []kmsg.ProduceRequestTopic{into}
		answer, err := client.SeedBrokers()[0].Request(ctx, req)
		if err != nil {
			return fmt.Errorf("produce: %w", err)
		}
		for _, t := range answer.(*kmsg.ProduceResponse).Topics {
			for _, p := range t.Partitions {
				err = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))
			}
		}
		if err != nil {
			return fmt.Errorf("produce: %w", err)
		}
		n -= int64(records)
	}
	return nil
}

// produceMarkers appends one event to each of the workspace's partitions.
func produceMarkers(ctx context.Context, client *kgo.Client, d *historyData) error {
	now := time.Now()
	for shard, p := range slices.All(d.partitions) {
		e := schema.Event{
			Workspace: d.workspace, Session: d.name("marker", shard), Type: "bench.marker", ContentType: schema.DefaultContentType,
		}
		rec := &kgo.Record{
			Topic: schema.TopicEvents, Partition: int32(p), Timestamp: now, Value: []byte(`{}`),
			Key: schema.RecordKey(e.Workspace, e.Session), Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), &e, ""),
		}
		made, err := client.ProduceSync(ctx, rec).First()
		if err != nil {
			return fmt.Errorf("produce to partition %d: %w", p, err)
		}
		if made.Offset != d.perPartition {
			return fmt.Errorf("partition %d goes on at offset %d, want %d", p, made.Offset, d.perPartition)
		}
	}
	return nil
}
