package schema_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// logOf builds a session's log from words: "created:<kind>", "end", or an event's type.
// Offsets go up by 10, times by 1000 ms, from 10 and 1000.
func logOf(words string) []*schema.Event {
	var log []*schema.Event
	for i, w := range strings.Fields(words) {
		n := int64(i + 1)
		e := &schema.Event{ID: eventID(3, n*10, n*1000), Workspace: "w", Session: "s", Type: w, TMs: n, Payload: []byte("{}")}
		if kind, ok := strings.CutPrefix(w, "created:"); ok {
			e.Type, e.Payload = schema.TypeSessionCreated, fmt.Appendf(nil, `{"kind":%q,"metadata":{"n":"%d"}}`, kind, n)
		} else if w == "end" {
			e.Type = schema.TypeSessionEnded
		}
		log = append(log, e)
	}
	return log
}

func fold(log []*schema.Event) schema.Session {
	s := schema.NewSession()
	for _, e := range log {
		s.Apply(e)
	}
	return s
}

func TestSessionFold(t *testing.T) {
	for _, c := range []struct {
		words   string
		kind    string
		endedAt int64
		events  int64
	}{
		{"", "", -1, 0},
		{"a", "session", -1, 1},
		{"created:session a a b", "session", -1, 3},
		{"created:call a call.ended b", "call", 30, 3},
		{"created:call call.completed call.ended end", "call", 20, 2},
		{"created:call end call.ended", "call", 20, 1},
		{"created:session call.ended a", "session", -1, 2},
		{"created:conversation call.ended end a", "conversation", 30, 2},
		{"call.ended a created:call b", "call", 10, 3},
		{"call.ended created:session created:call", "session", -1, 1},
		{"created:nonsense a", "session", -1, 1},
		{"created:nonsense created:call a", "call", -1, 1},
		{"a end end b", "session", 20, 2},
		{"end call.ended created:call", "call", 10, 1},
		{"a call.ended end created:call", "call", 20, 2},
		{"playhead.duplicate a playhead.x", "session", -1, 1},
	} {
		s := fold(logOf(c.words))
		if s.Kind != c.kind || s.EndedAt != c.endedAt || s.EventCount != c.events || s.Exists() != (c.words != "") || s.Ended() != (c.endedAt >= 0) {
			t.Errorf("%q: %+v, want kind %q, ended at %d, %d events", c.words, s, c.kind, c.endedAt, c.events)
		}
		if want := max(c.endedAt*100, 0); s.EndedMs != want {
			t.Errorf("%q: EndedMs = %d, want %d", c.words, s.EndedMs, want)
		}
		sum := int64(0)
		for _, n := range s.CountsByType {
			sum += n
		}
		if sum != s.EventCount {
			t.Errorf("%q: counts by type sum to %d, want %d", c.words, sum, s.EventCount)
		}
	}
}

// checkSplits compares the fold of a log with the merge of its parts, cut anywhere in
// two and in three, in both orders of merging.
func checkSplits(t *testing.T, log []*schema.Event) {
	t.Helper()
	want := fold(log)
	check := func(how string, got schema.Session) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			types := make([]string, len(log))
			for i, e := range log {
				types[i] = e.Type + string(e.Payload)
			}
			t.Fatalf("log %v %s:\n got %+v\nwant %+v", types, how, got, want)
		}
	}
	for i := range len(log) + 1 {
		a, b := fold(log[:i]), fold(log[i:])
		aBefore, bBefore := a.Clone(), b.Clone()
		check(fmt.Sprintf("cut at %d", i), a.Merge(b))
		if !reflect.DeepEqual(a, aBefore) || !reflect.DeepEqual(b, bBefore) {
			t.Fatalf("Merge changed its arguments")
		}
		for _, e := range log[i:] {
			a.Apply(e)
		}
		check(fmt.Sprintf("applied on from %d", i), a)
		for j := i; j <= len(log); j++ {
			a, b, c := fold(log[:i]), fold(log[i:j]), fold(log[j:])
			check(fmt.Sprintf("cut at %d and %d, left first", i, j), a.Merge(b).Merge(c))
			check(fmt.Sprintf("cut at %d and %d, right first", i, j), a.Merge(b.Merge(c)))
		}
	}
}

func TestMergeOfAnySplitIsTheFoldOfTheWhole(t *testing.T) {
	words := []string{"created:call", "created:session", "created:nonsense", "end", "call.ended", "call.completed", "a", "playhead.duplicate"}
	t.Run("all short logs", func(t *testing.T) {
		for n := range len(words) * len(words) * len(words) {
			var log []string
			for range 3 {
				log = append(log, words[n%len(words)])
				n /= len(words)
			}
			checkSplits(t, logOf(strings.Join(log, " ")))
		}
	})
	t.Run("random logs", func(t *testing.T) {
		r := rand.New(rand.NewPCG(6, 6))
		for range 60 {
			var log []string
			for range 1 + r.IntN(14) {
				log = append(log, words[r.IntN(len(words))])
			}
			events := logOf(strings.Join(log, " "))
			for _, e := range events {
				e.ID.TimeMs += int64(r.IntN(3000)) // times may run back
				e.TMs = int64(r.IntN(100))
				if r.IntN(3) == 0 {
					e.Workflow = fmt.Sprint("wf", r.IntN(3))
				}
			}
			checkSplits(t, events)
		}
	})
}

// 1. The first stretch of the log creates a session of kind session. 2. Another node
// creates it again as a call, in the second stretch, where call.ended then seems to end
// it. 3. The first creation wins, so the session must still be open once merged; and an
// end said later must be found.
func TestMergeForgetsTheEndOfACallThatIsNone(t *testing.T) {
	log := logOf("created:session a created:call call.ended")
	got := fold(log[:2]).Merge(fold(log[2:]))
	if got.Ended() {
		t.Errorf("ended at %d, want open", got.EndedAt)
	}
	log = logOf("created:session a created:call call.ended end")
	if got := fold(log[:2]).Merge(fold(log[2:])); got.EndedAt != 50 {
		t.Errorf("ended at %d, want 50", got.EndedAt)
	}
}

func TestZeroSessionIsNotEnded(t *testing.T) {
	var s schema.Session
	if s.Ended() || s.Exists() {
		t.Errorf("zero Session: Ended %v, Exists %v", s.Ended(), s.Exists())
	}
	s.Apply(logOf("a")[0])
	if s.Ended() || s.EndedAt != -1 {
		t.Errorf("after an event: Ended %v at %d", s.Ended(), s.EndedAt)
	}
}

// built makes the state of a log as one does who reads ClickHouse: by questions on its
// records, not by Apply.
func built(log []*schema.Event) schema.Session {
	whole := fold(log)
	s := schema.NewSession()
	s.Created, s.Kind, s.Workflow, s.Metadata = whole.Created, whole.Kind, whole.Workflow, whole.Metadata
	s.StartedMs, s.LastMs, s.MaxTMs = whole.StartedMs, whole.LastMs, whole.MaxTMs
	s.EventCount, s.CountsByType, s.First, s.Last = whole.EventCount, whole.CountsByType, whole.First, whole.Last
	callEnd, callEndMs := int64(-1), int64(0)
	for _, e := range log {
		switch {
		case e.Type == schema.TypeSessionEnded && s.EndedAt < 0:
			s.EndedAt, s.EndedMs = e.ID.Offset, e.ID.TimeMs
		case schema.EndsCall(e.Type) && callEnd < 0:
			callEnd, callEndMs = e.ID.Offset, e.ID.TimeMs
		}
	}
	s.SetCallEnd(callEnd, callEndMs)
	if len(log) > 0 {
		s.SetExists()
	}
	return s
}

func TestBuiltStatesGoOnAsFoldedOnes(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	words := []string{"created:call", "created:session", "end", "call.ended", "a", "a"}
	for range 5000 {
		var b strings.Builder
		for range 1 + r.IntN(7) {
			b.WriteString(words[r.IntN(len(words))] + " ")
		}
		log := logOf(b.String())
		cut := r.IntN(len(log) + 1)
		want := fold(log)
		merged, applied := built(log[:cut]).Merge(fold(log[cut:])), built(log[:cut])
		for _, e := range log[cut:] {
			applied.Apply(e)
		}
		for how, got := range map[string]schema.Session{"merged": merged, "applied": applied} {
			if got.EndedAt != want.EndedAt || got.EndedMs != want.EndedMs || got.Kind != want.Kind || got.Exists() != want.Exists() {
				t.Fatalf("%q cut at %d, %s: %+v, want %+v", b.String(), cut, how, got, want)
			}
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	s := fold(logOf("created:call a"))
	c := s.Clone()
	c.Metadata["n"], c.CountsByType["a"] = "changed", 99
	if s.Metadata["n"] != "1" || s.CountsByType["a"] != 1 {
		t.Errorf("the clone's change shows: %+v", s)
	}
}

func TestTypesAreSorted(t *testing.T) {
	s := fold(logOf("b a c a end"))
	if got := s.Types(); !reflect.DeepEqual(got, []string{"a", "b", "c"}) {
		t.Errorf("Types() = %v", got)
	}
}
