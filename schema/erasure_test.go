package schema_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

func TestErasuresTakeWhatLiesBelow(t *testing.T) {
	at := func(epoch uint8, offset int64) schema.Position {
		return schema.Position{Epoch: epoch, Partition: uint16(epoch), Offset: offset}
	}
	var s schema.Erasures
	if s.Erased("w", "s", at(1, 0)) {
		t.Error("an empty set erases")
	}
	first := &schema.Erasure{ID: "a", Workspace: "w", Session: "s", Below: at(2, 100)}
	second := &schema.Erasure{ID: "b", Workspace: "w", Session: "s", Below: at(2, 200)}
	s.Add(second)
	s.Add(first) // told later, though it ends before
	whole := &schema.Erasure{ID: "c", Workspace: "gone"}
	s.Add(whole)
	for _, c := range []struct {
		workspace, session string
		at                 schema.Position
		want               bool
	}{
		{"w", "s", at(2, 199), true},
		{"w", "s", at(2, 200), false},
		{"w", "s", at(1, 1_000_000), true}, // another epoch, and another partition
		{"w", "s", at(3, 0), false},
		{"w", "other", at(1, 0), false},
		{"other", "s", at(1, 0), false},
		{"gone", "anything", at(255, schema.MaxOffset), true},
	} {
		if got := s.Erased(c.workspace, c.session, c.at); got != c.want {
			t.Errorf("Erased(%s, %s, %v) = %v, want %v", c.workspace, c.session, c.at, got, c.want)
		}
	}
	done := *second
	done.DoneMs = 1
	s.Add(&done)
	if e := s.Find("w", "s"); e == nil || !e.Done() || e.ID != "b" {
		t.Errorf("Find = %+v, want b, done", e)
	}
	s.Remove(first) // it does not count
	if !s.Erased("w", "s", at(2, 199)) {
		t.Error("forgetting an erasure that another covers brings back what that erased")
	}
	s.Remove(&done)
	s.Remove(whole)
	if s.Len() != 0 || s.Erased("w", "s", at(1, 0)) {
		t.Errorf("%d workspaces are left, want none", s.Len())
	}
}

// TestMessageIDsAreFreeBehindAnErasure holds a window against a rule in words: a record
// repeats an earlier one of its session and id if no erasure's record lies between.
func TestMessageIDsAreFreeBehindAnErasure(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	for range 200 {
		// Everything is within the rule: what it drops is for other tests.
		w := schema.NewWindow(schema.DedupeRule{Offsets: 10_000, Age: time.Hour})
		first := make(map[[2]string]int64)
		for offset := range int64(300) {
			e := &schema.Event{
				ID:        schema.EventID{Position: schema.Position{Epoch: 1, Offset: offset}, TimeMs: offset + r.Int64N(5)},
				Workspace: "w", Session: pick("s1", "s2", "s3"), Type: "x", MessageID: pick("a", "b", "c", "d"),
			}
			if r.IntN(10) == 0 {
				e.Type, e.MessageID = schema.TypeErased, ""
				for key := range first {
					if key[0] == e.Session {
						delete(first, key)
					}
				}
				w.Observe(e)
				continue
			}
			key := [2]string{e.Session, e.MessageID}
			want, repeats := first[key]
			if !repeats {
				first[key] = offset
				want = offset
			}
			now := e.ID
			id, found := w.Lookup(schema.MessageKey(e.Workspace, e.Session, e.MessageID), now)
			if found != repeats || found && id.Offset != want {
				t.Fatalf("Lookup at %d = %d, %v, want %d, %v", offset, id.Offset, found, want, repeats)
			}
			if id, got := w.Observe(e); got != repeats || id.Offset != want {
				t.Fatalf("Observe at %d = %d, %v, want %d, %v", offset, id.Offset, got, want, repeats)
			}
		}
	}
}

// TestWindowsAgreeWhereverTheyBegin: a reader that warms up over one window judges as one
// that has read everything, erasures included.
func TestWindowsAgreeWhereverTheyBegin(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	rule := schema.DedupeRule{Offsets: 20, Age: time.Hour}
	for range 200 {
		all, late := schema.NewWindow(rule), schema.NewWindow(rule)
		from := r.Int64N(200)
		for offset := range int64(300) {
			e := &schema.Event{
				ID:        schema.EventID{Position: schema.Position{Epoch: 1, Offset: offset}, TimeMs: offset},
				Workspace: "w", Session: "s", Type: "x", MessageID: string(rune('a' + r.IntN(15))),
			}
			if r.IntN(8) == 0 {
				e.Type, e.MessageID = schema.TypeErased, ""
			}
			_, want := all.Observe(e)
			if offset < from {
				continue
			}
			if _, got := late.Observe(e); offset >= from+rule.Offsets && got != want {
				t.Fatalf("at %d, warm from %d: %v, want %v", offset, from, got, want)
			}
		}
	}
}

func TestAnErasureIsNoPartOfASession(t *testing.T) {
	s := schema.NewSession()
	s.Apply(&schema.Event{Type: schema.TypeErased, Session: "s", Workspace: "w"})
	if s.Exists() {
		t.Error("a session of which the log holds nothing but its erasure exists")
	}
}

func BenchmarkErasedMiss(b *testing.B) {
	var s schema.Erasures
	for range 1000 {
		s.Add(&schema.Erasure{ID: "a", Workspace: "others", Session: "s", Below: schema.Position{Epoch: 1, Offset: 1}})
	}
	b.ReportAllocs()
	for b.Loop() {
		if s.Erased("workspace", "session", schema.Position{Epoch: 1}) {
			b.Fatal("erased")
		}
	}
}
