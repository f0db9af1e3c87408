package streamer

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/presence"
)

// startCounter counts streams by the environment's broker.
func (e *env) startCounter() *presence.Counter {
	e.t.Helper()
	c, err := presence.Start(e.t.Context(), e.kafkaCfg, presence.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(c.Close)
	return c
}

var limitKeys = fakeKeys{
	"one":      {Workspace: "w", KeyID: "key_1", Scopes: control.ScopeRead},
	"two":      {Workspace: "w", KeyID: "key_2", Scopes: control.ScopeRead},
	"three":    {Workspace: "w", KeyID: "key_3", Scopes: control.ScopeRead},
	"stranger": {Workspace: "other", KeyID: "key_1", Scopes: control.ScopeRead}, // the same id elsewhere is another key
}

// limited returns limits for every workspace.
func limited(l control.Limits) func(string) control.Limits {
	return func(string) control.Limits { return l }
}

// Two nodes over one broker: what is open on one counts on the other within a second, and
// is free again within one.
func TestStreamLimitsHoldAcrossNodes(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 4)
	e.produce(newEvent("s", "a", ""))
	limits := control.Limits{StreamsPerKey: 4, StreamsPerWorkspace: 6, EventStreamsPerKey: 2}
	nodes := []*env{e, e.beside()}
	for _, n := range nodes {
		counter := n.startCounter()
		n.serveWith(limitKeys, func(d *Deps) { d.Limits, d.Counts = limited(limits), counter })
	}
	open := func(n *env, path, key string) (*client, string) {
		t.Helper()
		c, err := n.dial(path, key)
		if err != nil {
			t.Fatal(err)
		}
		if c.status == 200 {
			return c, ""
		}
		defer c.close()
		var answer struct {
			Error struct {
				Code    string
				Details struct {
					Of          string
					Limit, Open int
				}
			}
		}
		if err := json.Unmarshal([]byte(c.body()), &answer); err != nil {
			t.Fatal(err)
		}
		after, err := strconv.Atoi(c.header.Get("Retry-After"))
		if c.status != 429 || answer.Error.Code != "stream_limit_exceeded" || err != nil || after < 1 || after > 5 {
			t.Fatalf("%s is refused by %d %+v, Retry-After %d, %v", path, c.status, answer.Error, after, err)
		}
		d := answer.Error.Details
		return nil, fmt.Sprintf("%s %d of %d", d.Of, d.Open, d.Limit)
	}
	// settled opens until the answer is as wanted, which the other node's news may delay.
	settled := func(n *env, path, key, want string) *client {
		t.Helper()
		began := time.Now()
		for {
			c, refused := open(n, path, key)
			if refused == want {
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("%s by %s: %q after %v", path, key, want, took)
				}
				return c
			}
			if c != nil {
				c.close()
			}
			if time.Since(began) > testDeadline {
				t.Fatalf("%s by %s: %q, want %q", path, key, refused, want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	const events, plain, ofSession = "/api/v1/stream", "/v1/stream", "/v1/sessions/s/events/stream"
	a, b := nodes[0], nodes[1]
	var held []*client
	hold := func(n *env, path, key string) {
		t.Helper()
		held = append(held, settled(n, path, key, ""))
	}
	hold(a, events, "one")
	hold(b, events, "one")
	for _, n := range nodes {
		settled(n, events, "one", "class 2 of 2")
		settled(n, events+"?envelope=1", "one", "class 2 of 2")
		settled(n, events+"/", "one", "class 2 of 2")
	}
	hold(a, plain, "one") // has no such limit
	hold(b, ofSession, "one")
	for _, n := range nodes {
		settled(n, ofSession, "one", "key 4 of 4")
		settled(n, plain, "one", "key 4 of 4")
	}
	hold(a, ofSession, "two")
	hold(b, ofSession, "three")
	for _, n := range nodes {
		settled(n, ofSession, "two", "workspace 6 of 6")
	}
	hold(a, plain, "stranger") // of another workspace
	hold(b, events, "stranger")
	for _, c := range held {
		c.close()
	}
	for _, n := range nodes {
		for range limits.EventStreamsPerKey {
			held = append(held, settled(n, events, map[*env]string{a: "one", b: "two"}[n], ""))
		}
	}
	for _, c := range held {
		c.close()
	}
}

// Many at once never get more than there may be, and nothing leaks: refused, broken off
// and closed streams all give back what they took.
func TestStreamLimitsAreExactOnANode(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	counter := e.startCounter()
	const limit = 7
	e.serveWith(limitKeys, func(d *Deps) {
		d.Limits, d.Counts = limited(control.Limits{StreamsPerKey: limit, StreamsPerWorkspace: 500}), counter
	})
	for round := range 3 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var open []*client
		refused := 0
		for range 40 {
			wg.Go(func() {
				c, err := e.dial("/v1/sessions/s/events/stream", "one")
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					t.Errorf("round %d: %v", round, err)
				case c.status == 200:
					open = append(open, c)
				default:
					refused++
					c.close()
				}
			})
		}
		wg.Wait()
		if len(open) != limit || refused != 40-limit {
			t.Errorf("round %d: %d are open, %d refused; want %d open", round, len(open), refused, limit)
		}
		for _, c := range open {
			c.close()
		}
		eventually(t, "all streams are gone", func() bool {
			_, of := counter.Open("w", "key_1")
			return of == 0 && e.streams() == 0
		})
	}
}

// A workspace that says more than a stream may send: it is told once, loses nothing, and
// gets the rest later, heartbeats meanwhile. A stream of the same on the path without the
// limit is not held up.
func TestRateLimitedStreamsLoseNothing(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.KeepAlive = 200 * time.Millisecond
	cfg.Tape.MaxBytes = 10_000 // what is held up leaves the tape before it is sent
	e := startEnv(t, cfg, 4)
	e.produce(numbered("s", 0, 500)...) // most of it is replayed
	e.serveWith(limitKeys, func(d *Deps) { d.Limits = limited(control.Limits{EventsPerMinute: 600}) })
	limitedOne := e.get("/api/v1/stream?from=start&notices=1", "one")
	defer limitedOne.close()
	free := e.get("/v1/stream?from=start", "one")
	defer free.close()
	e.live(2)
	const sessions = 8
	for i := range sessions {
		e.produce(numbered(fmt.Sprint("s", i), 0, 16)...)
	}
	after := 0 // events behind the failure
	read := func(c *client) (failures []frame, beats int) {
		t.Helper()
		want := make(map[string]bool)
		for _, events := range e.visible {
			for _, ev := range events {
				want[ev.ID.String()] = true
			}
		}
		caughtUp := true
		for len(want) > 0 {
			f, err := c.event()
			if err != nil {
				t.Fatalf("%d events are missing: %v", len(want), err)
			}
			switch f.event {
			case "heartbeat":
				beats++
			case "error":
				failures = append(failures, f)
				caughtUp, after = false, len(want)
			case "playhead.caught_up":
				if !caughtUp {
					t.Error("caught up while it is held up")
				}
			case "tick":
				id, _, _ := strings.Cut(f.id, "~")
				if !want[id] {
					t.Fatalf("%+v comes twice, or is none of the workspace's", f)
				}
				delete(want, id)
			}
		}
		return failures, beats
	}
	began := time.Now()
	if failures, _ := read(free); len(failures) > 0 {
		t.Errorf("the stream without a limit says %v", failures)
	}
	failures, beats := read(limitedOne)
	took := time.Since(began)
	if len(failures) != 1 || !strings.Contains(failures[0].data, `"code":"RATE_LIMITED"`) || !strings.HasPrefix(failures[0].id, "error_evt_") {
		t.Errorf("the stream is told %+v; want RATE_LIMITED, once", failures)
	}
	if took < 2*time.Second || beats < 3 { // 28 events beyond the 600, ten a second
		t.Errorf("%d events in %v with %d heartbeats; the limit does not hold", 500+sessions*16, took, beats)
	}
	// And from where it was told, the rest comes: nothing twice, nothing lost.
	back := e.get("/v1/stream", "one", "Last-Event-ID: "+failures[0].id)
	defer back.close()
	for n := after; n > 0; {
		f, err := back.event()
		if err != nil {
			t.Fatalf("back where it was limited, %d are missing: %v", n, err)
		}
		if f.event == "tick" {
			n--
		}
	}
}

// watchedKeys are keys that can be revoked.
type watchedKeys struct {
	mu      sync.Mutex
	keys    fakeKeys
	revoked map[string]bool // by id
}

func (k *watchedKeys) Authenticate(key string) (control.Principal, error) {
	return k.keys.Authenticate(key)
}

func (k *watchedKeys) live(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.revoked[id]
}

func (k *watchedKeys) revoke(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.revoked[id] = true
}

// A key's end ends its streams, of every view, and no others.
func TestARevokedKeyEndsItsStreams(t *testing.T) {
	checkGoroutines(t)
	e := serveViews(t, testConfig())
	path := func(name string) string { return sseViewPaths[name] }
	clients := make(map[string]*client)
	for name := range sseViewPaths {
		clients[name] = e.get(path(name), "reader")
		defer clients[name].close()
	}
	other := e.get("/v1/conversations/talk/stream", "pk_tmp_")
	defer other.close()
	e.live(len(clients) + 1)
	e.hub.EndKey("key_r")
	for name, c := range clients {
		raw, err := io.ReadAll(c.br)
		if err != nil {
			t.Fatal(err)
		}
		blocks := mustParseSSE(t, raw)
		if len(blocks) != 1 || blocks[0].event != "error" || !strings.Contains(blocks[0].data, `"AUTH_ERROR"`) {
			t.Errorf("%s ends with %q", name, raw)
		}
	}
	e.live(1)
	e.produce(said("talk", "message.created", `1`, 1))
	if f, err := other.event(); err != nil || !strings.Contains(f.data, "message.created") {
		t.Errorf("another key's stream goes on with %+v, %v", f, err)
	}
}

// 1. A request for a stream is authenticated. 2. Its key is revoked, and EndKey finds no
// stream of it. 3. The stream begins: nobody would end it any more.
func TestAKeyRevokedWhileItsStreamOpensEndsIt(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	keys := &watchedKeys{keys: limitKeys, revoked: map[string]bool{}}
	asked := make(chan string, 10)
	e.serveWith(keys, func(d *Deps) {
		d.Live = func(id string) bool {
			select {
			case asked <- id:
			default:
			}
			return keys.live(id)
		}
	})
	ok := e.get("/v1/sessions/s/events/stream", "two")
	defer ok.close()
	keys.revoke("key_1")
	e.hub.EndKey("key_1")
	c := e.get("/v1/sessions/s/events/stream", "one") // authenticated by a store that has not heard of it
	defer c.close()
	raw, err := io.ReadAll(c.br)
	if blocks := mustParseSSE(t, raw); err != nil || len(blocks) != 1 || !strings.Contains(blocks[0].data, `"AUTH_ERROR"`) {
		t.Errorf("the revoked key's stream says %q, %v", raw, err)
	}
	if first, second := <-asked, <-asked; first != "key_2" || second != "key_1" {
		t.Errorf("asked about %s and %s", first, second)
	}
	e.live(1)
}

// The stream of a key that expires ends when it does, not at some heartbeat after.
func TestAnExpiringKeyEndsItsStreams(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	expires := time.Now().Add(1500 * time.Millisecond)
	e.serveWith(fakeKeys{
		"pk_tmp_x": {Workspace: "w", KeyID: "key_x", Scopes: control.ScopeRead, Session: "s", Browser: true, ExpiresAt: expires},
	}, nil)
	resp, err := http.Get("http://" + e.addr + "/v1/sessions/s/events/stream?token=pk_tmp_x") //nolint:noctx // it ends by itself
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if late := time.Since(expires); err != nil || late < 0 || late > 5*time.Second {
		t.Errorf("the stream ended %v after its key, %v", late, err)
	}
	if blocks := mustParseSSE(t, raw); len(blocks) != 1 || blocks[0].event != "error" || !strings.Contains(blocks[0].data, `"AUTH_ERROR"`) {
		t.Errorf("the stream says %q", raw)
	}
}
