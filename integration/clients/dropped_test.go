package clients

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dropped is the comment about events that a slow client missed.
var dropped = regexp.MustCompile(`(?m)^: dropped (\d+)$`)

// TestSlowClientsAreTold stops reading from the server until what it has for the clients
// has left its memory. They are told in a comment how much they missed, take no harm from
// it, and miss nothing else.
func TestSlowClientsAreTold(t *testing.T) {
	t.Parallel()
	s := ownServer(t)
	p := ssePaths[0]
	p.url = func(g *group) string {
		return "/v1/sessions/" + g.logs[0].session + "/events/stream?type=wanted&type=transcript.turn"
	}
	p.want = func(e event) (delivery, bool) {
		return delivery{Type: e.Type, ID: e.id, Data: sessionData(e)}, e.Type != "other"
	}
	g := newGroup(s, &p, "dropped")
	l := g.open(t)
	runs := startAll(t, g, sseClients, 0)
	for _, r := range runs {
		r.follower.await(t, "open", 1, 20*time.Second)
	}
	// They begin live: a replay would lose nothing, however slow.
	l.append(t, event{Type: "wanted", Payload: json.RawMessage(`"first"`)})
	var release []func()
	for _, r := range runs {
		g.awaitAll(t, r.follower, 20*time.Second)
		release = append(release, r.cutter.hold())
	}
	long := json.RawMessage(strconv.Quote(strings.Repeat("0123456789abcdef", 56<<10))) // 896 KiB
	var fill, other []event
	for range 8 { // more than sockets hold
		fill = append(fill, event{Type: "wanted", Payload: long})
	}
	for range 13 {
		other = append(other, event{Type: "other", Payload: long})
	}
	l.append(t, fill...)
	var small []event
	for i := range 40 {
		small = append(small, event{Type: "wanted", Payload: fmt.Appendf(nil, "%d", i)})
	}
	l.append(t, small...)
	for range 4 { // more than the tape holds of a partition, 32 MiB
		l.append(t, append([]event(nil), other...)...)
	}
	for _, f := range release {
		f()
	}
	l.append(t, fence())
	last := l.events[len(l.events)-1].id
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			eventually(t, 30*time.Second, "the client has the last event", func() error {
				if got := r.follower.of("event"); got[len(got)-1].ID != last {
					return errNothingYet
				}
				return nil
			})
			r.follower.stop()
			missed := 0
			for _, m := range dropped.FindAllSubmatch(r.cutter.sent(), -1) {
				n, err := strconv.Atoi(string(m[1]))
				if err != nil {
					t.Fatal(err)
				}
				missed += n
			}
			got := r.follower.of("event")
			if want := g.size(); missed+len(got) != want {
				t.Errorf("told of %d missed events and got %d, together %d; want %d", missed, len(got), missed+len(got), want)
			}
			switch n := len(r.cutter.connections()); {
			case n == 1 && missed == 0:
				t.Error("nothing was missed, which proves nothing")
			case n > 1:
				// Where appending took 30 s, the server has cut those who took nothing so
				// long, and they resumed: then nothing is lost.
				t.Logf("%d connections; the machine is slow", n)
			}
			kept := *g
			kept.logs = []*log{{session: l.session, events: only(l.events, got)}}
			kept.check(t, got)
		})
	}
}

// only returns the events that were got.
func only(events []event, got []record) []event {
	ids := make(map[string]bool)
	for _, r := range got {
		ids[r.ID] = true
	}
	var out []event
	for _, e := range events {
		if ids[e.id] {
			out = append(out, e)
		}
	}
	return out
}
