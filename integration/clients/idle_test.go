package clients

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestIdleStreams leaves every stream idle until its heartbeat has come, and then appends.
// A heartbeat must be no event to any client; where it is one by contract, its id must
// resume exactly: all connections break right after it.
func TestIdleStreams(t *testing.T) {
	t.Parallel()
	type idle struct {
		group *group
		runs  []run
	}
	var all []idle
	for _, p := range ssePaths {
		g := newGroup(sharedServer(t), &p, "idle")
		for range p.sessions {
			g.open(t).append(t, fence())
		}
		all = append(all, idle{g, startAll(t, g, sseClients, 0)})
	}
	var idling []func()
	for _, i := range all {
		for _, r := range i.runs {
			i.group.awaitAll(t, r.follower, 30*time.Second)
			from := len(r.cutter.sent()) - 1
			idling = append(idling, func() { awaitHeartbeat(t, i.group, r, from) })
		}
	}
	for _, await := range idling { // all idle at the same time
		await()
	}
	for _, i := range all {
		for _, l := range i.group.logs {
			l.append(t, fence())
		}
		for _, r := range i.runs {
			t.Run(i.group.path.name+"/"+r.name, func(t *testing.T) { checkIdle(t, i.group, r) })
		}
	}
}

// awaitHeartbeat waits until a client was sent a heartbeat after its first bytes, and breaks
// its connection if that is an event.
func awaitHeartbeat(t *testing.T, g *group, r run, from int) {
	t.Helper()
	beat := []byte("\n: ") // a comment
	if g.path.beats {
		beat = []byte("event: heartbeat\n")
	}
	eventually(t, 45*time.Second, g.path.name+": "+r.name+" was sent a heartbeat", func() error {
		if !bytes.Contains(r.cutter.sent()[from:], beat) {
			return errNothingYet
		}
		return nil
	})
	if g.path.beats {
		eventually(t, 10*time.Second, r.name+" has its heartbeat", func() error {
			if all := r.follower.of("event"); all[len(all)-1].Type != "heartbeat" {
				return errNothingYet
			}
			return nil
		})
		r.cutter.sever()
	}
}

// checkIdle checks a client that idled: it has the log and, at most, heartbeats.
func checkIdle(t *testing.T, g *group, r run) {
	g.awaitAll(t, r.follower, 20*time.Second)
	r.follower.stop()
	g.check(t, g.got(r.follower))
	if !g.path.beats {
		return
	}
	if !bytes.Contains(bytes.ToLower(r.cutter.requests()), []byte("last-event-id: heartbeat_")) {
		t.Error("the client did not resume from a heartbeat's id")
	}
	for _, e := range r.follower.of("event") {
		var beat struct {
			Timestamp    time.Time `json:"timestamp"`
			Status       string    `json:"status"`
			ConnectionID string    `json:"connection_id"`
		}
		if e.Type != "heartbeat" {
			continue
		}
		if err := json.Unmarshal([]byte(e.Data), &beat); err != nil || beat.Timestamp.IsZero() || beat.Status == "" ||
			beat.ConnectionID == "" || !strings.HasPrefix(e.ID, "heartbeat_") {
			t.Errorf("heartbeat = %+v, error %v", e, err)
		}
	}
}
