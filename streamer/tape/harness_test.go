package tape

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

const testDeadline = 20 * time.Second

// checkGoroutines fails the test if, when everything else is cleaned up, goroutines of
// this package still run. Call it first.
func checkGoroutines(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left []string
		for deadline := time.Now().Add(testDeadline); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			left = left[:0]
			buf := make([]byte, 4<<20)
			for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "playhead/streamer") && !strings.Contains(g, "testing.tRunner(") {
					left = append(left, g)
				}
			}
			if len(left) == 0 {
				return
			}
		}
		t.Errorf("%d goroutines left:\n%s", len(left), strings.Join(left, "\n\n"))
	})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testDeadline); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// recordedPast is the History behind a tape: all events below any offset, kept in memory.
type recordedPast struct {
	mu     sync.Mutex
	events []*schema.Event // no repeats
	calls  int
	fail   error
	gate   chan struct{} // if set, each call waits for it to be closed
}

func (p *recordedPast) add(e *schema.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

func (p *recordedPast) SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error) {
	p.mu.Lock()
	p.calls++
	gate, fail := p.gate, p.fail
	p.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return schema.Session{}, context.Cause(ctx)
		}
	}
	if fail != nil {
		return schema.Session{}, fail
	}
	return p.fold(workspace, session, to.Offset), nil
}

// fold is the state of a session at offset to, as it must be.
func (p *recordedPast) fold(workspace, session string, to int64) schema.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := schema.NewSession()
	for _, e := range p.events {
		if e.Workspace == workspace && e.Session == session && e.ID.Offset < to {
			s.Apply(e)
		}
	}
	return s
}

func testMetrics() *Metrics { return NewMetrics(prometheus.NewRegistry()) }

// testLog is an embedded broker with the events topic and a client that writes to it.
type testLog struct {
	t         *testing.T
	broker    *kafka.Embedded
	cfg       kafka.Config
	log       *kafka.Log
	producer  *kgo.Client
	placement schema.Placement
}

func startLog(t *testing.T, partitions int) *testLog {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", partitions, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	l := &testLog{
		t: t, broker: broker, cfg: broker.Config(),
		placement: schema.Placement{Partitions: partitions, Shards: schema.DefaultShards},
	}
	if err := kafka.EnsureTopics(ctx, l.cfg); err != nil {
		t.Fatal(err)
	}
	if l.log, err = kafka.OpenLog(ctx, l.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.log.Close)
	l.producer = l.client()
	return l
}

// client returns a client that writes records to the partitions they name.
func (l *testLog) client(more ...kgo.Opt) *kgo.Client {
	l.t.Helper()
	opts, err := l.cfg.Options()
	if err != nil {
		l.t.Fatal(err)
	}
	opts = append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(schema.TopicEvents))
	cl, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(cl.Close)
	return cl
}

// record returns the Kafka record of e, placed as ingest places it.
func (l *testLog) record(e *schema.Event) *kgo.Record {
	return &kgo.Record{
		Partition: int32(l.placement.Partition(e.Workspace, e.Session)),
		Key:       schema.RecordKey(e.Workspace, e.Session),
		Headers:   schema.AppendHeaders[kgo.RecordHeader](nil, e, "generated"),
		Value:     e.Payload,
		Timestamp: time.UnixMilli(e.ID.TimeMs),
	}
}

// produce writes records and waits until they are acknowledged.
func (l *testLog) produce(records ...*kgo.Record) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	if err := l.producer.ProduceSync(ctx, records...).FirstErr(); err != nil {
		l.t.Fatal(err)
	}
}

func (l *testLog) startTapes(cfg Config, past Past, now func() time.Time) *Tapes {
	l.t.Helper()
	opts, err := l.cfg.Options()
	if err != nil {
		l.t.Fatal(err)
	}
	tapes, err := Start(cfg, Deps{
		Kafka: opts, Log: l.log, Past: past, Epoch: 1, Partitions: l.placement.Partitions, Placement: l.place,
		Metrics: testMetrics(), Logger: slog.New(slog.DiscardHandler), Now: now,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return tapes
}

func openTape(t *testing.T, tapes *Tapes, partition uint16) *Tape {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	tape, err := tapes.Open(ctx, partition)
	if err != nil {
		t.Fatal(err)
	}
	return tape
}

func waitFor(t *testing.T, tape *Tape, next int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	if err := tape.WaitFor(ctx, next); err != nil {
		t.Fatalf("WaitFor(%d): %v (Next() = %d)", next, err, tape.Next())
	}
}

// newEvent returns an event with the parts tests care about.
func newEvent(session, typ, messageID string, timeMs int64) *schema.Event {
	return &schema.Event{
		ID:        schema.EventID{TimeMs: timeMs},
		Workspace: "w", Session: session, Type: typ, MessageID: messageID,
		ContentType: schema.DefaultContentType, Payload: fmt.Appendf(nil, `{"m":%q}`, messageID),
	}
}

var errPast = errors.New("the past is away")

func (l *testLog) place(string) schema.Placement { return l.placement }
