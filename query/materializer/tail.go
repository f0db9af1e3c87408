package materializer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// fetchBytes bounds one fetch; a tail holds at most one that was not polled yet.
const fetchBytes = 4 << 20

// fetchBytesAtOnce and fetchWait have the broker gather what trickles in: a fetch is
// answered when it has so much to give, or after that time. Woken by every single append,
// the materialiser made each 15 % dearer; batches wait for longer anyway.
const (
	fetchBytesAtOnce = 1 << 20
	fetchWait        = 500 * time.Millisecond
)

// maxPollRecords bounds what one poll hands over.
const maxPollRecords = 10_000

// tail reads the committed records of one partition from an offset on, as they come, and
// the marks at which transactions ended (Attrs.IsControl). It
// has a client of its own, outside the group: so it begins exactly where its worker says
// however often that begins anew, no reset policy can move it, and what a worker does
// not take is not fetched.
type tail struct {
	cl            consumer
	highWatermark int64                        // of the last fetch
	passed        []*kgo.ErrDecompressTooLarge // batches passed over, as nobody can read them; the worker's to take
}

// consumer is what a tail needs of a Kafka client, and simulations stand in for.
type consumer interface {
	// PollRecords is that of *kgo.Client.
	PollRecords(ctx context.Context, maxPollRecords int) kgo.Fetches
	// SetOffsets is that of *kgo.Client.
	SetOffsets(offsets map[string]map[int32]kgo.EpochOffset)
	Close()
}

// openKafkaTail is Materializer.openTail on Kafka.
func (m *Materializer) openKafkaTail(partition uint16, from int64) (*tail, error) {
	opts := m.kafkaOptions
	cl, err := kgo.NewClient(append(opts[:len(opts):len(opts)],
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
			schema.TopicEvents: {int32(partition): kgo.NewOffset().At(from)},
		}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the watermark passes the marks of transactions
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxPartitionBytes(fetchBytes),
		kgo.FetchMinBytes(fetchBytesAtOnce),
		kgo.FetchMaxWait(fetchWait),
	)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return &tail{cl: cl}, nil
}

func (t *tail) close() { t.cl.Close() }

// buffered returns records that are here already, none if there are none.
func (t *tail) buffered() ([]*kgo.Record, error) {
	return t.records(t.cl.PollRecords(nil, maxPollRecords)) //nolint:staticcheck // nil is documented: do not wait
}

// poll waits for records until ctx ends; then it returns none.
func (t *tail) poll(ctx context.Context) ([]*kgo.Record, error) {
	records, err := t.records(t.cl.PollRecords(ctx, maxPollRecords))
	if ctx.Err() != nil && len(records) == 0 {
		return nil, nil
	}
	return records, err
}

func (t *tail) records(fetches kgo.Fetches) (out []*kgo.Record, err error) {
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if bad, ok := errors.AsType[*kgo.ErrDecompressTooLarge](p.Err); ok {
			t.passed = append(t.passed, bad)
			t.cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{
				p.Topic: {p.Partition: {Epoch: bad.Epoch, Offset: bad.NextOffset}},
			})
			return
		}
		if p.Err != nil {
			err = p.Err
			return
		}
		t.highWatermark = max(t.highWatermark, p.HighWatermark)
		out = append(out, p.Records...)
	})
	if err != nil && len(out) == 0 {
		return nil, fmt.Errorf("read %s: %w", schema.TopicEvents, err)
	}
	return out, nil // an error beside records comes again
}
