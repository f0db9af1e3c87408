package tape

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// model drives a tape without Kafka, and remembers all it was given.
type model struct {
	tape   *Tape
	past   *recordedPast
	window *schema.Window
	nowMs  int64
	next   int64
	kept   []*schema.Event // not repeats
}

func newModel(cfg Config) *model {
	past := &recordedPast{}
	return &model{
		tape: newTape(cfg, 1, 0, 0, 0, past, testMetrics()),
		past: past, window: schema.NewWindow(cfg.Rule()), nowMs: 1_700_000_000_000,
	}
}

// append gives the tape one batch; a nil event is a record that is none.
func (m *model) append(events ...*schema.Event) {
	var records []record
	for _, e := range events {
		r := record{offset: m.next, timeMs: m.nowMs}
		if e != nil {
			e.ID = schema.EventID{Position: schema.Position{Epoch: 1, Offset: m.next}, TimeMs: m.nowMs}
			r.event = &Entry{Event: *e}
			if _, repeats := m.window.Observe(e); !repeats {
				m.kept = append(m.kept, e)
				m.past.add(e)
			}
		}
		records = append(records, r)
		m.next++
	}
	m.tape.append(records, m.nowMs)
}

func (m *model) check(t *testing.T, session string, from int64, limit int) {
	t.Helper()
	got, start, next := m.tape.ScopeEvents(schema.Scope{Workspace: "w", Session: session}, from, limit)
	if next != m.next {
		t.Fatalf("ScopeEvents(%s) covers up to %d, want %d", session, next, m.next)
	}
	var want []int64
	for _, e := range m.kept {
		if e.Session == session && e.ID.Offset >= max(from, start) && !e.Hidden() && len(want) < limit {
			want = append(want, e.ID.Offset)
		}
	}
	var have []int64
	for _, e := range got {
		have = append(have, e.ID.Offset)
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		t.Fatalf("ScopeEvents(%s, %d, %d) with the tape at [%d, %d) = %v, want %v", session, from, limit, start, next, have, want)
	}
}

// What the tape covers is on it, for every session, however it is trimmed; states are
// folds of the whole log, however many were forgotten.
func TestTapeAgainstModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			cfg := DefaultConfig()
			cfg.MaxAge = 2 * time.Second
			cfg.MaxBytes = 40_000
			cfg.MaxSessions = 10
			cfg.DedupeOffsets, cfg.DedupeAge = 300, time.Second
			m := newModel(cfg)
			types := []string{"a", "b", schema.TypeSessionEnded, "a", "playhead.other"}
			for range 300 {
				var batch []*schema.Event
				for range rng.IntN(8) {
					if rng.IntN(10) == 0 {
						batch = append(batch, nil)
						continue
					}
					id := ""
					if rng.IntN(3) > 0 {
						id = fmt.Sprint(rng.IntN(40))
					}
					batch = append(batch, newEvent(fmt.Sprint("s", rng.IntN(40)), types[rng.IntN(len(types))], id, 0))
				}
				m.append(batch...)
				m.nowMs += rng.Int64N(60)
				session := fmt.Sprint("s", rng.IntN(45))
				m.check(t, session, rng.Int64N(m.next+1), rng.IntN(10))
				m.check(t, session, 0, 1000)
				got, err := m.tape.Session(context.Background(), "w", session)
				if err != nil {
					t.Fatal(err)
				}
				if want := m.past.fold("w", session, m.next); !sameState(got, want) {
					t.Fatalf("state of %s at %d = %+v, want %+v", session, m.next, got, want)
				}
				if n := len(m.tape.sessions); n > cfg.MaxSessions+m.tape.entries.len() {
					t.Fatalf("%d sessions are remembered with %d entries; want at most %d beside those",
						n, m.tape.entries.len(), cfg.MaxSessions)
				}
			}
		})
	}
}

// sameState compares what states say, not how they came about.
func sameState(a, b schema.Session) bool {
	if a.Exists() != b.Exists() || a.Ended() != b.Ended() {
		return false
	}
	return reflect.DeepEqual([]any{a.Kind, a.StartedMs, a.LastMs, a.EndedAt, a.EndedMs, a.EventCount, a.CountsByType, a.First, a.Last},
		[]any{b.Kind, b.StartedMs, b.LastMs, b.EndedAt, b.EndedMs, b.EventCount, b.CountsByType, b.First, b.Last})
}

func TestTapeTrimsByAge(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxAge = 10 * time.Second
	m := newModel(cfg)
	for range 20 {
		m.append(newEvent("s", "a", "", 0))
		m.nowMs += 1000
	}
	m.tape.mu.Lock()
	m.tape.trim(m.nowMs)
	m.tape.mu.Unlock()
	if start, next := m.tape.Start(), m.tape.Next(); start != 10 || next != 20 {
		t.Errorf("tape covers [%d, %d), want [10, 20)", start, next)
	}
	m.tape.mu.Lock()
	m.tape.trim(m.nowMs + 60_000)
	m.tape.mu.Unlock()
	if start := m.tape.Start(); start != 20 {
		t.Errorf("a tape whose events are all too old starts at %d, want its next, 20", start)
	}
	if m.tape.bytes != 0 {
		t.Errorf("an empty tape counts %d bytes", m.tape.bytes)
	}
}

func TestTapeTrimsByBytes(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxBytes = 10_000
	m := newModel(cfg)
	for range 100 {
		m.append(newEvent("s", "a", "", 0))
	}
	size := m.tape.entries.at(0).Size()
	if m.tape.bytes > cfg.MaxBytes || m.tape.bytes+size <= cfg.MaxBytes {
		t.Errorf("tape holds %d bytes of events of %d, want as many as fit %d", m.tape.bytes, size, cfg.MaxBytes)
	}
	if got := m.tape.entries.at(0).ID.Offset; got != m.tape.Start() {
		t.Errorf("Start() = %d, the first event is at %d", m.tape.Start(), got)
	}
}

func TestTapeRemembersDuplicates(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxAge = time.Second
	m := newModel(cfg)
	m.append(newEvent("s", "a", "m1", 0), newEvent("s", "a", "m1", 0), newEvent("s", "a", "m2", 0))
	m.nowMs += 60_000
	m.append(newEvent("t", "a", "", 0)) // the first three leave the tape
	id, seen := m.tape.Duplicate(schema.MessageKey("w", "s", "m1"), m.nowMs)
	if !seen || id.Offset != 0 {
		t.Errorf("Duplicate(m1) = %v, %v; want offset 0", id, seen)
	}
	if _, seen := m.tape.Duplicate(schema.MessageKey("w", "t", "m1"), m.nowMs); seen {
		t.Error("another session's message id counts as a duplicate")
	}
	if _, seen := m.tape.Duplicate(schema.MessageKey("w", "s", "m1"), m.nowMs+cfg.DedupeAge.Milliseconds()); seen {
		t.Error("a message id older than the rule's age counts as a duplicate")
	}
}

// Chain m, m, (longer than the window) m: the second is a repeat, the third is not, and
// asked later the second must still be one, or nobody's to say.
func TestTapeJudgesRecordsBelowIt(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DedupeAge = time.Minute
	m := newModel(cfg)
	old := func(offset int64, timeMs int64, message string) *schema.Event {
		e := newEvent("s", "a", message, timeMs)
		e.ID.Position = schema.Position{Epoch: 1, Offset: offset}
		return e
	}
	t0 := m.nowMs
	m.append(newEvent("s", "a", "m", 0))
	m.nowMs = t0 + 30_000
	m.append(newEvent("s", "a", "m", 0))
	m.append(newEvent("s", "a", "n", 0))
	f := func(e *schema.Event, wantRepeats, wantKnown bool) {
		t.Helper()
		if repeats, known := m.tape.Repeats(e); repeats != wantRepeats || known != wantKnown {
			t.Errorf("Repeats(%d) = %v, %v; want %v, %v", e.ID.Offset, repeats, known, wantRepeats, wantKnown)
		}
	}
	f(old(0, t0, "m"), false, true)
	f(old(1, t0+30_000, "m"), true, true)
	f(old(2, t0+30_000, "n"), false, true)
	f(old(3, t0+30_000, "m"), false, false) // not on the tape yet
	m.nowMs = t0 + 95_000
	m.append(newEvent("s", "a", "m", 0)) // begins a chain of its own
	m.nowMs = t0 + 60_000                // another node's clock
	m.append(newEvent("s", "a", "", 0))
	if repeats, known := m.tape.Repeats(old(1, t0+30_000, "m")); known && !repeats {
		t.Error("a repeat is called none, once its message id has begun another chain")
	}
}

// The record of an erasure has the window forget message ids: of what lies before it the
// tape cannot tell any more, and says so.
func TestErasureEndsWhatATapeCanJudge(t *testing.T) {
	m := newModel(DefaultConfig())
	m.append(newEvent("s", "a", "m", 0), newEvent("s", "a", "m", 0), newEvent("s", schema.TypeErased, "", 0), newEvent("s", "a", "m", 0))
	for offset, want := range map[int64]struct{ repeats, known bool }{1: {false, false}, 3: {false, true}} {
		e := newEvent("s", "a", "m", 0)
		e.ID = schema.EventID{Position: schema.Position{Epoch: 1, Offset: offset}, TimeMs: m.nowMs}
		if repeats, known := m.tape.Repeats(e); repeats != want.repeats || known != want.known {
			t.Errorf("Repeats(%d) = %v, %v; want %v", offset, repeats, known, want)
		}
	}
}

func TestSessionAsksThePastOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(DefaultConfig())
		m.past.gate = make(chan struct{})
		m.tape.foldedFrom = 0
		m.append(newEvent("s", "a", "", 0))
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				s, err := m.tape.Session(t.Context(), "w", "s")
				if err != nil || s.EventCount != 2 {
					t.Errorf("Session = %+v, %v; want 2 events", s, err)
				}
			})
		}
		synctest.Wait()
		m.append(newEvent("s", "a", "", 0)) // while the past is being asked
		close(m.past.gate)
		wg.Wait()
		if m.past.calls != 1 {
			t.Errorf("the past was asked %d times, want once", m.past.calls)
		}
	})
}

// The one who asks for all goes away: the others must not get its error.
func TestSessionLoadSurvivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(DefaultConfig())
		m.past.gate = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := m.tape.Session(ctx, "w", "s"); !errors.Is(err, context.Canceled) {
				t.Errorf("Session of a caller that left: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := m.tape.Session(t.Context(), "w", "s"); err != nil {
				t.Errorf("Session of a caller that stayed: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(m.past.gate)
		wg.Wait()
	})
}

func TestSessionFailsWithThePastAndRecovers(t *testing.T) {
	m := newModel(DefaultConfig())
	m.append(newEvent("s", "a", "", 0))
	m.past.fail = errPast
	if _, err := m.tape.Session(context.Background(), "w", "s"); !errors.Is(err, errPast) {
		t.Errorf("Session with the past away: %v", err)
	}
	m.past.fail = nil
	if s, err := m.tape.Session(context.Background(), "w", "s"); err != nil || s.EventCount != 1 {
		t.Errorf("Session with the past back = %+v, %v", s, err)
	}
}

// Somebody asks for ids at random: states stay bounded between two records, and those of
// real sessions stay.
func TestUnknownSessionsDoNotFlushOutKnownOnes(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxSessions = 100
	cfg.MaxAge = time.Second
	m := newModel(cfg)
	for i := range 50 {
		m.append(newEvent(fmt.Sprint("real", i), "a", "", 0))
		if _, err := m.tape.Session(context.Background(), "w", fmt.Sprint("real", i)); err != nil {
			t.Fatal(err)
		}
	}
	m.nowMs += 10_000
	m.append(nil)
	asked := m.past.calls
	for i := range 5000 {
		s, err := m.tape.Session(context.Background(), "w", fmt.Sprint("unknown", i))
		if err != nil || s.Exists() {
			t.Fatalf("an unknown session = %+v, %v", s, err)
		}
	}
	if n := len(m.tape.sessions); n > cfg.MaxSessions {
		t.Errorf("%d sessions are remembered, want at most %d", n, cfg.MaxSessions)
	}
	asked = m.past.calls - asked
	for i := range 50 {
		if _, err := m.tape.Session(context.Background(), "w", fmt.Sprint("real", i)); err != nil {
			t.Fatal(err)
		}
	}
	if m.past.calls != 50+asked {
		t.Errorf("%d real sessions had to be asked for again", m.past.calls-50-asked)
	}
}

type countingListener struct {
	mu      sync.Mutex
	wakes   int
	evicted []int64
}

func (l *countingListener) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakes++
}

func (l *countingListener) Evicted(e *Entry) { l.evicted = append(l.evicted, e.ID.Offset) }

// attach is Attach to a session, for everything.
func (m *model) attach(l Listener, session string, from int64) (*Audience, bool) {
	return m.tape.Attach(l, schema.Scope{Workspace: "w", Session: session}, "", &schema.Filter{}, from)
}

func TestAttachCoversOrRefuses(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxAge = time.Second
	m := newModel(cfg)
	l := &countingListener{}
	m.append(newEvent("quiet", "a", "", 0), newEvent("busy", "a", "", 0)) // 0, 1
	seat, ok := m.attach(l, "quiet", 0)
	if !ok {
		t.Fatal("Attach at the start is refused")
	}
	m.nowMs += 5000
	m.append(newEvent("busy", "a", "", 0)) // 2; 0 and 1 leave
	m.nowMs += 5000
	m.append(newEvent("busy", "a", "", 0)) // 3; 2 leaves
	if _, span := seat.Read(nil, 1, 10); span.Evicted != 1 || span.Start != 3 {
		t.Errorf("span = %+v; want nothing of a quiet session evicted but offset 0, the tape from 3", span)
	}
	if _, ok := m.attach(l, "quiet", 1); !ok {
		t.Error("Attach above all of a session's evicted events is refused")
	}
	if _, ok := m.attach(l, "quiet", 0); ok {
		t.Error("Attach below an evicted event of a quiet session is taken")
	}
	if _, ok := m.attach(l, "unknown", 2); ok {
		t.Error("Attach of an unknown session below the tape's start is taken")
	}
	if _, ok := m.attach(l, "busy", 2); ok {
		t.Error("Attach below an evicted event is taken")
	}
	m.append(newEvent("quiet", "a", "", 0), newEvent("quiet", "a", "", 0))
	if l.wakes != 1 {
		t.Errorf("a batch of two woke %d times, want once", l.wakes)
	}
	seat.Detach(l)
	m.append(newEvent("quiet", "a", "", 0))
	if l.wakes != 1 {
		t.Error("a detached listener is woken")
	}
}

func TestOnlyLaggingListenersHearOfEvictions(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxAge = time.Second
	m := newModel(cfg)
	slow, quick := &countingListener{}, &countingListener{}
	seat, _ := m.attach(slow, "s", 0)
	m.attach(quick, "s", 0)
	m.append(newEvent("s", "a", "", 0))
	if evicted := seat.SetLagging(slow, true); evicted != 0 {
		t.Errorf("SetLagging says %d was evicted", evicted)
	}
	m.nowMs += 2000
	m.append(newEvent("t", "a", "", 0), newEvent("s", "a", "", 0))
	if evicted := seat.SetLagging(slow, false); evicted != 1 {
		t.Errorf("SetLagging says all below %d was evicted, want 1", evicted)
	}
	m.nowMs += 2000
	m.append(newEvent("s", "a", "", 0))
	if fmt.Sprint(slow.evicted, quick.evicted) != "[0] []" {
		t.Errorf("told of evictions: %v and %v; want [0] for the one that lagged then", slow.evicted, quick.evicted)
	}
}

func TestWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(DefaultConfig())
		if err := m.tape.WaitFor(t.Context(), 0); err != nil {
			t.Errorf("WaitFor(0) = %v", err)
		}
		results := make(chan error, 3)
		go func() { results <- m.tape.WaitFor(t.Context(), 2) }()
		synctest.Wait()
		m.append(nil)
		synctest.Wait()
		if len(results) != 0 {
			t.Error("WaitFor(2) returned at 1")
		}
		m.append(nil)
		if err := <-results; err != nil {
			t.Errorf("WaitFor(2) at 2 = %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.tape.WaitFor(ctx, 3); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitFor beyond its deadline = %v", err)
		}
		if len(m.tape.waiters) != 0 {
			t.Errorf("%d waiters left behind", len(m.tape.waiters))
		}
		go func() { results <- m.tape.WaitFor(t.Context(), 3) }()
		synctest.Wait()
		m.tape.fail(errPast)
		if err := <-results; !errors.Is(err, errPast) {
			t.Errorf("WaitFor of a tape that fails = %v", err)
		}
		if err := m.tape.WaitFor(t.Context(), 0); !errors.Is(err, errPast) {
			t.Errorf("WaitFor of a tape that has failed = %v", err)
		}
	})
}

func TestFrameIsEncodedOnce(t *testing.T) {
	e := &Entry{}
	n := 0
	encode := func(*schema.Event) Frame { n++; return Frame{Bytes: []byte("frame"), Cut: 2} }
	for range 3 {
		if got := e.Frame(1, encode); string(got.Bytes) != "frame" || got.Cut != 2 {
			t.Fatalf("Frame = %q, %d", got.Bytes, got.Cut)
		}
	}
	if n != 1 {
		t.Errorf("encoded %d times", n)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	err := Config{}.Validate()
	if err == nil {
		t.Fatal("the zero Config is valid")
	}
	if got := len(err.(interface{ Unwrap() []error }).Unwrap()); got != 7 {
		t.Errorf("the zero Config has %d problems, want 7: %v", got, err)
	}
}
