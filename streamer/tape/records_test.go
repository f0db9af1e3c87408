package tape

import (
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func TestScopeRecordsAreEventsAndHiddenOnes(t *testing.T) {
	m := newModel(DefaultConfig())
	of := func(session, kind, message string) *schema.Event {
		return &schema.Event{Workspace: "w", Session: session, Type: kind, MessageID: message, ContentType: schema.DefaultContentType}
	}
	m.append(of("a", schema.TypeSessionCreated, ""), of("a", "x", "m"), nil, of("b", "x", ""), of("a", "x", "m"), of("a", schema.TypeSessionEnded, ""))
	f := func(session string, from int64, limit int, want ...int64) {
		t.Helper()
		events, start, next := m.tape.ScopeRecords(schema.Scope{Workspace: "w", Session: session}, from, limit)
		var got []int64
		for _, e := range events {
			got = append(got, e.ID.Offset)
		}
		if len(got) != len(want) || start != 0 || next != 6 {
			t.Fatalf("ScopeRecords(%q, %d, %d) = %v of [%d, %d), want %v", session, from, limit, got, start, next, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("ScopeRecords(%q, %d, %d) = %v, want %v", session, from, limit, got, want)
			}
		}
	}
	f("", 0, 10, 0, 1, 3, 5) // the fourth repeats
	f("", 1, 2, 1, 3)
	f("a", 0, 10, 0, 1, 5)
	f("a", 5, 10, 5)
	f("none", 0, 10)
}
