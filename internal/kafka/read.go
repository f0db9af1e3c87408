package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Sizes of fetches: the first of a Read is guessed from the number of offsets asked
// for, later ones double.
const (
	firstFetchBytes    = 64 << 10
	guessedRecordBytes = 1 << 10
)

// OffsetRangeError reports offsets that the partition does not hold (any more, or yet).
type OffsetRangeError struct {
	Partition  uint16
	Offset     int64 // asked for
	Start, End int64 // what there is: [Start, End)
}

func (e *OffsetRangeError) Error() string {
	return fmt.Sprintf("offset %d of partition %d is out of range: it holds [%d, %d)", e.Offset, e.Partition, e.Start, e.End)
}

// Read calls fn with the committed records of [from, to) in offset order, on the
// caller's goroutine, and returns the offset to go on from. It does not wait: if the
// log ends before to, it stops there. So next is to, or where the log ended; offsets
// without a record (transaction markers, aborted records) count as read, and so do those of
// a batch that cannot be decompressed, or to more than MaxBatchDecompressedBytes; but of
// playhead.control such a batch is an error.
//
// fn owns its record. Its value, key and headers alias the fetched batch: keeping one
// keeps up to the batch in memory. fn's first error ends Read and is returned as is,
// with next the offset of the record it was given.
//
// An empty range returns from. Offsets below the log's start or beyond its end are an
// *OffsetRangeError; it can come midway too, when retention overtakes the reader.
// Memory is bounded by two fetches of Config.FetchMaxBytes and what they decompress to;
// one batch larger than that is read all the same.
func (l *Log) Read(ctx context.Context, partition uint16, from, to int64, fn func(*kgo.Record) error) (next int64, err error) {
	r := reader{
		log:       l,
		partition: partition,
		to:        to,
		size:      int32(min(max((to-from)*guessedRecordBytes, firstFetchBytes), int64(l.cfg.FetchMaxBytes))),
	}
	if to-from > int64(l.cfg.FetchMaxBytes) { // the product above may overflow
		r.size = int32(l.cfg.FetchMaxBytes)
	}
	next = from
	for next < to {
		if err := ctx.Err(); err != nil {
			return next, context.Cause(ctx)
		}
		records, after, err := r.fetch(ctx, next)
		if err != nil {
			return next, fmt.Errorf("read %s/%d at %d: %w", l.topic, partition, next, err)
		}
		for _, rec := range records {
			if rec.Offset >= to {
				break
			}
			if err := fn(rec); err != nil {
				return rec.Offset, err
			}
		}
		if after <= next {
			return next, nil // the end of the log
		}
		next = min(after, to)
		r.size = int32(min(2*int64(r.size), int64(l.cfg.FetchMaxBytes)))
	}
	return next, nil
}

// reader is one Read under way.
type reader struct {
	log       *Log
	partition uint16
	to        int64
	size      int32 // bytes to ask for next
}

// fetch returns the records at and after offset that one request brings, and the offset
// to go on from, which is offset itself at the end of the log.
func (r *reader) fetch(ctx context.Context, offset int64) (records []*kgo.Record, after int64, err error) {
	l := r.log
	size := r.size
	err = l.retry(ctx, func(ctx context.Context) error {
		leader, err := l.leader(r.partition)
		if err != nil {
			return err
		}
		rp, err := l.fetchOnce(ctx, leader, r.partition, offset, size)
		if err != nil {
			return err
		}
		if rp.ErrorCode == kerr.OffsetOutOfRange.Code {
			return r.outOfRange(ctx, offset)
		}
		fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
			Offset:         offset,
			IsolationLevel: kgo.ReadCommitted(),
			Topic:          l.topic,
			Partition:      int32(r.partition),
		}, rp, l.decompressor, nil)
		if bad, ok := errors.AsType[*kgo.ErrDecompressTooLarge](fp.Err); ok && l.passUnreadable && bad.NextOffset > offset {
			records, after = nil, bad.NextOffset // what came before it was no record
			return nil
		}
		if fp.Err != nil {
			if kerr.ErrorForCode(rp.ErrorCode) != nil {
				return fp.Err
			}
			return &permanentError{fmt.Errorf("decode: %w", fp.Err)}
		}
		if next <= offset && offset < rp.LastStableOffset {
			return r.stuck(&size)
		}
		records, after = fp.Records, next
		return nil
	})
	return records, after, err
}

// errPartialBatch reports an answer too small for the batch at the offset.
var errPartialBatch = errors.New("answer holds no whole batch")

// stuck handles an answer that does not lead on though there is more: brokers cut the
// last batch at the size asked for (KIP-74 promises the first one whole, but old ones
// and proxies do not keep it), so a larger size may help.
func (r *reader) stuck(size *int32) error {
	if int64(*size)*2 > maxMaxBatchBytes*2 {
		return &permanentError{fmt.Errorf("%w in %d bytes", errPartialBatch, *size)}
	}
	*size *= 2
	return errPartialBatch
}

// outOfRange describes an offset that the broker does not hold. A race with retention
// or with a leader that is behind may have the offset in range by now; then it asks for
// another attempt.
func (r *reader) outOfRange(ctx context.Context, offset int64) error {
	start, end, err := r.log.Bounds(ctx, r.partition)
	if err != nil {
		return err
	}
	if offset >= start && offset <= end {
		return kerr.OffsetNotAvailable // retriable
	}
	return &OffsetRangeError{Partition: r.partition, Offset: offset, Start: start, End: end}
}

// fetchOnce sends one fetch and waits for its answer. It has a connection of its own
// meanwhile: cancelling a fetch kills its connection, and brokers answer the fetches of
// one connection one after the other.
func (l *Log) fetchOnce(ctx context.Context, leader int32, partition uint16, offset int64, size int32) (*kmsg.FetchResponseTopicPartition, error) {
	var cl *kgo.Client
	select {
	case cl = <-l.readers:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { l.readers <- cl }()

	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxWaitMillis = 0
	req.MinBytes = 0
	req.MaxBytes = size
	req.IsolationLevel = readCommitted
	req.SessionEpoch = -1 // no session (KIP-227)
	t := kmsg.NewFetchRequestTopic()
	t.Topic = l.topic
	t.TopicID = l.topicID
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition = int32(partition)
	p.CurrentLeaderEpoch = -1
	p.FetchOffset = offset
	p.PartitionMaxBytes = size
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)

	raw, err := l.fetchWith(ctx, cl, leader, req)
	if err != nil {
		return nil, err
	}
	resp := raw.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, errors.New("fetch answer does not hold the one partition asked for")
	}
	return &resp.Topics[0].Partitions[0], nil
}

// fetchWith sends req through cl, which may not have heard of the broker yet.
func (l *Log) fetchWith(ctx context.Context, cl *kgo.Client, leader int32, req *kmsg.FetchRequest) (kmsg.Response, error) {
	var kreq kmsg.Request = req
	if l.topicID == ([16]byte{}) {
		kreq = fetchByName{req}
	}
	raw, err := cl.Broker(int(leader)).Request(ctx, kreq)
	if err == nil || ctx.Err() != nil {
		return raw, err
	}
	if _, err := l.fetchMetadata(ctx, cl); err != nil {
		return nil, err
	}
	return cl.Broker(int(leader)).Request(ctx, kreq)
}

// fetchByName is a fetch to brokers without topic ids: version 12 is the last that
// names topics.
type fetchByName struct{ *kmsg.FetchRequest }

func (fetchByName) MaxVersion() int16 { return 12 }
