package ingest

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// A slice is what a backfill hands to Kafka at a time. It is what a live append may find
// before it at the broker, so it is small.
const (
	sliceEvents = 250
	sliceBytes  = 128 << 10 // but one event at least
)

// backfillWindow is how many slices may be in flight: one at the broker, and one on its
// way there.
const backfillWindow = 2

// liveMemory is how long after the last live append more are expected.
const liveMemory = time.Second

// backfillLookups is how many requests may ask for sessions and message ids at once, so
// that most of the connections to history stay for others.
const backfillLookups = 2

// backfill is the lane of bulk imports: a bounded share of the node, which makes way for
// live appends. Those only tell it that they are there (begin, end) and never wait for it.
//
// A request on it takes these steps, each bounded and, where it waits, in order of
// arrival: it is let in, or refused at once; its body is decoded, one at a time; its
// sessions are looked up; its records are handed, a slice at a time, to a Kafka client of
// the lane's own.
//
// Decoding and each slice are turns. While there are live appends, the lane takes one turn
// at a time, begins it when none of them is under way, and rests after it, so that its
// turns take Config.BackfillShare of the time. But it makes way no longer than
// Config.BackfillYield a turn, so that it moves on even if live appends never cease. How
// long a turn takes says how busy the node, the broker and its disk are: the slower they
// are, the longer it rests.
type backfill struct {
	cfg      Config
	producer *producer
	metrics  *Metrics

	decoding chan struct{} // holds a token while a body waits or is decoded
	looking  chan struct{} // a token for each lookup
	handing  chan struct{} // holds a token while a slice waits: so they go in order

	// mu guards the fields below. Nothing is called under it.
	mu       sync.Mutex
	live     int           // live appends under way
	lastLive time.Time     // when the last of them ended
	requests int           // let in
	bytes    int           // of decoded bodies whose requests are under way
	turns    int           // under way
	slices   int           // those of the turns that are slices
	rested   time.Time     // when the lane has rested from its last turn
	waiting  int           // who waits for changed
	changed  chan struct{} // closed and made anew when one of the numbers is less, if anyone waits
}

// newBackfill returns the lane; p is its own.
func newBackfill(cfg Config, p *producer, metrics *Metrics) *backfill {
	return &backfill{
		cfg: cfg, producer: p, metrics: metrics,
		decoding: make(chan struct{}, 1),
		looking:  make(chan struct{}, backfillLookups),
		handing:  make(chan struct{}, 1),
		changed:  make(chan struct{}),
	}
}

// newBackfillProducer returns a client that sends each slice as one request: handing it
// over ends the linger.
func newBackfillProducer(cfg Config, opts []kgo.Opt) (*producer, error) {
	cfg.Linger = max(cfg.Linger, time.Millisecond)
	return newProducer(cfg, opts)
}

// begin and end enclose a live append.
func (b *backfill) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.live++
}

func (b *backfill) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.live--
	b.lastLive = time.Now()
	if b.live == 0 {
		b.wake()
	}
}

// wake tells who waits that something has changed. The caller holds mu.
func (b *backfill) wake() {
	if b.waiting > 0 {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// enter lets a request in. leave must be called at its end.
func (b *backfill) enter() (leave func(), err *httpapi.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.requests >= b.cfg.MaxBackfillRequests {
		return nil, overloaded("backfill requests")
	}
	b.requests++
	b.metrics.backfills.Set(float64(b.requests))
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.requests--
		b.metrics.backfills.Set(float64(b.requests))
	}, nil
}

// decode runs f, which decodes a body and returns how large it has become, when no other
// is being decoded, there is room for the largest body, and it is the lane's turn. done
// must be called when the decoded events are no longer needed.
func (b *backfill) decode(ctx context.Context, f func() (bytes int)) (done func(), err *httpapi.Error) {
	release, err := acquire(ctx, b.decoding)
	if err != nil {
		return nil, err
	}
	defer release()
	most := b.cfg.MaxBatchBytes
	began, err := b.turn(ctx, func() bool { return b.bytes+most <= b.cfg.MaxBackfillBytes }, func() { b.bytes += most })
	if err != nil {
		return nil, err
	}
	size := 0
	defer b.endTurn(began, func() { b.bytes -= most - size })
	size = min(f(), most)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.bytes -= size
		b.wake()
	}, nil
}

// lookup waits for its place to look up sessions; release ends it.
func (b *backfill) lookup(ctx context.Context) (release func(), err *httpapi.Error) {
	return acquire(ctx, b.looking)
}

// slice waits until a slice may be handed over; sent must be called once all of it is
// acknowledged.
func (b *backfill) slice(ctx context.Context) (sent func(), err *httpapi.Error) {
	release, err := acquire(ctx, b.handing)
	if err != nil {
		return nil, err
	}
	defer release()
	began, err := b.turn(ctx, func() bool { return b.slices < backfillWindow }, func() { b.slices++ })
	if err != nil {
		return nil, err
	}
	return func() { b.endTurn(began, func() { b.slices-- }) }, nil
}

// acquire waits for a token, in order of arrival; release gives it back.
func acquire(ctx context.Context, tokens chan struct{}) (release func(), err *httpapi.Error) {
	select {
	case tokens <- struct{}{}:
		return func() { <-tokens }, nil
	case <-ctx.Done():
		return nil, overloaded("backfill requests").WithCause(context.Cause(ctx))
	}
}

// turn waits until there is room and the lane need not make way, then calls take and
// returns when the turn began. The caller holds the only token for that room: it cannot go
// again. room and take are called under mu.
func (b *backfill) turn(ctx context.Context, room func() bool, take func()) (began time.Time, err *httpapi.Error) {
	var deadline time.Time // for making way; from when there is room
	for {
		now := time.Now()
		var due <-chan time.Time
		b.mu.Lock()
		if room() {
			if deadline.IsZero() {
				deadline = now.Add(b.cfg.BackfillYield)
			}
			wait := min(b.makeWay(now), deadline.Sub(now))
			if wait <= 0 {
				take()
				b.turns++
				if b.live > 0 {
					b.metrics.forced.Inc()
				}
				b.mu.Unlock()
				return now, nil
			}
			due = time.After(wait)
		}
		b.waiting++
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-due:
		case <-ctx.Done():
			err = overloaded("backfill requests").WithCause(context.Cause(ctx))
		}
		b.mu.Lock()
		b.waiting--
		b.mu.Unlock()
		if err != nil {
			return now, err
		}
	}
}

// makeWay returns how long, as things are, the lane leaves to live appends before its next
// turn. The caller holds mu.
func (b *backfill) makeWay(now time.Time) time.Duration {
	switch {
	case b.live == 0 && now.Sub(b.lastLive) > liveMemory:
		return 0
	case b.live > 0 || b.turns > 0:
		return b.cfg.BackfillYield // unless woken before
	default:
		return b.rested.Sub(now)
	}
}

// endTurn ends a turn, after which the lane rests. give gives back what it took.
func (b *backfill) endTurn(began time.Time, give func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	give()
	b.turns--
	now := time.Now()
	took := now.Sub(began)
	b.rested = now.Add(took*100/time.Duration(b.cfg.BackfillShare) - took)
	b.wake()
}

// produceSlices is produce on the lane of backfills: the new items go in order, a slice at
// a time. What has not gone when ctx ends is refused.
func (r *request) produceSlices(ctx context.Context) {
	b := r.a.backfill
	r.sliced = true
	r.began = time.Now()
	r.pending.Store(1)
	for next := 0; ; {
		n := r.sliceFrom(next)
		if n == 0 {
			break
		}
		sent, err := b.slice(ctx)
		if err != nil {
			if next > 0 {
				err = httpapi.LogUnavailable(context.Cause(ctx))
			}
			r.abandon(err)
			break
		}
		next = r.hand(b.producer, n, next, r.a.now().UnixMilli(), countdown(n, sent))
		b.producer.sendNow()
	}
	r.acknowledgedOne()
}

// sliceFrom returns how many new items, from item first on, the next slice takes.
func (r *request) sliceFrom(first int) (n int) {
	for i, bytes := first, 0; i < len(r.items) && n < sliceEvents; i++ {
		if !r.new(i) {
			continue
		}
		if bytes += r.items[i].Event.Size(); n > 0 && bytes > sliceBytes {
			break
		}
		n++
	}
	return n
}

// countdown calls done at the last of n calls.
func countdown(n int, done func()) func(*schema.Event) {
	var left atomic.Int64
	left.Store(int64(n))
	return func(*schema.Event) {
		if left.Add(-1) == 0 {
			done()
		}
	}
}
