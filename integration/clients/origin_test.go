package clients

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// browser returns one of the browser's APIs as a client, or skips the test.
func browser(t *testing.T, api string) func(*testing.T, job) *follower {
	t.Helper()
	client{lacks: lacksChromium, browser: true}.need(t)
	return inBrowser(api)
}

// TestPageOfAnotherOrigin sends requests with a key from a page of another origin, which
// browsers ask leave for first, and reads answers and errors with their headers.
func TestPageOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	fetch := browser(t, "fetch")
	s := sharedServer(t)
	l := newSession(t, s, "origin:1", "")
	l.append(t, fence())
	with := map[string]string{"Authorization": "Bearer " + devKey, "Last-Event-ID": l.events[0].id}
	for _, c := range []struct {
		name, url string
		headers   map[string]string
		status    int
		body      string // a part of it, if it is an error
	}{
		{"a stream", "/v1/sessions/origin:1/events/stream", with, 200, ""},
		{"a page", "/v1/sessions/origin:1/events", map[string]string{"X-Api-Key": devKey}, 200, ""},
		{"what is not there", "/v1/sessions/origin:none", with, 404, `"not_found"`},
		{"no key", "/v1/sessions/origin:1", nil, 401, `"missing_key"`},
		{"a key in the URL", "/v1/sessions/origin:1?token=" + devKey, nil, 401, `"token_in_query_not_allowed"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := fetch(t, job{URL: "http://" + s.addr + c.url, Headers: c.headers})
			got := f.await(t, "answer", 1, 20*time.Second)[0]
			if got.Code != c.status || !strings.Contains(got.Data, c.body) || !strings.HasPrefix(got.Type, "req_") {
				t.Errorf("the page saw %d %s, X-Request-Id %q; want %d with %s and an id", got.Code, got.Data, got.Type, c.status, c.body)
			}
		})
	}
}

// TestKeysInURLs tells which keys an EventSource may have in its URL.
func TestKeysInURLs(t *testing.T) {
	t.Parallel()
	eventSource := browser(t, "EventSource")
	s := sharedServer(t)
	p := ssePaths[0]
	g := newGroup(s, &p, "token")
	g.open(t).append(t, fence())
	url := "http://" + s.addr + p.url(g)

	ordinary := eventSource(t, job{URL: url + "&token=" + devKey})
	ordinary.await(t, "end", 1, 20*time.Second)
	if got := ordinary.of("open"); len(got) > 0 {
		t.Error("an ordinary key in the URL opened a session's stream")
	}

	other := newGroup(s, &p, "token-other")
	other.open(t)
	foreign := eventSource(t, job{URL: url + "&token=" + other.browserKey(t, 60)})
	foreign.await(t, "end", 1, 20*time.Second)
	if got := foreign.of("open"); len(got) > 0 {
		t.Error("a browser key opened the stream of another session")
	}
}

// TestBrowserKeyExpires lets the key of open streams expire. They end with AUTH_ERROR, and
// do not come back.
func TestBrowserKeyExpires(t *testing.T) {
	t.Parallel()
	eventSource := browser(t, "EventSource")
	s := sharedServer(t)
	p := ssePaths[0]
	g := newGroup(s, &p, "expires")
	g.open(t).append(t, fence())
	f := eventSource(t, job{URL: "http://" + s.addr + p.url(g) + "&token=" + g.browserKey(t, 5), Types: sampleTypes})
	f.await(t, "event", 1, 20*time.Second)
	f.await(t, "end", 1, 30*time.Second)
	events := f.of("event")
	last := events[len(events)-1]
	var e struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(last.Data), &e); err != nil || last.Type != "error" || e.Code != "AUTH_ERROR" || e.Message == "" {
		t.Errorf("the stream's last event = %+v, error %v; want error with AUTH_ERROR", last, err)
	}
	g.check(t, events[:len(events)-1])
}

// TestSocketProtocol offers a key beside the protocol, as browsers must, and is answered
// the protocol alone.
func TestSocketProtocol(t *testing.T) {
	t.Parallel()
	webSocket := browser(t, "WebSocket")
	s := sharedServer(t)
	g := newGroup(s, &socketPaths[0], "protocol")
	g.open(t).append(t, fence())
	f := webSocket(t, g.job(t, client{browser: true}, s.addr))
	if got := f.await(t, "open", 1, 20*time.Second)[0].Type; got != "playhead.v1" {
		t.Errorf("the socket's protocol is %q, want playhead.v1", got)
	}
	f.await(t, "frame", 1, 20*time.Second)
}
