package materializer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// eraseBelow knows of the erasure of one session of workspace ws.
func eraseBelow(session string, offset int64) schema.ErasedBelow {
	set := &schema.Erasures{}
	set.Add(&schema.Erasure{ID: "e", Workspace: "ws", Session: session, Below: schema.Position{Epoch: 1, Offset: offset}})
	return set.Below
}

func wantKinds(t *testing.T, s testStore, erasedBelow, end int64) {
	t.Helper()
	types := s.types(t, 0)
	for offset := range end {
		want := "demo.tick"
		if offset < erasedBelow {
			want = schema.TypeErased
		}
		if types[offset] != want {
			t.Errorf("offset %d is %s, want %s", offset, types[offset], want)
		}
	}
}

func TestErasedRecordsBecomeStubs(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 20)
		c.erased = eraseBelow(c.sessionIn(0), 13)
		p := c.launch(testConfig(), 1, s)
		p.wait(0, 20)
		wantExact(t, s, 0, 20)
		wantKinds(t, s, 13, 20)
		if m := s.metadata(t, 0, 3); len(m) != 0 {
			t.Errorf("the stub's metadata is %v", m)
		}
	})
}

// TestATableMadeAnewHoldsStubsAlone: rows are lost, and the self-check makes them again from
// the log, which still has what was erased.
func TestATableMadeAnewHoldsStubsAlone(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 20)
		p := c.launch(testConfig(), 1, s)
		p.wait(0, 20)
		p.stopped()
		wantKinds(t, s, 0, 20) // nobody has heard yet
		s.deleteRows(t, 0, 0, 20)
		c.erased = eraseBelow(c.sessionIn(0), 13)
		cfg := testConfig()
		cfg.SelfCheckInterval = time.Second
		c.launch(cfg, 1, s)
		until(t, "the rows are there again", func() bool {
			h, err := s.count(t.Context(), 0, offsetRange{end: schema.MaxOffset})
			return err == nil && h.rows == 20
		})
		wantKinds(t, s, 13, 20)
	})
}

// TestAnErasureBetweenCrashAndRecoveryDoublesNothing:
//  1. a batch is announced and inserted; the process dies before it hears of that
//  2. its events are erased
//  3. the next owner counts the range, by places, which the erasure does not change
//
// What was inserted stays as it was: making stubs of it is query.Eraser's work. The same
// with nothing inserted makes stubs.
func TestAnErasureBetweenCrashAndRecoveryDoublesNothing(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		for _, kept := range []bool{true, false} {
			c := newCluster(t, 1)
			s.deleteRows(t, 0, 0, schema.MaxOffset)
			s.forgetTokens(t)
			c.produceEvents(0, 20)
			f := &faults{testStore: s}
			inserted := make(chan struct{}, 10)
			fault := func(ctx context.Context, _ string, _ *batch) error {
				inserted <- struct{}{}
				<-ctx.Done() // the crash
				return errors.New("no answer")
			}
			if kept {
				f.after = fault
			} else {
				f.before = fault
			}
			p := c.launch(testConfig(), 1, f)
			<-inserted
			p.crash()
			c.erased = eraseBelow(c.sessionIn(0), 13)
			p = c.launch(testConfig(), 1, s)
			p.wait(0, 20)
			wantExact(t, s, 0, 20)
			if kept {
				wantKinds(t, s, 0, 20)
			} else {
				wantKinds(t, s, 13, 20)
			}
			p.stopped()
		}
	})
}

// TestAnErasedWorkspaceLeavesNoDeadLetters: its placement is forgotten with it, so that its
// records seem to lie in wrong partitions. A dead letter would keep their payload.
func TestAnErasedWorkspaceLeavesNoDeadLetters(t *testing.T) {
	c := &cluster{partitions: 4}
	j := testJudge()
	j.partition = 3
	j.placement = func(string) schema.Placement { return schema.Placement{Partitions: 4, Shards: 1} }
	r := c.record(3, 1_790_000_000_000, "m", "a")
	r.Offset = 7
	if got := j.row(&kgo.Record{Offset: r.Offset, Timestamp: r.Timestamp, Headers: r.Headers, Value: r.Value}); got.kind != schema.TypeDeadLetter {
		t.Fatalf("the record is %s; the test is of no use", got.kind)
	}
	set := &schema.Erasures{}
	set.Add(&schema.Erasure{ID: "e", Workspace: "ws"})
	j.erased = set.Below
	want := row{workspace: "ws", offset: 7, ms: 1_790_000_000_000, kind: schema.TypeErased}
	if got := j.row(r); !equalRows(got, want) {
		t.Errorf("row = %+v, want %+v", got, want)
	}
}
