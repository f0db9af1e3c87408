package sessionlog

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// TestPoisonIsNobodysEvent: whatever a foreign producer writes between two events, a reader
// of the session, its workflow and its workspace has those two, and compares nothing with
// what lies between.
func TestPoisonIsNobodysEvent(t *testing.T) {
	placement := schema.Placement{Partitions: 2, Shards: 2}
	place := func(string) schema.Placement { return placement }
	here := placement.Partition("w", "s")
	away := "away"
	for i := 0; placement.Partition("w", away) == here; i++ {
		away = fmt.Sprint("away", i)
	}
	set := func(r *kgo.Record, key, value string) {
		r.Headers = append(slices.DeleteFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == key }),
			kgo.RecordHeader{Key: key, Value: []byte(value)})
	}
	for name, spoil := range map[string]func(r *kgo.Record){
		"no headers":            func(r *kgo.Record) { r.Headers = nil },
		"not JSON":              func(r *kgo.Record) { r.Value = []byte("{") },
		"no value":              func(r *kgo.Record) { r.Value = nil },
		"time before 1970":      func(r *kgo.Record) { r.Timestamp = time.UnixMilli(-1) },
		"old CloudEvents":       func(r *kgo.Record) { set(r, "ce_specversion", "0.3") },
		"reserved type":         func(r *kgo.Record) { set(r, "ce_type", "error") },
		"type of a dead letter": func(r *kgo.Record) { set(r, "ce_type", schema.TypeDeadLetter) },
		"another session too": func(r *kgo.Record) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: "CE_SUBJECT", Value: []byte(away)})
		},
		"another session first": func(r *kgo.Record) {
			r.Headers = append([]kgo.RecordHeader{{Key: "CE_SUBJECT", Value: []byte(away)}}, r.Headers...)
		},
		"a letter that folds to ours": func(r *kgo.Record) {
			set(r, "ce_subject", "")
			r.Headers[len(r.Headers)-1] = kgo.RecordHeader{Key: "ce_ſubject", Value: []byte("s")}
		},
		"session of another partition": func(r *kgo.Record) { set(r, "ce_subject", away) },
	} {
		l := &memoryLog{}
		for i := range 3 {
			e := &schema.Event{
				ID: schema.EventID{TimeMs: 1_700_000_000_000}, Workspace: "w", Session: "s", Workflow: "wf", Type: "t",
				Payload: []byte("{}"), ContentType: schema.DefaultContentType,
			}
			if i > 0 {
				e.MessageID = "m" // the last repeats none but the poison
			}
			l.append(e)
		}
		spoil(l.records[1])
		for _, scope := range []schema.Scope{{Workspace: "w", Session: "s"}, {Workspace: "w", Workflow: "wf"}, {Workspace: "w"}, {Workspace: "w", Session: away}} {
			var got []int64
			r := &Reader{Log: l, Rule: testRule, Scope: scope, Epoch: 1, Partition: here, Placement: place}
			if _, err := r.Read(t.Context(), 0, 3, func(e *schema.Event) error {
				got = append(got, e.ID.Offset)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			want := []int64{0, 2}
			if scope.Session == away {
				want = nil
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: events of %+v at %v, want %v", name, scope, got, want)
			}
		}
	}
}
