package streamer

import (
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// Request is what a client asked for.
type Request struct {
	Scope  schema.Scope
	View   *View
	Filter schema.Filter

	// KeyID is the key the stream was opened with, and Expires when it ends; zero: never.
	KeyID   string
	Expires time.Time

	// Heartbeat is the time between signs of life.
	Heartbeat time.Duration
	// EventsPerMinute bounds what is sent; 0 does not.
	EventsPerMinute int
	// Speed replays in the session's own time, so many times as fast; 0: as fast as it goes.
	Speed float64

	// CloseAtEnd ends the stream once the session has ended and all of it is sent.
	CloseAtEnd bool
	// ReplayWhenSlow moves a client that has fallen off the tape to replay, so that it
	// loses nothing; otherwise it skips what it missed and is told how much.
	ReplayWhenSlow bool
	// Notices adds an event at the seam between replay and live.
	Notices bool
}
