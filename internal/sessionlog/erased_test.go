package sessionlog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// erasedLog is a random log with erasures in it, of which some are known to the reader.
func erasedLog(rng *rand.Rand, n int) (*memoryLog, *schema.Erasures) {
	l, set := &memoryLog{}, &schema.Erasures{}
	ms := int64(1_700_000_000_000)
	for i := range n {
		ms += rng.Int64N(50)
		e := &schema.Event{
			ID: schema.EventID{TimeMs: ms}, Workspace: "w", Session: fmt.Sprint("s", rng.IntN(2)),
			Workflow: []string{"", "wf1"}[rng.IntN(2)], Type: "t", MessageID: fmt.Sprint("m", rng.IntN(12)),
			Payload: []byte("{}"), ContentType: schema.DefaultContentType,
		}
		if rng.IntN(25) == 0 {
			e.Type, e.MessageID, e.Workflow = schema.TypeErased, "", ""
			if rng.IntN(3) > 0 { // otherwise who asked for it was told that it failed
				set.Add(&schema.Erasure{
					ID: fmt.Sprint(i), Workspace: "w", Session: e.Session,
					Below: schema.Position{Epoch: 1, Offset: int64(i) + 1},
				})
			}
		}
		l.append(e)
	}
	return l, set
}

// TestErasedEventsAreLeftOut reads any stretch, and holds it against one window that has
// seen the whole log.
func TestErasedEventsAreLeftOut(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 2))
		l, set := erasedLog(rng, 300)
		scope := []schema.Scope{{Workspace: "w", Session: "s0"}, {Workspace: "w", Workflow: "wf1"}, {Workspace: "w"}}[seed%3]
		from := rng.Int64N(300)
		var want, got []int64
		for _, offset := range judged(t, l, scope) {
			session := "s0"
			if schema.HasSubject(l.records[offset].Headers, "s1") {
				session = "s1"
			}
			if offset >= from && !set.Erased("w", session, schema.Position{Epoch: 1, Offset: offset}) {
				want = append(want, offset)
			}
		}
		r := newReader(l)
		r.Scope, r.Erased = scope, set.Below
		if _, err := r.Read(t.Context(), from, 300, func(e *schema.Event) error {
			got = append(got, e.ID.Offset)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d, %+v from %d: %v, want %v", seed, scope, from, got, want)
		}
	}
}
