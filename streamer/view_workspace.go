package streamer

import "github.com/playhead-dev/playhead/schema"

// workspaceView is the stream of all that happens in a workspace: the payload is the data.
// Its heartbeats and errors are events with ids of their own, from which a browser
// resumes as from any other (docs/api.md, "A workspace").
func workspaceView() *View {
	v := View{
		Name: "workspace", Paths: []string{"/api/v1/stream", "/v1/stream"}, Of: OfWorkspace, Beat: 2,
		ChooseBeat: true, LimitedPath: "/api/v1/stream",
		Frame: appendPayloadFrame, Heartbeat: appendHeartbeatEvent, Failure: appendErrorEvent,
	}
	envelope := v
	envelope.Name, envelope.Paths, envelope.Frame = "workspace_envelope", nil, appendEnvelopeFrame
	v.Envelope = &envelope
	return &v
}

func appendPayloadFrame(dst []byte, e *schema.Event) (out []byte, cut int) {
	begin := len(dst)
	dst = appendEventID(dst, e)
	cut = len(dst) - begin
	dst = append(dst, "\ndata: "...)
	dst = appendPayload(dst, e)
	return append(dst, "\n\n"...), cut
}

func appendEnvelopeFrame(dst []byte, e *schema.Event) (out []byte, cut int) {
	begin := len(dst)
	dst = appendEventID(dst, e)
	cut = len(dst) - begin
	dst = append(dst, "\ndata: {\"event\":\""...)
	dst = append(dst, e.Type...)
	dst = append(dst, `","id":"`...)
	dst = e.ID.AppendText(dst)
	dst = append(dst, `","data":`...)
	dst = appendPayload(dst, e)
	return append(dst, "}\n\n"...), cut
}

func appendHeartbeatEvent(dst []byte, b beat) []byte {
	dst = append(dst, "event: heartbeat\n"...)
	dst = appendOwnID(dst, "heartbeat_", b.cursor)
	dst = append(dst, `data: {"timestamp":`...)
	dst = appendTime(dst, b.at)
	dst = append(dst, `,"status":"healthy","connection_id":`...)
	dst = appendString(dst, b.connection)
	return append(dst, "}\n\n"...)
}

func appendErrorEvent(dst []byte, at schema.Cursor, f failure) []byte {
	dst = append(dst, "event: error\n"...)
	dst = appendOwnID(dst, "error_", at)
	dst = append(dst, "data: "...)
	dst = f.appendData(dst)
	return append(dst, "\n\n"...)
}

// appendOwnID appends the id line of an event that is not of the log. Without a position
// there is none, and the client keeps the one it has.
func appendOwnID(dst []byte, prefix string, at schema.Cursor) []byte {
	if at.IsZero() {
		return dst
	}
	dst = append(dst, "id: "...)
	dst = append(dst, prefix...)
	dst = append(dst, at.String()...)
	return append(dst, '\n')
}
