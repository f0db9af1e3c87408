package schema

import (
	"encoding/json"
	"testing"
)

func TestSessionView(t *testing.T) {
	const t0 = 1_767_225_600_000 // 2026-01-01T00:00:00Z
	event := func(offset, ms int64, typ string, tMs int64, payload string) *Event {
		return &Event{
			ID:      EventID{Position: Position{Epoch: 1, Partition: 3, Offset: offset}, TimeMs: ms},
			Session: "s1", Workspace: "w1", Type: typ, TMs: tMs, Payload: []byte(payload),
		}
	}
	tests := []struct {
		name   string
		events []*Event
		want   string
	}{
		{
			"only created",
			[]*Event{event(7, t0, TypeSessionCreated, 0, `{"kind":"call","metadata":{"a":"b"}}`)},
			`{"id":"s1","kind":"call","workflow_id":null,"status":"active","started_at":"2026-01-01T00:00:00.000Z","ended_at":null,` +
				`"metadata":{"a":"b"},"event_count":0,"counts_by_type":{},"first_event_id":null,"last_event_id":null,"duration_ms":0}`,
		},
		{
			"imported in a moment, ended later",
			[]*Event{
				event(7, t0, "a", 0, `{}`), event(8, t0+1, "a", 90_000, `{}`), event(9, t0+1500, TypeSessionEnded, 0, `{}`),
			},
			`{"id":"s1","kind":"session","workflow_id":null,"status":"ended","started_at":"2026-01-01T00:00:00.000Z","ended_at":"2026-01-01T00:00:01.500Z",` +
				`"metadata":{},"event_count":2,"counts_by_type":{"a":2},"first_event_id":"` + event(7, t0, "", 0, "").ID.String() +
				`","last_event_id":"` + event(8, t0+1, "", 0, "").ID.String() + `","duration_ms":90000}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSession()
			for _, e := range tt.events {
				s.Apply(e)
			}
			got, err := json.Marshal(s.View("s1"))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("View:\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}
