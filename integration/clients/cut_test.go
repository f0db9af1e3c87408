package clients

import (
	"testing"
	"time"
)

// sseClients are those that read Server-Sent Events.
var sseClients = []client{
	{name: "eventsource", lacks: lacksNode, start: node("eventsource.mjs")},
	{name: "eventsource-parser", lacks: lacksNode, start: node("parser.mjs")},
	{name: "httpx-sse", lacks: lacksPython, start: pythonProgram("sse.py")},
	{name: "go-sse", lacks: lacksNothing, start: startGoSSE},
	{name: "chromium", lacks: lacksChromium, start: inBrowser("EventSource"), browser: true},
}

// socketClients are those that speak WebSocket.
var socketClients = []client{
	{name: "ws", lacks: lacksNode, start: node("ws.mjs")},
	{name: "websockets", lacks: lacksPython, start: pythonProgram("ws.py")},
	{name: "chromium", lacks: lacksChromium, start: inBrowser("WebSocket"), browser: true},
}

// cutsPerClient is how often each client's connections break, after at most mostPerCut
// bytes: less than what a client has to get, divided by the cuts.
const (
	cutsPerClient = 12
	mostPerCut    = 4000
)

// TestCutStreams breaks every client's connections in the middle of frames, again and
// again, while events are appended. Each must end with exactly the log.
func TestCutStreams(t *testing.T) {
	t.Parallel()
	for _, p := range ssePaths {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			followCut(t, &p, sseClients)
		})
	}
}

// TestCutSockets does the same to WebSockets.
func TestCutSockets(t *testing.T) {
	t.Parallel()
	for _, p := range socketPaths {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			followCut(t, &p, socketClients)
		})
	}
}

// followCut follows a path with several clients at once, each behind a proxy of its own.
func followCut(t *testing.T, p *path, clients []client) {
	s := sharedServer(t)
	g := newGroup(s, p, "cut")
	random := newRandom(t, "samples")
	for range max(1, p.sessions-1) {
		g.open(t).append(t, samples(random, 0, 150)...) // the streams' past
	}
	runs := startAll(t, g, clients, cutsPerClient)
	if p.sessions > 1 {
		g.open(t) // a session that begins while it is followed
	}
	for i := 150; i < 300; i += 5 { // what they hear live
		for _, l := range g.logs {
			l.append(t, samples(random, i, 5)...)
		}
	}
	for _, l := range g.logs {
		l.append(t, fence())
	}
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			g.awaitAll(t, r.follower, 60*time.Second)
			r.follower.stop()
			g.check(t, g.got(r.follower))
			if left := r.cutter.cutsLeft(); left > cutsPerClient/2 {
				t.Errorf("%d of %d cuts were never made, which proves too little", left, cutsPerClient)
			}
		})
	}
}

// run is a client that follows a group through a proxy.
type run struct {
	name     string
	follower *follower
	cutter   *cutter
}

// startAll starts the clients that are there; the test skips or fails for the others.
func startAll(t *testing.T, g *group, clients []client, number int) []run {
	t.Helper()
	var runs []run
	for _, c := range clients {
		if c.browser && !g.path.bound {
			continue // its key is bound to a session or a workflow
		}
		if _, err := c.lacks(); err != nil {
			t.Run(c.name, c.need)
			continue
		}
		most := mostPerCut
		if g.path.few {
			most /= 4
		}
		cut := startCutter(t, c.name, g.server.addr, cuts{number, most, c.browser})
		runs = append(runs, run{c.name, c.start(t, g.job(t, c, cut.addr())), cut})
	}
	return runs
}
