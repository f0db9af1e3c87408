package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/playhead-dev/playhead/ingest"
	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/deadletters"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/internal/openapi"
	"github.com/playhead-dev/playhead/internal/presence"
	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/streamer"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// node is one running process of Playhead.
//
//	HTTP ─▶ httpapi (keys from control)
//	          ├─ ingest ──────▶ Kafka playhead.events
//	          │    └ asks ─▶ tapes (dedupe window, session state)
//	          ├─ streamer hub ─▶ tapes ◀─ Kafka
//	          │    └ below the tape ─▶ past = ClickHouse up to the watermark, then Kafka
//	          └─ query ───────▶ ClickHouse, completed from tapes
//	materialiser: Kafka ─▶ ClickHouse; its committed offsets are the watermarks
//
// All roles of a process share one set of tapes: a partition is followed once.
type node struct {
	cfg    Config
	logger *slog.Logger
	health *httpapi.Health
	reg    *prometheus.Registry

	log        *kafka.Log
	control    *control.Store
	clickhouse driver.Conn
	watermarks *query.Watermarks
	history    *query.History

	queryMetrics *query.Metrics

	letterMetrics *deadletters.Metrics
	letters       *deadletters.Writer

	past     *streamer.Past
	tapes    *tape.Tapes
	presence *presence.Counter
	appends  *ingest.API                  // nil without the role
	hub      atomic.Pointer[streamer.Hub] // nil without the role
	limiter  *httpapi.Limiter

	app      *fiber.App
	listener net.Listener
	stopping atomic.Bool
	failed   chan error // the first failure of something that runs
	stops    []step     // in order of starting; stop runs them backwards
}

// step undoes one step of starting.
type step struct {
	name string
	stop func(context.Context) error
}

// stepTimeout bounds each step of stopping.
const stepTimeout = 10 * time.Second

// startNode starts the configured roles; listen opens their door. On an error everything
// that had been started is stopped again.
func startNode(ctx context.Context, cfg Config, logger *slog.Logger) (*node, error) {
	n := newNode(cfg, logger)
	for _, start := range []func(context.Context) error{
		n.openLog, n.openClickHouse, n.openTapes, n.openHTTP,
	} {
		if err := start(ctx); err != nil {
			return nil, n.stopAfter(err)
		}
	}
	return n, nil
}

// newNode returns a node of which nothing has been started.
func newNode(cfg Config, logger *slog.Logger) *node {
	n := &node{
		cfg: cfg, logger: logger, failed: make(chan error, 1),
		health: httpapi.NewHealth(logger), reg: prometheus.NewRegistry(),
		watermarks: query.NewWatermarks(),
	}
	n.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return n
}

// onStop adds a step of stopping.
func (n *node) onStop(name string, stop func(context.Context) error) {
	n.stops = append(n.stops, step{name, stop})
}

// background runs f until the node stops; an error ends the node.
func (n *node) background(name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ended by the step below
		defer close(done)
		if err := f(ctx); err != nil && ctx.Err() == nil {
			n.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
	n.onStop(name, func(wait context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-wait.Done():
			return fmt.Errorf("did not stop: %w", context.Cause(wait))
		}
	})
}

func (n *node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// run serves until ctx ends or something fails, then stops in order.
func (n *node) run(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
	case err = <-n.failed:
	}
	return n.stopAfter(err)
}

// stopAfter stops everything, the last started first, and returns err with whatever
// went wrong meanwhile.
func (n *node) stopAfter(err error) error {
	n.stopping.Store(true)
	n.health.Stop()
	errs := []error{err}
	for i := len(n.stops) - 1; i >= 0; i-- {
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		if serr := n.stops[i].stop(ctx); serr != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", n.stops[i].name, serr))
		}
		cancel()
	}
	n.stops = nil
	return errors.Join(errs...)
}

func (n *node) openLog(ctx context.Context) error {
	if err := n.openTopics(ctx); err != nil {
		return err
	}
	var err error
	if n.log, err = kafka.OpenLog(ctx, n.cfg.Kafka); err != nil {
		return err
	}
	n.onStop("log", func(context.Context) error { n.log.Close(); return nil })
	n.health.Add("kafka", n.log.Ping)
	if n.control, err = control.Open(ctx, n.cfg.Kafka, control.WithLogger(n.logger), control.WithRegisterer(n.reg)); err != nil {
		return err
	}
	n.onStop("control", func(context.Context) error { n.control.Close(); return nil })
	n.health.Add("control", n.control.Ready)
	if _, err = n.control.EnsureEpoch(ctx, n.log.TopicID(), n.log.Partitions()); err != nil {
		return err
	}
	if n.presence, err = presence.Start(ctx, n.cfg.Kafka, presence.WithLogger(n.logger), presence.WithRegisterer(n.reg)); err != nil {
		return err
	}
	n.onStop("presence", func(context.Context) error { n.presence.Close(); return nil })
	return n.openLetters()
}

// openClickHouse connects, and starts what waits for ClickHouse by itself: it may be
// away at the start.
func (n *node) openClickHouse(ctx context.Context) error {
	var err error
	if n.clickhouse, err = query.Open(ctx, n.cfg.ClickHouse); err != nil {
		return err
	}
	n.onStop("clickhouse", func(context.Context) error { return n.clickhouse.Close() })
	n.queryMetrics = query.NewMetrics(n.reg)
	n.history = query.NewHistory(n.clickhouse, n.cfg.Query, n.logger, n.queryMetrics)
	n.history.Hide(n.control)
	n.history.Hide(n.control)
	if err := n.followWatermarks(); err != nil {
		return err
	}
	migrated := make(chan struct{})
	n.health.Add("clickhouse", func(ctx context.Context) error {
		select {
		case <-migrated:
			return n.clickhouse.Ping(ctx)
		default:
			return errors.New("the table is not there yet")
		}
	})
	n.background("materializer", func(ctx context.Context) error {
		if err := n.migrate(ctx); err != nil {
			return err
		}
		close(migrated)
		if !n.cfg.has(roleMaterializer) {
			<-ctx.Done()
			return nil
		}
		return n.materialize(ctx)
	})
	select { // usually at once; a node should not answer before it knows its history
	case <-migrated:
	case <-time.After(migrateHeadStart):
		n.logger.Warn("starting without ClickHouse")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// migrateHeadStart is how long a start waits for ClickHouse before it goes on without.
const migrateHeadStart = 5 * time.Second

// migrate brings the tables up to date, however long ClickHouse is away. What no waiting
// mends ends the node.
func (n *node) migrate(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := n.migrateOnce(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, query.ErrMigrationChanged) || errors.Is(err, query.ErrTableConfig) {
			return err
		}
		n.logger.Warn("migrate clickhouse", "error", err, "retry_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// migrateOnce brings the tables to this binary's version, and to what is configured.
func (n *node) migrateOnce(ctx context.Context) error {
	conn, err := query.OpenMigrations(ctx, n.cfg.ClickHouse)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight
	if err := query.NewMigrator(conn, n.cfg.ClickHouse.Table, n.logger).Up(ctx, 0); err != nil {
		return err
	}
	return query.ApplyTable(ctx, conn, n.cfg.ClickHouse.Table, n.logger)
}

// shortGap is what Kafka gives in about a tenth of a second; ClickHouse takes as long for any
// part of a workspace's partition (5 M rows: 120 to 170 ms for 3,000 offsets).
const shortGap = 20_000

func (n *node) openTapes(ctx context.Context) error {
	opts, err := n.cfg.Kafka.Options()
	if err != nil {
		return err
	}
	n.past = &streamer.Past{
		History: replayHistory{n.history, n.watermarks}, Log: n.log, Epoch: n.control.Epoch(),
		Placement: n.placement, Rule: n.cfg.Streamer.Tape.Rule(),
		Erased: n.control.ErasedBelow, ShortGap: shortGap,
	}
	n.tapes, err = tape.Start(n.cfg.Streamer.Tape, tape.Deps{
		Kafka: opts, Log: n.log, Past: n.past, Epoch: n.control.Epoch(),
		Partitions: n.log.Partitions(), Placement: n.placement, Erased: n.control.ErasedBelow,
		Metrics: tape.NewMetrics(n.reg), Logger: n.logger,
	})
	if err != nil {
		return err
	}
	n.reg.MustRegister(n.tapes)
	n.onStop("tapes", func(context.Context) error { n.tapes.Close(); return nil })
	// Before anybody can open a tape, so that none holds what was erased meanwhile.
	stop := n.control.Watch(func(c control.Change) {
		if c.Kind == control.Erased {
			n.dropErased(c.Workspace, c.Session)
		}
	})
	n.onStop("erasure watch", func(context.Context) error { stop(); return nil })
	return nil
}

// openHTTP builds the roles that answer requests. Stopping runs the other way: stop
// listening, end streams, flush the producer.
func (n *node) openHTTP(context.Context) error {
	n.app = httpapi.NewApp(n.httpConfig(), n.logger)
	n.health.Routes(n.app, n.reg)
	openapi.Route(n.app)
	n.limiter = httpapi.NewLimiter(n.limits, nil, n.reg)
	n.app.Use(httpapi.Authenticate(n.control, streamer.TokenRule()), nameWorkspace, n.limiter.Handler)
	httpapi.KeyRoutes(n.app, n.control)
	httpapi.ErasureRoutes(n.app, erasures{n.control, n})
	httpapi.LimitRoutes(n.app, n.control, n.limiter, n.presence)
	httpapi.EventTypeRoutes(n.app, n.control)
	for _, role := range []struct {
		name string
		open func() error
	}{
		{roleIngest, n.openIngest}, {roleStreamer, n.openStreamer}, {roleQuery, n.openQuery}, // streams append by ingest
	} {
		if !n.cfg.has(role.name) {
			continue
		}
		if err := role.open(); err != nil {
			return err
		}
	}
	return nil
}

// httpConfig is the configured edge, with what the process gives it.
func (n *node) httpConfig() httpapi.Config {
	cfg := n.cfg.HTTP
	cfg.Registerer = n.reg
	cfg.Stopping = n.stopping.Load
	cfg.Keys = n.control
	return cfg
}

// limits returns what bounds the keys of a workspace now.
func (n *node) limits(workspace string) control.Limits {
	w, _ := n.control.Workspace(workspace)
	return w.Limits
}

// listen begins to answer requests. It is the last step of a start: whoever reaches the
// node finds its keys.
func (n *node) listen(ctx context.Context) error {
	var err error
	if n.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", n.cfg.HTTP.Listen); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := n.app.Listener(httpapi.Door(n.listener, n.httpConfig())); err != nil && !n.stopping.Load() {
			n.fail(fmt.Errorf("serve: %w", err))
		}
	})
	n.onStop("http", func(ctx context.Context) error {
		err := n.app.ShutdownWithContext(ctx)
		if err == nil {
			serving.Wait()
		}
		return err
	})
	return nil
}

// addr is where clients on this machine reach the node.
func (n *node) addr() string { return localAddr(n.listener.Addr()) }
