package materializer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/schema"
)

// Each test of this file is a row of the table of crashes in docs/architecture.md: it
// brings the crash about and then wants each record in the table once.

var errInjected = errors.New("injected")

// intentOf returns the intent in a commit request; zero if it has none.
func intentOf(req kmsg.Request) Intent {
	for _, t := range req.(*kmsg.OffsetCommitRequest).Topics {
		for _, p := range t.Partitions {
			if p.Metadata != nil {
				state, _, _ := decodeCommitted(p.Offset, *p.Metadata, 1)
				return state.intent
			}
		}
	}
	return Intent{}
}

// 1. a batch is cut; 2. the process dies before the intent is committed; 3. the next
// one may cut the batch elsewhere.
func TestCrashBeforeTheIntentCommit(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		f := &faults{testStore: s}
		refused := c.Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: schema.GroupMaterializer, Count: -1, Err: kerr.CoordinatorLoadInProgress,
			When: func(req kmsg.Request) bool { return !intentOf(req).IsZero() },
		})
		c.produceEvents(0, 150)
		m := c.launch(testConfig(), 1, f)
		if err := refused.Wait(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		m.crash()
		refused.Remove()
		if sent := f.sent(); len(sent) > 0 {
			t.Errorf("inserts without an intent: %q", sent)
		}
		cfg := testConfig()
		cfg.MaxBatchRows = 70
		c.launch(cfg, 1, f).wait(0, 150)
		wantExact(t, s, 0, 150)
	})
}

// 1. the intent is committed; 2. the process dies before the insert; 3. the next one
// sends the same range under the same token.
func TestCrashBetweenIntentAndInsert(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		reached := make(chan string, 1)
		f := &faults{testStore: s, before: func(ctx context.Context, token string, _ *batch) error {
			reached <- token
			<-ctx.Done()
			return context.Cause(ctx)
		}}
		c.produceEvents(0, 150)
		m := c.launch(testConfig(), 1, f)
		token := <-reached
		m.crash()
		f.before = nil
		cfg := testConfig()
		cfg.MaxBatchRows = 70 // must not change the announced range
		c.launch(cfg, 1, f).wait(0, 150)
		wantExact(t, s, 0, 150)
		if sent := f.sent(); sent[0] != token {
			t.Errorf("first insert after the crash has token %s, want %s", sent[0], token)
		}
	})
}

// 1. an insert is on its way; 2. its client dies, at any moment; 3. the next one kills
// what may still run, counts and goes on. Over and over.
func TestCrashAtAnyMoment(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 2)
		rounds := 12
		for round := range rounds {
			for p := range uint16(2) {
				c.produceEvents(p, 300)
			}
			m := c.launch(testConfig(), 1, s)
			if round%2 == 0 { // fall somewhere into the copying, else into the recovery
				until(t, "copying has begun", func() bool { return m.metric("commits_total", "") > 0 })
			}
			time.Sleep(rand.N(40 * time.Millisecond)) // not waiting: choosing where the blow falls
			m.crash()
		}
		m := c.launch(testConfig(), 1, s)
		for p := range uint16(2) {
			m.wait(p, c.end(p))
			wantExact(t, s, p, int64(300*rounds))
		}
	})
}

// 1. the rows are inserted; 2. the acknowledgement is lost; 3. the same process counts
// and goes on.
func TestLostAcknowledgement(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		var lost atomic.Int64
		f := &faults{testStore: s, after: func(context.Context, string, *batch) error {
			if lost.Add(1) <= 2 {
				return errInjected
			}
			return nil
		}}
		c.produceEvents(0, 250)
		m := c.launch(testConfig(), 1, f)
		m.wait(0, 250)
		wantExact(t, s, 0, 250)
		if got := m.metric("settled_total", "done"); got != 2 {
			t.Errorf("ranges settled by counting = %v, want 2", got)
		}
	})
}

// 1. the rows are inserted and acknowledged; 2. the process dies before the commit that
// says so; 3. the next one counts and skips.
func TestCrashBetweenAcknowledgementAndCommit(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		reached := make(chan struct{}, 1)
		f := &faults{testStore: s, after: func(ctx context.Context, _ string, _ *batch) error {
			reached <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		}}
		c.produceEvents(0, 100)
		m := c.launch(testConfig(), 1, f)
		<-reached
		m.crash()
		f.after = nil
		m = c.launch(testConfig(), 1, f)
		m.wait(0, 100)
		wantExact(t, s, 0, 100)
		if sent := f.sent(); len(sent) != 1 {
			t.Errorf("inserts = %q, want the first one only", sent)
		}
	})
}

// 1. a process stalls between intent and insert until Kafka takes it for dead; 2. another
// takes over, recovers and goes on; 3. the first wakes, and sends its insert; 4. it is
// refused by its token, and its commit by its generation.
func TestZombieWakesBetweenIntentAndInsert(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		asleep, wake := make(chan string, 1), make(chan struct{})
		var late sync.WaitGroup
		f := &faults{testStore: s, before: func(ctx context.Context, token string, b *batch) error {
			late.Add(1)
			defer late.Done()
			asleep <- token
			<-wake
			// A stalled process does not see that its context has ended.
			if err := s.insert(context.WithoutCancel(ctx), token, b); err != nil {
				t.Errorf("zombie's insert: %v", err)
			}
			return errInjected
		}}
		c.produceEvents(0, 100)
		zombie := c.launch(testConfig(), 1, f)
		<-asleep
		zombie.mu.Lock()
		w := zombie.owned[0].worker
		zombie.mu.Unlock()

		// Kafka takes the zombie for dead: its client learns of it only when it comes back.
		admin := kmsg.NewPtrLeaveGroupRequest()
		admin.Group = schema.GroupMaterializer
		member := kmsg.NewLeaveGroupRequestMember()
		member.MemberID = w.member
		admin.Members = append(admin.Members, member)
		if _, err := admin.RequestWith(t.Context(), c.producer); err != nil {
			t.Fatal(err)
		}
		owner := c.launch(testConfig(), 1, s)
		c.produceEvents(0, 100)
		owner.wait(0, 200)
		before := c.committed(0, 1)

		close(wake)
		late.Wait()
		stale := committed{next: 0, intent: Intent{End: 100, Records: 100}}
		if err := w.commits.commit(t.Context(), w.member, 0, stale); !errors.Is(err, ErrFenced) {
			t.Errorf("zombie's commit: %v, want %v", err, ErrFenced)
		}
		// The zombie joins again, as another member of the present generation: what its
		// old self still wants to commit is not sent.
		until(t, "the zombie has joined again", func() bool {
			member, generation := w.commits.group.GroupMetadata()
			return member != w.member && generation > 0
		})
		if err := w.commits.commit(t.Context(), w.member, 0, stale); !errors.Is(err, ErrFenced) {
			t.Errorf("zombie's commit after it has joined again: %v, want %v", err, ErrFenced)
		}
		if after := c.committed(0, 1); after != before {
			t.Errorf("committed = %+v, want %+v as before", after, before)
		}
		wantExact(t, s, 0, 200)
	})
}

// 1. ClickHouse writes the token to its log and dies before it keeps the part; 2. the
// retry is acknowledged as a repeat, and nothing is there; 3. a new token is used.
func TestTokenIsKnownAndTheRowsAreNot(t *testing.T) {
	s := newMemoryStore()
	c := newCluster(t, 1)
	var inserts atomic.Int64
	f := &faults{testStore: s, before: func(_ context.Context, token string, _ *batch) error {
		if inserts.Add(1) == 1 {
			s.mu.Lock()
			s.tokens[token] = true
			s.mu.Unlock()
			return errInjected
		}
		return nil
	}}
	c.produceEvents(0, 100)
	m := c.launch(testConfig(), 1, f)
	m.wait(0, 100)
	wantExact(t, s, 0, 100)
	sent := f.sent()
	if len(sent) != 2 || !strings.HasSuffix(sent[0], "/0") || !strings.HasSuffix(sent[1], "/1") {
		t.Errorf("inserts = %q, want attempt 0, swallowed, then attempt 1", sent)
	}
}

// 1. rows are inserted; 2. the power fails: the part stays and the token is gone; 3. the
// next process counts before it sends, and skips.
func TestPowerLossKeepsTheRowsAndLosesTheToken(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		reached := make(chan struct{}, 1)
		f := &faults{testStore: s, after: func(ctx context.Context, _ string, _ *batch) error {
			reached <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		}}
		c.produceEvents(0, 100)
		m := c.launch(testConfig(), 1, f)
		<-reached
		m.crash()
		s.forgetTokens(t)
		f.after = nil
		c.launch(testConfig(), 1, f).wait(0, 100)
		wantExact(t, s, 0, 100)
	})
}

// 1. an insert is in doubt; 2. part of its rows is there, as after a disk that failed;
// 3. only the rest is sent, under a new attempt.
func TestOnlyTheMissingRowsAreSent(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		var inserts atomic.Int64
		f := &faults{testStore: s, after: func(context.Context, string, *batch) error {
			if inserts.Add(1) == 1 {
				s.deleteRows(t, 0, 20, 45)
				return errInjected
			}
			return nil
		}}
		c.produceEvents(0, 100)
		m := c.launch(testConfig(), 1, f)
		m.wait(0, 100)
		wantExact(t, s, 0, 100)
		if sent := f.sent(); len(sent) != 2 || !strings.HasSuffix(sent[1], "/1") {
			t.Errorf("inserts = %q, want attempt 0, then 1", sent)
		}
		if got := m.metric("settled_total", "send_rest"); got != 1 {
			t.Errorf("settled by sending the rest = %v, want 1", got)
		}
	})
}

// 1. a range holds rows twice, by another hand; 2. its partition stops and says so; 3.
// the other goes on.
func TestTooManyRowsStopOnePartition(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 2)
		f := &faults{testStore: s, after: func(ctx context.Context, token string, b *batch) error {
			if b.partition != 0 {
				return nil
			}
			return errors.Join(s.insert(ctx, token+"/by-hand", b), errInjected)
		}}
		c.produceEvents(0, 50)
		c.produceEvents(1, 50)
		m := c.launch(testConfig(), 1, f)
		m.wait(1, 50)
		until(t, "partition 0 is stopped", func() bool { return m.metric("stopped_partition", "0") == 1 })
		if got := m.marks.Get(0); got != 0 {
			t.Errorf("watermark of the stopped partition = %d, want 0", got)
		}
		c.produceEvents(1, 50)
		m.wait(1, 100)
	})
}

// 1. the topic is deleted and made anew: offsets begin at 0 again; 2. the new life has
// its own epoch, in rows, tokens and commits.
func TestRecreatedTopicBeginsANewEpoch(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 100)
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 100)
		m.stopped()
		old := c.committed(0, 1)
		if err := c.DeleteTopic(schema.TopicEvents); err != nil {
			t.Fatal(err)
		}
		if err := c.CreateTopic(schema.TopicEvents, 1, nil); err != nil {
			t.Fatal(err)
		}
		c.connect()
		// Whether brokers forget the offsets of a deleted topic is theirs to decide.
		metadata, err := old.encode(1)
		if err != nil {
			t.Fatal(err)
		}
		left := make(kadm.Offsets)
		left.Add(kadm.Offset{Topic: schema.TopicEvents, At: old.next, LeaderEpoch: -1, Metadata: metadata})
		if err := c.admin.CommitAllOffsets(t.Context(), schema.GroupMaterializer, left); err != nil {
			t.Fatal(err)
		}
		c.produceEvents(0, 150)
		var second testStore
		if e, ok := s.(*engineStore); ok {
			second = &engineStore{clickHouse: &clickHouse{conn: e.conn, epoch: 2, timeout: time.Minute}}
		} else {
			second = newMemoryStore()
		}
		m = c.launch(testConfig(), 2, second)
		m.wait(0, 150)
		wantExact(t, second, 0, 150)
		wantExact(t, s, 0, 100)
	})
}

// 1. Kafka deletes records that were not copied; 2. the gap is said aloud, kept in the
// commits, and copying goes on after it.
func TestRetentionPassesTheWatermark(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 100)
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 100)
		m.stopped()
		c.produceEvents(0, 100)
		if err := c.DeleteRecords(schema.TopicEvents, 0, 160); err != nil {
			t.Fatal(err)
		}
		m = c.launch(testConfig(), 1, s)
		m.wait(0, 200)
		wantGap := Gap{Start: 100, End: 160}
		if got := c.committed(0, 1); got.gap != wantGap {
			t.Errorf("committed gap = %+v, want %+v", got.gap, wantGap)
		}
		if got := m.metric("gap_offsets_total", ""); got != 60 {
			t.Errorf("gap_offsets_total = %v, want 60", got)
		}
		h, err := s.count(t.Context(), 0, offsetRange{end: schema.MaxOffset})
		if err != nil {
			t.Fatal(err)
		}
		if h.rows != 140 || h.distinct != 140 {
			t.Errorf("table holds %+v, want 140 rows", h)
		}
		m.stopped()
		m = c.launch(testConfig(), 1, s)
		until(t, "the alarm outlives a restart", func() bool { return m.metric("gap_partition", "0") == 1 })
	})
}

// 1. a range is announced; 2. the process dies; 3. Kafka deletes the range's beginning;
// 4. what is left is copied, and the rest is a gap, unless the table has it.
func TestRetentionPassesAnAnnouncedRange(t *testing.T) {
	for _, inserted := range []bool{false, true} {
		t.Run(fmt.Sprintf("inserted=%v", inserted), func(t *testing.T) {
			onStores(t, func(t *testing.T, s testStore) {
				c := newCluster(t, 1)
				reached := make(chan struct{}, 1)
				block := func(ctx context.Context, _ string, _ *batch) error {
					reached <- struct{}{}
					<-ctx.Done()
					return context.Cause(ctx)
				}
				f := &faults{testStore: s, before: block}
				if inserted {
					f.before, f.after = nil, block
				}
				c.produceEvents(0, 100)
				m := c.launch(testConfig(), 1, f)
				<-reached
				m.crash()
				f.before, f.after = nil, nil
				if err := c.DeleteRecords(schema.TopicEvents, 0, 30); err != nil {
					t.Fatal(err)
				}
				c.produceEvents(0, 20)
				m = c.launch(testConfig(), 1, f)
				m.wait(0, 120)
				want, wantGap := 120, Gap{}
				if !inserted {
					want, wantGap = 90, Gap{End: 30}
				}
				h, err := s.count(t.Context(), 0, offsetRange{end: schema.MaxOffset})
				if err != nil {
					t.Fatal(err)
				}
				if h.rows != want || h.distinct != want {
					t.Errorf("table holds %+v, want %d rows", h, want)
				}
				if got := c.committed(0, 1).gap; got != wantGap {
					t.Errorf("committed gap = %+v, want %+v", got, wantGap)
				}
			})
		})
	}
}

// 1. the group's offsets vanish (Kafka expires them with a group that is away for long);
// 2. copying begins at the log's start, counts before each insert, and doubles nothing.
func TestLostCommitsDoubleNothing(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 250)
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 250)
		m.stopped()
		s.forgetTokens(t)
		if _, err := c.admin.DeleteGroup(t.Context(), schema.GroupMaterializer); err != nil {
			t.Fatal(err)
		}
		c.produceEvents(0, 50)
		cfg := testConfig()
		cfg.MaxBatchRows = 70
		m = c.launch(cfg, 1, s)
		m.wait(0, 300)
		wantExact(t, s, 0, 300)
	})
}

// 1. the group's offsets vanish, and Kafka has deleted records that were not copied; 2.
// beginning at the log's start leaves a gap, which is said.
func TestLostCommitsHideNoGap(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		c.produceEvents(0, 100)
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 100)
		m.stopped()
		if _, err := c.admin.DeleteGroup(t.Context(), schema.GroupMaterializer); err != nil {
			t.Fatal(err)
		}
		c.produceEvents(0, 50)
		if err := c.DeleteRecords(schema.TopicEvents, 0, 120); err != nil {
			t.Fatal(err)
		}
		m = c.launch(testConfig(), 1, s)
		m.wait(0, 150)
		if got, want := c.committed(0, 1).gap, (Gap{Start: 100, End: 120}); got != want {
			t.Errorf("committed gap = %+v, want %+v", got, want)
		}
	})
}

// 1. the engine is killed in the middle of inserts, again and again; 2. it comes back
// each time; 3. each record is in the table once.
func TestEngineIsKilledAgainAndAgain(t *testing.T) {
	process := startEngine(t, t.TempDir())
	s := &engineStore{clickHouse: &clickHouse{conn: connect(t, process.DSN()), epoch: 1, timeout: time.Minute}}
	if err := query.Migrate(t.Context(), s.conn); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, 2)
	m := c.launch(testConfig(), 1, s)
	const rounds = 5
	for round := range int64(rounds) {
		for p := range uint16(2) {
			c.produceEvents(p, 400)
		}
		m.wait(0, round*400+100)
		time.Sleep(rand.N(20 * time.Millisecond)) // not waiting: choosing where the blow falls
		if err := syscall.Kill(process.Pid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the engine is back", func() bool { return process.Restarts() == round+1 })
	}
	for p := range uint16(2) {
		m.wait(p, 400*rounds)
		wantExact(t, s, p, 400*rounds)
	}
}

// 1. ClickHouse is away; 2. partitions wait, holding a bounded number of rows; 3. it
// comes back, and nothing is lost or doubled.
func TestClickHouseAwayAndBack(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 2)
		var away atomic.Bool
		away.Store(true)
		var tries atomic.Int64
		f := &faults{testStore: s, before: func(context.Context, string, *batch) error {
			if away.Load() {
				tries.Add(1)
				return errInjected
			}
			return nil
		}}
		c.produceEvents(0, 500)
		c.produceEvents(1, 500)
		m := c.launch(testConfig(), 1, f)
		until(t, "several tries", func() bool { return tries.Load() > 5 })
		if got := m.marks.Get(0) + m.marks.Get(1); got != 0 {
			t.Errorf("watermarks moved to %d with no ClickHouse", got)
		}
		away.Store(false)
		for p := range uint16(2) {
			m.wait(p, 500)
			wantExact(t, s, p, 500)
		}
	})
}
