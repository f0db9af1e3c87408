package materializer

import (
	"context"
	"slices"
	"testing"
	"time"
)

func quickChecks() Config {
	c := testConfig()
	c.SelfCheckInterval = time.Second
	return c
}

// 1. rows vanish below the watermark; 2. the self-check finds them missing, and the
// worker puts them back, as the events and repeats that they were.
func TestSelfCheckRepairsMissingRows(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		now := time.Now().UnixMilli()
		c.produce(c.record(0, now, "m1", "a"))
		c.produceEvents(0, 248)
		c.produce(c.record(0, now, "m1", "a"))
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 250)
		m.stopped()
		before := s.types(t, 0)
		s.deleteRows(t, 0, 20, 60)
		s.deleteRows(t, 0, 200, 250)
		m = c.launch(quickChecks(), 1, s)
		until(t, "the rows are back", func() bool {
			h, err := s.count(context.Background(), 0, offsetRange{end: 250})
			return err == nil && h.distinct == 250
		})
		wantExact(t, s, 0, 250)
		after := s.types(t, 0)
		for offset, kind := range before {
			if after[offset] != kind {
				t.Errorf("type of offset %d = %q, was %q", offset, after[offset], kind)
			}
		}
		until(t, "the repair is counted", func() bool { return m.metric("repaired_rows_total", "") == 90 })
		if got := m.metric("self_checks_total", "gap"); got < 1 {
			t.Errorf("gaps counted = %v, want 1 or more", got)
		}
		c.produceEvents(0, 10)
		m.wait(0, 260)
		wantExact(t, s, 0, 260)
	})
}

// 1. a repair is announced; 2. the process dies in the middle of it; 3. the next one
// settles it, and goes on where the copying was.
func TestCrashInARepair(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 250)
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 250)
		m.stopped()
		s.deleteRows(t, 0, 30, 90)
		reached := make(chan struct{}, 1)
		f := &faults{testStore: s, before: func(ctx context.Context, _ string, _ *batch) error {
			reached <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		}}
		m = c.launch(quickChecks(), 1, f)
		<-reached
		m.crash()
		if got := c.committed(0, 1); got.next != 250 || got.intent.IsZero() {
			t.Errorf("committed = %+v, want offset 250 and the repair's intent", got)
		}
		f.before = nil
		c.produceEvents(0, 50)
		m = c.launch(testConfig(), 1, f)
		m.wait(0, 300)
		wantExact(t, s, 0, 300)
	})
}

func TestSelfCheckReportsDoubles(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 50)
		m := c.launch(quickChecks(), 1, s)
		m.wait(0, 50)
		b := newBatch(1, 0)
		b.add(&row{offset: 7, ms: time.Now().UnixMilli(), kind: "a"})
		if err := s.insert(t.Context(), "by-hand", b); err != nil {
			t.Fatal(err)
		}
		until(t, "the double is counted", func() bool { return m.metric("self_checks_total", "double") > 0 })
	})
}

func TestLedgerJoinsNeighbours(t *testing.T) {
	var l ledger
	l.add(Intent{Start: 0, End: 10, Records: 10, MinMs: 5, MaxMs: 6})
	l.add(Intent{Start: 10, End: 30, Records: 18, MinMs: 4, MaxMs: 9})
	l.add(Intent{Start: 50, End: 60, Records: 10, MinMs: 7, MaxMs: 7})
	if _, ok := l.take(29); ok {
		t.Error("take gave a range that is not below the committed offset")
	}
	want := []stretch{
		{offsetRange{start: 0, end: 30, minMs: 4, maxMs: 9}, 28},
		{offsetRange{start: 50, end: 60, minMs: 7, maxMs: 7}, 10},
	}
	var got []stretch
	for {
		s, ok := l.take(60)
		if !ok {
			break
		}
		got = append(got, s)
	}
	if !slices.Equal(got, want) {
		t.Errorf("ranges = %+v, want %+v", got, want)
	}
}

func TestLedgerWalksRoundTheLog(t *testing.T) {
	var l ledger
	var got []offsetRange
	for range 4 {
		got = append(got, l.step(100, 100+2*checkOffsets+7))
	}
	want := []offsetRange{
		{start: 100, end: 100 + checkOffsets},
		{start: 100 + checkOffsets, end: 100 + 2*checkOffsets},
		{start: 100 + 2*checkOffsets, end: 100 + 2*checkOffsets + 7},
		{start: 100, end: 100 + checkOffsets},
	}
	if !slices.Equal(got, want) {
		t.Errorf("walk = %+v, want %+v", got, want)
	}
}
