package tape

import "github.com/playhead-dev/playhead/schema"

// ScopeEvents returns up to limit visible events of a scope at or above offset from,
// oldest first, and the offsets that the tape covered when it looked: from start
// (inclusive) to next (exclusive). Events below start have to be had elsewhere. If
// fewer than limit come back, there are no more below next.
func (t *Tape) ScopeEvents(scope schema.Scope, from int64, limit int) (events []*schema.Event, start, next int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	x := t.groups[scope]
	if scope.Session != "" {
		s := t.sessions[sessionKey{scope.Workspace, scope.Session}]
		if s == nil {
			return nil, t.start, t.next
		}
		x = &s.index
	}
	if x == nil {
		return nil, t.start, t.next
	}
	for i := x.entries.search(from); i < x.entries.len() && len(events) < limit; i++ {
		if e := x.entries.at(i); !e.Hidden() {
			events = append(events, &e.Event)
		}
	}
	return events, t.start, t.next
}

// ScopeRecords is ScopeEvents with hidden events as well: all that a state is folded from.
func (t *Tape) ScopeRecords(scope schema.Scope, from int64, limit int) (events []*schema.Event, start, next int64) {
	entries, span := t.ReadScope(nil, scope, from, limit)
	events = make([]*schema.Event, len(entries))
	for i, e := range entries {
		events[i] = &e.Event
	}
	return events, span.Start, span.Next
}

// ReadScope appends up to limit entries of a scope at or above offset from to dst,
// whatever their types, for who does not listen. Of the span, Evicted is the scope's.
func (t *Tape) ReadScope(dst []*Entry, scope schema.Scope, from int64, limit int) ([]*Entry, Span) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	span := Span{Start: t.start, Next: t.next, Evicted: t.evicted(scope), EndedAt: -1, Failed: t.failed}
	x := t.groups[scope]
	if scope.Session != "" {
		s := t.sessions[sessionKey{scope.Workspace, scope.Session}]
		if s == nil {
			return dst, span
		}
		x, span.EndedAt = &s.index, s.state.EndedAt
	}
	if x == nil {
		return dst, span
	}
	dst, span.More = x.entries.appendFrom(dst, from, limit)
	return dst, span
}

// Repeats reports whether e, read from Kafka below the tape, repeats an earlier record.
// known is false if the tape has not seen enough of the log before e to judge.
func (t *Tape) Repeats(e *schema.Event) (repeats, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e.ID.Offset < t.judgedFrom || e.ID.Offset < t.window.Fenced() || e.ID.Offset >= t.next ||
		t.next-e.ID.Offset > t.cfg.DedupeOffsets || t.maxMs-e.ID.TimeMs > t.cfg.DedupeAge.Milliseconds() {
		return false, false
	}
	if e.MessageID == "" {
		return false, true
	}
	// Of a chain of repeats the window keeps the first id: every later one is a repeat.
	first, seen := t.window.Lookup(schema.MessageKey(e.Workspace, e.Session, e.MessageID), e.ID)
	return seen && first.Offset < e.ID.Offset, true
}
