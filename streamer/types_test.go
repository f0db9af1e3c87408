package streamer

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func TestStreamsUseTheWorkspacesTypeCodes(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	var own atomic.Pointer[schema.TypeTable]
	register := func(types ...schema.TypeCode) {
		table := schema.NewTypeTable(types)
		own.Store(&table)
	}
	register(schema.TypeCode{Code: 200, Type: "agent.said"})
	e.serveWith(socketKeys, func(d *Deps) {
		d.Types = func(workspace string) schema.TypeTable {
			if workspace != "w" {
				return schema.TypeTable{}
			}
			return *own.Load()
		}
	})
	events := []*schema.Event{
		newEvent("s", "init", ""), newEvent("s", "agent.said", ""), newEvent("s", "agent.heard", ""), newEvent("s", "agent.said", ""),
	}
	e.produce(events...)
	ids := func(events ...*schema.Event) (out []string) {
		for _, ev := range events {
			out = append(out, ev.ID.String())
		}
		return out
	}

	c := e.get("/v1/sessions/s/events/stream?from=start&type=0xc8", "reader")
	if c.status != http.StatusOK {
		t.Fatalf("stream of a code is answered %d %s", c.status, c.body())
	}
	if err := c.expect(ids(events[1], events[3])); err != nil {
		t.Error(err)
	}
	if c := e.get("/v1/sessions/s/events/stream?type=201", "reader"); c.status != http.StatusBadRequest || !strings.Contains(c.body(), `"param":"type"`) {
		t.Errorf("stream of a code that no type has is answered %d, want 400", c.status)
	}

	socket := e.socket("/v1/sessions/s/events/ws?from=start&type=1,200", "reader")
	socket.expect(ids(events[0], events[1], events[3]))
	// A code means what it does when the command comes; streams that are open keep to theirs.
	register(schema.TypeCode{Code: 200, Type: "agent.heard"})
	socket.ack(`{"op":"subscribe","type":"200","from":"start"}`)
	socket.expect(ids(events[2]))
	if m := socket.do(`{"op":"subscribe","type":201}`); m.Error == nil || m.Error.Param != "type" {
		t.Errorf("subscribe to a code that no type has is answered %s", m.text)
	}
	more := []*schema.Event{newEvent("s", "agent.heard", ""), newEvent("s", "agent.said", "")}
	e.produce(more...)
	socket.expect(ids(more[0]))
	if err := c.expect(ids(more[1])); err != nil {
		t.Error(err)
	}
}
