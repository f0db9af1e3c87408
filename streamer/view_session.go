package streamer

import (
	"encoding/json"
	"strconv"

	"github.com/playhead-dev/playhead/schema"
)

// sessionView is the stream of one session: event, id, and a data object with the
// payload and what the producer said about it (docs/api.md, "A session").
func sessionView() *View {
	return &View{
		Name: "session", Paths: []string{"/v1/sessions/:id/events/stream"}, Of: OfSession, Beat: 1,
		Frame: func(dst []byte, e *schema.Event) ([]byte, int) { return appendEventFrame(dst, e, false) },
	}
}

// workflowView is the stream of all sessions of a workflow, those that start later
// included: the session's frames with its id (docs/api.md, "A workflow").
func workflowView() *View {
	return &View{
		Name: "workflow", Paths: []string{"/v1/workflows/:id/events/stream"}, Of: OfWorkflow, Beat: 1,
		Frame: func(dst []byte, e *schema.Event) ([]byte, int) { return appendEventFrame(dst, e, true) },
	}
}

func appendEventFrame(dst []byte, e *schema.Event, nameSession bool) (out []byte, cut int) {
	begin := len(dst)
	dst = appendEventID(dst, e)
	cut = len(dst) - begin
	dst = append(dst, "\ndata: {\"t_ms\":"...)
	dst = strconv.AppendInt(dst, e.TMs, 10)
	if nameSession {
		dst = append(dst, `,"session_id":`...)
		dst = appendString(dst, e.Session)
	}
	dst = append(dst, `,"payload":`...)
	dst = appendPayload(dst, e)
	dst = appendExtras(dst, e)
	return append(dst, "}\n\n"...), cut
}

// appendEventID appends the lines of an event's type and id, without the last line's end.
func appendEventID(dst []byte, e *schema.Event) []byte {
	dst = append(dst, "event: "...)
	dst = append(dst, e.Type...)
	dst = append(dst, "\nid: "...)
	return e.ID.AppendText(dst)
}

// appendExtras appends the members that an event need not have.
func appendExtras(dst []byte, e *schema.Event) []byte {
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
	return dst
}
