package tape

import (
	"container/list"
	"context"
	"fmt"

	"github.com/playhead-dev/playhead/schema"
)

type sessionKey struct{ workspace, session string }

// session is the tape's view of one session: its index and its state. The tape's lock
// guards it.
type session struct {
	index

	// state folds the session's log from offset since on; complete says that the past
	// below since is merged in.
	state    schema.Session
	since    int64
	last     int64 // offset of the last record folded in, -1 if none
	complete bool
	loading  chan struct{} // closed when the load in progress ends; nil if there is none
	// generation counts the session's erasures: a load that began before one is of no use.
	generation int
	recency    *list.Element // its place in Tape.recent
}

// session returns the entry of a session, made if there is none; mu is held.
func (t *Tape) session(workspace, id string) *session {
	key := sessionKey{workspace, id}
	s := t.sessions[key]
	if s == nil {
		t.forgetSessions(1)
		// Had a record at or above foldedFrom been the session's, the entry would be there.
		s = &session{
			index: index{tape: t, scope: schema.Scope{Workspace: workspace, Session: id}, evicted: t.start},
			state: schema.NewSession(), since: t.foldedFrom, last: -1,
		}
		s.session = s
		s.recency = t.recent.PushBack(s)
		t.sessions[key] = s
	}
	return s
}

// idle reports whether nothing on the tape needs the entry.
func (s *session) idle() bool { return s.index.idle() && s.loading == nil }

func (s *session) key() sessionKey { return sessionKey{s.scope.Workspace, s.scope.Session} }

// forgetSessions drops idle states until there is room for more below the bound,
// those whose last record or first question is longest ago first; mu is held. What is
// forgotten is folded again from the past when asked for.
func (t *Tape) forgetSessions(more int) {
	for looked := 0; len(t.sessions)+more > t.cfg.MaxSessions && looked < maxForgetScan; looked++ {
		front := t.recent.Front()
		if front == nil {
			return
		}
		s := front.Value.(*session)
		if !s.idle() {
			t.recent.MoveToBack(s.recency)
			continue
		}
		t.recent.Remove(s.recency)
		delete(t.sessions, s.key())
		t.foldedFrom = max(t.foldedFrom, s.last+1)
	}
}

// maxForgetScan bounds the entries one call looks at to forget some.
const maxForgetScan = 1000

// Session returns the session's state as of the tape's end: the fold of its whole
// log. The first question about a session that is not hot asks the past, once for
// all who ask meanwhile; the error is the past's. A session nobody has heard of gives
// a state whose Exists is false.
func (t *Tape) Session(ctx context.Context, workspace, id string) (schema.Session, error) {
	for {
		t.mu.RLock()
		if s := t.sessions[sessionKey{workspace, id}]; s != nil && s.complete {
			defer t.mu.RUnlock()
			return s.state.Clone(), nil
		}
		t.mu.RUnlock()
		state, loaded, err := t.load(ctx, workspace, id)
		if err != nil || loaded {
			return state, err
		}
	}
}

// Ended reports whether the session is known to have ended, and at which offset,
// without asking the past.
func (t *Tape) Ended(workspace, id string) (offset int64, ended bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := t.sessions[sessionKey{workspace, id}]
	if s == nil || !s.state.Ended() {
		return 0, false
	}
	return s.state.EndedAt, true
}

// load merges the past into the session's state and returns it, or waits for whoever is
// doing so, or finds the session erased meanwhile; then loaded is false, and the caller
// looks again.
func (t *Tape) load(ctx context.Context, workspace, id string) (state schema.Session, loaded bool, err error) {
	t.mu.Lock()
	s := t.session(workspace, id)
	if s.complete {
		defer t.mu.Unlock()
		return s.state.Clone(), true, nil
	}
	if loading := s.loading; loading != nil {
		t.mu.Unlock()
		select {
		case <-loading:
			return schema.Session{}, false, nil // the caller loads itself if that one failed
		case <-ctx.Done():
			return schema.Session{}, false, context.Cause(ctx)
		}
	}
	s.loading = make(chan struct{})
	to := schema.Position{Epoch: t.epoch, Partition: t.partition, Offset: s.since}
	generation := s.generation
	t.mu.Unlock()

	base, err := t.past.SessionBase(ctx, workspace, id, to)

	t.mu.Lock()
	defer t.mu.Unlock()
	close(s.loading)
	s.loading = nil
	if err != nil {
		return schema.Session{}, false, fmt.Errorf("session state below %d of partition %d: %w", to.Offset, t.partition, err)
	}
	if s.generation != generation {
		return schema.Session{}, false, nil // the caller looks again
	}
	s.state = base.Merge(s.state)
	s.complete = true
	if !s.state.Exists() {
		t.recent.MoveToFront(s.recency) // asking for ids at random must not flush out real ones
	}
	return s.state.Clone(), true, nil
}
