package tape

import "github.com/playhead-dev/playhead/schema"

// Listener hears of what a tape gets and loses of one scope. Both methods are called by
// the partition's reader and must return at once; Evicted is called with the tape locked
// and must not call it.
type Listener interface {
	// Wake says that there are entries the listener wants, or that the tape failed.
	Wake()
	// Evicted says that an entry leaves the tape; only lagging listeners are told.
	Evicted(e *Entry)
}

// Audience is the listeners of one scope that share a filter, and the entries it chose:
// each event is asked about once for each distinct filter, however many listen. It is
// what Attach gives; a listener that has detached must not use it any more.
type Audience struct {
	index  *index
	key    string // schema.Filter.Key
	filter schema.Filter
	all    bool // the filter takes everything
	chosen ring // unless all: the index's entries that the filter takes, and bookkeeping

	// evicted: the chosen entries below it have left the tape, those at or above it have
	// not. Others may have left unread.
	evicted int64

	members map[Listener]struct{}
	list    []Listener // members; nil when it has to be made anew
	lagging map[Listener]struct{}
	due     bool // something for them came with the append in progress
}

// wants reports whether the listeners are to hear of e. Bookkeeping concerns everybody: it
// may end the session.
func (a *Audience) wants(e *schema.Event) bool {
	return a.all || e.Hidden() || a.filter.Match(e)
}

// entries returns the entries to read.
func (a *Audience) entries() *ring {
	if a.all {
		return &a.index.entries
	}
	return &a.chosen
}

// push reports whether the listeners are to hear of e, the index's newest entry.
func (a *Audience) push(e *Entry) bool {
	if !a.wants(&e.Event) {
		// It may have ended the call: who waits for that is to look at Span.EndedAt.
		a.due = a.due || a.index.session != nil && schema.EndsCall(e.Type)
		return a.due
	}
	if !a.all {
		a.chosen.push(e)
	}
	a.due = true
	return true
}

// pop takes note that e, the index's oldest entry, has left the tape.
func (a *Audience) pop(e *Entry, start int64) {
	switch {
	case a.all:
	case a.chosen.len() > 0 && a.chosen.at(0) == e:
		a.chosen.pop()
	default:
		return
	}
	a.evicted = start
	for l := range a.lagging {
		l.Evicted(e)
	}
}

// listeners returns the members. The slice is never changed: who comes or goes is in the
// next one.
func (a *Audience) listeners() []Listener {
	if a.list == nil {
		a.list = make([]Listener, 0, len(a.members))
		for l := range a.members {
			a.list = append(a.list, l)
		}
	}
	return a.list
}

// Span is what a listener found on the tape.
type Span struct {
	Start, Next int64 // the offsets the tape covers
	Evicted     int64 // every entry the listener wants at or above it is on the tape
	More        bool  // there are entries beyond those returned
	EndedAt     int64 // offset of the record that ended the session; -1 while open, or if it is not one session's
	Failed      error // the tape's reader has given up
}

// Read appends up to limit entries at or above offset from to dst: those the filter takes,
// and bookkeeping.
func (a *Audience) Read(dst []*Entry, from int64, limit int) ([]*Entry, Span) {
	t := a.index.tape
	t.mu.RLock()
	defer t.mu.RUnlock()
	span := Span{Start: t.start, Next: t.next, Evicted: a.evicted, EndedAt: -1, Failed: t.failed}
	if s := a.index.session; s != nil {
		span.EndedAt = s.state.EndedAt
	}
	dst, span.More = a.entries().appendFrom(dst, from, limit)
	return dst, span
}

// Attach registers l for what filter takes of the scope, if all of it at or above offset
// from is on the tape; ok is false if it is not (any more), and the caller has to read up
// to Start elsewhere. key is filter.Key().
//
// After a success nothing at or above from is missed: the caller reads once, then again at
// each Wake, until Detach. Span.Evicted tells whether something left the tape unread.
func (t *Tape) Attach(l Listener, scope schema.Scope, key string, filter *schema.Filter, from int64) (a *Audience, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed != nil || from < t.evicted(scope) {
		return nil, false
	}
	a = t.index(scope).audience(key, filter)
	if a.members == nil {
		a.members = make(map[Listener]struct{}, 1)
	}
	a.members[l] = struct{}{}
	a.list = nil
	return a, true
}

// Detach ends an Attach. It may be called more than once.
func (a *Audience) Detach(l Listener) {
	t := a.index.tape
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := a.members[l]; !ok {
		return
	}
	delete(a.members, l)
	delete(a.lagging, l)
	a.list = nil
	if len(a.members) == 0 {
		a.index.remove(a)
	}
}

// SetLagging asks a member's calls of Evicted, or ends them. It returns Span.Evicted at
// that moment: what lay below it was evicted untold.
func (a *Audience) SetLagging(l Listener, lagging bool) (evicted int64) {
	t := a.index.tape
	t.mu.Lock()
	defer t.mu.Unlock()
	if !lagging {
		delete(a.lagging, l)
		return a.evicted
	}
	if a.lagging == nil {
		a.lagging = make(map[Listener]struct{})
	}
	a.lagging[l] = struct{}{}
	return a.evicted
}

// evicted returns index.evicted of a scope without making an index; mu is held.
func (t *Tape) evicted(scope schema.Scope) int64 {
	if scope.Session != "" {
		if s := t.sessions[sessionKey{scope.Workspace, scope.Session}]; s != nil {
			return s.evicted
		}
	} else if x := t.groups[scope]; x != nil {
		return x.evicted
	}
	return t.start
}

// index returns the index of a scope, made if there is none; mu is held.
func (t *Tape) index(scope schema.Scope) *index {
	if scope.Session != "" {
		return &t.session(scope.Workspace, scope.Session).index
	}
	return t.group(scope)
}
