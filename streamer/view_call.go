package streamer

import (
	"encoding/json"
	"strconv"

	"github.com/playhead-dev/playhead/schema"
)

// Types of events that are turns of a call's transcript.
const (
	typeTurn          = "transcript.turn"
	typeTranscription = "call.transcription"  // of the caller
	typeAgentResponse = "call.agent_response" // of the agent
)

// transcriptView is the stream of a call's turns, unnamed events that close with the call
// (docs/api.md, "A call's transcript").
func transcriptView() *View {
	return &View{
		Name: "transcript", Paths: []string{"/v1/calls/:id/transcript/stream"}, Of: OfSession, Kind: schema.KindCall,
		Types: []string{typeAgentResponse, typeTranscription, typeTurn}, AnyKeyInURL: true, CloseAtEnd: true, Beat: 2,
		Frame: appendTurnFrame, Failure: appendTranscriptFailure,
	}
}

// utterance is what a transcript tells of an event.
type utterance struct {
	role, text, id string
	final          bool
}

// turnOf reads an event as a turn. What the payload does not say, or says by another JSON
// type, follows from the event; a payload that is no object is the text itself if it is
// text, and says nothing otherwise.
func turnOf(e *schema.Event) utterance {
	var members map[string]json.RawMessage
	t := utterance{id: e.ID.String()}
	if e.JSONPayload() && json.Unmarshal(e.Payload, &members) != nil {
		t.text = textOf(e.Payload)
	}
	if id := textOf(members["turn_id"]); id != "" {
		t.id = id
	}
	if text := textOf(members["text"]); text != "" {
		t.text = text
	}
	t.final = string(members["is_final"]) != "false"
	switch e.Type {
	case typeTranscription:
		t.role = "user"
	case typeAgentResponse:
		t.role = "agent"
	default:
		t.role = textOf(members["role"])
	}
	return t
}

// textOf returns the text that a JSON value is, and "" if it is none.
func textOf(value []byte) string {
	var s string
	if json.Unmarshal(value, &s) != nil {
		return ""
	}
	return s
}

func appendTurnFrame(dst []byte, e *schema.Event) (out []byte, cut int) {
	t := turnOf(e)
	dst = append(dst, "id: "...)
	dst = e.ID.AppendText(dst)
	dst = append(dst, "\ndata: {\"role\":"...)
	dst = appendString(dst, t.role)
	dst = append(dst, `,"text":`...)
	dst = appendString(dst, t.text)
	dst = append(dst, `,"turn_id":`...)
	dst = appendString(dst, t.id)
	dst = append(dst, `,"is_final":`...)
	dst = strconv.AppendBool(dst, t.final)
	dst = append(dst, `,"ts":`...)
	dst = appendTime(dst, e.Time())
	return append(dst, "}\n\n"...), -1
}

// appendTranscriptFailure is the terminal event of a transcript.
func appendTranscriptFailure(dst []byte, _ schema.Cursor, f failure) []byte {
	dst = append(dst, "event: error\ndata: {\"error_code\":"...)
	dst = appendString(dst, f.code)
	dst = append(dst, `,"message":`...)
	dst = appendString(dst, f.message)
	return append(dst, "}\n\n"...)
}
