package query

import (
	"github.com/playhead-dev/playhead/schema"
)

// Erasures knows what must not be shown though rows of it may still be there.
// *control.Store is one.
type Erasures interface {
	// ErasedBelow returns the position that the erased events of a session lie before;
	// zero if none are erased.
	ErasedBelow(workspace, session string) schema.Position
	// PendingErasures returns those erasures of a workspace that ClickHouse may still hold
	// rows of.
	PendingErasures(workspace string) []schema.Erasure
}

// packedPosition is a row's position as one number: epoch above offset.
const packedPosition = "bitOr(bitShiftLeft(toUInt64(log_epoch), 48), kafka_offset)"

func packPosition(p schema.Position) uint64 {
	return uint64(p.Epoch)<<packedOffsetBits + uint64(p.Offset)
}

// notErased leaves out the erased rows of a scope: of a session by its position, whether or
// not the erasure is pending, as that costs nothing; of several sessions those that are
// pending, by one condition however many there are. A nil erased leaves out nothing.
//
// Rows of erasures that are done say nothing: they are hidden (schema.TypeErased).
func (s *statement) notErased(scope schema.Scope, erased Erasures) {
	if erased == nil {
		return
	}
	if scope.Session != "" {
		if below := erased.ErasedBelow(scope.Workspace, scope.Session); !below.IsZero() {
			s.from(below)
		}
		return
	}
	s.notPending(erased.PendingErasures(scope.Workspace))
}

// from restricts to positions at or behind p.
func (s *statement) from(p schema.Position) {
	epoch := s.bind("UInt8", p.Epoch)
	s.and("(log_epoch > %s OR log_epoch = %s AND kafka_offset >= %s)", epoch, epoch, s.bind("UInt64", uint64(p.Offset)))
}

// notPending leaves out the rows of erasures of one workspace.
func (s *statement) notPending(pending []schema.Erasure) {
	if len(pending) == 0 {
		return
	}
	sessions, ends, whole := erasedSessions(pending)
	if whole {
		s.and("0")
		return
	}
	names := s.bind("Array(String)", sessions)
	s.and("(session_id NOT IN %s OR %s >= transform(session_id, %s, %s, toUInt64(0)))",
		names, packedPosition, names, s.bind("Array(UInt64)", ends))
}

// erasedSessions returns the sessions of erasures of one workspace, each once, and the
// packed position that the erased events of each lie before; whole says that all of the
// workspace is erased.
func erasedSessions(of []schema.Erasure) (sessions []string, ends []uint64, whole bool) {
	at := make(map[string]int, len(of))
	for i := range of {
		e := &of[i]
		if e.Session == "" {
			return nil, nil, true
		}
		end := packPosition(e.Below)
		if j, ok := at[e.Session]; ok {
			ends[j] = max(ends[j], end)
			continue
		}
		at[e.Session] = len(sessions)
		sessions, ends = append(sessions, e.Session), append(ends, end)
	}
	return sessions, ends, false
}
