package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Tail follows one Kafka partition and knows its recent past. It lives until the
// process stops; the Appender never closes it.
type Tail interface {
	// Next is the first offset the tail has not seen yet.
	Next() int64
	// WaitFor returns nil once Next is at least next.
	WaitFor(ctx context.Context, next int64) error
	// Duplicate reports whether a record with this key appended at nowMs would repeat
	// one the tail has seen, and the id of the first such, by schema.DedupeRule.
	Duplicate(key xxh3.Uint128, nowMs int64) (schema.EventID, bool)
	// Session returns the state of a session at some point at or beyond Next as it was
	// when the call began. An error means that the session's past cannot be told now
	// (history is away); appends that need nothing of it then go on without.
	Session(ctx context.Context, workspace, session string) (schema.Session, error)
	// Err is why the tail has stopped following its partition, nil while it follows.
	Err() error
}

// Tails opens the tails of partitions. Open returns once the tail's dedupe window is
// complete and the tail has passed all that was in the partition at the time of the
// call, whoever wrote it. It is called once a partition for appends, and again for every
// creation and end of a session; it gives the same Tail each time while that follows.
type Tails interface {
	Open(ctx context.Context, partition uint16) (Tail, error)
}

// MessageRef names a message id within a workspace.
type MessageRef struct{ Session, MessageID string }

// History looks at what has been materialised.
type History interface {
	// FindMessages returns the ids of those messages that ClickHouse holds, of any age.
	FindMessages(ctx context.Context, workspace string, ids []MessageRef) (map[MessageRef]schema.EventID, error)
	// WaitMaterialised returns nil once ClickHouse holds the partition up to next, exclusive.
	WaitMaterialised(ctx context.Context, partition uint16, next int64) error
}

// Layout says where sessions lie.
type Layout interface {
	// Placement is that of a workspace; ok is false if there is no such workspace.
	Placement(workspace string) (p schema.Placement, ok bool)
	// Epoch is the log epoch of the events topic.
	Epoch() uint8
}

// Deps are the parts an Appender works with.
type Deps struct {
	Kafka   []kgo.Opt // how to reach Kafka: seed brokers, TLS, SASL, client id
	Layout  Layout
	Tails   Tails
	History History           // nil if this process cannot reach one
	Rule    schema.DedupeRule // what the tails' windows reach back to
	Metrics *Metrics
	Log     *slog.Logger
	Now     func() time.Time // time.Now unless set
}

// Caller is on whose behalf events are appended. Session and Workflow, if not empty,
// are all that it may touch; anything else is to it as if it did not exist.
type Caller struct{ Workspace, Session, Workflow string }

// Options of one Append.
type Options struct {
	// AllOrNothing refuses the whole request if any of its events is refused.
	AllOrNothing bool
	// SearchHistory also finds message ids that are older than the dedupe rule's reach.
	SearchHistory bool
	// Backfill sends the events by the lane of bulk imports, which makes way for the
	// appends without it.
	Backfill bool
}

// Result is what became of one event. If Err is nil the event is in the log under ID.
type Result struct {
	ID        schema.EventID
	MessageID string
	Duplicate bool  // ID is that of an earlier event with the same message id
	TMs       int64 // -1 if not known, which can happen to a duplicate
	Err       *httpapi.Error
}

// Appender makes events durable. It is safe for concurrent use. Close ends it.
type Appender struct {
	cfg      Config
	layout   Layout
	tails    Tails
	history  History
	rule     schema.DedupeRule
	metrics  *Metrics
	log      *slog.Logger
	now      func() time.Time
	producer *producer
	backfill *backfill

	mu      sync.Mutex // guards lanes
	lanes   map[uint16]*lane
	lastLog atomic.Int64 // Unix ms of the last logged produce failure
}

// NewAppender connects nothing yet: Kafka is dialled at the first append.
func NewAppender(cfg Config, deps Deps) (*Appender, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p, err := newProducer(cfg, deps.Kafka)
	if err != nil {
		return nil, err
	}
	bulk, err := newBackfillProducer(cfg, deps.Kafka)
	if err != nil {
		p.client.Close()
		return nil, err
	}
	a := &Appender{
		cfg: cfg, layout: deps.Layout, tails: deps.Tails, history: deps.History, rule: deps.Rule,
		metrics: deps.Metrics, log: deps.Log, now: deps.Now, producer: p,
		lanes: make(map[uint16]*lane),
	}
	if a.metrics == nil {
		a.metrics = NewMetrics(nil)
	}
	a.backfill = newBackfill(cfg, bulk, a.metrics)
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.now == nil {
		a.now = time.Now
	}
	return a, nil
}

// Close waits until everything handed to Kafka is acknowledged, or ctx ends, and closes
// the clients. Appends after it are refused with shutting_down.
func (a *Appender) Close(ctx context.Context) error {
	return errors.Join(a.producer.close(ctx), a.backfill.producer.close(ctx))
}

// Append appends events in order and returns a Result for each, in that order. Items
// that carry an Err keep it. The items are the Appender's until the process ends; their
// payloads must not change afterwards.
//
// It waits for Kafka as long as ctx and Config.ProduceTimeout allow, in the lane of
// backfills Config.BackfillTimeout. A result of log_unavailable means that the event may
// have been written or not; a retry with the same message id finds out.
//
// The error, an *httpapi.Error, says that nothing at all was appended.
func (a *Appender) Append(ctx context.Context, caller Caller, items []Item, opt Options) ([]Result, error) {
	if opt.Backfill {
		return a.appendBackfill(ctx, caller, items, opt)
	}
	ctx, cancel := context.WithTimeout(ctx, a.liveTimeout())
	defer cancel()
	a.backfill.begin()
	defer a.backfill.end()

	r := a.newRequest(caller, items)
	r.decide(ctx, opt)
	err := r.refusal(opt)
	if err == nil {
		err = r.admit()
	}
	if err != nil {
		r.abandon(err)
	}
	r.produce()
	return r.answer(ctx, opt, err)
}

// appendBackfill is Append on the lane of backfills.
func (a *Appender) appendBackfill(ctx context.Context, caller Caller, items []Item, opt Options) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.BackfillTimeout)
	defer cancel()
	release, err := a.backfill.lookup(ctx)
	if err != nil {
		return nil, err
	}
	r := a.newRequest(caller, items)
	func() {
		defer release()
		r.decide(ctx, opt)
	}()
	if err = r.refusal(opt); err != nil {
		r.abandon(err)
	}
	r.produceSlices(ctx)
	return r.answer(ctx, opt, err)
}

// liveTimeout is a little longer than the records may take, to hear what became of them.
func (a *Appender) liveTimeout() time.Duration { return a.cfg.ProduceTimeout + time.Second }

// decide finds out what each item is, and settles those that are not to be appended.
func (r *request) decide(ctx context.Context, opt Options) {
	r.place(ctx)
	if r.caller.Workflow != "" {
		r.loadSessions(ctx, func(int) bool { return true })
		r.checkBinding()
	}
	r.classify()
	if opt.SearchHistory {
		r.loadSessions(ctx, r.new)
		r.searchHistory(ctx)
	}
	// A repeat is answered whatever has become of its session since, so only events to
	// append, and repeats that want a t_ms, need the session.
	r.loadSessions(ctx, func(i int) bool {
		return r.results[i].Err == nil && (r.new(i) || !r.items[i].TMsGiven)
	})
	r.judge()
}

// refusal is why the whole request is refused, nil if it is not.
func (r *request) refusal(opt Options) *httpapi.Error {
	if !opt.AllOrNothing {
		return nil
	}
	return r.firstError()
}

// answer waits for what was produced. refused is why the items that were to be appended
// are not, nil if they are.
func (r *request) answer(ctx context.Context, opt Options, refused *httpapi.Error) ([]Result, error) {
	results := r.wait(ctx)
	if refused != nil && opt.AllOrNothing {
		return nil, refused
	}
	r.count(results)
	return results, nil
}

// lane returns the lane of a partition.
func (a *Appender) lane(partition uint16) *lane {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lanes[partition]
	if l == nil {
		l = newLane(partition)
		a.lanes[partition] = l
	}
	return l
}

// tail returns the lane's tail, opening it the first time.
func (a *Appender) tail(ctx context.Context, l *lane) (Tail, error) {
	l.mu.Lock()
	t := l.tail
	l.mu.Unlock()
	if t != nil && t.Err() == nil {
		return t, nil
	}
	return a.freshTail(ctx, l)
}

// freshTail returns the lane's tail once it has passed all that was in the partition
// when the call began.
func (a *Appender) freshTail(ctx context.Context, l *lane) (Tail, error) {
	t, err := a.tails.Open(ctx, l.partition)
	if err != nil {
		return nil, fmt.Errorf("open tail of partition %d: %w", l.partition, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = t
	return t, nil
}

// target is one session of a request.
type target struct {
	key  sessionKey
	lane *lane
	tail Tail
	kkey []byte // Kafka's record key
	err  *httpapi.Error

	loaded, known  bool // known: the tail could tell the session's past
	exists, ended  bool
	startedMs      int64
	firstOffset    int64 // of its first event; meaningful if exists
	workflow       string
	starting       bool // this request may hold its start
	acknowledgedAt int64
}

// logEvery is how often at most a produce failure is logged; all are counted.
const logEvery = 5 * time.Second

func (a *Appender) logFailure(partition uint16, err error) {
	now := a.now().UnixMilli()
	last := a.lastLog.Load()
	if now-last < logEvery.Milliseconds() || !a.lastLog.CompareAndSwap(last, now) {
		return
	}
	a.log.Warn("produce failed", "topic", schema.TopicEvents, "partition", partition, "error", err)
}
