package integration

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// writer appends to a few sessions, batch after batch, until it is stopped, and keeps the
// ids that were acknowledged by their types.
type writer struct {
	stop func()

	mu    sync.Mutex
	acked map[string]string // type by id
}

// write starts a writer of batches of n events of the types tick and, every tenth, rare.
func (s *server) write(sessions, n int) *writer {
	w := &writer{acked: make(map[string]string)}
	done := make(chan struct{})
	var wg sync.WaitGroup
	w.stop = sync.OnceFunc(func() { close(done); wg.Wait() })
	s.t.Cleanup(w.stop)
	wg.Go(func() {
		for batch := 0; ; batch++ {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond): // others want the processors too
			}
			var lines []string
			for i := range n {
				typ := "tick"
				if i%10 == 0 {
					typ = "rare"
				}
				lines = append(lines, fmt.Sprintf(`{"type":%q,"payload":{"n":%d},"message_id":"b%d-%d"}`, typ, i, batch, i))
			}
			path := fmt.Sprintf("/v1/sessions/s%d/events", batch%sessions)
			status, b, err := s.try(http.MethodPost, path, "application/json", `{"events":[`+strings.Join(lines, ",")+`]}`)
			if err != nil || status != http.StatusOK {
				s.t.Errorf("append: %d %s %v", status, b, err)
				return
			}
			w.mu.Lock()
			for i, id := range idsOf(s.t, b) {
				if w.acked[id] = "tick"; i%10 == 0 {
					w.acked[id] = "rare"
				}
			}
			w.mu.Unlock()
		}
	})
	return w
}

// ids returns what was acknowledged so far, of one type or, with "", of all.
func (w *writer) ids(of string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for id, typ := range w.acked {
		if of == "" || of == typ {
			out = append(out, id)
		}
	}
	return out
}

// Pages of the workspace are read to their end while events arrive, and their last cursor is
// handed to a stream: together they show each event once.
func TestPagesOfTheWorkspaceGoOnAsAStream(t *testing.T) {
	s := startServer(t)
	w := s.write(12, 40)
	eventually(t, 30*time.Second, "a few pages are there", func() error {
		if n := len(w.ids("")); n < 2000 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	type walk struct {
		of, query string
		seen      []string
		stream    *listener
	}
	walks := []*walk{{}, {of: "rare", query: "&type=rare"}}
	for _, k := range walks {
		cursor := ""
		for {
			p := getJSON[page](s, "/v1/events?pageSize=100"+k.query+"&cursor="+cursor)
			for _, e := range p.Data {
				k.seen = append(k.seen, e.EventID)
			}
			if cursor = p.Pagination.NextCursor; !p.Pagination.HasMore {
				break
			}
		}
		k.stream = s.listen("/v1/stream?on_slow=replay"+k.query, cursor)
	}
	before := len(w.ids(""))
	eventually(t, 30*time.Second, "more is appended", func() error {
		if n := len(w.ids("")); n < before+2000 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	w.stop()
	for _, k := range walks {
		want := slices.Sorted(slices.Values(w.ids(k.of)))
		var got []string
		eventually(t, 30*time.Second, "the stream has the rest", func() error {
			got = slices.Clone(k.seen)
			for _, id := range k.stream.ids() {
				if id, _, _ = strings.Cut(id, "~"); !strings.HasPrefix(id, "heartbeat_") {
					got = append(got, id)
				}
			}
			if len(got) < len(want) {
				return fmt.Errorf("%d of %d", len(got), len(want))
			}
			return nil
		})
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("pages%s and stream: %d events, %d distinct; want %d, each once", k.query, len(got), len(distinct(got)), len(want))
		}
	}

	// Downwards it is the same, of what was there when it began; and counts agree.
	seen := make(map[string]bool)
	cursor := ""
	for {
		p := getJSON[page](s, "/v1/events?pageSize=100&order=desc&cursor="+cursor)
		for _, e := range p.Data {
			if seen[e.EventID] {
				t.Fatalf("%s comes twice", e.EventID)
			}
			seen[e.EventID] = true
		}
		if cursor = p.Pagination.NextCursor; !p.Pagination.HasMore {
			break
		}
	}
	if want := w.ids(""); len(seen) != len(want) || len(distinct(append(want, slices.Collect(maps.Keys(seen))...))) != len(want) {
		t.Errorf("downwards: %d events, want %d", len(seen), len(want))
	}
	one := w.ids("rare")[0]
	got := getJSON[struct {
		EventID       string `json:"eventId"`
		EventTypeName string `json:"eventTypeName"`
	}](s, "/v1/events/"+one)
	if got.EventID != one || got.EventTypeName != "rare" {
		t.Errorf("GET /v1/events/%s = %+v", one, got)
	}
}

func distinct(ids []string) map[string]bool {
	out := make(map[string]bool)
	for _, id := range ids {
		out[id] = true
	}
	return out
}
