package presence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// Counter counts open streams over all nodes; the package comment says how exactly.
// Safe for concurrent use.
type Counter struct {
	cfg     kafka.Config
	log     *slog.Logger
	now     func() time.Time
	timing  timing
	metrics *metrics

	producer *kgo.Client
	publish  publisher
	follow   follower
	wake     chan struct{} // asks the publisher to publish; one waiting wake is enough
	cancel   context.CancelFunc
	hangUp   context.CancelFunc // ends whatever the producer does
	onLine   context.Context    // ends with hangUp
	wg       sync.WaitGroup
	closing  sync.Once

	mu       sync.Mutex // guards what follows; no lock is taken under it
	ledger   *ledger
	receiver func(message []byte) // nil: there is none
}

// Start reads what the other nodes last said in playhead.presence, which must exist, and
// follows it from there. ctx bounds the start only. The caller closes the counter.
func Start(ctx context.Context, cfg kafka.Config, opts ...Option) (*Counter, error) {
	o := defaultOptions()
	for _, opt := range opts {
		opt(&o)
	}
	cfg.ReadConnections = 1
	clientOpts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	var id [8]byte
	rand.Read(id[:])
	node := hex.EncodeToString(id[:])
	c := &Counter{
		cfg: cfg, log: o.log, now: o.now, timing: o.timing,
		wake: make(chan struct{}, 1), cancel: func() {},
		ledger: newLedger(o.timing.timeout),
	}
	c.metrics = newMetrics(o.reg, c)
	c.onLine, c.hangUp = context.WithCancel(context.Background())
	c.publish = publisher{node: node, silent: true}
	// A count that is lost, repeated or late is repaired by the next snapshot: one
	// acknowledgement is enough, and without idempotence a record can be given up.
	c.producer, err = kgo.NewClient(append(clientOpts,
		kgo.WithContext(c.onLine), kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck()), kgo.ProducerLinger(0),
		kgo.RecordDeliveryTimeout(produceTimeout), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		c.hangUp()
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	if err := c.load(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("load %s: %w", schema.TopicPresence, err)
	}
	var life context.Context
	life, c.cancel = context.WithCancel(context.Background())
	c.wg.Go(func() { c.runPublisher(life) })
	c.wg.Go(func() { c.runFollower(life) })
	return c, nil
}

// Close takes leave of the other nodes, which count this node's streams no more, and
// stops. It waits for Kafka for at most goodbyeTimeout. Acquire, release and Open go on
// in memory, by what was last heard. Closing twice is harmless.
func (c *Counter) Close() { c.stop(c.sayGoodbye) }

// stop ends the goroutines, calls last, and closes the connections. What waits for Kafka
// then, last included, is cut off after goodbyeTimeout.
func (c *Counter) stop(last func(context.Context)) {
	c.closing.Do(func() {
		defer c.hangUp()
		defer time.AfterFunc(goodbyeTimeout, c.hangUp).Stop()
		c.cancel()
		c.wg.Wait()
		last(c.onLine)
		if c.follow.topic != nil {
			c.follow.topic.Close()
		}
		c.producer.Close()
	})
}

// Acquire counts a stream as open until release is called, or returns a *LimitError. A
// class is a kind of stream with a limit of its own; "" has none, whatever limits say. It
// never waits for Kafka. The counter keeps the strings: they must not alias a request's
// buffer. release may be called from any goroutine; calls after the first do nothing.
func (c *Counter) Acquire(workspace, key, class string, limits Limits) (release func(), err error) {
	e := entry{workspace, key, class}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("count a stream: %w", err) // a bug of the caller: other nodes would not read it
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	if refused := c.ledger.admit(e, limits); refused != nil {
		c.metrics.refused.WithLabelValues(refused.Of).Inc()
		return nil, refused
	}
	c.add(e, 1)
	released := false // guarded by c.mu
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !released {
			released = true
			c.add(e, -1)
		}
	}, nil
}

// Open returns how many streams are open on all nodes, as far as is known here.
func (c *Counter) Open(workspace, key string) (ofWorkspace, ofKey int) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	return c.ledger.workspaces[workspace], c.ledger.keys[keyOf{workspace, key}]
}

// add counts n more streams and sees to it that the others hear. c.mu is held.
func (c *Counter) add(e entry, n int) {
	c.ledger.add(e, n)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// expire forgets nodes that are silent. It is done wherever counts are read, so that it
// needs neither a timer nor Kafka. c.mu is held.
func (c *Counter) expire(now time.Time) {
	if n := c.ledger.expire(now); n > 0 {
		c.metrics.forgotten.Add(float64(n))
		c.log.Warn("nodes are silent; their streams count no more", "nodes", n)
	}
}
