package clients

import (
	"regexp"
	"strconv"
	"testing"
	"time"
)

// retryLine is a whole line of a stream that says when to come back, in milliseconds.
var retryLine = regexp.MustCompile(`(?m)^retry: ?(\d+)$`)

// retryReason is the reason of a close frame that says the same.
var retryReason = regexp.MustCompile(`retry in (\d+) ms`)

// TestRestart stops the server under its clients and starts it again. They are told when
// to come back, do so no sooner, and lose nothing.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := ownServer(t)
	random := newRandom(t, "samples")
	events := newGroup(s, &ssePaths[0], "restart")
	messages := newGroup(s, &socketPaths[0], "restart-socket")
	groups := []*group{events, messages}
	for _, g := range groups {
		g.open(t).append(t, samples(random, 0, 30)...)
	}
	streams := startAll(t, events, sseClients, 0)
	sockets := startAll(t, messages, socketClients, 0)
	for _, r := range streams {
		events.awaitAll(t, r.follower, 20*time.Second)
	}
	for _, r := range sockets {
		messages.awaitAll(t, r.follower, 20*time.Second)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		g.logs[0].append(t, samples(random, 30, 30)...)
		g.logs[0].append(t, fence())
	}
	for _, r := range streams {
		t.Run(r.name, func(t *testing.T) {
			events.awaitAll(t, r.follower, 30*time.Second)
			r.follower.stop()
			events.check(t, events.got(r.follower))
			m := retryLine.FindSubmatch(r.cutter.sent())
			if m == nil {
				t.Fatalf("the stream ended without a retry: %.300q", tail(r.cutter.sent(), 300))
			}
			jitter := 1.0
			switch r.name {
			case "go-sse":
				jitter = 0.5 // its own
			case "httpx-sse":
				jitter = 0 // it learns of a retry only from the event behind it
			}
			checkWaited(t, r, string(m[1]), jitter)
		})
	}
	for _, r := range sockets {
		t.Run(r.name, func(t *testing.T) {
			messages.awaitAll(t, r.follower, 30*time.Second)
			r.follower.stop()
			messages.check(t, messages.got(r.follower))
			closed := r.follower.of("lost")[0]
			m := retryReason.FindStringSubmatch(closed.Data)
			if closed.Code != 4003 || m == nil {
				t.Fatalf("the socket was closed with %d %q, want 4003 and when to come back", closed.Code, closed.Data)
			}
			checkWaited(t, r, m[1], 1)
		})
	}
}

// checkWaited checks that a client came back no sooner than after the milliseconds it was
// told, times jitter.
func checkWaited(t *testing.T, r run, told string, jitter float64) {
	t.Helper()
	ms, err := strconv.ParseFloat(told, 64)
	if err != nil {
		t.Fatal(err)
	}
	// The proxy may note later than the client reads.
	least := time.Duration(ms*jitter)*time.Millisecond - 50*time.Millisecond
	made := r.cutter.connections()
	if waited := made[1].at.Sub(made[0].spoke); waited < least {
		t.Errorf("the client came back after %v; it was told %s ms", waited, told)
	}
}

// tail returns the last n bytes of b.
func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
