package tape

import "github.com/playhead-dev/playhead/schema"

// SessionEvents returns up to limit visible events of a session at or above offset
// from, oldest first, and the offsets that the tape covered when it looked: from start
// (inclusive) to next (exclusive). Events below start have to be had elsewhere. If
// fewer than limit come back, there are no more below next.
func (t *Tape) SessionEvents(workspace, id string, from int64, limit int) (events []*schema.Event, start, next int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := t.sessions[sessionKey{workspace, id}]
	if s == nil {
		return nil, t.start, t.next
	}
	for i := s.entries.search(from); i < s.entries.len() && len(events) < limit; i++ {
		if e := s.entries.at(i); !e.Hidden() {
			events = append(events, &e.Event)
		}
	}
	return events, t.start, t.next
}

// Span is what a reader of one session found on the tape.
type Span struct {
	Start, Next int64 // the offsets the tape covers
	Evicted     int64 // every event of the session at or above it is on the tape
	More        bool  // the session has entries beyond those returned
	EndedAt     int64 // offset of the record that ended the session, -1 while open
	Failed      error // the tape's reader has given up
}

// ReadSession appends up to limit entries of a session at or above offset from,
// hidden ones included, to dst.
func (t *Tape) ReadSession(dst []*Entry, workspace, id string, from int64, limit int) ([]*Entry, Span) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	span := Span{Start: t.start, Next: t.next, Evicted: t.start, EndedAt: -1, Failed: t.failed}
	s := t.sessions[sessionKey{workspace, id}]
	if s == nil {
		return dst, span
	}
	span.EndedAt, span.Evicted = s.state.EndedAt, s.evicted
	i := s.entries.search(from)
	for ; i < s.entries.len() && limit > 0; i++ {
		dst = append(dst, s.entries.at(i))
		limit--
	}
	span.More = i < s.entries.len()
	return dst, span
}

// Attach registers l for the session's events if all of them at or above offset from
// are on the tape; ok is false if they are not (any more), and the caller has to read up
// to start elsewhere.
// After a success no event at or above from is missed: the caller reads once, then
// again at each Wake. Until Detach, Span.Evicted tells whether an event left the tape
// unread; that others' events did is of no concern.
func (t *Tape) Attach(l Listener, workspace, id string, from int64) (start int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[sessionKey{workspace, id}]
	switch {
	case s != nil && from < s.evicted, s == nil && from < t.start:
		return t.start, false
	case s == nil:
		s = t.session(workspace, id)
	}
	if s.listeners == nil {
		s.listeners = make(map[Listener]struct{})
	}
	s.listeners[l] = struct{}{}
	return t.start, true
}

// Detach undoes Attach. It may be called more than once.
func (t *Tape) Detach(l Listener, workspace, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[sessionKey{workspace, id}]
	if s == nil {
		return
	}
	delete(s.listeners, l)
	delete(s.lagging, l)
}

// SetLagging asks an attached listener's calls of Evicted, or ends them. It returns
// the session's Span.Evicted at that moment: what lay below it was evicted untold.
func (t *Tape) SetLagging(l Listener, workspace, id string, lagging bool) (evicted int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[sessionKey{workspace, id}]
	if s == nil {
		return t.start
	}
	if !lagging {
		delete(s.lagging, l)
		return s.evicted
	}
	if s.lagging == nil {
		s.lagging = make(map[Listener]struct{})
	}
	s.lagging[l] = struct{}{}
	return s.evicted
}

// Repeats reports whether e, read from Kafka below the tape, repeats an earlier record.
// known is false if the tape has not seen enough of the log before e to judge.
func (t *Tape) Repeats(e *schema.Event) (repeats, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e.ID.Offset < t.judgedFrom || e.ID.Offset >= t.next || t.next-e.ID.Offset > t.cfg.DedupeOffsets ||
		t.maxMs-e.ID.TimeMs > t.cfg.DedupeAge.Milliseconds() {
		return false, false
	}
	if e.MessageID == "" {
		return false, true
	}
	// Of a chain of repeats the window keeps the first id: every later one is a repeat.
	first, seen := t.window.Lookup(schema.MessageKey(e.Workspace, e.Session, e.MessageID), e.ID)
	return seen && first.Offset < e.ID.Offset, true
}
