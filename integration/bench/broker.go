package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/ingest"
	"github.com/playhead-dev/playhead/schema"
)

// broker is a client of the server's Kafka: to compare with, and to see how far the
// materialiser is.
type broker struct {
	client *kgo.Client // an idempotent producer that waits for all replicas
	admin  *kadm.Client
}

// rawTopic is what raw records are produced to: with the partitions of the events topic,
// but beside it, so that nobody reads them.
const rawTopic = "bench.raw"

// openBroker connects with the settings of Playhead's own producer.
func openBroker(s *server) (*broker, error) {
	if s.state.Kafka == "" {
		return nil, errors.New("dev.json does not name the broker's address")
	}
	cfg := ingest.DefaultConfig()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(s.state.Kafka),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(cfg.Linger),
		kgo.ProducerBatchMaxBytes(int32(cfg.MaxRecordBytes())),
		kgo.MaxBufferedRecords(cfg.MaxInFlightEvents),
	)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return &broker{client: client, admin: kadm.NewClient(client)}, nil
}

func (b *broker) close() { b.client.Close() }

// createRawTopic makes rawTopic like the events topic.
func (b *broker) createRawTopic(ctx context.Context) error {
	topics, err := b.admin.ListTopics(ctx, schema.TopicEvents)
	if err != nil {
		return fmt.Errorf("look at %s: %w", schema.TopicEvents, err)
	}
	made, err := b.admin.CreateTopic(ctx, int32(len(topics[schema.TopicEvents].Partitions)), 1, nil, rawTopic)
	if err := errors.Join(err, made.Err); err != nil {
		return fmt.Errorf("create %s: %w", rawTopic, err)
	}
	return nil
}

// rawRecords makes records of rawTopic. With headers they are what Playhead itself would
// write for the same events; without, only the payload.
type rawRecords struct {
	payload *payloads
	headers bool
	session string
}

// record returns the record of event number i, as Playhead would place it: a session in
// one partition, a workspace's sessions in some of them.
func (r *rawRecords) record(writer, batch, i int) *kgo.Record {
	session := fmt.Sprintf("%s-%d-%d", r.session, writer, batch%sessionsPerConn)
	rec := &kgo.Record{
		Topic: rawTopic, Partition: int32((writer + batch) % schema.DefaultShards),
		Value: []byte(r.payload.at(i)), Timestamp: time.Now(),
	}
	if r.headers {
		e := schema.Event{
			Workspace: "ws_bench", Session: session, Type: "bench.move", TMs: int64(i) * 20,
			MessageID: fmt.Sprintf("%s-%d", session, i), ContentType: schema.DefaultContentType,
		}
		rec.Key = schema.RecordKey(e.Workspace, e.Session)
		rec.Headers = schema.AppendHeaders([]kgo.RecordHeader(nil), &e, "")
	}
	return rec
}

// produceBatches produces as an append over HTTP does: each writer hands over a batch
// and waits for it.
func (b *broker) produceBatches(ctx context.Context, r *rawRecords, writers int, d time.Duration) (load, error) {
	return drive(ctx, writers, d, func(w, i int) error {
		batch := make([]*kgo.Record, batchEvents)
		for j := range batch {
			batch[j] = r.record(w, i, i*batchEvents+j)
		}
		if err := b.client.ProduceSync(ctx, batch...).FirstErr(); err != nil {
			return fmt.Errorf("produce: %w", err)
		}
		return nil
	})
}

// produceFlatOut produces from one goroutine without waiting, bounded by the client's
// buffer: the most that this broker takes.
func (b *broker) produceFlatOut(ctx context.Context, r *rawRecords, d time.Duration) (load, error) {
	var mu sync.Mutex
	var failed error
	begun, n := time.Now(), 0
	for ; time.Since(begun) < d && ctx.Err() == nil; n++ {
		b.client.Produce(ctx, r.record(0, n/batchEvents, n), func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	err := b.client.Flush(ctx)
	mu.Lock()
	defer mu.Unlock()
	if err := errors.Join(err, failed); err != nil {
		return load{}, fmt.Errorf("produce: %w", err)
	}
	return load{events: n, took: time.Since(begun)}, nil
}

// unmaterialised counts the offsets that the materialiser has not committed.
func (b *broker) unmaterialised(ctx context.Context) (int64, error) {
	ends, err := b.admin.ListEndOffsets(ctx, schema.TopicEvents)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("end of the log: %w", err)
	}
	committed, err := b.admin.FetchOffsets(ctx, schema.GroupMaterializer)
	if err != nil {
		return 0, fmt.Errorf("committed offsets: %w", err)
	}
	var n int64
	ends.Each(func(end kadm.ListedOffset) {
		n += end.Offset
		if c, ok := committed.Lookup(end.Topic, end.Partition); ok && c.At > 0 {
			n -= c.At
		}
	})
	return n, nil
}

// awaitMaterialised waits until the materialiser has committed the whole log.
func (b *broker) awaitMaterialised(ctx context.Context, within time.Duration) error {
	return until(ctx, within, "everything is materialised", func() (bool, error) {
		n, err := b.unmaterialised(ctx)
		return n == 0 && err == nil, err
	})
}
