package clients

import (
	"encoding/json"
	"testing"
	"time"
)

// TestSocketCommands sends commands and audio on a call's WebSocket. Each is answered, and
// what is appended comes back as any other event, audio as a binary message.
func TestSocketCommands(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	for _, c := range socketClients {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.need(t)
			p := callSocket()
			g := newGroup(s, &p, "commands-"+c.name)
			l := g.open(t)
			j := g.job(t, c, s.addr)
			j.Send = []message{
				{Text: `{"op":"subscribe","ref":1,"type":["dtmf","audio"],"binary":true,"append":{"type":"audio","content_type":"audio/L16"}}`},
				{Text: `{"op":"append","ref":"two","event":{"type":"dtmf","payload":{"digits":"1#"}}}`},
				{Text: `{"op":"append","ref":{"three":3},"event":{"type":"not listened to"}}`},
				{Text: `no command`},
				{Binary: "AAECA/8="},
			}
			f := c.start(t, j)
			type answer struct {
				Ack    any `json:"ack"`
				Binary int `json:"binary"` // the number of a binary message
				Result struct {
					ID string `json:"id"`
				} `json:"result"`
				Error struct {
					Code string `json:"code"`
				} `json:"error"`
			}
			var answers []answer
			for _, r := range f.await(t, "ack", 5, 20*time.Second) {
				var a answer
				if err := json.Unmarshal([]byte(r.Data), &a); err != nil {
					t.Fatalf("%v in %s", err, r.Data)
				}
				answers = append(answers, a)
			}
			if answers[0].Ack != 1.0 || answers[1].Ack != "two" || answers[1].Result.ID == "" || answers[2].Error.Code == "" ||
				answers[3].Error.Code != "invalid_json" || answers[4].Binary != 1 || answers[4].Result.ID == "" {
				t.Fatalf("answers = %+v", answers)
			}
			l.events = []event{
				{Type: "dtmf", Payload: json.RawMessage(`{"digits":"1#"}`), id: answers[1].Result.ID, session: l.session},
				{Type: "audio", Payload: json.RawMessage(`{"binary":5,"content_type":"audio/L16"}`), id: answers[4].Result.ID, session: l.session},
			}
			g.awaitAll(t, f, 20*time.Second)
			g.check(t, g.got(f))
			if got := f.await(t, "binary", 1, 20*time.Second)[0].Data; got != "AAECA/8=" {
				t.Errorf("the audio came back as %s", got)
			}
		})
	}
}

// callSocket is the path of a call's events.
func callSocket() path { return socketPaths[len(socketPaths)-1] }
