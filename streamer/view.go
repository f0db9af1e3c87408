package streamer

import (
	"encoding/base64"
	"encoding/json"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/playhead-dev/playhead/schema"
)

// View is one wire format of the log: how an event and a heartbeat look on a stream.
// A view is data; everything else about streams is the same for all.
type View struct {
	// Slot is the view's place among the frames kept with an event, 0 to
	// tape.MaxViews-1, its own.
	Slot int

	// AppendEvent appends the frame of an event.
	AppendEvent func(dst []byte, e *schema.Event) []byte

	// KeepAlive is what an idle stream is sent now and then. It ends with one newline:
	// some clients dispatch an empty event at the second.
	KeepAlive string
}

// frame returns an event's frame in memory of its own.
func (v *View) frame(e *schema.Event) []byte {
	return v.AppendEvent(make([]byte, 0, len(e.Payload)+160), e)
}

// sessionView is the stream of one session: event, id, and a data object with the
// payload and what the producer said about it (docs/api.md, "Session stream").
func sessionView() *View {
	return &View{Slot: 0, AppendEvent: appendSessionFrame, KeepAlive: ": keepalive\n"}
}

func appendSessionFrame(dst []byte, e *schema.Event) []byte {
	dst = append(dst, "event: "...)
	dst = append(dst, e.Type...)
	dst = append(dst, "\nid: "...)
	dst = e.ID.AppendText(dst)
	dst = append(dst, "\ndata: {\"t_ms\":"...)
	dst = strconv.AppendInt(dst, e.TMs, 10)
	dst = append(dst, `,"payload":`...)
	dst = appendPayload(dst, e)
	if !e.JSONPayload() {
		dst = append(dst, `,"content_type":`...)
		dst = appendString(dst, e.ContentType)
	}
	if e.FrameID != "" {
		dst = append(dst, `,"frame_id":`...)
		dst = appendString(dst, e.FrameID)
	}
	if e.Confidence != nil {
		dst = append(dst, `,"confidence":`...)
		dst = strconv.AppendFloat(dst, float64(*e.Confidence), 'g', -1, 32)
	}
	if len(e.Metadata) > 0 {
		dst = append(dst, `,"metadata":`...)
		b, _ := json.Marshal(e.Metadata) // a map of strings always marshals
		dst = append(dst, b...)
	}
	return append(dst, "}\n\n"...)
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
