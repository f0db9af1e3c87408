package ingest

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// How long a broker may wait for its replicas, and how long it may take beside that to answer
// any request or to take it in. A leader that hangs is left after both; nothing else tells,
// and meanwhile its partitions take no appends. One that is only slow gets the batch again
// and knows it for the same.
const (
	brokerWait     = 5 * time.Second
	brokerOverhead = 3 * time.Second
)

// headersPerRecord is room for an event's headers without a second allocation.
const headersPerRecord = 13

// producer hands records to Kafka: one idempotent client, acknowledged by all replicas,
// each record to the partition it names.
type producer struct {
	client    *kgo.Client
	maxEvents int64
	maxBytes  int64
	events    atomic.Int64 // in flight
	bytes     atomic.Int64 // in flight, estimated
	lingers   bool
	over      context.Context // has ended, always

	// ids of events without a message id: unique by the process's random prefix.
	idPrefix string
	idNext   atomic.Uint64
}

func newProducer(cfg Config, opts []kgo.Opt) (*producer, error) {
	// kgo's own bounds only catch what admit has miscounted: reaching them would block
	// or fail records in the middle of a request.
	opts = append(opts[:len(opts):len(opts)],
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(cfg.Linger),
		kgo.RecordDeliveryTimeout(cfg.ProduceTimeout),
		kgo.ProduceRequestTimeout(min(cfg.ProduceTimeout, brokerWait)),
		kgo.RequestTimeoutOverhead(brokerOverhead),
		kgo.ProducerBatchMaxBytes(int32(cfg.MaxRecordBytes())),
		kgo.MaxBufferedRecords(2*cfg.MaxInFlightEvents),
		kgo.MaxBufferedBytes(2*cfg.MaxInFlightBytes+cfg.MaxRecordBytes()),
	)
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("ingest producer: %w", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	return &producer{
		lingers:   cfg.Linger > 0,
		over:      over,
		client:    client,
		maxEvents: int64(cfg.MaxInFlightEvents),
		maxBytes:  int64(cfg.MaxInFlightBytes),
		idPrefix:  rand.Text()[:13] + "-",
	}, nil
}

// admit reserves room for a request's records, all or none. Each record's share is
// given back by release.
func (p *producer) admit(events, bytes int64) *httpapi.Error {
	if p.events.Add(events) > p.maxEvents {
		p.events.Add(-events)
		return overloaded("events")
	}
	if p.bytes.Add(bytes) > p.maxBytes {
		p.bytes.Add(-bytes)
		p.events.Add(-events)
		return overloaded("bytes of events")
	}
	return nil
}

func (p *producer) release(events, bytes int64) {
	p.events.Add(-events)
	p.bytes.Add(-bytes)
}

// generatedID returns an id for an event that has none of its own.
func (p *producer) generatedID() string {
	return p.idPrefix + strconv.FormatUint(p.idNext.Add(1), 36)
}

// fill makes rec the record of e, to be stamped with nowMs and sent to a partition.
// headers is room for its headers; key is shared and read only.
func (p *producer) fill(rec *kgo.Record, headers []kgo.RecordHeader, e *schema.Event, key []byte, partition uint16) {
	id := ""
	if e.MessageID == "" {
		id = p.generatedID()
	}
	rec.Topic = schema.TopicEvents
	rec.Partition = int32(partition)
	rec.Key = key
	rec.Value = e.Payload
	rec.Headers = schema.AppendHeaders(headers, e, id)
	rec.Timestamp = e.Time()
}

// produce never blocks. The records' context is the process's, not the request's: kgo
// fails a whole partition's buffer when one record's context ends.
func (p *producer) produce(rec *kgo.Record, promise func(*kgo.Record, error)) {
	p.client.TryProduce(context.Background(), rec, promise)
}

// handedOver is called when a request has produced the last of its n records, with its
// share still reserved. Nobody gains by a linger if they are all that is in flight, so
// they are sent at once; otherwise they gather, for Config.Linger at most, beside
// whatever else comes meanwhile.
func (p *producer) handedOver(n int) {
	if n > 0 && p.lingers && p.events.Load() <= int64(n) {
		p.sendNow()
	}
}

// sendNow ends all lingers.
func (p *producer) sendNow() {
	// Flush ends them before it waits; it does not wait when its context is over.
	_ = p.client.Flush(p.over)
}

// close waits until all records are acknowledged or ctx ends, then closes the client;
// what is still buffered then fails.
func (p *producer) close(ctx context.Context) error {
	err := p.client.Flush(ctx)
	p.client.Close()
	if err != nil {
		return fmt.Errorf("flush producer: %w", err)
	}
	return nil
}
