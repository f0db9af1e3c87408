package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

var discard = slog.New(slog.DiscardHandler)

// start runs an embedded broker with our topics until the test ends.
func start(t testing.TB, dir string, partitions int) *kafka.Embedded {
	t.Helper()
	broker, err := kafka.StartEmbedded(dir, "127.0.0.1:0", partitions, discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := kafka.EnsureTopics(t.Context(), broker.Config()); err != nil {
		t.Fatal(err)
	}
	return broker
}

func startForTest(t testing.TB, partitions int) *kafka.Embedded {
	t.Helper()
	broker := start(t, t.TempDir(), partitions)
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	return broker
}

func openLog(t testing.TB, c kafka.Config) *kafka.Log {
	t.Helper()
	l, err := kafka.OpenLog(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func producer(t testing.TB, c kafka.Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	base, err := c.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(append(base,
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(int32(c.MaxBatchBytes))), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// produce appends values to a partition, each in a batch of its own, with timestamps
// 1000, 1001, … after the ones before.
func produce(t testing.TB, cl *kgo.Client, partition int32, values ...string) {
	t.Helper()
	for _, v := range values {
		r := &kgo.Record{Topic: schema.TopicEvents, Partition: partition, Value: []byte(v), Timestamp: time.UnixMilli(stamp(v))}
		if err := cl.ProduceSync(context.Background(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// stamp is the timestamp of values that begin with "<ms>:", 1000 for others.
func stamp(v string) int64 {
	ms := int64(1000)
	fmt.Sscanf(v, "%d:", &ms) //nolint:errcheck // the default stands
	return ms
}

// readAll reads [from, to) and returns "offset=value" texts.
func readAll(t testing.TB, l *kafka.Log, partition uint16, from, to int64) (got []string, next int64) {
	t.Helper()
	next, err := l.Read(t.Context(), partition, from, to, func(r *kgo.Record) error {
		got = append(got, fmt.Sprintf("%d=%s", r.Offset, r.Value))
		return nil
	})
	if err != nil {
		t.Fatalf("Read(%d, %d, %d): %v", partition, from, to, err)
	}
	return got, next
}

func TestReadGivesRangesInOrder(t *testing.T) {
	broker := startForTest(t, 2)
	l := openLog(t, broker.Config())
	produce(t, producer(t, broker.Config()), 1, "a", "b", "c", "d", "e")
	f := func(from, to int64, want string, wantNext int64) {
		t.Helper()
		got, next := readAll(t, l, 1, from, to)
		if strings.Join(got, " ") != want || next != wantNext {
			t.Errorf("Read(%d, %d) = %v, %d, want %s, %d", from, to, got, next, want, wantNext)
		}
	}
	f(0, 5, "0=a 1=b 2=c 3=d 4=e", 5)
	f(1, 3, "1=b 2=c", 3)
	f(2, 2, "", 2)
	f(4, 2, "", 4)
	f(3, 1<<60, "3=d 4=e", 5)
	f(5, 9, "", 5)
	if got, next := readAll(t, l, 0, 0, 10); len(got) != 0 || next != 0 {
		t.Errorf("empty partition: Read = %v, %d, want nothing, 0", got, next)
	}

	stop := errors.New("enough")
	next, err := l.Read(t.Context(), 1, 0, 5, func(r *kgo.Record) error {
		if r.Offset == 2 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || next != 2 {
		t.Errorf("Read with an error at 2 = %d, %v, want 2 and the error", next, err)
	}
	if _, err := l.Read(t.Context(), 7, 0, 1, nil); err == nil || !strings.Contains(err.Error(), "partition 7") {
		t.Errorf("Read of partition 7 = %v, want an error that names it", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err := l.Read(ctx, 1, 0, 5, func(*kgo.Record) error { return nil }); !errors.Is(err, stop) {
		t.Errorf("Read with a cancelled context = %v, want its cause", err)
	}
}

func TestOffsetsOutOfRangeAreTyped(t *testing.T) {
	broker := startForTest(t, 1)
	l := openLog(t, broker.Config())
	cl := producer(t, broker.Config())
	produce(t, cl, 0, "a", "b", "c", "d")
	deleteBefore(t, cl, 0, 2)
	start, end, err := l.Bounds(t.Context(), 0)
	if err != nil || start != 2 || end != 4 {
		t.Fatalf("Bounds = %d, %d, %v, want 2, 4", start, end, err)
	}
	for _, from := range []int64{0, 1, 5, 100} {
		next, err := l.Read(t.Context(), 0, from, from+10, func(*kgo.Record) error { return nil })
		var out *kafka.OffsetRangeError
		if !errors.As(err, &out) || out.Start != 2 || out.End != 4 || out.Offset != from || next != from {
			t.Errorf("Read(%d) = %d, %v, want an OffsetRangeError of [2, 4)", from, next, err)
		}
	}
}

func deleteBefore(t testing.TB, cl *kgo.Client, partition int32, offset int64) {
	t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic = schema.TopicEvents
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = partition, offset
	topic.Partitions = append(topic.Partitions, p)
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(t.Context(), cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTransactionsAreReadWhenCommitted(t *testing.T) {
	broker := startForTest(t, 1)
	l := openLog(t, broker.Config())
	plain := producer(t, broker.Config())
	tx := producer(t, broker.Config(), kgo.TransactionalID("tx"))
	inTx := func(end kgo.TransactionEndTry, values ...string) {
		t.Helper()
		if err := tx.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		produce(t, tx, 0, values...)
		if err := tx.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	produce(t, plain, 0, "a")              // 0
	inTx(kgo.TryCommit, "b", "c")          // 1 2, marker 3
	inTx(kgo.TryAbort, "lost", "lost too") // 4 5, marker 6
	produce(t, plain, 0, "d")              // 7
	inTx(kgo.TryAbort, "lost at the end")  // 8, marker 9

	got, next := readAll(t, l, 0, 0, 100)
	if want := "0=a 1=b 2=c 7=d"; strings.Join(got, " ") != want || next != 10 {
		t.Errorf("Read = %v, %d, want %s, 10", got, next, want)
	}
	f := func(from, to int64, want string) {
		t.Helper()
		got, next := readAll(t, l, 0, from, to)
		if strings.Join(got, " ") != want || next != to {
			t.Errorf("Read(%d, %d) = %v, %d, want %s, %d", from, to, got, next, want, to)
		}
	}
	f(3, 5, "")    // inside a gap
	f(2, 6, "2=c") // into a gap
	f(5, 8, "7=d") // out of one
	f(8, 10, "")   // a gap up to the end
	f(10, 10, "")

	// An open transaction hides what follows it.
	if err := tx.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, tx, 0, "open")    // 10
	produce(t, plain, 0, "late") // 11
	if hw, err := l.HighWatermark(t.Context(), 0); err != nil || hw != 10 {
		t.Errorf("HighWatermark with an open transaction = %d, %v, want 10", hw, err)
	}
	if got, next := readAll(t, l, 0, 10, 12); len(got) != 0 || next != 10 {
		t.Errorf("Read with an open transaction = %v, %d, want nothing, 10", got, next)
	}
	if err := tx.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if got, next := readAll(t, l, 0, 10, 13); strings.Join(got, " ") != "10=open 11=late" || next != 13 {
		t.Errorf("Read after the commit = %v, %d, want both, 13", got, next)
	}
}

func TestRecordsLargerThanAFetchAreRead(t *testing.T) {
	broker := startForTest(t, 1)
	c := broker.Config()
	c.FetchMaxBytes = 64 << 10
	l := openLog(t, c)
	cl := producer(t, c, kgo.ProducerBatchCompression(kgo.NoCompression()))
	var want []string
	for i := range 6 {
		want = append(want, strings.Repeat(string(rune('a'+i)), 1<<20))
	}
	produce(t, cl, 0, want[:3]...)
	produce(t, cl, 0, "small")
	produce(t, cl, 0, want[3:]...)
	want = slices.Insert(want, 3, "small")
	var got []string
	next, err := l.Read(t.Context(), 0, 0, 7, func(r *kgo.Record) error {
		got = append(got, string(r.Value))
		return nil
	})
	if err != nil || next != 7 || !slices.Equal(got, want) {
		t.Errorf("Read = %d records, %d, %v, want the 7 that were written", len(got), next, err)
	}
}

func TestBatchesAreCutAtBothEnds(t *testing.T) {
	broker := startForTest(t, 1)
	l := openLog(t, broker.Config())
	for _, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.ZstdCompression(), kgo.Lz4Compression(), kgo.GzipCompression(), kgo.SnappyCompression()} {
		cl := producer(t, broker.Config(), kgo.ProducerBatchCompression(codec))
		begin, err := l.HighWatermark(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		var batch []*kgo.Record
		for range 500 {
			batch = append(batch, &kgo.Record{Topic: schema.TopicEvents, Value: bytes.Repeat([]byte("x"), 100)})
		}
		if err := cl.ProduceSync(t.Context(), batch...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		at := begin + 100
		next, err := l.Read(t.Context(), 0, at, begin+400, func(r *kgo.Record) error {
			if r.Offset != at || len(r.Value) != 100 {
				return fmt.Errorf("got offset %d, want %d", r.Offset, at)
			}
			at++
			return nil
		})
		if err != nil || next != begin+400 || at != begin+400 {
			t.Errorf("Read = %d, %v after %d, want all of 300", next, err, at-begin-100)
		}
	}
}

func TestOffsetForTime(t *testing.T) {
	broker := startForTest(t, 1)
	l := openLog(t, broker.Config())
	produce(t, producer(t, broker.Config()), 0, "1000:", "2000:", "1500:", "3000:")
	f := func(ms, want int64) {
		t.Helper()
		if got, err := l.OffsetForTime(t.Context(), 0, ms); err != nil || got != want {
			t.Errorf("OffsetForTime(%d) = %d, %v, want %d", ms, got, err, want)
		}
	}
	f(-5, 0)
	f(0, 0)
	f(1000, 0)
	f(1001, 1)
	f(2000, 1)
	f(2001, 3)
	f(3001, 4)
}

func TestEmbeddedBrokerKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	broker := start(t, dir, 3)
	l := openLog(t, broker.Config())
	produce(t, producer(t, broker.Config()), 2, "a", "b", "c")
	id := l.TopicID()
	if id == ([16]byte{}) {
		t.Error("TopicID is zero")
	}
	if _, err := kafka.StartEmbedded(dir, "127.0.0.1:0", 3, discard); !errors.Is(err, kafka.ErrDirInUse) {
		t.Errorf("second broker on the directory: %v, want ErrDirInUse", err)
	}
	if err := broker.Close(); err != nil {
		t.Fatal(err)
	}

	again := start(t, dir, 5)            // the topic exists and keeps its 3 partitions
	defer func() { _ = again.Close() }() // what counts was checked before
	l = openLog(t, again.Config())
	if l.TopicID() != id || l.Partitions() != 3 {
		t.Errorf("after restart: topic id same %v, %d partitions, want the same and 3", l.TopicID() == id, l.Partitions())
	}
	if got, next := readAll(t, l, 2, 0, 10); strings.Join(got, " ") != "0=a 1=b 2=c" || next != 3 {
		t.Errorf("after restart: Read = %v, %d", got, next)
	}
	produce(t, producer(t, again.Config()), 2, "d")
	if got, _ := readAll(t, l, 2, 3, 10); strings.Join(got, " ") != "3=d" {
		t.Errorf("after restart: Read(3) = %v, want d", got)
	}
}

func TestHighWatermarkIsNeverOlderThanTheCall(t *testing.T) {
	broker := startForTest(t, 2)
	l := openLog(t, broker.Config())
	var wg sync.WaitGroup
	for p := range int32(2) {
		cl := producer(t, broker.Config(), kgo.ProducerLinger(0))
		var acked atomic.Int64
		wg.Go(func() {
			for i := range 200 {
				produce(t, cl, p, "x")
				acked.Store(int64(i + 1))
			}
		})
		for range 4 {
			wg.Go(func() {
				for acked.Load() < 200 {
					before := acked.Load()
					hw, err := l.HighWatermark(t.Context(), uint16(p))
					if err != nil || hw < before {
						t.Errorf("HighWatermark(%d) = %d, %v, want at least the %d acknowledged before the call", p, hw, err, before)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestHighWatermarkCallsShareRequests(t *testing.T) {
	// 1. The broker holds the first request back.
	// 2. 100 callers over 2 partitions come meanwhile.
	// 3. They are all answered by one further request.
	cluster, c := startFake(t, 1, 2)
	ensure(t, c)
	l := openLog(t, c)
	var requests atomic.Int64
	arrived, release := make(chan struct{}), make(chan struct{})
	cluster.ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if requests.Add(1) == 1 {
			close(arrived)
			cluster.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	var wg sync.WaitGroup
	ask := func(p uint16) {
		wg.Go(func() {
			if hw, err := l.HighWatermark(t.Context(), p); err != nil || hw != 0 {
				t.Errorf("HighWatermark = %d, %v, want 0", hw, err)
			}
		})
	}
	ask(0)
	<-arrived
	for i := range 100 {
		ask(uint16(i % 2))
	}
	waitFor(t, "100 callers wait", func() bool { return l.Waiting() == 100 })
	close(release)
	wg.Wait()
	if n := requests.Load(); n != 2 {
		t.Errorf("101 calls took %d requests, want 2", n)
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// startFake runs a cluster of several brokers in memory, with our topics.
func startFake(t testing.TB, brokers, partitions int, opts ...kfake.Opt) (*kfake.Cluster, kafka.Config) {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(brokers)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	c := kafka.DefaultConfig()
	c.Brokers = cluster.ListenAddrs()
	c.Partitions, c.ReplicationFactor = partitions, 1
	return cluster, c
}

func ensure(t testing.TB, c kafka.Config) {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func TestLeadersAreFollowed(t *testing.T) {
	cluster, c := startFake(t, 3, 3)
	ensure(t, c)
	l := openLog(t, c)
	cl := producer(t, c)
	for p := range int32(3) {
		produce(t, cl, p, "a", "b")
	}
	for round := range 4 {
		for p := range int32(3) {
			if err := cluster.MoveTopicPartition(schema.TopicEvents, p, (cluster.LeaderFor(schema.TopicEvents, p)+1)%3); err != nil {
				t.Fatal(err)
			}
			if got, next := readAll(t, l, uint16(p), 0, 2); strings.Join(got, " ") != "0=a 1=b" || next != 2 {
				t.Errorf("round %d: Read(%d) = %v, %d", round, p, got, next)
			}
			if start, end, err := l.Bounds(t.Context(), uint16(p)); start != 0 || end != 2 || err != nil {
				t.Errorf("round %d: Bounds(%d) = %d, %d, %v", round, p, start, end, err)
			}
		}
	}
}

func TestFaultsAreRetriedAndGivenUpInTime(t *testing.T) {
	cluster, c := startFake(t, 1, 1)
	ensure(t, c)
	c.RetryTimeout = time.Second
	l := openLog(t, c)
	produce(t, producer(t, c), 0, "a")

	// Broken connections, then success.
	var n atomic.Int64
	cluster.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		if n.Add(1) <= 3 {
			cluster.KeepControl()
			return nil, errors.New("cut the connection"), true
		}
		return nil, nil, false
	})
	if got, _ := readAll(t, l, 0, 0, 1); strings.Join(got, " ") != "0=a" {
		t.Errorf("Read over broken connections = %v", got)
	}

	// A broker that never recovers.
	cluster.ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, errors.New("cut the connection"), true
	})
	began := time.Now()
	if _, err := l.HighWatermark(t.Context(), 0); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("HighWatermark of a dead broker = %v after %v, want an error after about 1 s", err, time.Since(began))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.HighWatermark(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("HighWatermark with a deadline = %v, want it exceeded", err)
	}
}

func TestARecreatedTopicIsNoticed(t *testing.T) {
	cluster, c := startFake(t, 1, 1)
	ensure(t, c)
	l := openLog(t, c)
	produce(t, producer(t, c), 0, "a")
	if err := cluster.DeleteTopic(schema.TopicEvents); err != nil {
		t.Fatal(err)
	}
	ensure(t, c)
	_, err := l.Read(t.Context(), 0, 0, 1, func(*kgo.Record) error { return nil })
	if !errors.Is(err, kafka.ErrTopicRecreated) {
		t.Errorf("Read after the topic was recreated = %v, want ErrTopicRecreated", err)
	}
}

func TestReadsRunSideBySide(t *testing.T) {
	broker := startForTest(t, 4)
	c := broker.Config()
	c.FetchMaxBytes = 64 << 10
	l := openLog(t, c)
	// Small batches, so that a Read takes many fetches.
	cl := producer(t, c, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(16<<10))
	const records = 2000
	var batch []*kgo.Record
	for i := range records {
		for p := range int32(4) {
			batch = append(batch, &kgo.Record{Topic: schema.TopicEvents, Partition: p, Value: fmt.Appendf(nil, "%d/%d %s", p, i, strings.Repeat("x", 200))})
		}
	}
	if err := cl.ProduceSync(t.Context(), batch...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			p := uint16(w % 4)
			ctx := t.Context()
			if w >= 12 { // some give up midway, which must not hurt the others
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				defer cancel()
				_, err := l.Read(ctx, p, 0, records, func(r *kgo.Record) error {
					if r.Offset == 100 {
						cancel()
					}
					return nil
				})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("cancelled Read = %v", err)
				}
				return
			}
			at := int64(0)
			next, err := l.Read(ctx, p, 0, records, func(r *kgo.Record) error {
				if want := fmt.Sprintf("%d/%d ", p, at); r.Offset != at || !strings.HasPrefix(string(r.Value), want) {
					return fmt.Errorf("offset %d holds %.10s, want %s", r.Offset, r.Value, want)
				}
				at++
				return nil
			})
			if err != nil || next != records || at != records {
				t.Errorf("Read = %d, %v after %d records", next, err, at)
			}
		})
	}
	wg.Wait()
}

func TestCloseEndsCalls(t *testing.T) {
	cluster, c := startFake(t, 1, 1)
	ensure(t, c)
	l, err := kafka.OpenLog(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	cluster.ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
		close(arrived)
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	done := make(chan error, 1)
	go func() {
		_, err := l.HighWatermark(context.Background(), 0)
		done <- err
	}()
	<-arrived
	l.Close()
	if err := <-done; !errors.Is(err, kafka.ErrClosed) {
		t.Errorf("HighWatermark on a closed log = %v, want ErrClosed", err)
	}
	if _, err := l.Read(t.Context(), 0, 0, 1, nil); !errors.Is(err, kafka.ErrClosed) {
		t.Errorf("Read on a closed log = %v, want ErrClosed", err)
	}
}

func TestSASL(t *testing.T) {
	_, c := startFake(t, 1, 1, kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "pete", "plain secret"), kfake.Superuser("SCRAM-SHA-256", "sara", "scram secret"), kfake.Superuser("SCRAM-SHA-512", "saul", "other secret"))
	c.RetryTimeout = time.Second
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("scram secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []kafka.SASLConfig{
		{Mechanism: kafka.SASLPlain, Username: "pete", Password: "plain secret"},
		{Mechanism: kafka.SASLScramSHA256, Username: "sara", PasswordFile: file},
		{Mechanism: kafka.SASLScramSHA512, Username: "saul", Password: "other secret"},
	} {
		c.SASL = s
		ensure(t, c)
		openLog(t, c)
	}
	c.SASL = kafka.SASLConfig{Mechanism: kafka.SASLPlain, Username: "pete", Password: "wrong"}
	if l, err := kafka.OpenLog(t.Context(), c); err == nil {
		l.Close()
		t.Error("OpenLog with a wrong password succeeded")
	} else if strings.Contains(err.Error(), "wrong") {
		t.Errorf("error tells the password: %v", err)
	}
}

func TestOpenNeedsTheTopic(t *testing.T) {
	_, c := startFake(t, 1, 1)
	c.RetryTimeout = time.Second
	if l, err := kafka.OpenLog(t.Context(), c); err == nil {
		l.Close()
		t.Error("OpenLog without a topic succeeded")
	} else if !strings.Contains(err.Error(), schema.TopicEvents) {
		t.Errorf("OpenLog = %v, want the topic named", err)
	}
}

func TestConfigValidateNamesEveryProblem(t *testing.T) {
	if err := kafka.DefaultConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	f := func(change func(*kafka.Config), want string) {
		t.Helper()
		c := kafka.DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate() = %v, want %s named", err, want)
		}
	}
	f(func(c *kafka.Config) { c.Brokers = nil }, "brokers")
	f(func(c *kafka.Config) { c.Brokers = []string{"host"} }, "brokers[0]")
	f(func(c *kafka.Config) { c.Partitions = 0 }, "partitions")
	f(func(c *kafka.Config) { c.Partitions = 65537 }, "partitions")
	f(func(c *kafka.Config) { c.ReplicationFactor = -1 }, "replication_factor")
	f(func(c *kafka.Config) { c.Retention = -2 }, "retention")
	f(func(c *kafka.Config) { c.MaxBatchBytes = 1000 }, "max_batch_bytes")
	f(func(c *kafka.Config) { c.FetchMaxBytes = 0 }, "fetch_max_bytes")
	f(func(c *kafka.Config) { c.ReadConnections = 0 }, "read_connections")
	f(func(c *kafka.Config) { c.RetryTimeout = 0 }, "retry_timeout")
	f(func(c *kafka.Config) { c.TLS.CAFile = "x" }, "tls.enabled")
	f(func(c *kafka.Config) { c.TLS = kafka.TLSConfig{Enabled: true, CertFile: "x"} }, "tls.key_file")
	f(func(c *kafka.Config) { c.SASL.Username = "x" }, "sasl.mechanism")
	f(func(c *kafka.Config) { c.SASL.Mechanism = "gssapi" }, "sasl.mechanism")
	f(func(c *kafka.Config) { c.SASL.Mechanism = kafka.SASLPlain }, "sasl.username")
	f(func(c *kafka.Config) {
		c.SASL = kafka.SASLConfig{Mechanism: kafka.SASLPlain, Username: "x", Password: "y", PasswordFile: "z"}
	}, "sasl.password")
}
