package tape

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// crowd is events of several workspaces, workflows and sessions, and filters that choose
// among them.
type crowd struct{ rng *rand.Rand }

func (c crowd) event() *schema.Event {
	e := newEvent(fmt.Sprint("s", c.rng.IntN(8)), []string{"a", "b", "memory.x", "memory.y", "playhead.hidden"}[c.rng.IntN(5)], "", 0)
	e.Workspace = []string{"w", "w", "w", "v"}[c.rng.IntN(4)]
	e.Workflow = []string{"", "f0", "f1"}[c.rng.IntN(3)]
	e.TMs = c.rng.Int64N(100)
	if c.rng.IntN(4) == 0 {
		e.MessageID = fmt.Sprint("m", c.rng.IntN(30))
	}
	return e
}

func (c crowd) scope() schema.Scope {
	s := schema.Scope{Workspace: []string{"w", "w", "v"}[c.rng.IntN(3)]}
	switch c.rng.IntN(3) {
	case 0:
		s.Session = fmt.Sprint("s", c.rng.IntN(9)) // one of them has no events
	case 1:
		s.Workflow = fmt.Sprint("f", c.rng.IntN(3))
	}
	return s
}

func (c crowd) filter() schema.Filter {
	from, to := int64(30), int64(60)
	return []schema.Filter{
		{}, {}, {Types: []string{"a"}}, {Types: []string{"a", "b"}}, {Prefixes: []string{"memory."}},
		{FromTMs: &from}, {FromTMs: &from, ToTMs: &to}, {Types: []string{"never"}}, {Types: []string{"b"}, Prefixes: []string{"memory."}},
		{ToTMs: &to, Types: []string{"memory.x"}},
	}[c.rng.IntN(10)]
}

// modelListener is a listener, and what it has had and been told.
type modelListener struct {
	scope   schema.Scope
	filter  schema.Filter
	seat    *Audience
	first   int64 // where it began, or began anew
	pos     int64
	woken   bool
	lagging bool
	sleepy  bool // does not read when it is woken
	got     []int64
	missed  []int64    // since it lags
	t       *testing.T // set when it has left
}

func (l *modelListener) Wake() {
	l.woken = true
	l.stays("woken")
}

func (l *modelListener) stays(what string) {
	if l.t != nil {
		l.t.Errorf("a listener that has left is %s", what)
	}
}

func (l *modelListener) Evicted(e *Entry) {
	l.stays("told of an eviction")
	if e.ID.Offset >= l.pos {
		l.missed = append(l.missed, e.ID.Offset)
	}
}

// wants is what the listener is to hear of among the events in [from, to).
func (l *modelListener) wants(kept []*schema.Event, from, to int64) []int64 {
	i, _ := slices.BinarySearchFunc(kept, from, func(e *schema.Event, o int64) int { return int(e.ID.Offset - o) })
	var out []int64
	for ; i < len(kept) && kept[i].ID.Offset < to; i++ {
		if e := kept[i]; l.scope.Holds(e) && (e.Hidden() || l.filter.Match(e)) {
			out = append(out, e.ID.Offset)
		}
	}
	return out
}

// read reads all there is, in steps of a few.
func (l *modelListener) read(t *testing.T, m *model) {
	t.Helper()
	l.woken = false
	for {
		entries, span := l.seat.Read(nil, l.pos, 3)
		if gone := len(l.wants(m.kept, l.pos, span.Evicted)); l.pos < span.Evicted && gone == 0 || l.pos >= span.Evicted && gone > 0 {
			t.Fatalf("at %d, with the tape at [%d, %d), all below %d is said to be evicted; %d wanted were", l.pos, span.Start, span.Next, span.Evicted, gone)
		}
		if l.pos < span.Evicted { // it has to go elsewhere; here it begins anew
			l.first, l.pos, l.got = span.Evicted, span.Evicted, nil
			continue
		}
		for _, e := range entries {
			l.got = append(l.got, e.ID.Offset)
			l.pos = e.ID.Offset + 1
		}
		if !span.More {
			l.pos = max(l.pos, span.Next)
			return
		}
	}
}

func (l *modelListener) check(t *testing.T, m *model) {
	t.Helper()
	if want := l.wants(m.kept, l.first, l.pos); !slices.Equal(l.got, want) {
		t.Fatalf("a listener of %+v with %+v got %v in [%d, %d), want %v", l.scope, l.filter, l.got, l.first, l.pos, want)
	}
}

// Whoever reads at every wake gets exactly what its filter takes of its scope; who lags is
// told exactly what it missed; Attach is refused only below the tape; and when all have
// left and all is evicted, nothing is left.
func TestAudiencesAgainstModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c := crowd{rand.New(rand.NewPCG(seed, 2))}
			cfg := DefaultConfig()
			cfg.MaxSessions = 12
			cfg.MaxAge = time.Second
			cfg.MaxBytes = []int{8_000, 40_000, 1 << 20}[seed%3]
			cfg.DedupeOffsets = 200
			m := newModel(cfg)
			var listeners []*modelListener
			var told, refused, taken int
			for range 800 {
				batch := make([]*schema.Event, c.rng.IntN(6))
				for i := range batch {
					if c.rng.IntN(15) > 0 {
						batch[i] = c.event()
					}
				}
				m.append(batch...)
				m.nowMs += c.rng.Int64N(40)
				for _, l := range listeners {
					switch {
					case l.lagging:
					case l.sleepy && c.rng.IntN(20) > 0:
					case l.woken || l.sleepy:
						had := len(l.got)
						l.read(t, m)
						if !l.sleepy && len(l.got) == had {
							t.Fatalf("a listener of %+v with %+v was woken for nothing", l.scope, l.filter)
						}
						l.check(t, m)
					default: // what was left unread would show at the next read
						if want := l.wants(m.kept, l.pos, m.next); len(want) > 0 {
							t.Fatalf("a listener of %+v with %+v at %d was not woken for %v", l.scope, l.filter, l.pos, want)
						}
					}
				}
				switch c.rng.IntN(6) {
				case 0, 1: // another one comes
					l := &modelListener{scope: c.scope(), filter: c.filter(), sleepy: c.rng.IntN(4) == 0}
					l.pos = max(0, m.next-c.rng.Int64N(80))
					l.first = l.pos
					seat, ok := m.tape.Attach(l, l.scope, l.filter.Key(), &l.filter, l.pos)
					if !ok {
						if refused++; l.pos >= m.tape.Start() {
							t.Fatalf("Attach at %d is refused with the tape from %d", l.pos, m.tape.Start())
						}
						break
					}
					taken++
					l.seat = seat
					l.read(t, m)
					l.check(t, m)
					listeners = append(listeners, l)
				case 2: // some leave
					for len(listeners) > 20 {
						i := c.rng.IntN(len(listeners))
						l := listeners[i]
						l.seat.Detach(l)
						l.seat.Detach(l)
						l.t = t
						listeners = slices.Delete(listeners, i, i+1)
					}
				case 3: // one begins to lag
					if len(listeners) == 0 {
						break
					}
					if l := listeners[c.rng.IntN(len(listeners))]; !l.lagging && !l.sleepy {
						l.lagging, l.missed = true, nil
						if evicted := l.seat.SetLagging(l, true); l.pos < evicted {
							t.Fatalf("at %d, having read all, it is told that all below %d is gone", l.pos, evicted)
						}
					}
				case 4: // one catches up
					for _, l := range listeners {
						if l.lagging {
							l.lagging = false
							evicted := l.seat.SetLagging(l, false)
							if want := l.wants(m.kept, l.pos, evicted); !slices.Equal(l.missed, want) {
								t.Fatalf("a listener of %+v with %+v that lagged at %d was told of %v, and lost %v", l.scope, l.filter, l.pos, l.missed, want)
							}
							told += len(l.missed)
							if l.pos < evicted {
								l.first, l.pos, l.got = evicted, evicted, nil
							}
							l.read(t, m)
							l.check(t, m)
							break
						}
					}
				}
			}
			t.Logf("%d listeners came, %d were refused, %d losses were told", taken, refused, told)
			for _, l := range listeners {
				l.seat.Detach(l)
				l.t = t
			}
			m.nowMs += 10_000
			m.append(nil)
			checkNothingLeft(t, m.tape)
		})
	}
}

// checkNothingLeft checks a tape that nobody listens to and that has shed everything.
func checkNothingLeft(t *testing.T, tape *Tape) {
	t.Helper()
	if tape.listening != 0 || tape.entries.len() != 0 || tape.entries.buf != nil || tape.bytes != 0 {
		t.Errorf("%d audiences, %d entries, %d places and %d bytes are left", tape.listening, tape.entries.len(), len(tape.entries.buf), tape.bytes)
	}
	for scope := range tape.groups {
		t.Errorf("the group %+v is left", scope)
	}
	if n := len(tape.sessions); n > tape.cfg.MaxSessions || n != tape.recent.Len() {
		t.Errorf("%d sessions are left, %d of them listed; want at most %d", n, tape.recent.Len(), tape.cfg.MaxSessions)
	}
	for _, s := range tape.sessions {
		if !s.idle() || s.entries.buf != nil || s.audiences != nil || s.woken {
			t.Errorf("something of session %+v is left: %+v", s.scope, s.index)
		}
	}
}

// hurried is a listener with a goroutine of its own.
type hurried struct {
	wake chan struct{}
}

func (l *hurried) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *hurried) Evicted(*Entry) {}

// The same with everybody at once: the race detector looks on.
func TestAudiencesAllAtOnce(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxBytes = 1 << 30
	cfg.MaxAge = time.Hour
	m := newModel(cfg)
	done := make(chan struct{})
	var end atomic.Int64
	end.Store(-1)
	var wg sync.WaitGroup
	type result struct {
		l   modelListener
		got []int64
	}
	results := make([]result, 40)
	for i := range results {
		c := crowd{rand.New(rand.NewPCG(uint64(i), 9))}
		l := &modelListener{scope: c.scope(), filter: c.filter()}
		wg.Go(func() {
			h := &hurried{wake: make(chan struct{}, 1)}
			pos := int64(0)
			var got []int64
			seat, ok := m.tape.Attach(h, l.scope, l.filter.Key(), &l.filter, pos)
			for ok {
				entries, span := seat.Read(nil, pos, 5)
				if pos < span.Evicted {
					t.Errorf("all below %d is said to be evicted", span.Evicted)
					break
				}
				for _, e := range entries {
					got, pos = append(got, e.ID.Offset), e.ID.Offset+1
				}
				if span.More {
					continue
				}
				pos = max(pos, span.Next)
				if last := end.Load(); last >= 0 && pos >= last {
					break
				}
				if c.rng.IntN(10) == 0 { // leave, and come back where it was
					seat.Detach(h)
					seat, ok = m.tape.Attach(h, l.scope, l.filter.Key(), &l.filter, pos)
					continue
				}
				select {
				case <-h.wake:
				case <-done:
				}
			}
			if !ok {
				t.Errorf("Attach at %d is refused", pos)
				return
			}
			seat.Detach(h)
			results[i] = result{modelListener{scope: l.scope, filter: l.filter}, got}
		})
	}
	c := crowd{rand.New(rand.NewPCG(1, 1))}
	for range 2000 {
		batch := make([]*schema.Event, c.rng.IntN(5))
		for i := range batch {
			batch[i] = c.event()
		}
		m.append(batch...)
	}
	end.Store(m.next)
	close(done)
	wg.Wait()
	for _, r := range results {
		if want := r.l.wants(m.kept, 0, m.next); !slices.Equal(r.got, want) {
			t.Errorf("a listener of %+v with %+v got %d of %d events", r.l.scope, r.l.filter, len(r.got), len(want))
		}
	}
	if m.tape.listening != 0 {
		t.Errorf("%d audiences are left", m.tape.listening)
	}
}

// A distinct filter is asked about an event once, however many listen with it, and one
// that takes nothing wakes nobody.
func TestListenersWithOneFilterShareAnAudience(t *testing.T) {
	m := newModel(DefaultConfig())
	scope := schema.Scope{Workspace: "w"}
	f := schema.Filter{Types: []string{"a"}}
	var seats []*Audience
	var listeners []*countingListener
	for range 3 {
		l := &countingListener{}
		again := f // another filter that means the same
		seat, _ := m.tape.Attach(l, scope, again.Key(), &again, 0)
		seats, listeners = append(seats, seat), append(listeners, l)
	}
	if seats[0] != seats[1] || seats[1] != seats[2] || m.tape.listening != 1 {
		t.Errorf("three listeners with one filter make %d audiences", m.tape.listening)
	}
	m.append(newEvent("s", "b", "", 0))
	m.append(newEvent("s", "a", "", 0))
	for i, l := range listeners {
		if l.wakes != 1 {
			t.Errorf("listener %d was woken %d times, want once", i, l.wakes)
		}
		seats[i].Detach(l)
	}
	if m.tape.listening != 0 {
		t.Errorf("%d audiences are left", m.tape.listening)
	}
}

func TestFailedTapeRefusesAndTells(t *testing.T) {
	m := newModel(DefaultConfig())
	var listeners []*countingListener
	var seats []*Audience
	for _, scope := range []schema.Scope{{Workspace: "w"}, {Workspace: "w", Workflow: "f"}, {Workspace: "w", Session: "s"}} {
		l := &countingListener{}
		seat, ok := m.tape.Attach(l, scope, "", &schema.Filter{}, 0)
		if !ok {
			t.Fatalf("Attach to %+v is refused", scope)
		}
		listeners, seats = append(listeners, l), append(seats, seat)
	}
	m.tape.fail(errPast)
	for i, l := range listeners {
		if l.wakes != 1 {
			t.Errorf("listener %d of a tape that failed was woken %d times", i, l.wakes)
		}
		if _, span := seats[i].Read(nil, 0, 1); span.Failed == nil {
			t.Errorf("listener %d reads on a tape that failed: %+v", i, span)
		}
		seats[i].Detach(l)
	}
	if _, ok := m.attach(&countingListener{}, "s", 0); ok {
		t.Error("a tape that failed takes listeners")
	}
	if len(m.tape.groups) != 0 {
		t.Errorf("%d groups are left", len(m.tape.groups))
	}
}

// BenchmarkAppend is what a tape costs an event: without listeners, and with 200 of a
// session, a workflow and the workspace that ask for ten different things.
func BenchmarkAppend(b *testing.B) {
	for _, listeners := range []int{0, 200} {
		b.Run("listeners="+strconv.Itoa(listeners), func(b *testing.B) {
			m := newModel(DefaultConfig())
			scopes := []schema.Scope{{Workspace: "w"}, {Workspace: "w", Workflow: "f"}, {Workspace: "w", Session: "s0"}}
			for i := range listeners {
				f := schema.Filter{Types: []string{fmt.Sprint("type", i%10)}}
				if _, ok := m.tape.Attach(&countingListener{}, scopes[i%3], f.Key(), &f, 0); !ok {
					b.Fatal("Attach is refused")
				}
			}
			const batch = 100
			b.ReportAllocs()
			for done := 0; b.Loop(); done += batch {
				records := make([]record, batch)
				for i := range records {
					e := newEvent(fmt.Sprint("s", i%20), fmt.Sprint("type", i%10), "", m.nowMs)
					e.ID.Position = schema.Position{Epoch: 1, Offset: int64(done + i)}
					e.Workflow = "f"
					records[i] = record{offset: e.ID.Offset, timeMs: m.nowMs, event: &Entry{Event: *e}}
				}
				m.tape.append(records, m.nowMs)
				m.nowMs++
			}
			b.ReportMetric(float64(b.N)*batch/b.Elapsed().Seconds(), "events/s")
		})
	}
}
