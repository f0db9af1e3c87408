package deadletters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// produceTimeout bounds one write.
const produceTimeout = 10 * time.Second

// logEvery is how often at most a refusal is logged; all are counted.
const logEvery = 5 * time.Second

// ErrRefused reports a write that Kafka will not take, however often it is tried: the topic
// is missing, or not ours to write, or its bound is below a letter.
var ErrRefused = errors.New("kafka refuses the dead letter")

// Writer writes to playhead.dead_letters. It is safe for concurrent use. The caller closes
// it.
type Writer struct {
	client  *kgo.Client
	metrics *Metrics
	logger  *slog.Logger
	lastLog atomic.Int64 // Unix ms of the last refusal that was logged
}

// NewWriter connects nothing yet: Kafka is dialled at the first letter.
func NewWriter(cfg kafka.Config, metrics *Metrics, logger *slog.Logger) (*Writer, error) {
	opts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(opts,
		kgo.RecordPartitioner(kgo.ManualPartitioner()), // partition 0, the only one
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.RecordDeliveryTimeout(produceTimeout),
		kgo.ProducerBatchMaxBytes(maxBatchBytes),
		kgo.UnknownTopicRetries(1), // the topic is made before there is a Writer
	)...)
	if err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	return &Writer{client: client, metrics: metrics, logger: logger}, nil
}

// maxBatchBytes holds the largest letter; kafka.EnsureTopics lets the topic take as much.
const maxBatchBytes = schema.MaxLetterValueBytes + 64<<10

// Close ends what is being written.
func (w *Writer) Close() { w.client.Close() }

// Keep writes letters and returns once they are durable. Those that Kafka refuses for good
// are counted and logged, and no error: nothing that waits for them would mend it.
func (w *Writer) Keep(ctx context.Context, letters []*schema.DeadLetter) error {
	records := make([]schema.LetterRecord, len(letters))
	for i, l := range letters {
		records[i] = schema.LetterRecord{Letter: l}
	}
	errs, err := w.put(ctx, records)
	if err != nil {
		return err
	}
	for i, l := range letters {
		if errs[i] == nil {
			w.metrics.kept.WithLabelValues(string(l.Reason)).Inc()
			continue
		}
		w.metrics.refused.Inc()
		now := time.Now().UnixMilli()
		if last := w.lastLog.Load(); now-last >= logEvery.Milliseconds() && w.lastLog.CompareAndSwap(last, now) {
			w.logger.Error("dead letter is lost but for its row", "partition", l.At.Partition, "offset", l.At.Offset,
				"reason", l.Reason, "error", errs[i])
		}
	}
	return nil
}

// Note writes a note and returns once it is durable. An error that wraps ErrRefused is
// final.
func (w *Writer) Note(ctx context.Context, r schema.LetterRecord) error {
	errs, err := w.put(ctx, []schema.LetterRecord{r})
	if err == nil {
		err = errs[0]
	}
	return err
}

// put writes records. err says that some may not have been written, and that another try
// can help; otherwise errs has the refusals.
func (w *Writer) put(ctx context.Context, records []schema.LetterRecord) (errs []error, err error) {
	out := make([]*kgo.Record, len(records))
	for i, r := range records {
		key, headers, value, err := r.Encode()
		if err != nil {
			return nil, fmt.Errorf("encode dead letter: %w", err)
		}
		out[i] = &kgo.Record{Topic: schema.TopicDeadLetters, Key: key, Value: value, Headers: make([]kgo.RecordHeader, len(headers))}
		for j, h := range headers {
			out[i].Headers[j] = kgo.RecordHeader(h)
		}
	}
	results := w.client.ProduceSync(ctx, out...)
	failed := make(map[*kgo.Record]error, len(results))
	for _, r := range results {
		if r.Err == nil {
			continue
		}
		if !final(r.Err) {
			return nil, fmt.Errorf("produce %s: %w", schema.TopicDeadLetters, r.Err)
		}
		failed[r.Record] = fmt.Errorf("%w: produce %s: %w", ErrRefused, schema.TopicDeadLetters, r.Err)
	}
	errs = make([]error, len(out))
	for i, r := range out {
		errs[i] = failed[r]
	}
	return errs, nil
}

// final decides whether trying again is of no use.
func final(err error) bool {
	if errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID) {
		return true // the client has asked for it several times
	}
	kafkaErr, ok := errors.AsType[*kerr.Error](err)
	return ok && !kafkaErr.Retriable
}
