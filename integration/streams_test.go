package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// stream is one open stream, read frame by frame.
type stream struct {
	t      *testing.T
	cancel context.CancelFunc
	res    *http.Response
	frames chan frame // closed when the stream ends
}

// open opens a stream with a key, from lastID on if that is not "". The answer may be a
// refusal.
func (s *server) open(path, key, lastID string) *stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url(path), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		cancel()
		s.t.Fatalf("GET %s: %v", path, err)
	}
	st := &stream{t: s.t, cancel: cancel, res: res, frames: make(chan frame, 1000)}
	go st.read()
	s.t.Cleanup(st.close)
	return st
}

func (st *stream) close() {
	st.cancel()
	_ = st.res.Body.Close()
}

func (st *stream) read() {
	defer close(st.frames)
	r := bufio.NewReader(st.res.Body)
	var f frame
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "event":
			f.event = value
		case "id":
			f.id = value
		case "data":
			f.data = value
		case "":
			if line == "\n" && f != (frame{}) {
				st.frames <- f
				f = frame{}
			}
		}
	}
}

// next returns the next frame; ok is false if the stream has ended.
func (st *stream) next(within time.Duration) (f frame, ok bool) {
	st.t.Helper()
	select {
	case f, ok = <-st.frames:
		return f, ok
	case <-time.After(within):
		st.t.Fatalf("nothing on the stream within %v", within)
		return frame{}, false
	}
}

// TestWorkspaceStreamMovesBetweenNodes cuts a stream of all sessions again and again and
// goes on at the other node, while both nodes take events.
func TestWorkspaceStreamMovesBetweenNodes(t *testing.T) {
	p := startParts(t)
	nodes := []*server{p.serve(t, ""), p.serve(t, "")}
	const sessions, rounds, perRound = 8, 12, 10 // an even number: a session has one workflow
	var want []string
	appended := 0
	appendSome := func() {
		for range perRound {
			id := nodes[appended%2].append(fmt.Sprint("s", appended%sessions), fmt.Sprintf(`{"type":"n","workflow_id":"w%d","payload":%d}`, appended%2, appended)).Results[0].ID
			want = append(want, id)
			appended++
		}
	}
	appendSome()
	for _, path := range []string{"/v1/stream", "/api/v1/stream", "/v1/workflows/w1/events/stream"} {
		last, got := "", []string{}
		for round := range rounds {
			query := ""
			if last == "" {
				query = "?from=start"
			}
			st := nodes[round%2].open(path+query, devKey, last)
			if st.res.StatusCode != http.StatusOK {
				t.Fatalf("%s is answered %d", path, st.res.StatusCode)
			}
			appendSome()
			for range perRound / 3 {
				f, ok := st.next(10 * time.Second)
				if !ok {
					t.Fatal("the stream has ended")
				}
				last = f.id
				if f.event == "n" {
					got = append(got, f.id[:len("evt_")+26])
				}
			}
			st.close()
		}
		// The rest, from wherever the last one stopped.
		st := nodes[0].open(path, devKey, last)
		wanted := want
		if strings.Contains(path, "workflows") {
			wanted = odd(want)
		}
		for len(got) < len(wanted) {
			f, ok := st.next(10 * time.Second)
			if !ok {
				t.Fatal("the stream has ended")
			}
			if f.event == "n" {
				got = append(got, f.id[:len("evt_")+26])
			}
		}
		st.close()
		if a, b := slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(wanted)); !slices.Equal(a, b) {
			t.Errorf("%s: %d events over all connections, want %d, each once", path, len(a), len(b))
		}
		// Ids of one partition, so of one session, come in their order.
		at := map[string]string{}
		for _, id := range got {
			partition := id[:10]
			if id <= at[partition] {
				t.Fatalf("%s: %s comes behind %s", path, id, at[partition])
			}
			at[partition] = id
		}
	}
}

func odd(ids []string) (out []string) {
	for i, id := range ids {
		if i%2 == 1 {
			out = append(out, id)
		}
	}
	return out
}

// TestStreamsAreCountedAndEndedAcrossNodes: limits, revoked keys and commands hold on the
// node that holds the stream, whichever node was told.
func TestStreamsAreCountedAndEndedAcrossNodes(t *testing.T) {
	p := startParts(t)
	a, b := p.serve(t, ""), p.serve(t, "")
	a.append("s", `{"type":"x"}`)
	if status, body := a.do(http.MethodPatch, "/admin/v1/limits", "application/json", `{"streams_per_key":3}`); status != http.StatusOK {
		t.Fatalf("limits: %d %s", status, body)
	}
	const path = "/v1/sessions/s/events/stream"
	eventually(t, 5*time.Second, "the other node knows the limit", func() error {
		if got := getJSON[struct {
			Limits map[string]float64 `json:"limits"`
		}](b, "/v1/limits").Limits["streams_per_key"]; got != 3 {
			return fmt.Errorf("streams_per_key is %v", got)
		}
		return nil
	})
	open := []*stream{a.open(path, devKey, ""), a.open(path, devKey, ""), b.open(path, devKey, "")}
	for _, st := range open {
		if st.res.StatusCode != http.StatusOK {
			t.Fatalf("a stream within the limit is answered %d", st.res.StatusCode)
		}
	}
	eventually(t, 5*time.Second, "both nodes refuse a fourth", func() error {
		for _, node := range []*server{a, b} {
			st := node.open(path, devKey, "")
			status, after := st.res.StatusCode, st.res.Header.Get("Retry-After")
			st.close()
			if status != http.StatusTooManyRequests || after == "" {
				return fmt.Errorf("a fourth is answered %d, Retry-After %q", status, after)
			}
		}
		return nil
	})
	open[0].close()
	eventually(t, 5*time.Second, "the other node admits one when one has ended here", func() error {
		st := b.open(path, devKey, "")
		defer st.close()
		if st.res.StatusCode != http.StatusOK {
			return fmt.Errorf("answered %d", st.res.StatusCode)
		}
		return nil
	})

	// A command to a stream that the other node holds.
	status, body := a.do(http.MethodPost, "/v1/streams/"+open[2].res.Header.Get("X-Connection-Id")+"/commands", "application/json",
		`{"op":"cancel","reason":"enough"}`)
	if status != http.StatusAccepted {
		t.Errorf("a command by way of the other node: %d %s", status, body)
	}
	if f, ok := open[2].next(10 * time.Second); !ok || f.event != "error" || !strings.Contains(f.data, `"CANCELLED","message":"enough"`) {
		t.Errorf("the cancelled stream says %+v", f)
	}
	if _, ok := open[2].next(10 * time.Second); ok {
		t.Error("the cancelled stream goes on")
	}

	// A key that is revoked by way of the other node.
	status, body = a.do(http.MethodPost, "/v1/keys", "application/json", `{"scopes":["read"]}`)
	var key struct{ ID, Key string }
	if err := json.Unmarshal(body, &key); err != nil || status != http.StatusCreated {
		t.Fatalf("key: %d %s", status, body)
	}
	var st *stream
	eventually(t, 5*time.Second, "the other node knows the key", func() error {
		st = b.open(path, key.Key, "")
		if st.res.StatusCode != http.StatusOK {
			st.close()
			return fmt.Errorf("answered %d", st.res.StatusCode)
		}
		return nil
	})
	if status, body := a.do(http.MethodDelete, "/v1/keys/"+key.ID, "", ""); status != http.StatusNoContent {
		t.Fatalf("revoke: %d %s", status, body)
	}
	if f, ok := st.next(10 * time.Second); !ok || f.event != "error" || !strings.Contains(f.data, "AUTH_ERROR") {
		t.Errorf("the stream of a revoked key says %+v", f)
	}
}
