package streamer

import "github.com/playhead-dev/playhead/schema"

// conversationView is the stream of a conversation: all of its events, unnamed; clients
// dispatch on event_type (docs/api.md, "A conversation").
func conversationView() *View {
	return &View{
		Name: "conversation", Paths: []string{"/v1/conversations/:id/stream"}, Of: OfSession, Kind: schema.KindConversation, Beat: 2,
		Frame: func(dst []byte, e *schema.Event) ([]byte, int) {
			dst = append(dst, "id: "...)
			dst = e.ID.AppendText(dst)
			dst = append(dst, "\ndata: {"...)
			dst = appendEnvelopeMembers(dst, e, "")
			return append(dst, "}\n\n"...), -1
		},
	}
}

// appendEnvelopeMembers appends the members in which webhooks, conversations and call
// events carry an event, without the braces. Without a workspace the member is left out.
func appendEnvelopeMembers(dst []byte, e *schema.Event, workspace string) []byte {
	dst = append(dst, `"event_id":"`...)
	dst = e.ID.AppendText(dst)
	dst = append(dst, `","event_type":"`...)
	dst = append(dst, e.Type...)
	dst = append(dst, '"')
	if workspace != "" {
		dst = append(dst, `,"workspace_id":`...)
		dst = appendString(dst, workspace)
	}
	dst = append(dst, `,"session_id":`...)
	dst = appendString(dst, e.Session)
	dst = append(dst, `,"created_at":`...)
	dst = appendTime(dst, e.Time())
	dst = append(dst, `,"payload":`...)
	dst = appendPayload(dst, e)
	if !e.JSONPayload() {
		dst = append(dst, `,"content_type":`...)
		dst = appendString(dst, e.ContentType)
	}
	return dst
}
