package presence

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The times that all nodes share. They are not settings: a node that beats slower than
// others forget would not be counted.
const (
	// PublishInterval is the shortest time between two publications of a node.
	PublishInterval = 200 * time.Millisecond
	// Heartbeat is how often a node with streams publishes all its counts.
	Heartbeat = 2 * time.Second
	// NodeTimeout is how long a node counts that is not heard: three heartbeats may be
	// lost.
	NodeTimeout = 7 * time.Second

	pollInterval = 150 * time.Millisecond
)

// timing is those times, which tests shorten.
type timing struct {
	publish, heartbeat, timeout, poll time.Duration
}

// Option changes how Start works.
type Option func(*options)

type options struct {
	log    *slog.Logger
	now    func() time.Time
	reg    prometheus.Registerer
	timing timing
}

func defaultOptions() options {
	return options{
		log:    slog.New(slog.DiscardHandler),
		now:    time.Now,
		timing: timing{publish: PublishInterval, heartbeat: Heartbeat, timeout: NodeTimeout, poll: pollInterval},
	}
}

// WithLogger sets where skipped records and lost connections are told. Default: nowhere.
func WithLogger(log *slog.Logger) Option { return func(o *options) { o.log = log } }

// WithClock sets the clock that other nodes are timed out by. Default: time.Now.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

// WithRegisterer registers the counter's metrics. Default: they are not registered.
func WithRegisterer(reg prometheus.Registerer) Option { return func(o *options) { o.reg = reg } }
