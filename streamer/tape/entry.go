package tape

import (
	"sync/atomic"

	"github.com/playhead-dev/playhead/schema"
)

// MaxViews bounds the wire formats whose frames an entry can keep.
const MaxViews = 8

// Entry is one event on the tape. It is shared by all readers and never changes, but
// for the frames, which are filled in once for each wire format.
type Entry struct {
	schema.Event
	session     *session
	heldSinceMs int64 // arrival, or append time if that is earlier: what ages the entry
	frames      [MaxViews]atomic.Pointer[[]byte]
}

// Frame returns the event's bytes in wire format view (0 to MaxViews-1), calling
// encode if nobody has yet. The bytes are shared and must not be changed. Two readers
// that come at once may both encode; the frames are equal and one is kept.
func (e *Entry) Frame(view int, encode func(*schema.Event) []byte) []byte {
	if p := e.frames[view].Load(); p != nil {
		return *p
	}
	b := encode(&e.Event)
	e.frames[view].Store(&b)
	return b
}
