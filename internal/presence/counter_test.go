package presence_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/internal/presence"
	"github.com/playhead-dev/playhead/schema"
)

var discard = slog.New(slog.DiscardHandler)

// quick shortens the times, so that tests of silence need not last.
var quick = presence.WithTiming(10*time.Millisecond, 100*time.Millisecond, time.Second, 10*time.Millisecond)

// startBroker runs an embedded broker with our topics until the test ends. It checks then
// that nothing is left running of what was started after.
func startBroker(t testing.TB) kafka.Config {
	t.Helper()
	were := runtime.NumGoroutine()
	t.Cleanup(func() { checkStopped(t, were) })
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", 1, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeBroker(t, broker) })
	ensureTopics(t, broker.Config())
	return broker.Config()
}

func closeBroker(t testing.TB, broker *kafka.Embedded) {
	t.Helper()
	if err := broker.Close(); err != nil {
		t.Errorf("close broker: %v", err)
	}
}

// overTCP is for tests whose broker goes and comes back: its own Config may take a
// shorter way, into the one that is gone.
func overTCP(broker *kafka.Embedded) kafka.Config {
	cfg := kafka.DefaultConfig()
	cfg.Brokers, cfg.Partitions, cfg.ReplicationFactor = []string{broker.Addr()}, 1, 1
	return cfg
}

func ensureTopics(t testing.TB, c kafka.Config) {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func start(t testing.TB, c kafka.Config, opts ...presence.Option) *presence.Counter {
	t.Helper()
	n, err := presence.Start(t.Context(), c, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// checkStopped waits until no more goroutines run than did.
func checkStopped(t testing.TB, were int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > were {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines are left of %d:\n%s", runtime.NumGoroutine(), were, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

func acquire(t testing.TB, n *presence.Counter, workspace, key, class string, limits presence.Limits) func() {
	t.Helper()
	release, err := n.Acquire(workspace, key, class, limits)
	if err != nil {
		t.Fatalf("Acquire(%s, %s, %q): %v", workspace, key, class, err)
	}
	return release
}

// refused calls Acquire and returns "of open/limit", "" if it was admitted.
func refused(t testing.TB, n *presence.Counter, workspace, key, class string, limits presence.Limits) string {
	t.Helper()
	release, err := n.Acquire(workspace, key, class, limits)
	if err == nil {
		release()
		return ""
	}
	limit, ok := errors.AsType[*presence.LimitError](err)
	if !ok {
		t.Fatalf("Acquire(%s, %s, %q) = %v, want a *LimitError", workspace, key, class, err)
	}
	return fmt.Sprintf("%s %d/%d", limit.Of, limit.Open, limit.Limit)
}

func waitFor(t testing.TB, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// waitOpen waits until each of the nodes counts as many streams of the key.
func waitOpen(t testing.TB, workspace, key string, want int, nodes ...*presence.Counter) time.Duration {
	t.Helper()
	return waitFor(t, fmt.Sprintf("%d streams of %s/%s everywhere", want, workspace, key), func() bool {
		return !slices.ContainsFunc(nodes, func(n *presence.Counter) bool {
			_, got := n.Open(workspace, key)
			return got != want
		})
	})
}

// metric reads the sum of a metric whose labels have all the values.
func metric(t testing.TB, reg *prometheus.Registry, name string, values ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			have := []string{}
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			if !slices.ContainsFunc(values, func(v string) bool { return !slices.Contains(have, v) }) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestLimitsHoldAcrossNodes(t *testing.T) {
	cfg := startBroker(t)
	a, b, c := start(t, cfg), start(t, cfg), start(t, cfg)
	limits := presence.Limits{PerWorkspace: 6, PerKey: 4, PerClass: 2}
	releases := []func(){
		acquire(t, a, "ws", "key", "client", limits),
		acquire(t, b, "ws", "key", "client", limits),
		acquire(t, b, "ws", "key", "", limits),
	}
	waitOpen(t, "ws", "key", 3, a, b, c)
	for i, n := range []*presence.Counter{a, b, c} {
		if got := refused(t, n, "ws", "key", "client", limits); got != "class 2/2" {
			t.Errorf("node %d: a third of the class: %q, want class 2/2", i, got)
		}
		if got := refused(t, n, "ws", "key", "other", limits); got != "" {
			t.Errorf("node %d: of another class: %q", i, got)
		}
	}
	releases = append(releases, acquire(t, c, "ws", "key", "", limits))
	waitOpen(t, "ws", "key", 4, a, b, c)
	for i, n := range []*presence.Counter{a, b, c} {
		if got := refused(t, n, "ws", "key", "", limits); got != "key 4/4" {
			t.Errorf("node %d: a fifth of the key: %q, want key 4/4", i, got)
		}
	}
	releases = append(releases, acquire(t, a, "ws", "key2", "", limits), acquire(t, c, "ws", "key2", "", limits))
	waitOpen(t, "ws", "key2", 2, a, b, c)
	for i, n := range []*presence.Counter{a, b, c} {
		if got := refused(t, n, "ws", "key3", "", limits); got != "workspace 6/6" {
			t.Errorf("node %d: a seventh of the workspace: %q, want workspace 6/6", i, got)
		}
		if got := refused(t, n, "ws2", "key", "client", limits); got != "" {
			t.Errorf("node %d: another workspace: %q", i, got)
		}
	}
	for _, release := range releases {
		release()
		release() // does nothing
	}
	waitOpen(t, "ws", "key", 0, a, b, c)
	waitOpen(t, "ws", "key2", 0, a, b, c)
	if w, _ := b.Open("ws", "key"); w != 0 {
		t.Errorf("%d streams of the workspace are open, want 0", w)
	}
}

func TestTheOthersKnowWithinASecond(t *testing.T) {
	cfg := startBroker(t)
	a, b := start(t, cfg), start(t, cfg)
	var opened, released []time.Duration
	for range 7 {
		release := acquire(t, a, "ws", "key", "", presence.Limits{})
		opened = append(opened, waitOpen(t, "ws", "key", 1, b))
		release()
		released = append(released, waitOpen(t, "ws", "key", 0, b))
	}
	slices.Sort(opened)
	slices.Sort(released)
	t.Logf("opened %v, released %v", opened, released)
	// The median: a stall of a busy test machine must not fail it.
	if opened[3] > time.Second || released[3] > time.Second {
		t.Errorf("known after %v, freed after %v; want less than a second", opened[3], released[3])
	}
}

func TestOneNodeIsExactUnderConcurrency(t *testing.T) {
	n := start(t, startBroker(t))
	limits := presence.Limits{PerWorkspace: 50, PerKey: 20}
	var wg sync.WaitGroup
	var mu sync.Mutex
	admitted := map[string][]func(){}
	for i := range 16 {
		wg.Go(func() {
			key := fmt.Sprint("key", i%4)
			for range 50 {
				release, err := n.Acquire("ws", key, "", limits)
				if err != nil {
					continue
				}
				mu.Lock()
				admitted[key] = append(admitted[key], release)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	sum := 0
	for key, releases := range admitted {
		sum += len(releases)
		if len(releases) > 20 {
			t.Errorf("%d streams of %s were admitted, want 20 at most", len(releases), key)
		}
		for _, release := range releases {
			wg.Go(release)
			wg.Go(release)
		}
	}
	if sum != 50 {
		t.Errorf("%d streams were admitted, want 50", sum)
	}
	wg.Wait()
	if w, k := n.Open("ws", "key0"); w != 0 || k != 0 {
		t.Errorf("open = %d, %d after all were released", w, k)
	}
}

// TestManyNodesUnderChurn opens and ends streams on three nodes at once. No node may pass
// a limit by itself, and so all of them not three times; in the end all know of nothing.
func TestManyNodesUnderChurn(t *testing.T) {
	cfg := startBroker(t)
	nodes := []*presence.Counter{start(t, cfg, quick), start(t, cfg, quick), start(t, cfg, quick)}
	limits := presence.Limits{PerWorkspace: 40, PerKey: 10, PerClass: 5}
	var wg sync.WaitGroup
	for i, n := range nodes {
		for j := range 4 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), uint64(j)))
				var open []func()
				for range 2000 {
					if len(open) > 0 && r.IntN(2) == 0 {
						k := r.IntN(len(open))
						open[k]()
						open = slices.Delete(open, k, k+1)
						continue
					}
					key, class := fmt.Sprint("key", r.IntN(6)), []string{"", "client"}[r.IntN(2)]
					release, err := n.Acquire("ws", key, class, limits)
					if err != nil {
						continue
					}
					open = append(open, release)
					if w, k := n.Open("ws", key); w > 3*limits.PerWorkspace || k > 3*limits.PerKey {
						t.Errorf("%d streams of the workspace, %d of the key are open", w, k)
					}
				}
				for _, release := range open {
					release()
				}
			})
		}
	}
	wg.Wait()
	for i := range 6 {
		waitOpen(t, "ws", fmt.Sprint("key", i), 0, nodes...)
	}
}

func TestAClosedNodeIsGoneAtOnce(t *testing.T) {
	cfg := startBroker(t)
	reg := prometheus.NewRegistry()
	a, b := start(t, cfg), start(t, cfg, presence.WithRegisterer(reg))
	release := acquire(t, a, "ws", "key", "", presence.Limits{})
	acquire(t, b, "ws", "key", "", presence.Limits{})
	waitOpen(t, "ws", "key", 2, a, b)
	a.Close()
	waitOpen(t, "ws", "key", 1, b)
	if lost := metric(t, reg, "playhead_presence_lost_nodes_total"); lost != 0 {
		t.Errorf("%v nodes were lost, want a goodbye", lost)
	}
	release() // goes on in memory
	if _, k := a.Open("ws", "key"); k != 1 {
		t.Errorf("the closed node counts %d, want the other's 1", k)
	}
	a.Close()
}

func TestADeadNodeIsForgottenAndTheLivingAreNot(t *testing.T) {
	cfg := startBroker(t)
	reg := prometheus.NewRegistry()
	a, b, c := start(t, cfg, quick), start(t, cfg, quick, presence.WithRegisterer(reg)), start(t, cfg, quick)
	acquire(t, a, "ws", "key", "", presence.Limits{})
	acquire(t, c, "ws", "other", "", presence.Limits{})
	waitOpen(t, "ws", "key", 1, b)
	waitOpen(t, "ws", "other", 1, b)
	if nodes := metric(t, reg, "playhead_presence_nodes"); nodes != 2 {
		t.Errorf("%v other nodes, want 2", nodes)
	}
	a.Kill()
	waitOpen(t, "ws", "key", 0, b, c)
	if w, k := b.Open("ws", "other"); w != 1 || k != 1 {
		t.Errorf("of the living node %d, %d streams are counted, want 1, 1", w, k)
	}
	if lost := metric(t, reg, "playhead_presence_lost_nodes_total"); lost != 1 {
		t.Errorf("%v nodes were lost, want 1", lost)
	}
}

func TestTheTimeoutIsCountedByTheClock(t *testing.T) {
	cfg := startBroker(t)
	var mu sync.Mutex
	ahead := time.Duration(0)
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}
	a, b := start(t, cfg), start(t, cfg, presence.WithClock(clock))
	acquire(t, a, "ws", "key", "", presence.Limits{})
	waitOpen(t, "ws", "key", 1, b)
	a.Kill()
	mu.Lock()
	ahead = presence.NodeTimeout
	mu.Unlock()
	if got := refused(t, b, "ws", "key", "", presence.Limits{PerKey: 1}); got != "" {
		t.Errorf("after the timeout: %q", got)
	}
}

func TestANewNodeKnowsTheOthersFromTheStart(t *testing.T) {
	cfg := startBroker(t)
	a, b := start(t, cfg), start(t, cfg)
	for i := range 100 {
		acquire(t, a, "ws", fmt.Sprint("key", i), "", presence.Limits{})
		acquire(t, b, "ws", fmt.Sprint("key", i), "client", presence.Limits{})
	}
	waitFor(t, "both know", func() bool {
		ofA, _ := a.Open("ws", "key")
		ofB, _ := b.Open("ws", "key")
		return ofA == 200 && ofB == 200
	})
	c := start(t, cfg)
	if w, k := c.Open("ws", "key99"); w != 200 || k != 2 {
		t.Errorf("a new node counts %d, %d; want 200, 2", w, k)
	}
	if got := refused(t, c, "ws", "key5", "client", presence.Limits{PerClass: 1}); got != "class 1/1" {
		t.Errorf("a new node: %q, want class 1/1", got)
	}
}

// TestAKilledNodeComesBack: what its earlier life had open holds its places until the
// timeout, counted from the last record of that life and not from the new start.
func TestAKilledNodeComesBack(t *testing.T) {
	cfg := startBroker(t)
	a := start(t, cfg, quick)
	acquire(t, a, "ws", "key", "", presence.Limits{})
	b := start(t, cfg, quick)
	waitOpen(t, "ws", "key", 1, b)
	a.Kill()
	died := time.Now()
	again := start(t, cfg, quick)
	acquire(t, again, "ws", "key", "", presence.Limits{})
	waitOpen(t, "ws", "key", 2, again, b)
	waitOpen(t, "ws", "key", 1, again, b)
	if since := time.Since(died); since < time.Second/2 {
		t.Errorf("the earlier life was forgotten after %v", since)
	}
}

func TestKafkaAwayAndBack(t *testing.T) {
	dir := t.TempDir()
	broker, err := kafka.StartEmbedded(dir, "127.0.0.1:0", 1, discard)
	if err != nil {
		t.Fatal(err)
	}
	cfg := overTCP(broker)
	cfg.RetryTimeout = time.Second
	ensureTopics(t, cfg)
	reg := prometheus.NewRegistry()
	a, b := start(t, cfg, quick, presence.WithRegisterer(reg)), start(t, cfg, quick)
	limits := presence.Limits{PerKey: 3}
	acquire(t, a, "ws", "key", "", limits)
	releaseB := acquire(t, b, "ws", "key", "", limits)
	waitOpen(t, "ws", "key", 2, a, b)

	closeBroker(t, broker)
	acquire(t, a, "ws", "key", "", limits)
	if got := refused(t, a, "ws", "key", "", limits); got != "key 3/3" {
		t.Errorf("Kafka away: %q, want key 3/3: the other's stays for now", got)
	}
	waitOpen(t, "ws", "key", 2, a) // the other's timed out
	acquire(t, a, "ws", "key", "", limits)
	if got := refused(t, a, "ws", "key", "", limits); got != "key 3/3" {
		t.Errorf("Kafka away: %q, want key 3/3: own streams count", got)
	}
	waitFor(t, "a failure is counted", func() bool {
		return metric(t, reg, "playhead_presence_failures_total", "publish") > 0 && metric(t, reg, "playhead_presence_failures_total", "read") > 0
	})
	began := time.Now()
	for range 1000 {
		acquire(t, a, "ws", "other", "", presence.Limits{})()
	}
	if took := time.Since(began); took > 30*time.Second { // one wait for Kafka takes 2 s
		t.Errorf("Kafka away: 1000 streams took %v", took)
	}

	broker, err = kafka.StartEmbedded(dir, cfg.Brokers[0], 1, discard)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBroker(t, broker)
	waitOpen(t, "ws", "key", 4, a, b)
	releaseB()
	waitOpen(t, "ws", "key", 3, a, b)
	a.Close()
	waitOpen(t, "ws", "key", 0, b)
	b.Close()
}

// TestCloseDoesNotWaitForAHangingBroker closes while the broker takes requests and
// answers none.
func TestCloseDoesNotWaitForAHangingBroker(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cfg := kafka.DefaultConfig()
	cfg.Brokers, cfg.Partitions, cfg.ReplicationFactor = cluster.ListenAddrs(), 1, 1
	ensureTopics(t, cfg)
	reg := prometheus.NewRegistry()
	a := start(t, cfg, quick, presence.WithRegisterer(reg))
	acquire(t, a, "ws", "key", "", presence.Limits{})
	waitFor(t, "the first record", func() bool {
		return metric(t, reg, "playhead_presence_published_records_total") > 0
	})
	answers := make(chan struct{})
	defer close(answers)
	cluster.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { <-answers })
		return nil, nil, false
	})
	waitFor(t, "a failure", func() bool { return metric(t, reg, "playhead_presence_failures_total", "publish") > 0 })
	began := time.Now()
	a.Close()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Close took %v, want about a second", took)
	}
}

// TestCloseDoesNotWaitForKafka closes while Kafka is away.
func TestCloseDoesNotWaitForKafka(t *testing.T) {
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", 1, discard)
	if err != nil {
		t.Fatal(err)
	}
	ensureTopics(t, overTCP(broker))
	a := start(t, overTCP(broker), quick)
	acquire(t, a, "ws", "key", "", presence.Limits{})
	closeBroker(t, broker)
	began := time.Now()
	a.Close()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Close took %v, want about a second", took)
	}
}

func TestARecreatedTopicIsFollowed(t *testing.T) {
	cfg := startBroker(t)
	cfg.RetryTimeout = time.Second
	a, b := start(t, cfg, quick), start(t, cfg, quick)
	acquire(t, a, "ws", "key", "", presence.Limits{})
	waitOpen(t, "ws", "key", 1, b)
	cl := client(t, cfg)
	if _, err := kadm.NewClient(cl).DeleteTopic(t.Context(), schema.TopicPresence); err != nil {
		t.Fatal(err)
	}
	ensureTopics(t, cfg)
	release := acquire(t, a, "ws", "new", "", presence.Limits{})
	waitOpen(t, "ws", "new", 1, b)
	waitOpen(t, "ws", "key", 1, b)
	release()
	waitOpen(t, "ws", "new", 0, b)
}

func client(t testing.TB, cfg kafka.Config) *kgo.Client {
	t.Helper()
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func TestForeignRecordsAreSkippedAndCounted(t *testing.T) {
	cfg := startBroker(t)
	reg := prometheus.NewRegistry()
	a := start(t, cfg, quick, presence.WithRegisterer(reg))
	cl := client(t, cfg)
	for _, v := range []string{
		`{"v":2,"node":"n","open":[]}`,
		`nonsense`,
		`{"v":1,"node":"n","seq":1,"open":{"ws":{"key":{"":-3}}}}`,
		`{"v":1,` + strings.Repeat(" ", 200<<10) + `}`,
		`{"v":1,"node":"n","seq":2,"open":{"ws":{"key":{"":3}}}}`,
	} {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: schema.TopicPresence, Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	waitOpen(t, "ws", "key", 3, a)
	for reason, want := range map[string]float64{"unknown_version": 1, "corrupt": 2, "too_large": 1} {
		if got := metric(t, reg, "playhead_presence_skipped_records_total", reason); got != want {
			t.Errorf("skipped as %s: %v, want %v", reason, got, want)
		}
	}
	if got := metric(t, reg, "playhead_presence_streams", "elsewhere"); got != 3 {
		t.Errorf("streams elsewhere = %v, want 3", got)
	}
}

// TestANodeWithoutStreamsIsSilent counts what one node writes while another beats.
func TestANodeWithoutStreamsIsSilent(t *testing.T) {
	cfg := startBroker(t)
	regA, regB := prometheus.NewRegistry(), prometheus.NewRegistry()
	a, b := start(t, cfg, quick, presence.WithRegisterer(regA)), start(t, cfg, quick, presence.WithRegisterer(regB))
	written := func(reg *prometheus.Registry) float64 {
		return metric(t, reg, "playhead_presence_published_records_total")
	}
	beats := func(n float64) {
		t.Helper()
		from := written(regB)
		waitFor(t, "heartbeats of the other node", func() bool { return written(regB) >= from+n })
	}
	acquire(t, b, "ws", "key", "", presence.Limits{})
	beats(5)
	if got := written(regA); got != 0 {
		t.Errorf("%v records of a node without streams", got)
	}
	acquire(t, a, "ws", "key", "", presence.Limits{})()
	waitFor(t, "the node's last snapshot", func() bool {
		return metric(t, regA, "playhead_presence_published_records_total", "snapshot") > 0
	})
	before := written(regA)
	beats(5)
	if got := written(regA); got != before {
		t.Errorf("%v records more after the last stream ended", got-before)
	}
	if got := metric(t, regB, "playhead_presence_nodes"); got != 0 {
		t.Errorf("%v other nodes have streams, want 0", got)
	}
}

func TestRefusalsAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	a := start(t, startBroker(t), presence.WithRegisterer(reg))
	acquire(t, a, "ws", "key", "", presence.Limits{})
	refused(t, a, "ws", "key", "", presence.Limits{PerKey: 1})
	if got := metric(t, reg, "playhead_presence_refused_streams_total", "key"); got != 1 {
		t.Errorf("refused = %v, want 1", got)
	}
	if got := metric(t, reg, "playhead_presence_streams", "here"); got != 1 {
		t.Errorf("streams here = %v, want 1", got)
	}
	if _, err := a.Acquire("w s", "key", "", presence.Limits{}); err == nil || errors.As(err, new(*presence.LimitError)) {
		t.Errorf("Acquire of a workspace that is no id = %v, want an error", err)
	}
}

func TestStartNeedsTheTopic(t *testing.T) {
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", 1, discard)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBroker(t, broker)
	cfg := broker.Config()
	cfg.RetryTimeout = time.Second
	if n, err := presence.Start(t.Context(), cfg); err == nil {
		n.Close()
		t.Error("Start without the topic succeeded")
	} else if !strings.Contains(err.Error(), schema.TopicPresence) {
		t.Errorf("Start = %v, want the topic named", err)
	}
}

// BenchmarkAcquire is one stream that opens and ends, with all limits, among 1000 keys
// of another node.
func BenchmarkAcquire(b *testing.B) {
	cfg := startBroker(b)
	here, there := start(b, cfg), start(b, cfg)
	for i := range 1000 {
		acquire(b, there, "ws", fmt.Sprint("key_0123456789abcdef", i), "client", presence.Limits{})
	}
	waitFor(b, "the other node's streams", func() bool { w, _ := here.Open("ws", "k"); return w == 1000 })
	limits := presence.Limits{PerWorkspace: 1 << 20, PerKey: 1 << 20, PerClass: 1 << 20}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		release, err := here.Acquire("ws", "key_0123456789abcdef7", "client", limits)
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
}
