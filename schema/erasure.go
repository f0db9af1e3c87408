package schema

// TypeErased is the type of what is left of an erased event: a row with its workspace, its
// place in the log and its time, and nothing else of it. In the log it is the type of an erasure's
// own record, which Window looks at; see Erasure.
const TypeErased = ReservedTypePrefix + "erased"

// Erasure says that events are gone for good, though Kafka may hold their records until
// retention takes them. It is a record of the control topic, which every node folds, so
// that whoever reads the log again, at any time, leaves the same events out.
//
// The erasure of a session begins with a record of TypeErased in the session's own
// partition. Its offset is where the erasure ends: the log's order decides between the
// erasure and the appends that race it, and what is appended later under the same id is a
// new session. The erasure of a workspace has no end: its id is never used again.
type Erasure struct {
	ID        string // era_…
	Workspace string
	Session   string   // "" if the whole workspace is erased
	Below     Position // the session's events before it are erased; zero for a workspace
	AtMs      int64    // when it was asked for, Unix ms
	By        string   // id of the key that asked for it
	DoneMs    int64    // when no row of ClickHouse held any of it any more, Unix ms; 0: pending
}

// Done reports whether ClickHouse holds nothing of it any more.
func (e *Erasure) Done() bool { return e.DoneMs != 0 }

// forever lies behind every position there can be.
var forever = Position{Epoch: 255, Offset: MaxOffset + 1}

// end returns the position that the erased events lie before.
func (e *Erasure) end() Position {
	if e.Session == "" {
		return forever
	}
	return e.Below
}

// Precedes reports whether p lies before q in one session's log. The partitions say
// nothing: another epoch may have placed the session elsewhere.
func (p Position) Precedes(q Position) bool {
	return p.Epoch < q.Epoch || p.Epoch == q.Epoch && p.Offset < q.Offset
}

// Erasures is a set of erasures that is asked about every event. The zero set is empty and
// ready. It is not safe for concurrent use.
type Erasures struct {
	workspaces map[string]*workspaceErasures
}

type workspaceErasures struct {
	whole    *Erasure            // nil unless the workspace is erased
	sessions map[string]*Erasure // the latest of each session
}

// Add adds e, which must not be changed from then on. Of several erasures of one session
// the one that reaches furthest counts.
func (s *Erasures) Add(e *Erasure) {
	if s.workspaces == nil {
		s.workspaces = make(map[string]*workspaceErasures)
	}
	w := s.workspaces[e.Workspace]
	if w == nil {
		w = &workspaceErasures{sessions: make(map[string]*Erasure)}
		s.workspaces[e.Workspace] = w
	}
	if e.Session == "" {
		w.whole = e
		return
	}
	// One that replaces itself has come to be done.
	if have := w.sessions[e.Session]; have == nil || have.ID == e.ID || have.Below.Precedes(e.Below) {
		w.sessions[e.Session] = e
	}
}

// Remove forgets the erasure of that id, if it counts.
func (s *Erasures) Remove(e *Erasure) {
	w := s.workspaces[e.Workspace]
	switch {
	case w == nil:
		return
	case e.Session == "" && w.whole != nil && w.whole.ID == e.ID:
		w.whole = nil
	case e.Session != "" && w.sessions[e.Session] != nil && w.sessions[e.Session].ID == e.ID:
		delete(w.sessions, e.Session)
	}
	if w.whole == nil && len(w.sessions) == 0 {
		delete(s.workspaces, e.Workspace)
	}
}

// Len returns the number of workspaces that something is erased of.
func (s *Erasures) Len() int { return len(s.workspaces) }

// Find returns the erasure that counts for a session, or for a workspace if session is
// "". Of a session in an erased workspace it is the workspace's. nil: there is none.
func (s *Erasures) Find(workspace, session string) *Erasure {
	w := s.workspaces[workspace]
	if w == nil {
		return nil
	}
	if w.whole != nil || session == "" {
		return w.whole
	}
	return w.sessions[session]
}

// Below returns the position that the erased events of a session lie before; zero if none
// are erased.
func (s *Erasures) Below(workspace, session string) Position {
	if e := s.Find(workspace, session); e != nil {
		return e.end()
	}
	return Position{}
}

// Erased reports whether the session's event at p is erased.
func (s *Erasures) Erased(workspace, session string, p Position) bool {
	return p.Precedes(s.Below(workspace, session))
}

// ErasedBelow tells the position that the erased events of a session lie before, zero if
// none are erased: Erasures.Below, with whatever guards the set. It is asked about every
// event and answers at once. A nil ErasedBelow knows of no erasure.
type ErasedBelow func(workspace, session string) Position

// Of asks f.
func (f ErasedBelow) Of(workspace, session string) Position {
	if f == nil {
		return Position{}
	}
	return f(workspace, session)
}

// Erased reports whether e is erased.
func (f ErasedBelow) Erased(e *Event) bool {
	return f != nil && e.ID.Precedes(f(e.Workspace, e.Session))
}
