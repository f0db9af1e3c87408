package tape

import "github.com/playhead-dev/playhead/schema"

// Erase takes off the tapes what was erased of a session, or of a workspace if session is
// "", and has the states of those sessions begin anew. Call it once Deps.Erased knows of the
// erasure: what the tapes read from then on they leave out by themselves. It does not wait
// for anything; each tape in use is locked for as long as a look at all its entries takes.
func (t *Tapes) Erase(workspace, session string) {
	for _, tape := range t.open() {
		tape.erase(workspace, session)
	}
}

func (t *Tape) erase(workspace, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var of []*session
	if id != "" {
		if s := t.sessions[sessionKey{workspace, id}]; s != nil {
			of = append(of, s)
		}
	} else {
		for key, s := range t.sessions {
			if key.workspace == workspace {
				of = append(of, s)
			}
		}
	}
	for _, s := range of {
		t.removeErased(s)
		s.beginAnew(t.erased.Of(s.scope.Workspace, s.scope.Session))
	}
}

// removeErased takes the erased entries of a session off the tape and all its indexes; mu
// is held.
func (t *Tape) removeErased(s *session) {
	gone := make(map[*Entry]bool)
	indexes := make(map[*index]bool)
	for i := range s.entries.len() {
		e := s.entries.at(i)
		if !t.erased.Erased(&e.Event) {
			continue
		}
		gone[e] = true
		t.bytes -= e.Size()
		indexes[e.workspace] = true
		if e.workflow != nil {
			indexes[e.workflow] = true
		}
	}
	if len(gone) == 0 {
		return
	}
	t.entries.remove(gone)
	s.removeEntries(gone)
	for x := range indexes {
		x.removeEntries(gone)
		x.forget()
	}
}

// removeEntries takes entries out of the index and of what its audiences have chosen.
func (x *index) removeEntries(gone map[*Entry]bool) {
	x.entries.remove(gone)
	for _, a := range x.audiences {
		a.chosen.remove(gone)
	}
}

// remove takes entries out of the ring; the others stay in their order.
func (r *ring) remove(gone map[*Entry]bool) {
	var kept ring
	for i := range r.n {
		if e := r.at(i); !gone[e] {
			kept.push(e)
		}
	}
	*r = kept
}

// beginAnew makes the state that of a session whose log begins at below: a fold of the
// entries there are. What lies between below and them is still to be had from the past.
func (s *session) beginAnew(below schema.Position) {
	s.generation++ // what is being loaded is of the erased session
	s.state = schema.NewSession()
	s.since = s.evicted
	s.complete = !below.Precedes(schema.Position{Epoch: s.tape.epoch, Offset: s.evicted})
	for i := range s.entries.len() {
		s.state.Apply(&s.entries.at(i).Event)
	}
}
