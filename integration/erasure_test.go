package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/schema"
)

// erasure is the answer of a DELETE, and an entry of the list.
type erasure struct {
	ID          string  `json:"id"`
	SessionID   *string `json:"session_id"`
	ErasedBelow *string `json:"erased_below"`
	Status      string  `json:"status"`
}

func (s *server) erase(path string) erasure {
	s.t.Helper()
	status, b := s.do(http.MethodDelete, path, "", "")
	var e erasure
	if err := json.Unmarshal(b, &e); err != nil || status != http.StatusAccepted {
		s.t.Fatalf("DELETE %s: %d %s", path, status, b)
	}
	return e
}

// awaitErased waits until all erasures are done.
func (s *server) awaitErased() {
	s.t.Helper()
	eventually(s.t, 60*time.Second, "the erasures are done", func() error {
		list := getJSON[struct{ Data []erasure }](s, "/admin/v1/erasures")
		for _, e := range list.Data {
			if e.Status != "done" {
				return fmt.Errorf("%+v", e)
			}
		}
		return nil
	})
}

// status returns the status of a GET, without waiting for more than the head of a stream.
func (s *server) status(path, lastID string) int {
	s.t.Helper()
	st := s.open(path, s.key, lastID)
	defer st.close()
	return st.res.StatusCode
}

// replayed reads a stream until it has said that it has caught up, and returns the ids of
// its events.
func (s *server) replayed(path, lastID string) (ids []string) {
	s.t.Helper()
	st := s.open(path+"&notices=1", s.key, lastID)
	defer st.close()
	if st.res.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s: %d", path, st.res.StatusCode)
	}
	for {
		f, ok := st.next(20 * time.Second)
		switch {
		case !ok:
			s.t.Fatalf("GET %s ends before it has caught up", path)
		case f.event == "playhead.caught_up":
			return ids
		case f.data != "" && f.event != "heartbeat":
			ids = append(ids, f.id[:len("evt_")+26])
		}
	}
}

func (p parts) clickhouse(t *testing.T) driver.Conn {
	t.Helper()
	cfg := query.DefaultClickHouseConfig()
	cfg.DSN = p.dsn
	conn, err := query.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func count(t *testing.T, conn driver.Conn, where string) (n uint64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM events WHERE "+where).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// secretRows selects the rows that hold anything of what the tests erase.
const secretRows = "position(payload, 'secret') > 0 OR session_id = 'gone' AND type = 'said' OR mapContains(metadata, 'secret')" +
	" OR startsWith(message_id, 'gone-') AND type != 'again'"

// forgetHistory drops all rows and the materialiser's place in the log. No node may run.
func (p parts) forgetHistory(t *testing.T, conn driver.Conn) {
	t.Helper()
	if err := conn.Exec(t.Context(), "TRUNCATE TABLE events"); err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(p.brokers, ",")...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).DeleteGroup(t.Context(), schema.GroupMaterializer); err != nil {
		t.Fatal(err)
	}
}

func TestErasedSessionIsGoneEverywhere(t *testing.T) {
	p := startParts(t)
	a, b := p.serve(t, ""), p.serve(t, "")
	var gone, kept []string
	for i := range 10 {
		body := fmt.Sprintf(`{"type":"said","message_id":"%%s-%d","payload":{"text":"%%s"},"metadata":{"%%s":"x"},"workflow_id":"flow"}`, i)
		gone = append(gone, a.append("gone", fmt.Sprintf(body, "gone", "secret", "secret")).Results[0].ID)
		kept = append(kept, b.append("kept", fmt.Sprintf(body, "kept", "words", "open")).Results[0].ID)
	}
	// Half of it is in ClickHouse, the rest only in the log and on the tapes.
	if status, body := a.do(http.MethodPost, "/v1/sessions/gone/events?ack=materialised", "application/json", `{"type":"said","payload":"secret"}`); status != http.StatusOK {
		t.Fatalf("append: %d %s", status, body)
	}
	gone = append(gone, a.append("gone", `{"type":"said","payload":"secret"}`).Results[0].ID)
	conn := p.clickhouse(t)
	if count(t, conn, secretRows) == 0 {
		t.Fatal("nothing of it is in ClickHouse; the test is of no use")
	}
	live := b.open("/v1/sessions/gone/events/stream", devKey, "")
	if status, body := a.do(http.MethodDelete, "/v1/sessions/never", "", ""); status != http.StatusNotFound {
		t.Errorf("DELETE of an unknown session: %d %s", status, body)
	}

	e := a.erase("/v1/sessions/gone")
	if e.SessionID == nil || *e.SessionID != "gone" || e.ErasedBelow == nil || *e.ErasedBelow <= gone[len(gone)-1] {
		t.Fatalf("the erasure is %+v", e)
	}
	// At once on the node that took it, and within a second on the other.
	paths := []string{
		"/v1/sessions/gone", "/v1/sessions/gone/events", "/v1/sessions/gone/events?include=payload&cursor=" + gone[3],
		"/v1/sessions/gone/events/stream", "/v1/sessions/gone/events/stream?from=start",
	}
	for _, path := range paths {
		if got := a.status(path, ""); got != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, got)
		}
	}
	eventually(t, time.Second, "the other node knows", func() error {
		for _, path := range paths {
			if got := b.status(path, ""); got != http.StatusNotFound {
				return fmt.Errorf("GET %s: %d", path, got)
			}
		}
		return nil
	})
	if got := b.status("/v1/sessions/gone/events/stream", gone[2]); got != http.StatusNotFound {
		t.Errorf("resuming from an old id: %d", got)
	}
	if f, ok := live.next(10 * time.Second); !ok || f.event != "error" || !strings.Contains(f.data, `"SESSION_ERASED"`) {
		t.Errorf("the session's stream says %+v", f)
	}
	if status, body := b.do(http.MethodDelete, "/v1/sessions/gone", "", ""); status != http.StatusAccepted && status != http.StatusOK || !strings.Contains(string(body), e.ID) {
		t.Errorf("DELETE again: %d %s, want erasure %s", status, body, e.ID)
	}

	// A new session of the same id, with message ids of the old one.
	again := a.append("gone", `{"type":"again","message_id":"gone-0","payload":"new"}`)
	if again.Duplicates != 0 || again.Results[0].ID <= gone[len(gone)-1] {
		t.Fatalf("the new session's first event: %+v", again)
	}
	fresh := []string{again.Results[0].ID}
	check := func(nodes ...*server) {
		t.Helper()
		for _, s := range nodes {
			checkPages(t, s, "gone", fresh)
			checkPages(t, s, "kept", kept)
			if got := s.replayed("/v1/sessions/gone/events/stream?from=start", ""); !slices.Equal(got, fresh) {
				t.Errorf("a replay of the new session has %v, want %v", got, fresh)
			}
			if got := s.replayed("/v1/sessions/gone/events/stream?speed=100", gone[2]); !slices.Equal(got, fresh) {
				t.Errorf("resuming from an old id has %v, want %v", got, fresh)
			}
			for _, path := range []string{"/v1/stream?from=start", "/v1/workflows/flow/events/stream?from=start"} {
				want := slices.Clone(kept)
				if path == "/v1/stream?from=start" {
					want = append(want, fresh...)
				}
				got := s.replayed(path, "")
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%s has %v, want %v", path, got, want)
				}
			}
			state := getJSON[struct {
				EventCount   int64            `json:"event_count"`
				CountsByType map[string]int64 `json:"counts_by_type"`
			}](s, "/v1/sessions/gone")
			if state.EventCount != 1 || state.CountsByType["again"] != 1 {
				t.Errorf("the new session is %+v", state)
			}
		}
	}
	check(a, b)
	a.awaitErased()
	if n := count(t, conn, secretRows); n != 0 {
		t.Errorf("%d rows of it are left in ClickHouse", n)
	}
	check(a, b)
	if got := a.append("gone", `{"type":"again","message_id":"gone-0","payload":"new"}`); got.Duplicates != 1 || got.Results[0].ID != fresh[0] {
		t.Errorf("the new session's own message again: %+v", got)
	}

	// With ClickHouse stopped, from the log.
	pid := p.engine.Pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := true
	resume := func() {
		if stopped {
			stopped = false
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	defer resume()
	eventually(t, 30*time.Second, "pages are served from the log", func() error {
		status, body, err := a.try(http.MethodGet, "/v1/sessions/gone/events?pageSize=100", "", "")
		if err != nil || status != http.StatusOK || !strings.Contains(string(body), `"degraded":true`) {
			return fmt.Errorf("%d %s %w", status, body, err)
		}
		return nil
	})
	checkPages(t, a, "gone", fresh)
	resume()

	// And made anew from Kafka, which still holds every record of it.
	rows := count(t, conn, "1")
	a.stop()
	b.stop()
	p.forgetHistory(t, conn)
	c := p.serve(t, "")
	eventually(t, 60*time.Second, "the table is made anew", func() error {
		if n := count(t, conn, "1"); n < rows {
			return fmt.Errorf("%d of %d rows", n, rows)
		}
		return nil
	})
	if n := count(t, conn, secretRows); n != 0 {
		t.Errorf("%d rows of it are in the table that was made anew", n)
	}
	check(c)
}

// TestErasureRacesAppends appends through two nodes while a third client erases: what is
// acknowledged with an id below the erasure's is gone, everything else is there, and so it
// stays when the table is made anew.
func TestErasureRacesAppends(t *testing.T) {
	p := startParts(t)
	nodes := []*server{p.serve(t, ""), p.serve(t, "")}
	nodes[0].append("race", `{"type":"a"}`)
	nodes[0].append("other", `{"type":"a"}`)
	var mu sync.Mutex
	var ids []string
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var appending sync.WaitGroup
	for i, s := range []*server{nodes[0], nodes[1], nodes[0], nodes[1]} {
		appending.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				status, b, err := s.try(http.MethodPost, "/v1/sessions/race/events", "application/json",
					fmt.Sprintf(`{"type":"a","t_ms":1,"message_id":"m-%d-%d","payload":"secret"}`, i, n))
				if err != nil || status != http.StatusOK {
					t.Errorf("append: %d %s %v", status, b, err)
					return
				}
				mu.Lock()
				ids = append(ids, idsOf(t, b)...)
				mu.Unlock()
			}
		})
	}
	grown := func(by int) {
		t.Helper()
		mu.Lock()
		from := len(ids)
		mu.Unlock()
		eventually(t, 30*time.Second, "more is appended", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(ids) < from+by {
				return fmt.Errorf("%d of %d", len(ids)-from, by)
			}
			return nil
		})
	}
	below := ""
	for range 3 {
		grown(100)
		below = *nodes[1].erase("/v1/sessions/race").ErasedBelow
	}
	grown(100)
	stop()
	appending.Wait()
	var want []string
	for _, id := range ids {
		if id >= below {
			want = append(want, id)
		}
	}
	slices.Sort(want)
	if len(want) == 0 || len(want) == len(ids) {
		t.Fatalf("%d of %d events came behind the erasure; the test is of no use", len(want), len(ids))
	}
	for _, s := range nodes {
		checkPages(t, s, "race", want)
	}
	nodes[0].awaitErased()
	conn := p.clickhouse(t)
	check := func(nodes ...*server) {
		t.Helper()
		for _, s := range nodes {
			checkPages(t, s, "race", want)
			if got := s.replayed("/v1/sessions/race/events/stream?from=start", ""); !slices.Equal(got, want) {
				t.Errorf("a replay has %d events, want %d", len(got), len(want))
			}
		}
		if got := count(t, conn, "session_id = 'race' AND payload != ''"); got > uint64(len(want)) {
			t.Errorf("%d rows of the session have a payload, want %d", got, len(want))
		}
	}
	check(nodes...)
	rows := count(t, conn, "1")
	for _, s := range nodes {
		s.stop()
	}
	p.forgetHistory(t, conn)
	again := p.serve(t, "")
	eventually(t, 60*time.Second, "the table is made anew", func() error {
		if n := count(t, conn, "1"); n < rows {
			return fmt.Errorf("%d of %d rows", n, rows)
		}
		return nil
	})
	check(again)
}

// TestDevBeginsAnewWhenItsWorkspaceIsErased: an erased id is not used again.
func TestDevBeginsAnewWhenItsWorkspaceIsErased(t *testing.T) {
	s := startServer(t)
	s.append("s", `{"type":"said","payload":"secret"}`)
	id := getJSON[struct {
		WorkspaceID string `json:"workspace_id"`
	}](s, "/v1/limits").WorkspaceID
	s.erase("/admin/v1/workspaces/" + id)
	s.stop()
	s.start()
	if got := s.status("/v1/sessions/s", ""); got != http.StatusNotFound {
		t.Errorf("the erased session is answered %d", got)
	}
	s.append("s", `{"type":"said","payload":"anew"}`)
}

func TestErasedWorkspaceIsGoneEverywhere(t *testing.T) {
	p := startParts(t)
	a, b := p.serve(t, ""), p.serve(t, "")
	for i := range 20 {
		a.append(fmt.Sprint("s", i), `{"type":"said","payload":"secret"}`)
	}
	if status, body := a.do(http.MethodPost, "/v1/sessions/s1/events?ack=materialised", "application/json", `{"type":"said","payload":"secret"}`); status != http.StatusOK {
		t.Fatalf("append: %d %s", status, body)
	}
	live := b.open("/v1/stream", devKey, "")
	if status, body := a.do(http.MethodDelete, "/admin/v1/workspaces/ws_other", "", ""); status != http.StatusNotFound {
		t.Errorf("DELETE of another workspace: %d %s", status, body)
	}
	if e := a.erase("/admin/v1/workspaces/ws_default"); e.SessionID != nil || e.Status != "pending" {
		t.Errorf("the erasure is %+v", e)
	}
	paths := []string{"/v1/sessions/s1", "/v1/sessions/s1/events", "/v1/stream", "/admin/v1/erasures"}
	eventually(t, 2*time.Second, "both nodes refuse the key", func() error {
		for _, s := range []*server{a, b} {
			for _, path := range paths {
				if got := s.status(path, ""); got != http.StatusUnauthorized {
					return fmt.Errorf("GET %s: %d", path, got)
				}
			}
		}
		return nil
	})
	if f, ok := live.next(10 * time.Second); !ok || f.event != "error" || !strings.Contains(f.data, `"AUTH_ERROR"`) {
		t.Errorf("the workspace's stream says %+v", f)
	}
	conn := p.clickhouse(t)
	const left = "position(payload, 'secret') > 0 OR startsWith(session_id, 's')"
	eventually(t, 60*time.Second, "nothing of it is in ClickHouse", func() error {
		if n := count(t, conn, left); n > 0 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
	rows := count(t, conn, "1")
	a.stop()
	b.stop()
	p.forgetHistory(t, conn)
	c := p.serve(t, "") // its bootstrap key is that of the erased workspace
	eventually(t, 60*time.Second, "the table is made anew", func() error {
		if n := count(t, conn, "1"); n < rows {
			return fmt.Errorf("%d of %d rows", n, rows)
		}
		return nil
	})
	if n := count(t, conn, left); n != 0 {
		t.Errorf("%d rows of it are in the table that was made anew", n)
	}
	if got := c.status("/v1/sessions/s1", ""); got != http.StatusUnauthorized {
		t.Errorf("after a restart the key is answered %d", got)
	}
}
