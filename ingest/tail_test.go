package ingest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/schema"
)

const testEpoch = 1

var errHistoryAway = errors.New("history is away")

// logTails follows every partition of the events topic from its start, with the
// schema's own window and fold: the smallest Tail that is right.
type logTails struct {
	admin *kadm.Client
	tails map[uint16]*logTail

	mu   sync.Mutex
	away bool          // sessions cannot be told
	gate chan struct{} // not nil while the tails stand still
}

type logTail struct {
	tails *logTails

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when next moves
	next     int64
	window   *schema.Window
	sessions map[sessionKey]*schema.Session
	events   []*schema.Event
}

func newLogTails(tb testing.TB, addrs []string, partitions int) *logTails {
	tb.Helper()
	offsets := make(map[int32]kgo.Offset, partitions)
	tails := &logTails{tails: make(map[uint16]*logTail)}
	for p := range partitions {
		offsets[int32(p)] = kgo.NewOffset().At(0)
		tails.tails[uint16(p)] = &logTail{
			tails: tails, changed: make(chan struct{}),
			window:   schema.NewWindow(schema.DedupeRule{Offsets: schema.DefaultDedupeOffsets, Age: schema.DefaultDedupeAge}),
			sessions: make(map[sessionKey]*schema.Session),
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.FetchMaxWait(50*time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{schema.TopicEvents: offsets}))
	if err != nil {
		tb.Fatal(err)
	}
	tails.admin = kadm.NewClient(client)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			fetches.EachRecord(func(rec *kgo.Record) {
				tails.mu.Lock()
				gate := tails.gate
				tails.mu.Unlock()
				if gate != nil {
					select {
					case <-gate:
					case <-ctx.Done():
					}
				}
				tails.tails[uint16(rec.Partition)].apply(tb, rec)
			})
		}
	})
	tb.Cleanup(func() {
		cancel()
		client.Close()
		wg.Wait()
	})
	return tails
}

// hold stops the tails until release is called.
func (t *logTails) hold() (release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	gate := make(chan struct{})
	t.gate = gate
	return sync.OnceFunc(func() {
		t.mu.Lock()
		t.gate = nil
		t.mu.Unlock()
		close(gate)
	})
}

func (t *logTails) setAway(away bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.away = away
}

func (t *logTails) Open(ctx context.Context, partition uint16) (Tail, error) {
	ends, err := t.admin.ListEndOffsets(ctx, schema.TopicEvents)
	if err != nil {
		return nil, err
	}
	end, ok := ends.Lookup(schema.TopicEvents, int32(partition))
	if !ok || end.Err != nil {
		return nil, errors.Join(errors.New("no such partition"), end.Err)
	}
	tail := t.tails[partition]
	return tail, tail.WaitFor(ctx, end.Offset)
}

func recordID(rec *kgo.Record) schema.EventID {
	return schema.EventID{
		Position: schema.Position{Epoch: testEpoch, Partition: uint16(rec.Partition), Offset: rec.Offset},
		TimeMs:   rec.Timestamp.UnixMilli(),
	}
}

func (t *logTail) apply(tb testing.TB, rec *kgo.Record) {
	e, err := schema.DecodeRecord(recordID(rec), rec.Headers, rec.Value)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		tb.Errorf("record %d/%d: %v", rec.Partition, rec.Offset, err)
	} else if _, dup := t.window.Observe(e); !dup {
		key := sessionKey{e.Workspace, e.Session}
		s := t.sessions[key]
		if s == nil {
			fresh := schema.NewSession()
			s = &fresh
			t.sessions[key] = s
		}
		s.Apply(e)
		t.events = append(t.events, e)
	}
	t.next = rec.Offset + 1
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *logTail) Err() error { return nil }

func (t *logTail) Next() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next
}

func (t *logTail) WaitFor(ctx context.Context, next int64) error {
	for {
		t.mu.Lock()
		reached, changed := t.next >= next, t.changed
		t.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (t *logTail) Duplicate(key xxh3.Uint128, nowMs int64) (schema.EventID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.window.Lookup(key, schema.EventID{Position: schema.Position{Epoch: testEpoch, Offset: t.next}, TimeMs: nowMs})
}

func (t *logTail) Session(_ context.Context, workspace, session string) (schema.Session, error) {
	t.tails.mu.Lock()
	away := t.tails.away
	t.tails.mu.Unlock()
	if away {
		return schema.Session{}, errHistoryAway
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[sessionKey{workspace, session}]
	if s == nil {
		return schema.NewSession(), nil
	}
	return s.Clone(), nil
}

// all returns every event that is no repeat, by partition.
func (t *logTails) all() []*schema.Event {
	var out []*schema.Event
	for p := range len(t.tails) {
		tail := t.tails[uint16(p)]
		tail.mu.Lock()
		out = append(out, tail.events...)
		tail.mu.Unlock()
	}
	return out
}

// forget drops the events seen so far, for benchmarks.
func (t *logTails) forget() {
	for _, tail := range t.tails {
		tail.mu.Lock()
		tail.events = nil
		tail.mu.Unlock()
	}
}
