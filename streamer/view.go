package streamer

import (
	"encoding/base64"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// View is one way to look at the log: a path, what it shows, and how an event looks
// there. A view is data: everything else about streams is the same for all. A new one is a
// file of its own and a line in views.
type View struct {
	// Name tells views apart in metrics and limits.
	Name string
	// Paths are its routes; ":id" is the session or workflow.
	Paths []string
	Of    ScopeKind
	// Kind is what the session has to be (schema.KindCall, …); "": any.
	Kind string
	// Types are all that it shows; nil: every type.
	Types []string
	// WebSocket says that its frames are messages; otherwise they are Server-Sent Events.
	WebSocket bool

	// AnyKeyInURL allows ?token= with any key, not only with a browser key.
	AnyKeyInURL bool
	// CloseAtEnd is the default of close=end.
	CloseAtEnd bool
	// Beat is the time between heartbeats in units of Config.KeepAlive; at least 1.
	Beat int
	// ChooseBeat lets the client choose the time between heartbeats.
	ChooseBeat bool
	// LimitedPath is the one of Paths whose streams a key and events a minute are bounded
	// by the workspace's limits for event streams; "": none.
	LimitedPath string

	// Frame appends the frame of an event: of Server-Sent Events the whole, of a WebSocket
	// message its text. cut is where in it the rest of the cursor belongs
	// (tape.Frame.Cut), counted from the frame's beginning; negative: nowhere.
	Frame func(dst []byte, e *schema.Event) (out []byte, cut int)
	// Envelope is the frame with envelope=1; nil: the view does not take the parameter.
	Envelope *View

	// Heartbeat and Failure replace the common ones of Server-Sent Events if set.
	Heartbeat func(dst []byte, b beat) []byte
	Failure   func(dst []byte, at schema.Cursor, f failure) []byte

	slot int // its place among the frames kept with an entry
}

// maxBeat is the largest View.Beat.
const maxBeat = 2

// ScopeKind says what a view's streams are of.
type ScopeKind int

// The scopes there are.
const (
	OfSession ScopeKind = iota
	OfWorkflow
	OfWorkspace
)

// beat is what a heartbeat may tell.
type beat struct {
	cursor     schema.Cursor // zero if there is none now
	at         time.Time
	connection string
}

// views returns all views. Each gets a slot among the frames kept with an entry.
func views() []*View {
	all := []*View{
		sessionView(), workflowView(), workspaceView(), transcriptView(), conversationView(),
		sessionSocketView(), workflowSocketView(), workspaceSocketView(), callSocketView(),
	}
	slot := 0
	for _, v := range all {
		for ; v != nil; v = v.Envelope {
			v.slot = slot
			slot++
		}
	}
	if slot > tape.MaxViews {
		panic("streamer: more views than an entry keeps frames for")
	}
	return all
}

// viewOf returns the view whose path a request's path is, and nil if there is none.
func viewOf(all []*View, path string) *View {
	for _, v := range all {
		if slices.ContainsFunc(v.Paths, func(route string) bool { return matchesRoute(route, path) }) {
			return v
		}
	}
	return nil
}

// frame returns an event's frame in memory of its own.
func (v *View) frame(e *schema.Event) tape.Frame {
	b, cut := v.Frame(make([]byte, 0, len(e.Payload)+192), e)
	return tape.Frame{Bytes: b, Cut: cut}
}

// appendPayload appends the payload as one line of JSON: JSON text as it arrived, but
// for line breaks, which JSON has only as white space between tokens; other content as
// a base64 string.
func appendPayload(dst []byte, e *schema.Event) []byte {
	if !e.JSONPayload() {
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, e.Payload)
		return append(dst, '"')
	}
	from := len(dst)
	dst = append(dst, e.Payload...)
	for i, c := range dst[from:] {
		if c == '\n' || c == '\r' {
			dst[from+i] = ' '
		}
	}
	return dst
}

// appendString appends s as a JSON string. Invalid UTF-8 was refused at the door.
func appendString(dst []byte, s string) []byte {
	out, err := jsontext.AppendQuote(dst, s)
	if err != nil {
		return append(dst, `""`...)
	}
	return out
}

// appendTime appends a time as RFC 3339 text with milliseconds, in quotes.
func appendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000Z")
	return append(dst, '"')
}
