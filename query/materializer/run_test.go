package materializer

import (
	"bytes"
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

func TestEveryRecordBecomesOneRow(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 4)
		for p := range uint16(4) {
			c.produceEvents(p, 250)
		}
		m := c.launch(testConfig(), 1, s)
		for p := range uint16(4) {
			m.wait(p, 250)
		}
		c.produceEvents(2, 30)
		m.wait(2, 280)
		for p := range uint16(4) {
			wantExact(t, s, p, c.end(p))
		}
		m.stopped()
		for p := range uint16(4) {
			if got := c.committed(p, 1); got.next != c.end(p) || !got.intent.IsZero() {
				t.Errorf("committed(%d) = %+v, want offset %d and no intent", p, got, c.end(p))
			}
		}
		marks, err := Committed(c.admin, 1)(t.Context())
		if want := map[uint16]int64{0: 250, 1: 250, 2: 280, 3: 250}; err != nil || !maps.Equal(marks, want) {
			t.Errorf("Committed() = %v, %v; want %v", marks, err, want)
		}
		if marks, err := Committed(c.admin, 2)(t.Context()); err != nil || len(marks) != 0 {
			t.Errorf("Committed() in another epoch = %v, %v; want none", marks, err)
		}
	})
}

func TestTwoProcessesShareThePartitionsAndHandThemOver(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 4)
		first := c.launch(testConfig(), 1, s)
		for p := range uint16(4) {
			c.produceEvents(p, 100)
			first.wait(p, 100)
		}
		second := c.launch(testConfig(), 1, s)
		owns := func(p *process) int {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.owned)
		}
		until(t, "each process owns two partitions", func() bool { return owns(first) == 2 && owns(second) == 2 })
		for p := range uint16(4) {
			c.produceEvents(p, 150)
		}
		all := func(next int64) func() bool {
			return func() bool {
				for p := range uint16(4) {
					if c.committed(p, 1).next < next {
						return false
					}
				}
				return true
			}
		}
		until(t, "everything is copied", all(250))
		first.stopped()
		for p := range uint16(4) {
			c.produceEvents(p, 50)
		}
		until(t, "the other process has taken over", all(300))
		for p := range uint16(4) {
			wantExact(t, s, p, 300)
		}
	})
}

func TestTransactionMarkersAreNoRecords(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		tx, err := kgo.NewClient(append(c.options, kgo.TransactionalID("t"), kgo.DefaultProduceTopic(schema.TopicEvents),
			kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Close()
		committedRecords := 0
		for round := range 6 {
			if err := tx.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			for range 7 {
				if err := tx.ProduceSync(t.Context(), c.record(0, time.Now().UnixMilli(), "", "a")).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			commit := kgo.TransactionEndTry(round%2 == 0)
			if err := tx.EndTransaction(t.Context(), commit); err != nil {
				t.Fatal(err)
			}
			if commit {
				committedRecords += 7
			}
		}
		m := c.launch(testConfig(), 1, s)
		m.wait(0, c.end(0)) // a mark lies before it
		h, err := s.count(t.Context(), 0, offsetRange{end: schema.MaxOffset})
		if err != nil {
			t.Fatal(err)
		}
		if h.rows != committedRecords || h.distinct != h.rows {
			t.Errorf("table holds %+v, want %d rows", h, committedRecords)
		}
	})
}

func TestBatchesEndAtAMonth(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		f := &faults{testStore: s}
		turn := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
		for _, ms := range []int64{turn - 2, turn - 1, turn, turn + 1, turn - 1, turn + 2} {
			c.produce(c.record(0, ms, "", "a"))
		}
		m := c.launch(testConfig(), 1, f)
		m.wait(0, 6)
		wantExact(t, s, 0, 6)
		want := []string{"0-2", "2-4", "4-5", "5-6"}
		got := f.sent()
		if len(got) != len(want) {
			t.Fatalf("inserts = %q, want the ranges %q", got, want)
		}
		for i := range want {
			if !strings.Contains(got[i], "/"+want[i]+"/") {
				t.Errorf("insert %d = %q, want the range %s", i, got[i], want[i])
			}
		}
	})
}

func TestRepeatsBecomeDuplicateRowsAlsoAfterARestart(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		now := time.Now().UnixMilli()
		c.produce(c.record(0, now, "m1", "a"), c.record(0, now, "m2", "a"), c.record(0, now+1, "m1", "a"))
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 3)
		m.stopped()
		c.produce(c.record(0, now+2, "m2", "a"), c.record(0, now+3, "m3", "a"))
		m = c.launch(testConfig(), 1, s)
		m.wait(0, 5)
		wantExact(t, s, 0, 5)
		want := map[int64]string{0: "a", 1: "a", 2: schema.TypeDuplicate, 3: schema.TypeDuplicate, 4: "a"}
		got := s.types(t, 0)
		for offset, kind := range want {
			if got[offset] != kind {
				t.Errorf("type of offset %d = %q, want %q", offset, got[offset], kind)
			}
		}
	})
}

func TestPoisonBecomesDeadLetterRows(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 2)
		now := time.Now().UnixMilli()
		notJSON := c.record(0, now, "", "a")
		notJSON.Value = []byte("{")
		misplaced := c.record(1, now, "", "a")
		misplaced.Partition = 0
		ancient := c.record(0, -5, "", "a")
		poison := []*kgo.Record{
			{Partition: 0, Timestamp: time.UnixMilli(now), Value: []byte("\xff\x00 not ours")},
			notJSON, misplaced, ancient,
			{Partition: 0, Timestamp: time.UnixMilli(now), Headers: []kgo.RecordHeader{{Key: "ce_type", Value: bytes.Repeat([]byte{0xfe}, 300)}}},
		}
		c.produce(c.record(0, now, "", "a"))
		c.produce(poison...)
		c.produce(c.record(0, now, "", "a"))
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 7)
		wantExact(t, s, 0, 7)
		got := s.types(t, 0)
		for offset := range int64(7) {
			want := schema.TypeDeadLetter
			if offset == 0 || offset == 6 {
				want = "a"
			}
			if got[offset] != want {
				t.Errorf("type of offset %d = %q, want %q", offset, got[offset], want)
			}
		}
		if reason := s.metadata(t, 0, 3)["reason"]; reason != "session belongs in partition 1" {
			t.Errorf("reason = %q", reason)
		}
		if got := m.metric("rows_total", "dead_letter"); got != 5 {
			t.Errorf("dead letters counted = %v, want 5", got)
		}
	})
}

func TestAnIdlePartitionShowsOneEventSoon(t *testing.T) {
	c := newCluster(t, 1)
	cfg := DefaultConfig()
	m := c.launch(cfg, 1, newMemoryStore())
	c.produceEvents(0, 1)
	m.wait(0, 1)
	time.Sleep(cfg.BatchInterval) // the partition is idle only after that
	for next := range int64(1) {
		began := time.Now()
		c.produceEvents(0, 1)
		m.wait(0, 2+next)
		if took := time.Since(began); took > cfg.Linger+500*time.Millisecond {
			t.Errorf("a lone event took %v, want about %v", took, cfg.Linger)
		}
	}
}

// 1. a process stops, with an insert in flight; 2. the group takes the partition away
// meanwhile, to give it to another member; 3. the worker goes on, and its commits count, as
// the process is a member still. So 2 has to wait for it.
func TestPartitionRevokedDuringAStopIsWaitedFor(t *testing.T) {
	c := newCluster(t, 1)
	reached := make(chan struct{}, 1)
	f := &faults{testStore: newMemoryStore(), before: func(ctx context.Context, _ string, _ *batch) error {
		reached <- struct{}{}
		<-ctx.Done() // longer than the stop waits
		return context.Cause(ctx)
	}}
	c.produceEvents(0, 50)
	cfg := testConfig()
	cfg.RevokeTimeout = time.Second
	m := c.launch(cfg, 1, f)
	<-reached
	m.mu.Lock()
	w := m.owned[0]
	m.mu.Unlock()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		m.stop()
	}()
	until(t, "the worker is told to end", func() bool { return w.soft.Err() != nil })
	m.revoked(t.Context(), nil, map[string][]int32{schema.TopicEvents: {0}})
	select {
	case <-w.done:
	default:
		t.Error("the partition was given up while its worker runs")
	}
	<-stopped
}
