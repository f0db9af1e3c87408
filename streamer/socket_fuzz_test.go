package streamer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// noAppender takes every event and keeps none.
type noAppender struct{}

func (noAppender) AppendJSON(_ context.Context, _ control.Principal, event []byte) ([]byte, error) {
	if !json.Valid(event) {
		panic("an event that is no JSON")
	}
	return []byte(`{"id":"evt_"}`), nil
}

// Whatever a text message says, it is a command or there is an answer that says what is
// wrong with it; either goes back as JSON that gives the ref.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `null`, `[1]`, `{"op":"pause","ref":1}`, `{"op":"seek","last_event_id":"evt_01003G00000096E0D0RH86R000~A7AJBQAEqYwG"}`,
		`{"op":"subscribe","type":["a","b.*"],"filters":{"k":"v"},"filters[k]":"v","since":1,"notices":true,"binary":0,"append":{"type":"x"}}`,
		`{"op":"speed","speed":1e1}`, `{"op":"speed","speed":null}`, `{"op":"cancel","reason":"\ud800"}`, `{"op":"cancel","reason":null}`,
		`{"op":"append","event":{"type":"x"},"ref":[]}`, `{"op":"append","event":{ }}`, `{"op":"append","event":{"session_id":7}}`,
		`{"op":"seek","from":["now"],"ref":"\u0000"}`, `{"op":"subscribe","type":[null]}`, `{"op":"subscribe","filters":null,"append":1}`,
		`{"op":"pause"} x`, `{"op":"pause","op":"cancel"}`, `{"op":"seek","from_t_ms":-0}`, ` {"op" : "seek" , "since" : [ 1 , 2 ] } `,
	} {
		f.Add([]byte(s))
	}
	hub := &Hub{cfg: DefaultConfig(), openings: newSlots(1), appender: noAppender{}}
	f.Fuzz(func(t *testing.T, text []byte) {
		// The session's id is none, so nothing is looked up.
		req := Request{Scope: schema.Scope{Workspace: "w", Session: "?"}, View: sessionSocketView()}
		sub := &subscription{hub: &Hub{queue: make(chan *subscription, 1)}, id: "conn_x", req: req, wire: new(socket), ctx: t.Context()}
		sub.sched.Store(running)
		c := &socketReader{hub: hub, sub: sub, who: control.Principal{Workspace: "w", Scopes: control.AllScopes}}
		for _, byServer := range []bool{false, true} {
			o, err := parseOrder(text)
			if err == nil {
				_, err = hub.command(t.Context(), c.who, req, o, byServer)
			}
			if e, ok := errors.AsType[*httpapi.Error](err); err != nil && (!ok || e.Status < 400 || e.Status > 404 || e.Code == "" || e.Message == "" || !utf8.ValidString(e.Message)) {
				t.Errorf("%q: %v is no answer", text, err)
			}
		}
		if !utf8.Valid(text) {
			return // the reader has closed the socket
		}
		c.takeText(text)
		if len(sub.inbox) != 1 {
			t.Fatalf("%q has %d answers", text, len(sub.inbox))
		}
		answer := new(socket).answer(nil, sub.inbox[0].answer)
		frame, err := readFrame(bufio.NewReader(bytes.NewReader(answer)))
		var back struct {
			Ack, Ref json.RawMessage
			Error    *struct{ Code string }
		}
		if err != nil || json.Unmarshal(frame.payload, &back) != nil || !utf8.Valid(frame.payload) || (back.Error == nil) == (back.Ack == nil) {
			t.Fatalf("%q is answered %q", text, answer)
		}
		var ref struct{ Ref json.RawMessage }
		if back.Error == nil && json.Unmarshal(text, &ref) == nil && ref.Ref != nil && !sameJSON(ref.Ref, back.Ack) && bytes.Count(text, []byte("ef")) == 1 {
			t.Errorf("%q is answered %q", text, answer)
		}
	})
}

func sameJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return bytes.Equal(a, b)
	}
	return bytes.Equal(marshal(x), marshal(y))
}

// Whatever bytes come on a socket, the process lives, the connection ends when its client's
// end does, and all that it had is free.
func FuzzSocketBytes(f *testing.F) {
	checkGoroutines(f)
	e := startEnv(f, testConfig(), 1)
	e.produce(numbered("s", 0, 20)...)
	e.serveWith(socketKeys, func(d *Deps) { d.Appender = noAppender{} })
	frames := func(all ...rawFrame) (b []byte) {
		for _, f := range all {
			b = appendClientFrame(b, f)
		}
		return b
	}
	for _, b := range [][]byte{
		nil, {0x81}, {0x81, 0xff}, appendFrame(nil, opcodeText, []byte("x")), text(`{"op":"seek","from":"start"}`),
		append(text(`{"op":"subscribe","append":{"type":"x"},"binary":1}`), frames(rawFrame{true, opcodeBinary, []byte{0xff}})...),
		frames(rawFrame{false, opcodeText, []byte(`{"op":`)}, rawFrame{true, opcodePing, []byte("p")}, rawFrame{true, 0, []byte(`"pause"}`)}),
		frames(rawFrame{true, opcodeClose, []byte{3, 232, 'x'}}, rawFrame{true, opcodeText, nil}), frames(rawFrame{true, opcodeClose, []byte{3}}),
		append(text(`{"op":"cancel"}`), text(`{"op":"resume"}`)...), append(text(`{"op":"speed","speed":1}`), text(`{"op":"seek","from_t_ms":3}`)...),
		{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5}, {0x8a, 0x80, 0, 0, 0, 0}, text(`{"op":"append","event":{"type":"x"}}`),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := e.dial(socketPath+"?from=start", "talker", upgradeHeaders)
		if err != nil || c.status != 101 {
			t.Fatalf("%+v, %v", c, err)
		}
		defer c.close()
		_ = c.nc.SetDeadline(time.Now().Add(testDeadline))
		_, _ = c.nc.Write(b) // it may be closed already
		_ = c.nc.(*net.TCPConn).CloseWrite()
		for {
			f, err := readFrame(c.br)
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
				break
			}
			if err != nil {
				t.Fatalf("the socket ends with %v", err)
			}
			if f.opcode == opcodeText && !json.Valid(f.payload) {
				t.Fatalf("a message of %q", f.payload)
			}
		}
		eventually(t, "the stream is gone", func() bool { return e.streams() == 0 })
	})
}
