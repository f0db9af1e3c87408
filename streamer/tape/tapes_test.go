package tape

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// offsetsOf returns the offsets of a session's events on the tape.
func offsetsOf(tape *Tape, session string) string {
	events, _, _ := tape.ScopeEvents(schema.Scope{Workspace: "w", Session: session}, 0, 1000)
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprint(e.ID.Offset))
	}
	return strings.Join(out, " ")
}

func TestOpenHasTheRecentPastAndFollows(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	now := time.Now()
	old, recent := now.Add(-5*time.Minute).UnixMilli(), now.UnixMilli()
	l.produce(
		l.record(newEvent("s", "a", "m1", old)),    // 0: left behind by the tape, warms the window
		l.record(newEvent("s", "a", "m2", old)),    // 1
		l.record(newEvent("s", "a", "m1", recent)), // 2: repeats 0
		l.record(newEvent("s", "a", "m3", recent)), // 3
	)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape := openTape(t, tapes, 0)
	if got := tape.Next(); got != 4 {
		t.Fatalf("an opened tape has passed %d, want the log's end 4", got)
	}
	if got := tape.Start(); got > 3 {
		t.Errorf("tape starts at %d, want the recent past on it", got)
	}
	if got := offsetsOf(tape, "s"); got != "3" {
		t.Errorf("events on the tape: %s; want 3 (0 and 1 are too old, 2 is a repeat)", got)
	}
	id, seen := tape.Duplicate(schema.MessageKey("w", "s", "m1"), recent)
	if !seen || id.Offset != 0 {
		t.Errorf("Duplicate of an id from before the tape = %v, %v; want offset 0", id, seen)
	}
	if end := tape.End(); end.Offset != 3 || end.TimeMs != recent || end.Epoch != 1 {
		t.Errorf("End() = %+v", end)
	}
	l.produce(l.record(newEvent("s", "a", "m2", recent)), l.record(newEvent("s", "a", "m4", recent)))
	waitFor(t, tape, 6)
	if got := offsetsOf(tape, "s"); got != "3 5" {
		t.Errorf("events on the tape: %s; want 3 5 (4 is a repeat)", got)
	}
	again := openTape(t, tapes, 0)
	if again != tape {
		t.Error("a second Open gives another tape")
	}
}

// The reader starts in the middle of a chain of repeats. What it cannot judge must not
// get into the states: the past below the tape counts it rightly.
func TestWarmUpLeavesTheStatesAlone(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	cfg := DefaultConfig()
	cfg.DedupeAge = time.Minute
	cfg.MaxAge = 10 * time.Second
	rule := cfg.Rule()
	now := time.Now()
	ms := func(ago time.Duration) int64 { return now.Add(-ago).UnixMilli() }
	past := &recordedPast{}
	window := schema.NewWindow(rule)
	var records []*kgo.Record
	// One message id, sent again every 20 s for 5 minutes: one event, the rest repeats of
	// it, wherever a reader starts.
	for ago := 5 * time.Minute; ago >= 0; ago -= 20 * time.Second {
		e := newEvent("s", "a", "m", ms(ago))
		e.ID.Position = schema.Position{Epoch: 1, Offset: int64(len(records))}
		if _, repeats := window.Observe(e); !repeats {
			past.add(e)
		}
		records = append(records, l.record(e))
	}
	l.produce(records...)
	tapes := l.startTapes(cfg, past, func() time.Time { return now })
	defer tapes.Close()
	tape := openTape(t, tapes, 0)
	if got := offsetsOf(tape, "s"); got != "" {
		t.Errorf("repeats on the tape: %s", got)
	}
	s, err := tape.Session(context.Background(), "w", "s")
	if err != nil || s.EventCount != 1 {
		t.Errorf("Session = %+v, %v; want the one event", s, err)
	}
}

// The bound in offsets must leave a whole window before the tape's first event.
func TestWarmUpReachesBeforeTheTape(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	cfg := DefaultConfig()
	cfg.DedupeOffsets = 10
	now := time.Now()
	var records []*kgo.Record
	for i := range 12 { // 0 to 11, too old for the tape
		records = append(records, l.record(newEvent("s", "a", fmt.Sprint("m", i), now.Add(-2*time.Minute).UnixMilli())))
	}
	for i := range 20 { // 12 to 31, on it
		records = append(records, l.record(newEvent("s", "a", fmt.Sprint("m", i+2), now.UnixMilli())))
	}
	l.produce(records...) // 12 repeats 2, … 21 repeats 11
	tapes := l.startTapes(cfg, &recordedPast{}, func() time.Time { return now })
	defer tapes.Close()
	tape := openTape(t, tapes, 0)
	if got, want := offsetsOf(tape, "s"), "22 23 24 25 26 27 28 29 30 31"; got != want {
		t.Errorf("events on the tape: %s; want %s", got, want)
	}
}

func TestRecordsThatAreNoEventsAreSkipped(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 4)
	nowMs := time.Now().UnixMilli()
	good := newEvent("s", "a", "", nowMs)
	p := l.placement.Partition("w", "s")
	poison := l.record(good)
	poison.Headers = nil
	garbage := l.record(good)
	garbage.Value = []byte("{")
	misplaced := l.record(good)
	for i := 0; misplaced.Partition == int32(p) || l.placement.Partition("w", fmt.Sprint(i)) == p; i++ {
		misplaced = l.record(newEvent(fmt.Sprint(i), "a", "", nowMs))
	}
	misplaced.Partition = int32(p)
	early := l.record(newEvent("s", "a", "", -1))
	reserved := l.record(newEvent("s", "error", "", nowMs))
	twice := l.record(good)
	twice.Headers = append(twice.Headers, kgo.RecordHeader{Key: "Ce_Subject", Value: []byte("s")})
	l.produce(poison, garbage, misplaced, early, reserved, twice, l.record(good))
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape := openTape(t, tapes, p)
	if got := offsetsOf(tape, "s"); got != "6" || tape.Next() != 7 {
		t.Errorf("events on the tape: %q up to %d; want 6 up to 7", got, tape.Next())
	}
	if n := tape.entries.len(); n != 1 {
		t.Errorf("%d entries on the tape, want 1", n)
	}
	if _, err := tapes.Open(context.Background(), 4); err == nil {
		t.Error("a partition that the log does not have was opened")
	}
}

func TestNextPassesTransactions(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape := openTape(t, tapes, 0)
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	tx := l.client(kgo.TransactionalID("tx"))
	txn := func(commit kgo.TransactionEndTry, session string) {
		t.Helper()
		if err := tx.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := tx.ProduceSync(ctx, l.record(newEvent(session, "a", "", time.Now().UnixMilli()))).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := tx.EndTransaction(ctx, commit); err != nil {
			t.Fatal(err)
		}
	}
	txn(kgo.TryAbort, "s")  // 0, marker 1
	txn(kgo.TryCommit, "s") // 2, marker 3
	end, err := l.log.HighWatermark(ctx, 0)
	if err != nil || end != 4 {
		t.Fatalf("HighWatermark = %d, %v; want 4", end, err)
	}
	waitFor(t, tape, end)
	if got := offsetsOf(tape, "s"); got != "2" {
		t.Errorf("events on the tape: %s; want the committed one, 2", got)
	}
	txn(kgo.TryAbort, "s") // 4, marker 5
	if end, err = l.log.HighWatermark(ctx, 0); err != nil || end != 6 {
		t.Fatalf("HighWatermark = %d, %v; want 6", end, err)
	}
	waitFor(t, tape, end)
	fresh := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer fresh.Close()
	if got := openTape(t, fresh, 0).Next(); got != end {
		t.Errorf("a new tape has passed %d, want %d", got, end)
	}
}

// Retention takes away what the reader would read next: the tape fails, its listeners
// hear of it, and the next use has a new one.
func TestTapeThatLostItsPlaceIsMadeAnew(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 2)
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	nowMs := time.Now().UnixMilli()
	other := "s"
	for i := 0; l.placement.Partition("w", other) == l.placement.Partition("w", "s"); i++ {
		other = fmt.Sprint(i)
	}
	p, q := l.placement.Partition("w", "s"), l.placement.Partition("w", other)
	l.produce(l.record(newEvent("s", "a", "", nowMs)))
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape, healthy := openTape(t, tapes, p), openTape(t, tapes, q)
	listener := &countingListener{}
	seat, _ := tape.Attach(listener, schema.Scope{Workspace: "w", Session: "s"}, "", &schema.Filter{}, 0)

	// The reader asks for a place far beyond, as if the log had lost its end since.
	tapes.client.RemoveConsumePartitions(map[string][]int32{schema.TopicEvents: {int32(p)}})
	tapes.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{
		schema.TopicEvents: {int32(p): kgo.NewOffset().At(1000)},
	})
	err := tape.WaitFor(ctx, 1000)
	if !errors.Is(err, ErrLostPlace) {
		t.Fatalf("WaitFor of a tape that lost its place = %v", err)
	}
	eventually(t, "the listener is woken", func() bool {
		listener.mu.Lock()
		defer listener.mu.Unlock()
		return listener.wakes == 1
	})
	if _, span := seat.Read(nil, 0, 1); !errors.Is(span.Failed, ErrLostPlace) {
		t.Errorf("span of a failed tape = %+v", span)
	}
	next := openTape(t, tapes, p)
	if next == tape || next.Err() != nil {
		t.Fatalf("Open after the loss gives the failed tape again (%v)", next.Err())
	}
	l.produce(l.record(newEvent("s", "a", "", nowMs)), l.record(newEvent(other, "a", "", nowMs)))
	waitFor(t, next, 2)
	waitFor(t, healthy, 1)
	if got := offsetsOf(next, "s"); got != "0 1" {
		t.Errorf("events on the new tape: %s; want 0 1", got)
	}
}

func TestTapeBeginsAtTheLogStart(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	nowMs := time.Now().UnixMilli()
	for range 5 {
		l.produce(l.record(newEvent("s", "a", "", nowMs)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	var offsets kadm.Offsets
	offsets.AddOffset(schema.TopicEvents, 0, 3, -1)
	deleted, err := kadm.NewClient(l.producer).DeleteRecords(ctx, offsets)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape := openTape(t, tapes, 0)
	if got := offsetsOf(tape, "s"); got != "3 4" || tape.Start() != 3 {
		t.Errorf("events on the tape: %s from %d; want 3 4 from 3", got, tape.Start())
	}
}

// gatedLog holds Bounds until it is let go.
type gatedLog struct {
	Log
	gate  chan struct{}
	calls atomic.Int32
}

func (l *gatedLog) Bounds(ctx context.Context, p uint16) (int64, int64, error) {
	l.calls.Add(1)
	select {
	case <-l.gate:
		return l.Log.Bounds(ctx, p)
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
}

// The first user of a partition leaves while the tape is being opened. The others must
// not get its error.
func TestOpenOutlivesItsFirstCaller(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	gate := &gatedLog{Log: l.log, gate: make(chan struct{})}
	tapes.log = gate
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := tapes.Open(ctx, 0)
		first <- err
	}()
	eventually(t, "the first caller opens", func() bool { return gate.calls.Load() == 1 })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
			defer cancel()
			if _, err := tapes.Open(ctx, 0); err != nil {
				t.Errorf("Open of a caller that stayed: %v", err)
			}
		})
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("Open of a caller that left: %v", err)
	}
	close(gate.gate)
	wg.Wait()
	if n := gate.calls.Load(); n != 1 {
		t.Errorf("the partition was opened %d times", n)
	}
}

func TestCloseFailsEverything(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 2)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	tape := openTape(t, tapes, 0)
	gate := &gatedLog{Log: l.log, gate: make(chan struct{})} // never opened
	tapes.log = gate
	waits := make(chan error, 2)
	go func() { waits <- tape.WaitFor(context.Background(), 1) }()
	go func() {
		_, err := tapes.Open(context.Background(), 1)
		waits <- err
	}()
	eventually(t, "the second partition is being opened", func() bool { return gate.calls.Load() == 1 })
	eventually(t, "somebody waits", func() bool {
		tape.mu.Lock()
		defer tape.mu.Unlock()
		return len(tape.waiters) == 1
	})
	tapes.Close()
	for range 2 {
		if err := <-waits; err == nil {
			t.Error("Close left somebody with success")
		}
	}
	if err := tape.Err(); !errors.Is(err, ErrClosed) {
		t.Errorf("Err after Close = %v", err)
	}
	if _, err := tapes.Open(context.Background(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("Open after Close = %v", err)
	}
}

// A tape that nobody uses is given up and its partition no longer read; one that is
// listened to is not, nor one that is asked for now and then.
func TestIdleTapesAreGivenUp(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 2)
	cfg := DefaultConfig()
	cfg.IdleAfter = time.Minute
	var clock atomic.Int64 // what has passed
	began := time.Now()
	tapes := l.startTapes(cfg, &recordedPast{}, func() time.Time { return began.Add(time.Duration(clock.Load())) })
	defer tapes.Close()
	listened, idle := openTape(t, tapes, 0), openTape(t, tapes, 1)
	listener := &countingListener{}
	seat, ok := listened.Attach(listener, schema.Scope{Workspace: "w"}, "", &schema.Filter{}, 0)
	if !ok {
		t.Fatal("Attach is refused")
	}
	open := func() int { return len(tapes.open()) }
	// The reader has to have seen both before the clock moves on.
	eventually(t, "the reader has looked at both", func() bool { return !idle.used.Load() && !listened.used.Load() })
	clock.Store(int64(2 * cfg.IdleAfter))
	eventually(t, "one tape is given up", func() bool { return open() == 1 })
	if err := idle.Err(); !errors.Is(err, ErrIdle) {
		t.Errorf("a tape that was given up says %v", err)
	}
	if listened.Err() != nil {
		t.Errorf("a tape that is listened to failed: %v", listened.Err())
	}
	again := openTape(t, tapes, 1)
	if again == idle {
		t.Error("Open returns a tape that was given up")
	}
	var e *schema.Event // of partition 1
	for i := 0; e == nil; i++ {
		if id := fmt.Sprint("s", i); l.placement.Partition("w", id) == 1 {
			e = newEvent(id, "a", "", began.Add(time.Duration(clock.Load())).UnixMilli())
		}
	}
	l.produce(l.record(e))
	waitFor(t, again, 1)
	if got := offsetsOf(again, e.Session); got != "0" {
		t.Errorf("events on a tape opened anew: %q, want 0", got)
	}
	seat.Detach(listener)
	eventually(t, "the reader has looked at both", func() bool { return !again.used.Load() && !listened.used.Load() })
	clock.Add(int64(2 * cfg.IdleAfter))
	eventually(t, "all tapes are given up", func() bool { return open() == 0 })
}

// The one who opens a tape just as it is given up gets the next one, never an error.
func TestOpenWaitsForATapeThatIsBeingGivenUp(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	for range 20 {
		old := openTape(t, tapes, 0)
		tapes.mu.Lock()
		tapes.leave(old)
		tapes.mu.Unlock()
		opened := make(chan *Tape)
		go func() { opened <- openTape(t, tapes, 0) }()
		tapes.drop(old, ErrIdle)
		if got := <-opened; got == old || got.Err() != nil {
			t.Fatalf("Open returns the tape that is given up: %v", got.Err())
		}
		l.produce(l.record(newEvent("s", "a", "", time.Now().UnixMilli())))
		if _, end, err := tapes.Current(t.Context(), 0); err != nil || end == 0 {
			t.Fatalf("Current = %d, %v", end, err)
		}
	}
}

// What was in the log when Current was called is on the tape it returns.
func TestCurrentHasAllThatWasThere(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	for n := range int64(50) {
		l.produce(l.record(newEvent("s", "a", "", time.Now().UnixMilli())))
		tape, end, err := tapes.Current(t.Context(), 0)
		if err != nil || end < n+1 || tape.Next() < end {
			t.Fatalf("Current after %d records = next %d, end %d, %v", n+1, tape.Next(), end, err)
		}
	}
	tapes.Close()
	if _, _, err := tapes.Current(t.Context(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("Current after Close = %v", err)
	}
}
