package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Log is random access to the events topic; *kafka.Log is one. It belongs to the caller
// and stays open until Run has returned.
type Log interface {
	Bounds(ctx context.Context, partition uint16) (start, end int64, err error)
	OffsetForTime(ctx context.Context, partition uint16, ms int64) (int64, error)
	Read(ctx context.Context, partition uint16, from, to int64, fn func(*kgo.Record) error) (next int64, err error)
}

// Deps are what a Materializer works with. All fields but Erased, Known, DeadLetters, Published,
// Metrics and Logger are required.
type Deps struct {
	Kafka []kgo.Opt // how every client reaches the brokers (kafka.Config.Options)
	Log   Log
	Conn  driver.Conn // with the tables of query.Migrate
	Epoch uint8       // the present life of the topic (control.Store.Epoch)
	Rule  schema.DedupeRule

	// Placement says which partition a workspace's sessions lie in. The answer must be
	// the same on every node and for as long as the epoch lasts: a record that lies
	// elsewhere becomes a dead letter.
	Placement func(workspace string) schema.Placement

	// Erased says which events are no more; nil: none.
	Erased schema.ErasedBelow

	// Known reports whether there is a workspace, as far as this process has heard; nil: all
	// there are. An event of no workspace gets a dead letter. It must not block.
	Known func(workspace string) bool

	// DeadLetters keeps what is no event; nil: nothing but the rows says so.
	DeadLetters DeadLetters

	// Published is told the watermark of a partition of ours, after each commit
	// (query.Watermarks.Set). It must not block.
	Published func(partition uint16, next int64)

	// TTL is how old rows become before ClickHouse deletes them (query.TableConfig.TTL):
	// those that may have expired are neither missed nor rebuilt. 0: they are kept.
	TTL time.Duration

	Metrics *Metrics
	Logger  *slog.Logger
}

// Materializer copies the log into ClickHouse; see the package's doc. Any number of
// processes may run one: the group shares the partitions out.
type Materializer struct {
	cfg          Config
	epoch        uint8
	rule         schema.DedupeRule
	placement    func(string) schema.Placement
	erased       schema.ErasedBelow
	known        func(string) bool
	letters      DeadLetters
	published    func(uint16, int64)
	kafkaOptions []kgo.Opt
	kafkaLog     Log
	store        store
	ttl          time.Duration
	openTail     func(partition uint16, from int64) (*tail, error)
	random       func(below time.Duration) time.Duration // for pauses; nil: math/rand

	requestInterval time.Duration // between two looks for requests
	metrics         *Metrics
	logger          *slog.Logger
	inserts         chan struct{} // one token an insert in flight

	mu     sync.Mutex          // guards owned; no call out is made under it
	owned  map[uint16]*running // the partitions that are ours, and those whose worker is ending
	closed bool                // no worker starts any more
}

// running is a worker and the ways to end it.
type running struct {
	*worker
	soften context.CancelCauseFunc
	harden context.CancelCauseFunc
	done   chan struct{} // closed by the worker's goroutine, at its end
}

// New returns a Materializer; Run starts it.
func New(cfg Config, deps Deps) (*Materializer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Epoch == 0 || deps.Rule.Offsets < 1 || deps.Rule.Age < time.Millisecond {
		return nil, fmt.Errorf("materializer: epoch %d and dedupe rule %+v; want both set", deps.Epoch, deps.Rule)
	}
	m := &Materializer{
		cfg:          cfg,
		epoch:        deps.Epoch,
		rule:         deps.Rule,
		placement:    deps.Placement,
		erased:       deps.Erased,
		known:        deps.Known,
		letters:      deps.DeadLetters,
		published:    deps.Published,
		kafkaOptions: deps.Kafka,
		kafkaLog:     deps.Log,
		store:        &clickHouse{conn: deps.Conn, epoch: deps.Epoch, timeout: cfg.InsertTimeout},
		ttl:          deps.TTL,

		requestInterval: defaultRequestInterval,
		metrics:         deps.Metrics,
		logger:          deps.Logger,
		inserts:         make(chan struct{}, cfg.Concurrency),
		owned:           make(map[uint16]*running),
	}
	m.openTail = m.openKafkaTail
	if m.published == nil {
		m.published = func(uint16, int64) {}
	}
	if m.metrics == nil {
		m.metrics = NewMetrics(nil)
	}
	if m.logger == nil {
		m.logger = slog.New(slog.DiscardHandler)
	}
	return m, nil
}

// Run joins the group and copies the partitions that it is given, until ctx ends. Then
// it finishes what is in flight (for at most Config.RevokeTimeout), commits, leaves the
// group and returns nil. It returns an error only if it cannot begin. Call it once.
//
// Kafka or ClickHouse being away is no reason to return: partitions wait where they are.
func (m *Materializer) Run(ctx context.Context) error {
	cl, err := kgo.NewClient(append(m.kafkaOptions[:len(m.kafkaOptions):len(m.kafkaOptions)],
		kgo.ConsumerGroup(schema.GroupMaterializer),
		kgo.ConsumeTopics(schema.TopicEvents),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		kgo.SessionTimeout(m.cfg.SessionTimeout),
		kgo.HeartbeatInterval(m.cfg.SessionTimeout/4),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.OnPartitionsAssigned(m.assigned),
		kgo.OnPartitionsRevoked(m.revoked),
		kgo.OnPartitionsLost(m.lost),
		// The client coordinates; each worker reads with one of its own. A fetch that
		// gets in before the pause below is small and dropped.
		kgo.FetchMaxBytes(1<<10),
		kgo.FetchMaxPartitionBytes(1<<10),
	)...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	cl.PauseFetchTopics(schema.TopicEvents)
	var checker sync.WaitGroup
	checker.Go(func() { m.selfCheck(ctx) })
	checker.Go(func() { m.followRequests(ctx, kadm.NewClient(cl)) })
	m.watchGroup(ctx, cl)
	checker.Wait()
	m.stop()
	cl.Close() // leaves the group
	return nil
}

// watchGroup reports what goes wrong with the membership, until ctx ends.
func (m *Materializer) watchGroup(ctx context.Context, cl *kgo.Client) {
	var pause backoff
	for ctx.Err() == nil {
		cl.PollFetches(ctx).EachError(func(_ string, _ int32, err error) {
			if ctx.Err() != nil || pause.quiet() {
				return
			}
			m.logger.Warn("group of the materialiser", "error", err)
		})
		if ctx.Err() == nil {
			pause.wait(ctx)
		}
	}
}

// assigned starts a worker for each new partition. The group calls it, one callback at
// a time.
func (m *Materializer) assigned(_ context.Context, cl *kgo.Client, topics map[string][]int32) {
	m.startWorkers(kafkaMember{cl, kadm.NewClient(cl)}, topics[schema.TopicEvents])
}

// startWorkers starts a worker for each of the partitions that a member was assigned.
func (m *Materializer) startWorkers(group groupMember, partitions []int32) {
	for _, p := range partitions {
		r := m.newWorker(group, uint16(p))
		if !m.own(r) {
			r.harden(errRevoked)
			continue
		}
		go func() {
			defer close(r.done)
			r.run()
		}()
	}
}

// newWorker makes the worker of a partition that was assigned to a member.
func (m *Materializer) newWorker(group groupMember, partition uint16) *running {
	member, generation := group.GroupMetadata()
	hard, harden := context.WithCancelCause(context.Background())
	soft, soften := context.WithCancelCause(hard)
	return &running{
		worker: &worker{
			Materializer: m,
			commits:      &commits{group: group, epoch: m.epoch},
			partition:    partition,
			member:       member,
			soft:         soft,
			hard:         hard,
			log:          m.logger.With("partition", partition, "generation", generation),
			gauges:       m.metrics.partition(partition),
			judge:        judge{epoch: m.epoch, partition: partition, placement: m.placement, erased: m.erased, known: m.known},
			batch:        newBatch(m.epoch, partition),
		},
		soften: soften, harden: harden, done: make(chan struct{}),
	}
}

// own enters a worker among the owned ones, unless the Materializer is stopping.
func (m *Materializer) own(r *running) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.owned[r.partition] != nil {
		return false
	}
	m.owned[r.partition] = r
	return true
}

// revoked ends the workers in peace, and returns when they have: the group waits, so
// nobody else owns the partitions meanwhile.
func (m *Materializer) revoked(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
	m.end(topics[schema.TopicEvents], errRevoked)
}

// lost ends the workers at once: the partitions are another member's already.
func (m *Materializer) lost(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
	ending := m.workers(topics[schema.TopicEvents])
	for _, r := range ending {
		m.metrics.fenced.Inc()
		r.harden(errLost)
	}
	for _, r := range ending {
		<-r.done
		m.disown(r)
	}
}

// stop ends all workers and lets no other start.
func (m *Materializer) stop() {
	m.mu.Lock()
	m.closed = true
	var all []int32
	for p := range m.owned {
		all = append(all, int32(p))
	}
	m.mu.Unlock()
	m.end(all, errRevoked)
}

// end ends workers in peace, all at the same time, for at most Config.RevokeTimeout. When it
// returns they have ended, also those that somebody else was ending already: a partition
// that is revoked while the process stops must not be given up before its worker has.
func (m *Materializer) end(partitions []int32, cause error) {
	ending := m.workers(partitions)
	for _, r := range ending {
		r.soften(cause)
	}
	deadline := time.NewTimer(m.cfg.RevokeTimeout)
	defer deadline.Stop()
	for i, r := range ending {
		select {
		case <-r.done:
		case <-deadline.C:
			for _, late := range ending[i:] {
				late.harden(errTooSlow)
			}
			<-r.done
		}
		r.harden(cause) // frees the contexts
		m.disown(r)
	}
}

// workers returns those of the owned ones that copy the partitions.
func (m *Materializer) workers(partitions []int32) (out []*running) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range partitions {
		if r := m.owned[uint16(p)]; r != nil {
			out = append(out, r)
		}
	}
	return out
}

// disown takes a worker that has ended out of the owned ones.
func (m *Materializer) disown(r *running) {
	m.mu.Lock()
	first := m.owned[r.partition] == r // of those who were ending it
	if first {
		delete(m.owned, r.partition)
	}
	m.mu.Unlock()
	if first {
		m.metrics.forget(r.partition)
	}
}

// limits are those of a batch now: the buffer is shared by the partitions we own.
func (m *Materializer) limits() limits {
	m.mu.Lock()
	share := m.cfg.BufferBytes / max(1, len(m.owned))
	m.mu.Unlock()
	return limits{rows: m.cfg.MaxBatchRows, bytes: min(m.cfg.MaxBatchBytes, share)}
}

// acquireInsert waits for the right to insert; ok is false if ctx ended first.
func (m *Materializer) acquireInsert(ctx context.Context) (release func(), ok bool) {
	select {
	case m.inserts <- struct{}{}:
		return func() { <-m.inserts }, true
	case <-ctx.Done():
		return nil, false
	}
}

// answered reports whether ClickHouse itself gave the error, as opposed to the way to it.
func answered(err error) bool {
	var exception *clickhouse.Exception
	return errors.As(err, &exception)
}
