package tape

import (
	"sync/atomic"

	"github.com/playhead-dev/playhead/schema"
)

// MaxViews bounds the wire formats whose frames an entry can keep.
const MaxViews = 12

// Frame is an event in one wire format. The bytes are shared and must not be changed.
type Frame struct {
	Bytes []byte
	// Cut is where in Bytes the rest of the cursor belongs for a stream whose position is
	// more than the event's id; negative if the format has no place for it.
	Cut int
}

// Entry is one event on the tape. It is shared by all readers and never changes, but
// for the frames, which are filled in once for each wire format.
type Entry struct {
	schema.Event
	session     *session
	workspace   *index
	workflow    *index // nil if the event is of none
	heldSinceMs int64  // arrival, or append time if that is earlier: what ages the entry
	frames      [MaxViews]atomic.Pointer[Frame]
}

// Frame returns the event in wire format view (0 to MaxViews-1), calling encode if nobody
// has yet. Two readers that come at once may both encode; the frames are equal and one is
// kept.
func (e *Entry) Frame(view int, encode func(*schema.Event) Frame) Frame {
	if p := e.frames[view].Load(); p != nil {
		return *p
	}
	f := encode(&e.Event)
	e.frames[view].Store(&f)
	return f
}
