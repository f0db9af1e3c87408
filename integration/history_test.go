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

// writer appends to a few sessions, batch after batch, and keeps the ids that were
// acknowledged by their types.
type writer struct {
	s       *server
	batches int

	mu    sync.Mutex
	acked map[string]string // type by id
}

// Of a writer: its sessions, the events of a batch, and how many of these are of type rare.
const (
	writerSessions = 12
	writerBatch    = 40
	writerRare     = 4
)

// write appends n batches, one after the other.
func (w *writer) write(n int) error {
	for range n {
		var lines []string
		for i := range writerBatch {
			typ := "tick"
			if i < writerRare {
				typ = "rare"
			}
			lines = append(lines, fmt.Sprintf(`{"type":%q,"payload":{"n":%d},"message_id":"b%d-%d"}`, typ, i, w.batches, i))
		}
		path := fmt.Sprintf("/v1/sessions/s%d/events", w.batches%writerSessions)
		status, b, err := w.s.try(http.MethodPost, path, "application/json", `{"events":[`+strings.Join(lines, ",")+`]}`)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("append: %d %s %w", status, b, err)
		}
		w.batches++
		w.mu.Lock()
		for i, id := range idsOf(w.s.t, b) {
			if w.acked[id] = "tick"; i < writerRare {
				w.acked[id] = "rare"
			}
		}
		w.mu.Unlock()
	}
	return nil
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
	w := &writer{s: s, acked: make(map[string]string)}
	if err := w.write(50); err != nil {
		t.Fatal(err)
	}
	type walk struct {
		of, query string
		seen      []string
		stream    *listener
	}
	walks := []*walk{{}, {of: "rare", query: "&type=rare"}}
	for _, k := range walks {
		var beside sync.WaitGroup // more arrives while the pages are read: as much again
		beside.Go(func() {
			if err := w.write(50); err != nil {
				t.Error(err)
			}
		})
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
		beside.Wait()
	}
	if err := w.write(50); err != nil { // and while the streams are open
		t.Fatal(err)
	}
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
