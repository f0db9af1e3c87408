package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/schema"
)

// Timestamps with a meaning in ListOffsets.
const (
	listLatest   = -1
	listEarliest = -2
)

// readCommitted is the isolation level of every request: records of open and aborted
// transactions are not there.
const readCommitted = 1

// requestTimeout bounds one request to one broker; what does not answer is retried. askTimeout
// is for those with small answers: a broker that hangs is to cost no more than that.
const (
	requestTimeout = 10 * time.Second
	askTimeout     = 3 * time.Second
)

// ErrTopicRecreated reports that the topic was deleted, or deleted and made anew,
// since the Log was opened: its offsets mean something else now. Open a new Log.
var ErrTopicRecreated = errors.New("kafka: topic was recreated")

// ErrClosed reports a call on a closed Log.
var ErrClosed = errors.New("kafka: log is closed")

// Log gives random access to one topic, committed records only. Leaders that
// move or vanish are followed and retried for Config.RetryTimeout, then the last error
// is returned. Safe for concurrent use.
type Log struct {
	cfg        Config
	topic      string
	topicID    [16]byte
	partitions int

	meta    *kgo.Client      // metadata and offsets
	readers chan *kgo.Client // idle clients for fetches: one fetch at a time on each
	all     []*kgo.Client

	ctx    context.Context // ends with Close, cause ErrClosed
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // the listers' requests

	leaders        leaders
	decompressor   kgo.Decompressor
	passUnreadable bool // batches that cannot be decompressed count as offsets without records

	mu      sync.Mutex // guards listers and their batches
	listers map[int32]*lister
}

// OpenLog opens playhead.events; see OpenTopic.
func OpenLog(ctx context.Context, c Config) (*Log, error) {
	return OpenTopic(ctx, c, schema.TopicEvents)
}

// OpenTopic connects to a topic, which must exist. ctx bounds the opening only. The
// caller closes the Log.
func OpenTopic(ctx context.Context, c Config, topic string) (*Log, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	opts, err := c.Options()
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg:     c,
		topic:   topic,
		readers: make(chan *kgo.Client, c.ReadConnections),
		listers: make(map[int32]*lister),

		// Of what stands in the control topic nothing may be passed over in silence.
		passUnreadable: topic != schema.TopicControl,
	}
	if l.decompressor, err = newDecompressor(); err != nil {
		return nil, err
	}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	for i := range c.ReadConnections + 1 {
		cl, err := kgo.NewClient(append(opts[:len(opts):len(opts)],
			kgo.RequestRetries(1), kgo.RetryTimeout(requestTimeout))...)
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("kafka client: %w", err)
		}
		l.all = append(l.all, cl)
		if i == 0 {
			l.meta = cl
		} else {
			l.readers <- cl
		}
	}
	if err := l.open(ctx); err != nil {
		l.Close()
		return nil, fmt.Errorf("open topic %s: %w", l.topic, err)
	}
	return l, nil
}

// open learns topic id, partitions and leaders.
func (l *Log) open(ctx context.Context) error {
	return l.retry(ctx, func(ctx context.Context) error {
		t, err := l.fetchMetadata(ctx, l.meta)
		if err != nil {
			return err
		}
		if len(t.Partitions) == 0 || len(t.Partitions) > schema.MaxPartition+1 {
			return fmt.Errorf("topic has %d partitions; want 1 to %d", len(t.Partitions), schema.MaxPartition+1)
		}
		l.topicID = t.TopicID
		l.partitions = len(t.Partitions)
		l.leaders.set(leadersOf(t, l.partitions))
		return nil
	})
}

// Close ends every call with ErrClosed and waits for the Log's own goroutines.
func (l *Log) Close() {
	l.cancel(ErrClosed)
	for _, cl := range l.all {
		cl.Close()
	}
	l.wg.Wait()
}

// Partitions returns the number of partitions the topic had when the Log was opened.
func (l *Log) Partitions() int { return l.partitions }

// TopicID returns the id Kafka gave this life of the topic; zero for brokers before 2.8.
func (l *Log) TopicID() [16]byte { return l.topicID }

// Ping reports whether a broker answers.
func (l *Log) Ping(ctx context.Context) error {
	_, err := l.fetchMetadata(ctx, l.meta)
	return err
}

// Bounds returns the log start offset and the last stable offset of a partition, read
// after the call began. Without open transactions the latter is the high watermark.
func (l *Log) Bounds(ctx context.Context, partition uint16) (start, end int64, err error) {
	// Start first: it only grows, so it cannot pass an end that is read later.
	start, err = l.listOffset(ctx, partition, listEarliest)
	if err != nil {
		return 0, 0, err
	}
	end, err = l.HighWatermark(ctx, partition)
	return start, max(start, end), err
}

// OffsetForTime returns the first offset of a record with a timestamp of ms (Unix
// milliseconds) or later, and the partition's end (see Bounds) if there is none.
// Timestamps need not ascend: earlier ones may follow.
func (l *Log) OffsetForTime(ctx context.Context, partition uint16, ms int64) (int64, error) {
	// The end is read first, so that a record appended in between is not skipped.
	end, err := l.HighWatermark(ctx, partition)
	if err != nil {
		return 0, err
	}
	offset, err := l.listOffset(ctx, partition, max(ms, 0))
	if err != nil {
		return 0, err
	}
	if offset < 0 {
		return end, nil
	}
	return offset, nil
}

// listOffset asks the leader for one offset; -1 if no record answers.
func (l *Log) listOffset(ctx context.Context, partition uint16, timestamp int64) (offset int64, err error) {
	err = l.retry(ctx, func(ctx context.Context) error {
		leader, err := l.leader(partition)
		if err != nil {
			return err
		}
		answers, err := l.listOffsets(ctx, leader, []uint16{partition}, timestamp)
		if err != nil {
			return err
		}
		offset, err = answers[partition].offset, answers[partition].err
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("list offsets of %s/%d: %w", l.topic, partition, err)
	}
	return offset, nil
}

// listed is one partition's answer to ListOffsets.
type listed struct {
	offset int64
	err    error
}

// listOffsets asks one broker once.
func (l *Log) listOffsets(ctx context.Context, broker int32, partitions []uint16, timestamp int64) (map[uint16]listed, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	req.IsolationLevel = readCommitted
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = l.topic
	for _, p := range partitions {
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Partition = int32(p)
		rp.CurrentLeaderEpoch = -1
		rp.Timestamp = timestamp
		t.Partitions = append(t.Partitions, rp)
	}
	req.Topics = append(req.Topics, t)
	raw, err := l.meta.Broker(int(broker)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	out := make(map[uint16]listed, len(partitions))
	for _, p := range partitions {
		out[p] = listed{err: errors.New("partition is missing from the answer")}
	}
	for _, t := range raw.(*kmsg.ListOffsetsResponse).Topics {
		for _, p := range t.Partitions {
			out[uint16(p.Partition)] = listed{offset: p.Offset, err: kerr.ErrorForCode(p.ErrorCode)}
		}
	}
	return out, nil
}

// retry runs call until it succeeds, its error is final, ctx or the Log ends, or
// Config.RetryTimeout is over. Between attempts it waits and asks for the leaders anew.
func (l *Log) retry(ctx context.Context, call func(context.Context) error) error {
	var b backoff
	deadline := time.Now().Add(l.cfg.RetryTimeout)
	for {
		seen := l.leaders.generation()
		err := l.attempt(ctx, call)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case l.ctx.Err() != nil:
			return ErrClosed
		case !retriable(err) || time.Now().After(deadline):
			return err
		}
		if waitErr := b.wait(ctx); waitErr != nil {
			return waitErr
		}
		if l.partitions > 0 {
			if refreshErr := l.refreshLeaders(ctx, seen); errors.Is(refreshErr, ErrTopicRecreated) {
				return refreshErr
			}
		}
	}
}

// attempt runs call once, with a deadline, and ends it when the Log is closed.
func (l *Log) attempt(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stop := context.AfterFunc(l.ctx, cancel)
	defer stop()
	return call(ctx)
}

// retriable decides for every call of a Log whether trying again can help. Errors of
// the connection can; of Kafka's own, those that Kafka says pass and those of a topic
// that metadata has not caught up with.
func retriable(err error) bool {
	var out *OffsetRangeError
	switch {
	case errors.Is(err, ErrTopicRecreated), errors.Is(err, ErrClosed), errors.Is(err, kgo.ErrClientClosed), errors.As(err, &out):
		return false
	}
	if _, ok := errors.AsType[*permanentError](err); ok {
		return false
	}
	if kafkaErr, ok := errors.AsType[*kerr.Error](err); ok {
		return kafkaErr.Retriable
	}
	return true
}

// permanentError marks an error of ours that another attempt would repeat.
type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }
