package control

import (
	"fmt"
	"strconv"
)

// Limits bounds what the keys of a workspace may use. In every field 0 means without
// limit, except MaxPageSize, where it means the plan's size. The JSON names are those of
// the API and of the control topic.
type Limits struct {
	StreamsPerKey           int     `json:"streams_per_key"`
	StreamsPerWorkspace     int     `json:"streams_per_workspace"`
	EventStreamsPerKey      int     `json:"event_streams_per_key"`      // open /api/v1/stream of a key; they count as streams too
	EventsPerMinute         int     `json:"events_per_minute"`          // of one /api/v1/stream
	SessionCreatesPerSecond float64 `json:"session_creates_per_second"` // a key; the burst is twice the rate
	AppendsPerSecond        float64 `json:"appends_per_second"`         // requests of a key; the burst is twice the rate
	BackfillEventsPerSecond float64 `json:"backfill_events_per_second"` // events a key appends by lane=backfill; the burst is twice the rate
	ReadsPerSecond          float64 `json:"reads_per_second"`           // a key; the burst is twice the rate
	MaxPageSize             int     `json:"max_page_size"`
	Keys                    int     `json:"keys"` // live keys of the workspace
}

// DefaultLimits returns the limits of a workspace that was given none (docs/api.md, "Limits").
func DefaultLimits() Limits {
	return Limits{
		StreamsPerKey:           50,
		StreamsPerWorkspace:     500,
		EventStreamsPerKey:      5,
		EventsPerMinute:         1000,
		SessionCreatesPerSecond: 30,
		AppendsPerSecond:        1000,
		BackfillEventsPerSecond: 10_000,
		ReadsPerSecond:          200,
		Keys:                    10_000,
	}
}

// Unlimited returns limits that refuse nothing: those of the workspace that
// `playhead dev` makes. Keys are bounded even so, as each costs memory on every node.
func Unlimited() Limits { return Limits{Keys: 100_000} }

// The largest limits that are not 0. They keep sums and header values small; whoever
// wants more wants none.
const (
	maxLimit    = 1_000_000_000
	maxPageSize = 10_000
	maxKeys     = 1_000_000
)

// Validate reports the first limit that is out of range, as a *SpecError whose Field is
// its JSON name, or nil.
func (l Limits) Validate() error {
	for _, f := range []struct {
		name  string
		value float64
		most  float64
	}{
		{"streams_per_key", float64(l.StreamsPerKey), maxLimit},
		{"streams_per_workspace", float64(l.StreamsPerWorkspace), maxLimit},
		{"event_streams_per_key", float64(l.EventStreamsPerKey), maxLimit},
		{"events_per_minute", float64(l.EventsPerMinute), maxLimit},
		{"session_creates_per_second", l.SessionCreatesPerSecond, maxLimit},
		{"appends_per_second", l.AppendsPerSecond, maxLimit},
		{"backfill_events_per_second", l.BackfillEventsPerSecond, maxLimit},
		{"reads_per_second", l.ReadsPerSecond, maxLimit},
		{"max_page_size", float64(l.MaxPageSize), maxPageSize},
		{"keys", float64(l.Keys), maxKeys},
	} {
		if !(f.value >= 0 && f.value <= f.most) { // not a number is out of range too
			return &SpecError{Field: f.name, Reason: fmt.Sprintf("is %s; want 0 to %.0f",
				strconv.FormatFloat(f.value, 'f', -1, 64), f.most)}
		}
	}
	return nil
}
