package schema

import "time"

// Status of a session, as clients see it.
const (
	StatusActive = "active"
	StatusEnded  = "ended"
)

// TimeFormat is how times are written for clients: RFC 3339 in UTC with milliseconds.
const TimeFormat = "2006-01-02T15:04:05.000Z"

// SessionView is a session as every path of the API shows it (docs/api.md, "Sessions").
type SessionView struct {
	ID           string            `json:"id"`
	Kind         string            `json:"kind"`
	WorkflowID   *string           `json:"workflow_id"` // null if the session belongs to none
	Status       string            `json:"status"`
	StartedAt    string            `json:"started_at"`
	EndedAt      *string           `json:"ended_at"` // null while active
	Metadata     map[string]string `json:"metadata"`
	EventCount   int64             `json:"event_count"`
	CountsByType map[string]int64  `json:"counts_by_type"`
	FirstEventID *string           `json:"first_event_id"` // null while there is no event
	LastEventID  *string           `json:"last_event_id"`  // null while there is no event
	DurationMs   int64             `json:"duration_ms"`
}

// View returns the session as clients see it. s must exist. The maps are shared with s.
//
// The duration is the longer of two clocks: the log's, from the first record to the
// end or, while active, to the last record; and the producer's, the largest t_ms. A
// recording that is imported takes seconds by the first and its true length by the second.
func (s *Session) View(id string) SessionView {
	v := SessionView{
		ID:           id,
		Kind:         s.Kind,
		Status:       StatusActive,
		StartedAt:    formatMs(s.StartedMs),
		Metadata:     s.Metadata,
		EventCount:   s.EventCount,
		CountsByType: s.CountsByType,
	}
	last := s.LastMs
	if s.Ended() {
		last = s.EndedMs
		ended := formatMs(s.EndedMs)
		v.Status, v.EndedAt = StatusEnded, &ended
	}
	v.DurationMs = max(0, s.MaxTMs, last-s.StartedMs)
	if s.Workflow != "" {
		workflow := s.Workflow
		v.WorkflowID = &workflow
	}
	if !s.First.IsZero() {
		first, last := s.First.String(), s.Last.String()
		v.FirstEventID, v.LastEventID = &first, &last
	}
	if v.Metadata == nil {
		v.Metadata = map[string]string{}
	}
	if v.CountsByType == nil {
		v.CountsByType = map[string]int64{}
	}
	return v
}

func formatMs(ms int64) string { return time.UnixMilli(ms).UTC().Format(TimeFormat) }
