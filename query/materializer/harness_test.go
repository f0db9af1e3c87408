package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/engine"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/schema"
)

// engineArg makes the test binary an engine process.
const engineArg = "playhead-test-engine"

// shared is the one engine of the test process; each test has a database of its own.
var shared struct {
	sync.Once
	process   *engine.Process
	dir       string
	err       error
	databases atomic.Int64
}

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == engineArg {
		if err := engine.ChildMain(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if shared.process != nil {
		if err := shared.process.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if shared.dir != "" {
		if err := os.RemoveAll(shared.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// openDatabase returns a connection to a fresh database of the real engine.
func openDatabase(t testing.TB) driver.Conn {
	t.Helper()
	shared.Do(func() {
		//nolint:usetesting // the engine outlives the test that needs it first
		if shared.dir, shared.err = os.MkdirTemp("", "playhead-materializer"); shared.err != nil {
			return
		}
		shared.process, shared.err = engine.Start(context.Background(), engineConfig(shared.dir))
	})
	skipWithoutEngine(t, shared.err)
	admin := connect(t, shared.process.DSN())
	name := fmt.Sprintf("test_%d", shared.databases.Add(1))
	if err := admin.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin.Exec(context.Background(), "DROP DATABASE "+name+" SYNC"); err != nil {
			t.Errorf("drop database: %v", err)
		}
	})
	conn := connect(t, strings.Replace(shared.process.DSN(), "/"+engine.DefaultDatabase, "/"+name, 1))
	if err := query.Migrate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

// startEngine starts an engine that the test may kill.
func startEngine(t testing.TB, dir string) *engine.Process {
	t.Helper()
	process, err := engine.Start(t.Context(), engineConfig(dir))
	skipWithoutEngine(t, err)
	t.Cleanup(func() {
		if err := process.Close(); err != nil {
			t.Errorf("close engine: %v", err)
		}
	})
	return process
}

func engineConfig(dir string) engine.Config {
	return engine.Config{
		DataPath: filepath.Join(dir, "engine"), LibraryPath: engine.LibraryPath(os.Getenv), ChildArgs: []string{engineArg}, Stderr: os.Stderr,
		Log: slog.New(slog.DiscardHandler),
	}
}

func skipWithoutEngine(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, engine.ErrLibraryNotFound) && os.Getenv("PLAYHEAD_REQUIRE_ENGINE") != "1" {
		t.Skipf("no engine to test with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func connect(t testing.TB, dsn string) driver.Conn {
	t.Helper()
	c := query.DefaultClickHouseConfig()
	c.DSN = dsn
	conn, err := query.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return conn
}

// onStores runs a test against the table in memory and the one in the engine.
func onStores(t *testing.T, test func(t *testing.T, s testStore)) {
	t.Run("memory", func(t *testing.T) { test(t, newMemoryStore()) })
	t.Run("engine", func(t *testing.T) { test(t, newEngineStore(t)) })
}

// testStore is a store that can be told to misbehave as a server may.
type testStore interface {
	store
	forgetTokens(t *testing.T)                                 // the deduplication log is lost
	deleteRows(t *testing.T, partition uint16, from, to int64) // rows vanish, the log stays
	types(t *testing.T, partition uint16) map[int64]string     // the rows' types by offset
	metadata(t *testing.T, partition uint16, offset int64) map[string]string
}

// engineStore is the real table.
type engineStore struct {
	*clickHouse
	lostTokens atomic.Int64
}

func newEngineStore(t testing.TB) *engineStore {
	return &engineStore{clickHouse: &clickHouse{conn: openDatabase(t), epoch: 1, timeout: time.Minute}}
}

// insert gives tokens that were forgotten another spelling, which is what a server does
// that has lost its log of them.
func (s *engineStore) insert(ctx context.Context, token string, b *batch) error {
	if n := s.lostTokens.Load(); n > 0 {
		token = fmt.Sprintf("%s/forgotten-%d", token, n)
	}
	return s.clickHouse.insert(ctx, token, b)
}

func (s *engineStore) forgetTokens(*testing.T) { s.lostTokens.Add(1) }

func (s *engineStore) deleteRows(t *testing.T, partition uint16, from, to int64) {
	t.Helper()
	err := s.conn.Exec(s.params(t.Context(), partition, offsetRange{start: from, end: to}),
		"ALTER TABLE events DELETE"+offsetRange{}.where()+" SETTINGS mutations_sync = 2")
	if err != nil {
		t.Fatal(err)
	}
}

func (s *engineStore) types(t *testing.T, partition uint16) map[int64]string {
	t.Helper()
	rows, err := s.conn.Query(s.params(t.Context(), partition, offsetRange{end: schema.MaxOffset}),
		"SELECT kafka_offset, type FROM events"+offsetRange{}.where())
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := make(map[int64]string)
	for rows.Next() {
		var offset uint64
		var kind string
		if err := rows.Scan(&offset, &kind); err != nil {
			t.Fatal(err)
		}
		out[int64(offset)] = kind
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *engineStore) metadata(t *testing.T, partition uint16, offset int64) (m map[string]string) {
	t.Helper()
	err := s.conn.QueryRow(s.params(t.Context(), partition, offsetRange{start: offset, end: offset + 1}),
		"SELECT metadata FROM events"+offsetRange{}.where()).Scan(&m)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// cluster is a Kafka with the events topic.
type cluster struct {
	*kfake.Cluster
	t          testing.TB
	partitions int
	options    []kgo.Opt
	config     kafka.Config
	producer   *kgo.Client
	admin      *kadm.Client

	// Of the materialisers launched from then on.
	erased  schema.ErasedBelow
	known   func(string) bool
	letters DeadLetters
}

func newCluster(t testing.TB, partitions int) *cluster {
	t.Helper()
	k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(int32(partitions), schema.TopicEvents),
		kfake.GroupMinSessionTimeout(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	c := &cluster{Cluster: k, t: t, partitions: partitions, config: kafka.DefaultConfig()}
	c.config.Brokers = k.ListenAddrs()
	if c.options, err = c.config.Options(); err != nil {
		t.Fatal(err)
	}
	c.connect()
	return c
}

// connect gives the test a fresh client, as one keeps to the topic it has seen.
func (c *cluster) connect() {
	c.t.Helper()
	var err error
	c.producer, err = kgo.NewClient(append(c.options[:len(c.options):len(c.options)],
		kgo.DefaultProduceTopic(schema.TopicEvents), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(c.producer.Close)
	c.admin = kadm.NewClient(c.producer)
}

// sessionIn returns a session id that lies in the partition.
func (c *cluster) sessionIn(partition uint16) string {
	for i := 0; ; i++ {
		id := fmt.Sprintf("session-%d", i)
		if c.placement("ws").Partition("ws", id) == partition {
			return id
		}
	}
}

func (c *cluster) placement(string) schema.Placement {
	return schema.Placement{Partitions: c.partitions, Shards: c.partitions}
}

// record makes a record of an event in the partition's session.
func (c *cluster) record(partition uint16, ms int64, messageID, kind string) *kgo.Record {
	e := &schema.Event{
		Workspace: "ws", Session: c.sessionIn(partition), Type: kind, MessageID: messageID, TMs: 5,
		Metadata: map[string]string{"k": "v"}, ContentType: schema.DefaultContentType, Payload: []byte(`{"n":1}`),
	}
	return &kgo.Record{
		Partition: int32(partition), Timestamp: time.UnixMilli(ms), Value: e.Payload,
		Key: schema.RecordKey(e.Workspace, e.Session), Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, "g"),
	}
}

func (c *cluster) produce(records ...*kgo.Record) {
	c.t.Helper()
	if err := c.producer.ProduceSync(c.t.Context(), records...).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
}

// produceEvents appends n events to the partition.
func (c *cluster) produceEvents(partition uint16, n int) {
	c.t.Helper()
	now := time.Now().UnixMilli()
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = c.record(partition, now, "", "demo.tick")
	}
	c.produce(records...)
}

// end returns the end of the partition's log.
func (c *cluster) end(partition uint16) int64 {
	c.t.Helper()
	offsets, err := c.admin.ListEndOffsets(c.t.Context(), schema.TopicEvents)
	if err != nil {
		c.t.Fatal(err)
	}
	o, _ := offsets.Lookup(schema.TopicEvents, int32(partition))
	return o.Offset
}

// committed returns the committed state of the partition.
func (c *cluster) committed(partition uint16, epoch uint8) committed {
	c.t.Helper()
	state, _, err := (&commits{group: kafkaMember{c.producer, c.admin}, epoch: epoch}).load(c.t.Context(), partition)
	if err != nil {
		c.t.Fatal(err)
	}
	return state
}

// testConfig is quick, and has small batches.
func testConfig() Config {
	c := DefaultConfig()
	c.MaxBatchRows = 100
	c.Linger = 10 * time.Millisecond
	c.BatchInterval = 20 * time.Millisecond
	c.SessionTimeout = time.Second
	c.RevokeTimeout = 5 * time.Second
	return c
}

// process is a materialiser that runs, and can die.
type process struct {
	*Materializer
	t      testing.TB
	marks  *query.Watermarks
	cancel context.CancelFunc
	done   chan error
	once   sync.Once
	reg    *prometheus.Registry
}

// launch starts a materialiser on the cluster and the store.
func (c *cluster) launch(cfg Config, epoch uint8, s store) *process {
	c.t.Helper()
	return c.start(cfg, epoch, s, 0)
}

// launchTTL is launch in epoch 1 over a table whose rows expire.
func (c *cluster) launchTTL(cfg Config, s store, ttl time.Duration) *process {
	c.t.Helper()
	return c.start(cfg, 1, s, ttl)
}

func (c *cluster) start(cfg Config, epoch uint8, s store, ttl time.Duration) *process {
	t := c.t
	t.Helper()
	log, err := kafka.OpenLog(t.Context(), c.config)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, marks: query.NewWatermarks(), done: make(chan error, 1), reg: prometheus.NewRegistry()}
	p.Materializer, err = New(cfg, Deps{
		Kafka: c.options, Log: log, Epoch: epoch, Placement: c.placement, Published: p.marks.Set, Erased: c.erased,
		Known: c.known, DeadLetters: c.letters,
		Rule: schema.DedupeRule{Offsets: 1000, Age: 10 * time.Minute}, TTL: ttl,
		Metrics: NewMetrics(p.reg), Logger: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.store = s
	p.requestInterval = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() { p.done <- p.Run(ctx) }()
	t.Cleanup(func() {
		p.stopped()
		log.Close()
	})
	return p
}

// stopped ends the process in order.
func (p *process) stopped() {
	p.once.Do(func() {
		p.cancel()
		if err := <-p.done; err != nil {
			p.t.Errorf("Run() = %v", err)
		}
	})
}

// crash ends the process without a last commit: what Kafka and the table hold is all
// that is left of it.
func (p *process) crash() {
	p.mu.Lock()
	p.closed = true
	var all []int32
	for partition := range p.owned {
		all = append(all, int32(partition))
	}
	p.mu.Unlock()
	p.lost(context.Background(), nil, map[string][]int32{schema.TopicEvents: all})
	p.stopped()
}

// wait blocks until the partition is copied up to next.
func (p *process) wait(partition uint16, next int64) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	if err := p.marks.Wait(ctx, partition, next); err != nil {
		p.t.Fatalf("at %d: %v", p.marks.Get(partition), err)
	}
}

// metric sums the values of a counter or gauge, over all labels or those of one value.
func (p *process) metric(name, label string) (sum float64) {
	p.t.Helper()
	families, err := p.reg.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "playhead_materializer_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label != "" && m.GetLabel()[0].GetValue() != label {
				continue
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// until polls a condition with a deadline.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// wantExact checks that the table holds the offsets [0, end) of the partition once each.
func wantExact(t *testing.T, s store, partition uint16, end int64) {
	t.Helper()
	h, err := s.count(t.Context(), partition, offsetRange{end: schema.MaxOffset})
	if err != nil {
		t.Fatal(err)
	}
	if int64(h.rows) != end || int64(h.distinct) != end {
		t.Errorf("partition %d holds %d rows on %d offsets, want %d on %d", partition, h.rows, h.distinct, end, end)
	}
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// testLog shows what is logged with the test it belongs to.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// faults stands between a materialiser and a store.
type faults struct {
	testStore
	mu     sync.Mutex
	before func(ctx context.Context, token string, b *batch) error // an error: nothing is sent
	after  func(ctx context.Context, token string, b *batch) error // an error: the answer is lost
	tokens []string                                                // of the inserts that were sent
}

func (f *faults) insert(ctx context.Context, token string, b *batch) error {
	f.mu.Lock()
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if err := before(ctx, token, b); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.tokens = append(f.tokens, token)
	f.mu.Unlock()
	if err := f.testStore.insert(ctx, token, b); err != nil {
		return err
	}
	if after != nil {
		return after(ctx, token, b)
	}
	return nil
}

func (f *faults) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.tokens...)
}
