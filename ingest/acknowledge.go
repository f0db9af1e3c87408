package ingest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// The second half of a request's way: handed to Kafka, acknowledged, answered.

// produce hands all new items to Kafka, in order, and settles the request if there are
// none.
func (r *request) produce() {
	n := 0
	for i := range r.items {
		if r.new(i) {
			n++
		}
	}
	r.began = time.Now()
	r.pending.Store(1)
	p := r.a.producer
	r.hand(p, n, 0, r.nowMs, func(e *schema.Event) { p.release(1, int64(e.Size())) })
	p.handedOver(n)
	r.acknowledgedOne()
}

// hand hands the next n new items, from item first on, to Kafka, stamped with nowMs, and
// returns the item behind the last. acknowledged is called for each, once Kafka has
// answered, before the request knows.
func (r *request) hand(p *producer, n, first int, nowMs int64, acknowledged func(*schema.Event)) (next int) {
	r.pending.Add(int64(n))
	records := make([]kgo.Record, n)
	headers := make([]kgo.RecordHeader, n*headersPerRecord)
	next = first
	for n = 0; n < len(records); next++ {
		i := next // each record's own
		if !r.new(i) {
			continue
		}
		r.fates[i] = fateProduced
		t, e := r.targets[i], &r.items[i].Event
		e.ID.TimeMs = nowMs
		room := headers[n*headersPerRecord : n*headersPerRecord : (n+1)*headersPerRecord]
		p.fill(&records[n], room, e, t.kkey, t.lane.partition)
		p.produce(&records[n], func(rec *kgo.Record, err error) {
			acknowledged(e)
			r.acknowledge(i, rec, err)
		})
		n++
	}
	return next
}

// acknowledge is what Kafka's client calls for each record, one after the other within
// a partition.
func (r *request) acknowledge(i int, rec *kgo.Record, err error) {
	t := r.targets[i]

	r.mu.Lock()
	res := &r.results[i]
	if err != nil {
		res.Err = produceError(err)
		r.failure, r.failedAt = err, t.lane.partition
	} else {
		res.ID = schema.EventID{
			Position: schema.Position{Epoch: r.a.layout.Epoch(), Partition: t.lane.partition, Offset: rec.Offset},
			TimeMs:   r.items[i].Event.ID.TimeMs,
		}
		r.acknowledged++
		r.payload += len(rec.Value)
		t.acknowledgedAt = max(t.acknowledgedAt, rec.Offset)
	}
	r.mu.Unlock()
	r.acknowledgedOne()
}

func (r *request) acknowledgedOne() {
	if r.pending.Add(-1) == 0 {
		r.finish()
	}
}

// finish settles the claims and starts this request holds and wakes those who wait.
func (r *request) finish() {
	settled := 0
	for i, owned := range r.owned {
		if !owned {
			continue
		}
		// Claims of repeats go as well: the tail knows of them.
		l, res := r.targets[i].lane, &r.results[i]
		if res.Err == nil && !res.Duplicate {
			l.settle(r.keys[i], res.ID)
			settled++
		} else {
			l.drop(r.keys[i])
		}
	}
	for _, t := range r.byName {
		if t.starting && t.lane.begun(t.key, r, t.acknowledgedAt) {
			settled++
		}
	}
	r.a.metrics.unpassed.Add(float64(settled))
	if r.failure != nil {
		r.a.logFailure(r.failedAt, r.failure)
	}
	if r.acknowledged > 0 {
		r.a.metrics.acknowledged(r.acknowledged, r.payload, time.Since(r.began))
		if r.sliced {
			r.a.metrics.backfilled.Add(float64(r.acknowledged))
		}
	}
	close(r.done)
}

// wait returns the results when every one is final, or when ctx ends: those still open
// are then refused. The records stay with Kafka's client, which goes on noting their
// fate in r.results, for requests that wait for it.
func (r *request) wait(ctx context.Context) []Result {
	results := r.results
	select {
	case <-r.done:
	case <-ctx.Done():
		r.mu.Lock()
		results = slices.Clone(r.results)
		r.mu.Unlock()
		for i := range results {
			if r.fates[i] == fateProduced && results[i].ID.IsZero() && results[i].Err == nil {
				results[i].Err = httpapi.LogUnavailable(context.Cause(ctx))
			}
		}
	}
	for i, c := range r.waits {
		results[i] = r.outcome(ctx, results, i, c)
	}
	return results
}

// outcome is the result of an item whose message id another item was appending.
func (r *request) outcome(ctx context.Context, results []Result, i int, c claim) Result {
	res := results[i]
	var first Result
	switch c.req {
	case r:
		first = results[c.item]
	default:
		select {
		case <-c.req.done:
			first = c.req.results[c.item]
		case <-ctx.Done():
			res.Err = httpapi.LogUnavailable(context.Cause(ctx))
			return res
		}
	}
	switch {
	case first.Err == nil:
		res.ID, res.Duplicate = first.ID, true
		if !r.items[i].TMsGiven {
			res.TMs = first.TMs
		}
	case c.req == r:
		res.Err = first.Err
	default:
		// The other was refused, perhaps for reasons of its own.
		res.Err = httpapi.LogUnavailable(fmt.Errorf("the same message id was refused in another request: %w", first.Err))
	}
	return res
}

// count feeds the metrics that say what clients were answered.
func (r *request) count(results []Result) {
	for i := range results {
		switch res := &results[i]; {
		case res.Err != nil:
			r.a.metrics.refused.WithLabelValues(res.Err.Code).Inc()
		case res.Duplicate:
			r.a.metrics.duplicates.Inc()
		}
	}
	r.a.metrics.inFlight.Set(float64(r.a.producer.events.Load()))
	r.a.metrics.inBytes.Set(float64(r.a.producer.bytes.Load()))
}
