package schema

import (
	"encoding/json"
	"maps"
	"slices"
)

// Kinds of session. A call and a conversation have views of their own.
const (
	KindSession      = "session"
	KindCall         = "call"
	KindConversation = "conversation"
)

// IsKind reports whether s names a kind of session.
func IsKind(s string) bool {
	return s == KindSession || s == KindCall || s == KindConversation
}

// SessionCreated is the payload of a TypeSessionCreated record.
type SessionCreated struct {
	Kind     string            `json:"kind"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Session is the state of a session: a fold of its log. The zero value is a session
// nobody has heard of, but for its EndedAt: begin with NewSession. Build it with Apply
// in log order, or join two neighbouring stretches of the log with Merge. Who builds one
// from elsewhere sets EndedAt and EndedMs to the first TypeSessionEnded record, then
// calls SetCallEnd if there is such an event, and SetExists.
type Session struct {
	Created  bool // a TypeSessionCreated record was seen
	Kind     string
	Workflow string
	Metadata map[string]string

	StartedMs int64 // append time of the first record, Unix ms
	EndedMs   int64 // append time of the record that ended it; 0 while open
	LastMs    int64 // append time of the last record

	// EndedAt is the offset of the record that ended the session, -1 while it is open.
	// Events beyond it were appended by a node that had not heard of the end: they are
	// kept, and marked late.
	EndedAt int64

	EventCount   int64 // without bookkeeping records
	CountsByType map[string]int64
	First, Last  EventID // of events, without bookkeeping; zero if there is none
	MaxTMs       int64   // the largest t_ms of an event

	exists bool
	// endRecord is the first TypeSessionEnded record; callEnd the first event that ends
	// the session if it is a call. Whether it is one may be known only after merging,
	// so both are kept, and EndedAt and EndedMs follow from them (settle).
	endRecord, callEnd endMark
}

// endMark is where and when something ended; the zero endMark is nowhere.
type endMark struct {
	next int64 // the offset plus 1
	ms   int64
}

func markEnd(offset, ms int64) endMark { return endMark{next: offset + 1, ms: ms} }

// or returns m, or later if m is nowhere.
func (m endMark) or(later endMark) endMark {
	if m.next == 0 {
		return later
	}
	return m
}

// NewSession returns the state of a session nobody has heard of.
func NewSession() Session { return Session{EndedAt: -1} }

// Exists reports whether the log holds any record of the session.
func (s *Session) Exists() bool { return s.exists }

// Ended reports whether the session has ended.
func (s *Session) Ended() bool { return s.exists && s.EndedAt >= 0 }

// Apply folds the next record of the session's log into s. Duplicates are the
// caller's to leave out, and so are erased events; the record of an erasure is none of the
// session's.
func (s *Session) Apply(e *Event) {
	if e.Type == TypeErased {
		return
	}
	if !s.exists {
		s.exists = true
		s.StartedMs = e.ID.TimeMs
		s.Kind = KindSession
		s.EndedAt = -1
	}
	s.LastMs = max(s.LastMs, e.ID.TimeMs)
	if s.Workflow == "" {
		s.Workflow = e.Workflow
	}
	switch e.Type {
	case TypeSessionCreated:
		s.applyCreated(e)
		return
	case TypeSessionEnded:
		s.endRecord = s.knownEnd().or(markEnd(e.ID.Offset, e.ID.TimeMs))
		s.settle()
		return
	}
	if e.Hidden() {
		return
	}
	s.EventCount++
	if s.CountsByType == nil {
		s.CountsByType = make(map[string]int64)
	}
	s.CountsByType[e.Type]++
	if s.First.IsZero() {
		s.First = e.ID
	}
	s.Last = e.ID
	s.MaxTMs = max(s.MaxTMs, e.TMs)
	if EndsCall(e.Type) {
		s.endRecord = s.knownEnd()
		s.callEnd = s.callEnd.or(markEnd(e.ID.Offset, e.ID.TimeMs))
		s.settle()
	}
}

// EndsCall reports whether an event of type t ends a session of kind call.
func EndsCall(t string) bool { return t == "call.completed" || t == "call.ended" }

func (s *Session) applyCreated(e *Event) {
	if s.Created {
		return // the log's first creation wins
	}
	var c SessionCreated
	if err := json.Unmarshal(e.Payload, &c); err != nil || !IsKind(c.Kind) {
		return // written by a foreign producer; the session stays what it was
	}
	s.endRecord = s.knownEnd()
	s.Created, s.Kind, s.Metadata = true, c.Kind, c.Metadata
	s.settle()
}

// knownEnd returns endRecord, or what the builder of a state set as EndedAt.
func (s *Session) knownEnd() endMark {
	if s.endRecord.next != 0 || !s.Ended() || s.EndedAt+1 == s.callEnd.next {
		return s.endRecord
	}
	return markEnd(s.EndedAt, s.EndedMs)
}

// settle derives EndedAt and EndedMs: whichever end lies first in the log.
func (s *Session) settle() {
	end := s.endRecord
	if s.Kind == KindCall && s.callEnd.next != 0 && (end.next == 0 || s.callEnd.next < end.next) {
		end = s.callEnd
	}
	s.EndedAt, s.EndedMs = end.next-1, end.ms
}

// SetCallEnd tells a state that was not built by Apply (but read from ClickHouse)
// where the first event lies that ends it if it is a call. A negative offset says that
// there is none.
func (s *Session) SetCallEnd(offset, ms int64) {
	if offset < 0 {
		return
	}
	s.exists = true
	s.endRecord = s.knownEnd()
	s.callEnd = markEnd(offset, ms)
	s.settle()
}

// SetExists marks a state that was not built by Apply as one of a known session.
func (s *Session) SetExists() { s.exists = true }

// Merge returns the state of the log that is s followed by later. Neither is changed.
func (s Session) Merge(later Session) Session {
	if !s.exists {
		return later.Clone()
	}
	if !later.exists {
		return s.Clone()
	}
	out := s.Clone()
	out.LastMs = max(s.LastMs, later.LastMs)
	out.MaxTMs = max(s.MaxTMs, later.MaxTMs)
	if out.Workflow == "" {
		out.Workflow = later.Workflow
	}
	if !out.Created && later.Created {
		out.Created, out.Kind, out.Metadata = true, later.Kind, maps.Clone(later.Metadata)
	}
	out.EventCount += later.EventCount
	if out.CountsByType == nil && later.CountsByType != nil {
		out.CountsByType = make(map[string]int64)
	}
	for t, n := range later.CountsByType {
		out.CountsByType[t] += n
	}
	if out.First.IsZero() {
		out.First = later.First
	}
	if !later.Last.IsZero() {
		out.Last = later.Last
	}
	out.endRecord = s.knownEnd().or(later.knownEnd())
	out.callEnd = s.callEnd.or(later.callEnd)
	out.settle()
	return out
}

// Clone returns a copy that shares nothing with s.
func (s Session) Clone() Session {
	s.Metadata = maps.Clone(s.Metadata)
	s.CountsByType = maps.Clone(s.CountsByType)
	return s
}

// Types returns the names of the types seen, sorted.
func (s *Session) Types() []string {
	return slices.Sorted(maps.Keys(s.CountsByType))
}
