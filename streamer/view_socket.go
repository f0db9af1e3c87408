package streamer

import (
	"strconv"

	"github.com/playhead-dev/playhead/schema"
)

// The WebSocket views: {"type","id","data"}, where data is the object of the session
// stream; those of several sessions add session_id, and the cursor where it is more than
// the id.

func sessionSocketView() *View {
	return &View{
		Name: "session_socket", Paths: []string{"/v1/sessions/:id/events/ws"}, Of: OfSession, WebSocket: true, Beat: 1,
		Frame: func(dst []byte, e *schema.Event) ([]byte, int) { return appendMessage(dst, e, false) },
	}
}

func workflowSocketView() *View {
	return &View{
		Name: "workflow_socket", Paths: []string{"/v1/workflows/:id/events/ws"}, Of: OfWorkflow, WebSocket: true, Beat: 1,
		Frame: func(dst []byte, e *schema.Event) ([]byte, int) { return appendMessage(dst, e, true) },
	}
}

func workspaceSocketView() *View {
	v := *workflowSocketView()
	v.Name, v.Paths, v.Of, v.Beat = "workspace_socket", []string{"/v1/stream/ws"}, OfWorkspace, 2
	return &v
}

// callSocketView is the stream of a call's events in the webhooks' envelope.
func callSocketView() *View {
	return &View{
		Name: "call_socket", Paths: []string{"/v1/calls/:id/stream"}, Of: OfSession, Kind: schema.KindCall,
		WebSocket: true, AnyKeyInURL: true, Beat: 2,
		Frame: func(dst []byte, e *schema.Event) ([]byte, int) {
			dst = append(dst, '{')
			dst = appendEnvelopeMembers(dst, e, e.Workspace)
			return append(dst, '}'), -1
		},
	}
}

func appendMessage(dst []byte, e *schema.Event, nameSession bool) (out []byte, cut int) {
	begin := len(dst)
	dst = append(dst, `{"type":"`...)
	dst = append(dst, e.Type...)
	dst = append(dst, `","id":"`...)
	dst = e.ID.AppendText(dst)
	dst = append(dst, '"')
	cut = len(dst) - begin
	if nameSession {
		dst = append(dst, `,"session_id":`...)
		dst = appendString(dst, e.Session)
	}
	dst = append(dst, `,"data":{"t_ms":`...)
	dst = strconv.AppendInt(dst, e.TMs, 10)
	dst = append(dst, `,"payload":`...)
	dst = appendPayload(dst, e)
	dst = appendExtras(dst, e)
	return append(dst, "}}"...), cut
}
