package materializer

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/schema"
)

// ask leaves a request for a rebuild of partition 0.
func (c *cluster) ask(r Request) (id string) {
	c.t.Helper()
	r.Epoch = 1
	id, err := NewDesk(c.admin).Ask(c.t.Context(), map[uint16]Request{0: r})
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// rebuilt waits for the end of a rebuild.
func (c *cluster) rebuilt(t *testing.T, id string) (b Rebuild) {
	t.Helper()
	until(t, "the rebuild has ended", func() bool {
		b = c.committed(0, 1).rebuilt
		return b.ID == id
	})
	return b
}

// wantRebuild compares the counts of a rebuild.
func wantRebuild(t *testing.T, got, want Rebuild) {
	t.Helper()
	want.ID, want.Cause, want.Start, want.End, want.Next, want.Ended = got.ID, CauseRequest, got.Start, got.End, got.End, true
	if got != want {
		t.Errorf("rebuild = %+v, want %+v", got, want)
	}
}

// copied launches a materialiser and waits until it has copied n events, one of them a
// repeat.
func (c *cluster) copied(s store, n int) *process {
	c.t.Helper()
	now := time.Now().UnixMilli()
	c.produce(c.record(0, now, "m1", "a"))
	c.produceEvents(0, n-2)
	c.produce(c.record(0, now, "m1", "a"))
	m := c.launch(testConfig(), 1, s)
	m.wait(0, int64(n))
	return m
}

func wantTypes(t *testing.T, s testStore, before map[int64]string) {
	t.Helper()
	after := s.types(t, 0)
	for offset, kind := range before {
		if after[offset] != kind {
			t.Errorf("type of offset %d = %q, was %q", offset, after[offset], kind)
		}
	}
}

func TestRebuildInsertsWhatIsMissing(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		m := c.copied(s, 350)
		before := s.types(t, 0)
		s.deleteRows(t, 0, 20, 60)
		s.deleteRows(t, 0, 110, 250)
		s.deleteRows(t, 0, 330, 350)
		dry := c.rebuilt(t, c.ask(Request{End: 300, DryRun: true}))
		wantRebuild(t, dry, Rebuild{DryRun: true, Checked: 300, Missing: 180})
		if dry.Left() != 0 || m.metric("repaired_rows_total", "") != 0 {
			t.Errorf("a dry run leaves %d and has inserted %v rows", dry.Left(), m.metric("repaired_rows_total", ""))
		}
		mended := c.rebuilt(t, c.ask(Request{End: 300}))
		wantRebuild(t, mended, Rebuild{Checked: 300, Missing: 180, Inserted: 180})
		if mended.Left() != 0 {
			t.Errorf("Left() = %d, want 0", mended.Left())
		}
		h, err := s.count(t.Context(), 0, offsetRange{end: 350})
		if err != nil || h != (held{330, 330}) {
			t.Errorf("table holds %+v, %v; want 330 rows: offsets from 330 on were not asked for", h, err)
		}
		c.ask(Request{Start: 300, End: 1 << 40}) // clipped to the committed offset
		c.produceEvents(0, 50)
		m.wait(0, 400)
		until(t, "the rest is there", func() bool {
			h, err := s.count(context.Background(), 0, offsetRange{end: 400})
			return err == nil && h.distinct == 400
		})
		wantExact(t, s, 0, 400)
		wantTypes(t, s, before)
	})
}

// Batches of a rebuild end where a day does, and no record falls between two.
func TestRebuildOverDays(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		for i := range 180 {
			c.produce(c.record(0, time.Now().AddDate(0, 0, i/60).UnixMilli(), "", "a"))
		}
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 180)
		s.deleteRows(t, 0, 0, 180)
		wantRebuild(t, c.rebuilt(t, c.ask(Request{End: 180})), Rebuild{Checked: 180, Missing: 180, Inserted: 180})
		wantExact(t, s, 0, 180)
	})
}

// Doubles and rows without a record are reported, and left alone unless replaced.
func TestRebuildReplacesRows(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		m := c.copied(s, 350)
		before := s.types(t, 0)
		s.deleteRows(t, 0, 120, 140)
		now := time.Now().UnixMilli()
		wrong := newBatch(1, 0)
		for offset := int64(150); offset < 153; offset++ {
			wrong.add(&row{offset: offset, ms: now, kind: "wrong"})
		}
		if err := s.insert(t.Context(), "by-hand", wrong); err != nil {
			t.Fatal(err)
		}
		left := c.rebuilt(t, c.ask(Request{End: 350}))
		wantRebuild(t, left, Rebuild{Checked: 350, Missing: 20, Doubled: 3})
		if left.Left() != 23 {
			t.Errorf("Left() = %d, want 3 doubles and 20 beside them", left.Left())
		}
		replaced := c.rebuilt(t, c.ask(Request{Start: 100, End: 300, Replace: true}))
		wantRebuild(t, replaced, Rebuild{Replace: true, Checked: 200, Missing: 20, Doubled: 3, Removed: 183, Inserted: 200})
		if replaced.Left() != 0 {
			t.Errorf("Left() = %d, want 0", replaced.Left())
		}
		wantExact(t, s, 0, 350)
		wantTypes(t, s, before)
		c.produceEvents(0, 10)
		m.wait(0, 360)
		wantExact(t, s, 0, 360)
	})
}

// A rebuild of what Kafka still holds brings nothing back that was erased.
func TestRebuildLeavesErasedEventsErased(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 20)
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 20)
		m.stopped()
		s.deleteRows(t, 0, 0, 5)
		c.erased = eraseBelow(c.sessionIn(0), 13)
		id := c.ask(Request{End: 20, Replace: true})
		c.launch(testConfig(), 1, s)
		c.rebuilt(t, id)
		wantExact(t, s, 0, 20)
		wantKinds(t, s, 13, 20)
	})
}

func TestRebuildBeyondRetention(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.copied(s, 300)
		if err := c.DeleteRecords(schema.TopicEvents, 0, 150); err != nil {
			t.Fatal(err)
		}
		s.deleteRows(t, 0, 100, 200)
		got := c.rebuilt(t, c.ask(Request{End: 300, Replace: true}))
		wantRebuild(t, got, Rebuild{Replace: true, Checked: 150, Missing: 50, Removed: 100, Inserted: 150, Beyond: 150, Lost: 50})
		if got.Left() != 50 {
			t.Errorf("Left() = %d, want the 50 that Kafka does not hold", got.Left())
		}
		h, err := s.count(t.Context(), 0, offsetRange{end: 300})
		if err != nil || h != (held{250, 250}) {
			t.Errorf("table holds %+v, %v; want 250 rows: those that Kafka has deleted stay", h, err)
		}
	})
}

// 1. rows are missing; 2. the self-check, two that ask for a rebuild, and the copying of
// new events are at it at the same time; 3. each row is there once.
func TestRebuildBesideEverythingElse(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.copied(s, 1000).stopped()
		for round := range 3 {
			s.deleteRows(t, 0, 50, 900)
			m := c.launch(quickChecks(), 1, s)
			id := c.ask(Request{End: 1000, Replace: round == 1})
			if _, err := NewDesk(c.admin).Ask(t.Context(), map[uint16]Request{0: {Epoch: 1, End: 10}}); !errors.Is(err, ErrRebuildRuns) {
				t.Errorf("a second rebuild = %v, want %v", err, ErrRebuildRuns)
			}
			c.produceEvents(0, 200)
			m.wait(0, c.end(0))
			c.rebuilt(t, id)
			wantExact(t, s, 0, c.end(0))
			m.stopped()
		}
	})
}

// 1. a rebuild is under way; 2. its owner dies, at any moment; 3. the next one goes on
// with it. Over and over; then each row is there once.
func TestRebuildSurvivesItsOwner(t *testing.T) {
	for _, replace := range []bool{false, true} {
		onStores(t, func(t *testing.T, s testStore) {
			c := newCluster(t, 1)
			c.copied(s, 900).stopped()
			before := s.types(t, 0)
			for range 3 {
				s.deleteRows(t, 0, 100, 800)
				id := c.ask(Request{End: 900, Replace: replace})
				for range 4 {
					m := c.launch(testConfig(), 1, s)
					until(t, "the rebuild has begun", func() bool {
						state := c.committed(0, 1)
						return state.rebuild.ID == id || state.rebuilt.ID == id
					})
					time.Sleep(rand.N(60 * time.Millisecond)) // not waiting: choosing where the blow falls
					m.crash()
				}
				m := c.launch(testConfig(), 1, s)
				if got := c.rebuilt(t, id); got.Failure != "" || got.Left() != 0 && !replace {
					t.Logf("rebuild = %+v", got) // counts of batches that a crash fell into are left out
				}
				m.stopped()
				wantExact(t, s, 0, 900)
				wantTypes(t, s, before)
			}
		})
	}
}

// 1. rows to be replaced are deleted; 2. the process dies before it inserts them; 3. the
// next one does.
func TestCrashBetweenDeletingAndInserting(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.copied(s, 250).stopped()
		reached := make(chan struct{}, 1)
		f := &faults{testStore: s, before: func(ctx context.Context, _ string, _ *batch) error {
			reached <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		}}
		id := c.ask(Request{Start: 10, End: 240, Replace: true})
		m := c.launch(testConfig(), 1, f)
		<-reached
		m.crash()
		if h, err := s.count(t.Context(), 0, offsetRange{end: 250}); err != nil || h.rows != 150 {
			t.Errorf("table holds %+v, %v; want 150 rows: a batch of 100 is deleted", h, err)
		}
		if in := c.committed(0, 1).intent; !in.Replace || in.Rebuild != id || in.Start != 10 || in.End != 110 {
			t.Errorf("committed intent = %+v", in)
		}
		f.before = nil
		c.launch(testConfig(), 1, f)
		c.rebuilt(t, id)
		wantExact(t, s, 0, 250)
	})
}

// removeFault stands before the deleting of rows.
type removeFault struct {
	testStore
	before func(ctx context.Context) error
}

func (f *removeFault) remove(ctx context.Context, partition uint16, r offsetRange, name string) error {
	if err := f.before(ctx); err != nil {
		return err
	}
	return f.testStore.remove(ctx, partition, r, name)
}

// 1. doubled rows are to be replaced, which is announced; 2. the process dies before it
// deletes them; 3. the next one does, and does not take them for a reason to stop.
func TestCrashBeforeDoubledRowsAreDeleted(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		now := time.Now().UnixMilli()
		for range 250 {
			c.produce(c.record(0, now, "", "a"))
		}
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 250)
		m.stopped()
		double := newBatch(1, 0)
		double.add(&row{offset: 7, ms: now, kind: "wrong"})
		if err := s.insert(t.Context(), "by-hand", double); err != nil {
			t.Fatal(err)
		}
		reached := make(chan struct{}, 1)
		id := c.ask(Request{End: 250, Replace: true})
		m = c.launch(testConfig(), 1, &removeFault{s, func(ctx context.Context) error {
			reached <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		}})
		<-reached
		m.crash()
		c.produceEvents(0, 20)
		m = c.launch(testConfig(), 1, s)
		m.wait(0, 270)
		c.rebuilt(t, id)
		wantExact(t, s, 0, 270)
	})
}

func TestRebuildCanBeWithdrawn(t *testing.T) {
	c := newCluster(t, 1)
	s := newMemoryStore()
	c.copied(s, 250).stopped()
	s.deleteRows(t, 0, 0, 200)
	reached, proceed := make(chan struct{}, 1), make(chan struct{})
	f := &faults{testStore: s, before: func(context.Context, string, *batch) error {
		reached <- struct{}{}
		<-proceed
		return nil
	}}
	desk := NewDesk(c.admin)
	requests := map[uint16]Request{0: {Epoch: 1, End: 250}}
	id, err := desk.Ask(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	m := c.launch(testConfig(), 1, f)
	<-reached
	if err := desk.Cancel(t.Context(), requests); err != nil {
		t.Fatal(err)
	}
	until(t, "the worker knows", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		r, ok := m.owned[0].requests.get(1)
		return ok && r.Cancelled
	})
	close(proceed)
	if got := c.rebuilt(t, id); got.Failure != "cancelled" || got.Next != 100 || got.Inserted != 100 {
		t.Errorf("rebuild = %+v, want it cancelled after a batch of 100", got)
	}
	m.stopped() // before its self-check looks
}

// 1. the table is lost, or put back from an older backup, and Kafka's log is not; 2. a
// start notices, says that pages are incomplete, and makes the rows anew, while new events
// are copied; 3. a crash in the middle is gone on from.
func TestLostTableIsMadeAnew(t *testing.T) {
	for _, kept := range []int64{0, 130} {
		onStores(t, func(t *testing.T, s testStore) {
			c := newCluster(t, 1)
			c.copied(s, 1000).stopped()
			before := s.types(t, 0)
			s.deleteRows(t, 0, kept, 1000)
			reached, proceed := make(chan struct{}, 100), make(chan struct{})
			f := &faults{testStore: s, before: func(ctx context.Context, _ string, _ *batch) error {
				reached <- struct{}{}
				select {
				case <-proceed:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}}
			m := c.launch(testConfig(), 1, f)
			<-reached
			if got := m.metric("incomplete_partition", ""); got != 1 {
				t.Errorf("gauge of incomplete partitions = %v, want 1", got)
			}
			states, err := NewDesk(c.admin).States(t.Context())
			if err != nil || states[0].Current.Cause != CauseLost || states[0].Current.Start != kept {
				t.Errorf("states = %+v, %v; want a rebuild of lost rows from %d", states, err, kept)
			}
			m.crash()
			close(proceed)
			c.produceEvents(0, 200)
			m = c.launch(testConfig(), 1, f)
			m.wait(0, 1200)
			until(t, "pages are complete", func() bool { return m.metric("incomplete_partition", "") == 0 })
			wantExact(t, s, 0, 1200)
			wantTypes(t, s, before)
			m.stopped()
			m = c.launch(testConfig(), 1, f)
			c.produceEvents(0, 1)
			m.wait(0, 1201)
			if got := c.committed(0, 1).rebuild; got != (Rebuild{}) {
				t.Errorf("a start over a whole table began %+v", got)
			}
		})
	}
}

// produceAged appends n events of an age to partition 0.
func (c *cluster) produceAged(n int, age time.Duration) {
	c.t.Helper()
	for range n {
		c.produce(c.record(0, time.Now().Add(-age).UnixMilli(), "", "demo.old"))
	}
}

// 1. rows expire; 2. neither the self-check nor a start takes them for lost, nor does a
// rebuild bring them back; rows that are lost are still found.
func TestExpiredRowsAreNotLost(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		const ttl = 48 * time.Hour
		c := newCluster(t, 1)
		c.produceAged(60, 60*24*time.Hour)
		c.produceAged(5, ttl-time.Minute) // may have expired, by another clock
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 65)
		m.stopped()
		if e, ok := s.(*engineStore); ok { // what has expired goes by the table's own rule
			expire(t, e, ttl)
		} else {
			s.deleteRows(t, 0, 0, 60)
		}
		if h, err := s.count(t.Context(), 0, offsetRange{end: 65}); err != nil || h.rows != 5 {
			t.Fatalf("table holds %+v, %v; want 5 rows that have not expired", h, err)
		}
		// Everything has expired or may have: the table is not lost.
		m = c.launchTTL(quickChecks(), s, ttl)
		c.produceEvents(0, 100)
		m.wait(0, 165)
		until(t, "self-checks were made", func() bool { return m.metric("self_checks_total", "ok") >= 2 })
		if m.metric("self_checks_total", "gap") != 0 || c.committed(0, 1).rebuild != (Rebuild{}) {
			t.Error("expired rows were taken for lost ones")
		}
		got := c.rebuilt(t, c.ask(Request{End: 165, Replace: true}))
		wantRebuild(t, got, Rebuild{Replace: true, Expired: 65, Checked: 100, Removed: 100, Inserted: 100})
		s.deleteRows(t, 0, 80, 90)
		until(t, "lost rows are back", func() bool {
			h, err := s.count(context.Background(), 0, offsetRange{start: 65, end: 165})
			return err == nil && h.distinct == 100
		})
	})
}

// expire has the table delete what is older than ttl, now.
func expire(t *testing.T, s *engineStore, ttl time.Duration) {
	t.Helper()
	table := query.DefaultTableConfig()
	table.TTL = ttl
	if err := query.ApplyTable(t.Context(), s.conn, table, discardLog()); err != nil {
		t.Fatal(err)
	}
	if err := s.conn.Exec(t.Context(), "OPTIMIZE TABLE events FINAL"); err != nil {
		t.Fatal(err)
	}
}

// 1. a range is inserted, and its rows expire at once; 2. the answer is lost; 3. counting
// finds nothing, and the partition goes on all the same.
func TestRangeInDoubtThatHasExpired(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceAged(30, 60*24*time.Hour)
		f := &faults{testStore: s, after: func(_ context.Context, _ string, b *batch) error {
			s.deleteRows(t, 0, 0, int64(b.offset[b.len()-1])+1)
			return errInjected
		}}
		m := c.launchTTL(testConfig(), f, 48*time.Hour)
		until(t, "an answer was lost", func() bool { return len(f.sent()) > 0 })
		f.mu.Lock()
		f.after = func(context.Context, string, *batch) error { s.deleteRows(t, 0, 0, 30); return nil }
		f.mu.Unlock()
		m.wait(0, 30)
	})
}

// 1. the table is rebuilt in another order, and back, while events are copied into it;
// 2. inserts that are refused meanwhile are made again; 3. each row is there once.
func TestCopyingGoesOnWhileTheTableIsRebuilt(t *testing.T) {
	s := newEngineStore(t)
	c := newCluster(t, 2)
	cfg := testConfig()
	cfg.MaxBatchRows = 1000
	m := c.launch(cfg, 1, s)
	migrator := query.NewMigrator(s.conn, query.DefaultTableConfig(), m.logger)
	done := make(chan error, 1)
	go func() {
		for range 2 {
			if err := migrator.Down(t.Context(), 1, false); err != nil {
				done <- err
				return
			}
			if err := migrator.Up(t.Context(), 0); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for running := true; running; {
		c.produceEvents(0, 20)
		c.produceEvents(1, 20)
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		case <-time.After(50 * time.Millisecond): // the pace of what comes
		}
	}
	for p := range uint16(2) {
		m.wait(p, c.end(p))
		wantExact(t, s, p, c.end(p))
	}
	t.Logf("%d events; %v inserts failed meanwhile", 2*c.end(0), m.metric("insert_errors_total", ""))
}
