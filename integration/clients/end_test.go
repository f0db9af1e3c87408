package clients

import (
	"strings"
	"testing"
	"time"
)

// TestEndStopsClients ends the session that clients follow with close=end. Their streams
// end with it; coming back, they are answered 204 and stay away.
func TestEndStopsClients(t *testing.T) {
	t.Parallel()
	for _, p := range ssePaths {
		if p.name != "session" && p.name != "transcript" { // a transcript closes by default
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			if p.name == "session" {
				open := p.url
				p.url = func(g *group) string { return open(g) + "&close=end" }
			}
			g := newGroup(sharedServer(t), &p, "end")
			g.open(t).append(t, samples(newRandom(t, "samples"), 0, 20)...)
			runs := startAll(t, g, sseClients, 1) // a cut, and so a short time until they come back
			for _, r := range runs {
				r.follower.await(t, "open", 1, 20*time.Second)
			}
			g.logs[0].append(t, fence())
			g.logs[0].end(t)
			for _, r := range runs {
				t.Run(r.name, func(t *testing.T) {
					ends := r.follower.await(t, "end", 1, 20*time.Second)
					r.follower.stop()
					g.check(t, g.got(r.follower))
					if !strings.Contains(string(r.cutter.sent()), "HTTP/1.1 204 ") {
						t.Errorf("the client was not answered 204 but ended: %+v", ends)
					}
				})
			}
		})
	}
}
