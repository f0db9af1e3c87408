package streamer

import "github.com/playhead-dev/playhead/schema"

// EndErased ends the streams of a session that was erased. Call it once Past.Erased knows of
// that: a stream that is being opened meanwhile is then either found here or refused by
// adopt. Streams of a workflow or a workspace go on without the session's events.
func (h *Hub) EndErased(workspace, session string) {
	h.mu.Lock()
	var of []*subscription
	for _, s := range h.subs {
		if scope := s.req.Scope; scope.Session == session && scope.Workspace == workspace {
			of = append(of, s)
		}
	}
	h.mu.Unlock()
	for _, s := range of {
		s.end(errSessionErased)
	}
}

// erasedBelow returns the position that the erased events of a stream's session lie before;
// zero if it is of several sessions.
func (h *Hub) erasedBelow(scope schema.Scope) schema.Position {
	if scope.Session == "" {
		return schema.Position{}
	}
	return h.past.Erased.Of(scope.Workspace, scope.Session)
}

// skipErased moves the reader past the event it is at, and the position with it, if the
// event was erased since it was read: a replay may hold what it has read for minutes, while
// its client is slow or the session's own time passes.
func (rd *reader) skipErased(erased schema.ErasedBelow) (skipped bool) {
	if !erased.Erased(rd.event()) {
		return false
	}
	rd.advance()
	return true
}

// advance moves the reader and its position behind the event it is at.
func (rd *reader) advance() {
	at := rd.event().ID.Position
	rd.sent++
	if rd.sent < len(rd.chunk.events) {
		rd.leg.pos = at
		rd.leg.pos.Offset++
		return
	}
	rd.leg.pos = rd.chunk.next
	rd.chunk.events = nil
	rd.sent = 0
}
