package tape

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// erasedPast leaves out what was erased, as the real past does.
type erasedPast struct {
	*recordedPast
	set *schema.Erasures
}

func (p erasedPast) SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error) {
	if _, err := p.recordedPast.SessionBase(ctx, workspace, session, to); err != nil {
		return schema.Session{}, err
	}
	return p.fold(workspace, session, to.Offset), nil
}

func (p erasedPast) fold(workspace, session string, to int64) schema.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := schema.NewSession()
	for _, e := range p.events {
		if e.Workspace == workspace && e.Session == session && e.ID.Offset < to && !p.set.Erased(workspace, session, e.ID.Position) {
			s.Apply(e)
		}
	}
	return s
}

// eraseModel is a model in which sessions are erased.
type eraseModel struct {
	*model
	set  *schema.Erasures
	past erasedPast
}

func newEraseModel(cfg Config) *eraseModel {
	m := &eraseModel{model: newModel(cfg), set: &schema.Erasures{}}
	m.past = erasedPast{m.model.past, m.set}
	m.tape.past, m.tape.erased = m.past, m.set.Below
	return m
}

// learn has the tape hear of an erasure that ends at offset below.
func (m *eraseModel) learn(session string, below int64) {
	m.set.Add(&schema.Erasure{
		ID: fmt.Sprint(below), Workspace: "w", Session: session, Below: schema.Position{Epoch: 1, Offset: below},
	})
	m.tape.erase("w", session)
}

// visible lists the offsets of a scope's events from start on that are not erased.
func (m *eraseModel) visible(scope schema.Scope, start int64) (out []int64) {
	for _, e := range m.kept {
		if scope.Holds(e) && e.ID.Offset >= start && !m.set.Erased("w", e.Session, e.ID.Position) {
			out = append(out, e.ID.Offset)
		}
	}
	return out
}

func (m *eraseModel) check(t *testing.T, scope schema.Scope) {
	t.Helper()
	entries, span := m.tape.ReadScope(nil, scope, 0, 10_000)
	var got []int64
	for _, e := range entries {
		got = append(got, e.ID.Offset)
	}
	if want := m.visible(scope, span.Start); !slices.Equal(got, want) {
		t.Fatalf("%+v from %d = %v, want %v", scope, span.Start, got, want)
	}
}

// TestErasedEventsLeaveTheTape erases sessions at random, told before the tape has reached
// the erasure, at once, or long after.
func TestErasedEventsLeaveTheTape(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			cfg := DefaultConfig()
			cfg.MaxAge, cfg.MaxSessions = 2*time.Second, 100
			cfg.DedupeOffsets, cfg.DedupeAge = 300, time.Second
			m := newEraseModel(cfg)
			var untold []func()
			for range 400 {
				var batch []*schema.Event
				for range 1 + rng.IntN(5) {
					e := newEvent(fmt.Sprint("s", rng.IntN(8)), []string{"a", "b", schema.TypeSessionEnded}[rng.IntN(3)], "", 0)
					e.Workflow = []string{"", "wf"}[rng.IntN(2)]
					if rng.IntN(3) == 0 {
						e.MessageID = fmt.Sprint(rng.IntN(10))
					}
					batch = append(batch, e)
				}
				if rng.IntN(6) == 0 {
					session, below := fmt.Sprint("s", rng.IntN(8)), m.next+int64(len(batch))+1
					mark := newEvent(session, schema.TypeErased, "", 0)
					batch = append(batch, mark)
					switch rng.IntN(3) {
					case 0: // another node's reader is slower than its control topic
						m.learn(session, below)
						m.append(batch...)
					case 1:
						m.append(batch...)
						m.learn(session, below)
					default:
						m.append(batch...)
						untold = append(untold, func() { m.learn(session, below) })
					}
				} else {
					m.append(batch...)
				}
				if len(untold) > 0 && rng.IntN(10) == 0 {
					untold[0]()
					untold = untold[1:]
				}
				m.nowMs += rng.Int64N(60)
				session := fmt.Sprint("s", rng.IntN(8))
				for _, scope := range []schema.Scope{{Workspace: "w"}, {Workspace: "w", Workflow: "wf"}, {Workspace: "w", Session: session}} {
					m.check(t, scope)
				}
				got, err := m.tape.Session(context.Background(), "w", session)
				if err != nil {
					t.Fatal(err)
				}
				if want := m.past.fold("w", session, m.next); !sameState(got, want) {
					t.Fatalf("state of %s at %d = %+v, want %+v", session, m.next, got, want)
				}
				size := 0
				for i := range m.tape.entries.len() {
					size += m.tape.entries.at(i).Size()
				}
				if m.tape.bytes != size {
					t.Fatalf("the tape counts %d bytes and holds %d", m.tape.bytes, size)
				}
			}
		})
	}
}

func TestListenersReadOnOverAnErasure(t *testing.T) {
	m := newEraseModel(DefaultConfig())
	add := func(session, typ string) { m.append(newEvent(session, typ, "", 0)) }
	add("s", "a")
	add("other", "a")
	add("other", "b")
	add("s", "a")
	filter := schema.Filter{Types: []string{"a"}}
	listener := &modelListener{}
	some, ok := m.tape.Attach(listener, schema.Scope{Workspace: "w"}, filter.Key(), &filter, 0)
	if !ok {
		t.Fatal("no seat")
	}
	add("s", schema.TypeErased)
	m.learn("s", m.next)
	add("s", "a")
	entries, span := some.Read(nil, 0, 100)
	var got []int64
	for _, e := range entries {
		got = append(got, e.ID.Offset)
	}
	if want := []int64{1, 5}; !slices.Equal(got, want) || span.Evicted != 0 {
		t.Errorf("Read = %v, evicted below %d; want %v, nothing evicted", got, span.Evicted, want)
	}
	some.Detach(listener)
}

// TestALoadThatAnErasureOvertakesIsThrownAway:
//  1. the state of a cold session is asked for, and the past is slow
//  2. the session is erased
//  3. the past answers with what was erased
func TestALoadThatAnErasureOvertakesIsThrownAway(t *testing.T) {
	m := newEraseModel(DefaultConfig())
	m.append(newEvent("s", "a", "", 0))
	m.tape.start, m.tape.foldedFrom = 1, 1
	m.tape.sessions = map[sessionKey]*session{} // as after a start
	gate := make(chan struct{})
	m.past.gate = gate
	m.tape.past = m.past.recordedPast // it folds before it waits, so to say
	done := make(chan schema.Session)
	go func() {
		s, err := m.tape.Session(context.Background(), "w", "s")
		if err != nil {
			t.Error(err)
		}
		done <- s
	}()
	eventually(t, "the past is asked", func() bool {
		m.past.mu.Lock()
		defer m.past.mu.Unlock()
		return m.past.calls > 0
	})
	m.append(newEvent("s", schema.TypeErased, "", 0))
	m.learn("s", m.next)
	close(gate)
	if s := <-done; s.Exists() {
		t.Errorf("the erased session is %+v", s)
	}
}

func TestAnErasedWorkspaceLeavesTheTape(t *testing.T) {
	m := newEraseModel(DefaultConfig())
	for i := range 6 {
		m.append(newEvent(fmt.Sprint("s", i%2), "a", "", 0))
	}
	foreign := newEvent("s0", "a", "", 0)
	foreign.Workspace = "kept"
	m.append(foreign)
	m.set.Add(&schema.Erasure{ID: "a", Workspace: "w"})
	m.tape.erase("w", "")
	m.append(newEvent("s0", "a", "", 0)) // by a node that had not heard
	if entries, _ := m.tape.ReadScope(nil, schema.Scope{Workspace: "w"}, 0, 100); len(entries) != 0 {
		t.Errorf("%d events of the erased workspace are on the tape", len(entries))
	}
	if entries, _ := m.tape.ReadScope(nil, schema.Scope{Workspace: "kept"}, 0, 100); len(entries) != 1 {
		t.Errorf("%d events of the other workspace are on the tape, want 1", len(entries))
	}
	if s, err := m.tape.Session(t.Context(), "w", "s1"); err != nil || s.Exists() {
		t.Errorf("Session = %+v, %v, want one that does not exist", s, err)
	}
}
