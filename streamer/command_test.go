package streamer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// Who may end a stream of whom, and what the others are told.
func TestCancelByAnotherRequest(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "first", ""), newEvent("t", "first", ""))
	e.serveSockets()
	f := func(id, key, command string, status int, want string) {
		t.Helper()
		if got, body := e.post(id, key, command); got != status || !strings.Contains(body, want) {
			t.Errorf("%s by %s: %d %s, want %d %s", command, key, got, body, status, want)
		}
	}
	c := e.socket(socketPath, "reader")
	e.live(1)
	const cancel = `{"op":"cancel","reason":"too loud"}`
	f(c.id(), "stranger", cancel, 404, "not_found")
	f(c.id(), "talker", cancel, 404, "not_found")
	f(c.id(), "elsewhere", cancel, 404, "not_found") // control, but of another session
	f(c.id(), "writer", cancel, 403, "insufficient_scope")
	f(c.id(), "nobody", cancel, 401, "invalid_key")
	f(c.id(), "admin", `{"op":"pause"}`, 403, `"param":"op"`)
	f(c.id(), "controller", `{"op":"seek","from":"start"}`, 403, "insufficient_scope")
	f(c.id(), "reader", `{"op":"pause"`, 400, "invalid_json")
	f(c.id(), "reader", "{\"op\":\"\xff\"}", 400, "invalid_json")
	f(c.id(), "reader", `{"op":"append","event":{}}`, 400, `op is \"append\"; want subscribe, pause, resume, seek, speed or cancel.`)
	f(c.id(), "reader", `{"op":"subscribe","append":{"type":"x"}}`, 400, `"param":"append"`)
	f("conn_unknown", "admin", cancel, 404, "not_found")
	f("x", "reader", cancel, 404, "not_found")
	c.ack(`{"op":"pause"}`) // it is all the same to it
	f(c.id(), "controller", cancel, 200, `{"connection_id":"`+c.id()+`","status":"done"}`)
	c.mustClose(closeCancelled, "too loud")
	f(c.id(), "controller", cancel, 404, "not_found")

	c = e.socket(socketPath, "reader")
	e.live(1)
	f(c.id(), "admin", `{"op":"cancel"}`, 200, "done")
	c.mustClose(closeCancelled, "cancelled")
	c = e.socket(socketPath, "reader")
	e.live(1)
	f(c.id(), "reader", cancel, 200, "done")
	c.mustClose(closeCancelled, "too loud")

	sse := e.stream("")
	defer sse.close()
	e.live(1)
	f(sse.header.Get("X-Connection-Id"), "admin", cancel, 200, "done")
	if f, err := sse.next(); err != nil || f.event != "error" || f.data != `{"code":"CANCELLED","message":"too loud","retry_after":0}` {
		t.Errorf("a cancelled stream says %+v, %v", f, err)
	}
	if _, err := sse.next(); !errors.Is(err, io.EOF) {
		t.Errorf("then %v, want the end", err)
	}
	eventually(t, "all are gone", func() bool { return e.streams() == 0 })
}

// The commands of a socket, for a stream of Server-Sent Events.
func TestCommandsToEventStreams(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	events := numbered("s", 0, 20)
	for i, ev := range events {
		ev.TMs = int64(i) * 1000
	}
	e.produce(events...)
	e.serveSockets()
	ids := e.want("s", -1)
	c := e.stream("?notices=1")
	defer c.close()
	e.live(1)
	if f, err := c.event(); err != nil || f.event != "playhead.caught_up" {
		t.Fatalf("at the seam: %+v, %v", f, err)
	}
	id := c.header.Get("X-Connection-Id")
	f := func(command string, status int) {
		t.Helper()
		if got, body := e.post(id, "reader", command); got != status {
			t.Errorf("%s: %d %s, want %d", command, got, body, status)
		}
	}
	f(`{"op":"pause"}`, 200)
	f(`{"op":"seek","last_event_id":"`+ids[9]+`"}`, 200)
	f(`{"op":"subscribe","binary":1}`, 400)
	f(`{"op":"seek"}`, 400)
	probe := newEvent("s", "probe", "")
	e.produce(probe) // the stream is paused
	f(`{"op":"speed","speed":100}`, 200)
	f(`{"op":"subscribe","type":"tick","from_t_ms":15000,"notices":true}`, 200)
	began := time.Now()
	f(`{"op":"resume"}`, 200)
	c.mustExpect(ids[15:])
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("four seconds at speed 100 took %v", took)
	}
	if f, err := c.event(); err != nil || f.event != "playhead.caught_up" {
		t.Errorf("at the seam: %+v, %v", f, err)
	}
	f(`{"op":"cancel","reason":"enough"}`, 200)
	if f, err := c.event(); err != nil || f.event != "error" {
		t.Errorf("at the end: %+v, %v", f, err)
	}
}

// A stream that is stuck is ended all the same, and other commands do not wait for it.
func TestCommandsToStuckStreams(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, slowConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serveSockets()
	reader := e.stream("")
	defer reader.close()
	stuck := e.stuckSocket("")
	e.live(2)
	e.fillUp(reader)
	eventually(t, "the socket is full", func() bool { return value(t, e.hub.metrics.slow) == 1 })
	id := stuck.header.Get("X-Connection-Id")
	if status, body := e.post(id, "reader", `{"op":"pause"}`); status != 202 || !strings.Contains(body, `"waiting"`) {
		t.Errorf("pause: %d %s", status, body)
	}
	for n := range maxInbox {
		if err := e.hub.find(id).post(command{op: opAnswer}); err != nil && n < maxInbox-1 {
			t.Fatal(err)
		}
	}
	if status, body := e.post(id, "reader", `{"op":"resume"}`); status != 429 || !strings.Contains(body, "rate_limited") {
		t.Errorf("with a full inbox: %d %s", status, body)
	}
	if status, body := e.post(id, "admin", `{"op":"cancel"}`); status != 200 {
		t.Errorf("cancel: %d %s", status, body)
	}
	eventually(t, "the stuck stream is gone", func() bool { return e.streams() == 1 })
}

// Commands find streams of other nodes.
func TestCommandsGoToOtherNodes(t *testing.T) {
	checkGoroutines(t)
	here := startEnv(t, testConfig(), 1)
	here.produce(newEvent("s", "first", ""))
	there := here.beside()
	var mu sync.Mutex
	var sent []string
	failing := false
	relay := func(_ context.Context, message []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if failing {
			return errors.New("no line")
		}
		sent = append(sent, string(message))
		for _, h := range []*Hub{here.hub, there.hub} {
			h.Deliver(message)
		}
		return nil
	}
	there.serveWith(socketKeys, func(d *Deps) { d.Relay = relay })
	here.serveWith(socketKeys, func(d *Deps) { d.Relay = relay })
	c := there.socket(socketPath, "reader")
	there.live(1)
	f := func(id, key, command string, status int) {
		t.Helper()
		if got, body := here.post(id, key, command); got != status || status == 202 && !strings.Contains(body, `"sent"`) {
			t.Errorf("%s by %s: %d %s, want %d", command, key, got, body, status)
		}
	}
	f(c.id(), "stranger", `{"op":"cancel","reason":"mine"}`, 202) // nobody can say whose it is
	f(c.id(), "talker", `{"op":"cancel"}`, 202)
	f(c.id(), "admin", `{"op":"pause"}`, 202)
	f(c.id(), "reader", `{"op":"seek"}`, 202)
	c.ack(`{"op":"speed","speed":null}`) // none of these did anything
	f(c.id(), "reader", `{"op":"seek","from":"start"}`, 202)
	c.expect(here.want("s", -1))
	f(c.id(), "admin", `{"op":"cancel","reason":"from afar"}`, 202)
	c.mustClose(closeCancelled, "from afar")
	before := len(sent)
	f("conn_unknown", "admin", `{"op":"cancel"}`, 404)
	f("conn_"+here.hub.node+"zz", "admin", `{"op":"cancel"}`, 404)
	f(c.id(), "admin", `{"op":`, 400)
	f(c.id(), "writer", `{"op":"cancel"}`, 403)
	if len(sent) != before {
		t.Errorf("sent to other nodes: %q", sent[before:])
	}
	failing = true
	f(c.id(), "admin", `{"op":"cancel"}`, 503)
	for _, bad := range []string{"", "{}", "null", `{"connection":"x","who":{"Scopes":["none"]},"command":{}}`, "\xff"} {
		here.hub.Deliver([]byte(bad))
	}
	there.closeHub()
	there.hub.Deliver([]byte(sent[len(sent)-1])) // after Close nothing happens
}

// The inbox: in order, bounded, and emptied by whoever runs the stream, live or replaying.
func TestInbox(t *testing.T) {
	t.Parallel()
	s := &subscription{hub: &Hub{queue: make(chan *subscription, 1)}, wire: new(socket)}
	s.sched.Store(running)
	for i := range maxInbox {
		if err := s.post(command{op: opAnswer, answer: answer{wanted: true, ref: fmt.Appendf(nil, "%d", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	filter := schema.Filter{FrameID: "f"}
	if err := s.post(command{op: opSubscribe, filter: &filter}); !errors.Is(err, errInboxFull) {
		t.Errorf("one command too many: %v", err)
	}
	if got := s.request(); got.Filter.FrameID != "" {
		t.Error("a refused command is taken for the request")
	}
	var got, want []string
	out := string(s.obey(nil))
	for i := range maxInbox {
		want = append(want, fmt.Sprintf(`{"ack":%d}`, i))
	}
	for part := range strings.SplitSeq(out, "\x81") {
		if part != "" {
			got = append(got, part[1:])
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("answers %q, want %q", got, want)
	}
	if out := s.obey(nil); len(out) > 0 {
		t.Errorf("answered again: %q", out)
	}
	done := make(chan struct{})
	if err := s.post(command{op: opSubscribe, filter: &filter, done: done}); err != nil {
		t.Fatal(err)
	}
	if got := s.request(); got.Filter.FrameID != "f" {
		t.Error("the request does not say what was asked for last")
	}
	s.obey(nil)
	<-done
	if s.req.Filter.FrameID != "f" {
		t.Error("the filter is not in force")
	}
}

// stuckSocket opens a socket whose client has a small buffer and does not read yet.
func (e *env) stuckSocket(query string) *client {
	e.t.Helper()
	c := e.stuckAt(socketPath+query, upgradeHeaders)
	if c.status != http.StatusSwitchingProtocols {
		e.t.Fatalf("socket %s is answered %d", query, c.status)
	}
	return c
}
