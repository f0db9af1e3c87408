package query

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// wantPage is a page by its definition, over all that may be seen.
func (w *world) wantPage(workspace, session string, req *pageRequest) (events []*schema.Event, more bool) {
	var all []*schema.Event
	for _, e := range w.visible(false) {
		c := req.cursor
		if e.Workspace != workspace || e.Session != session || !req.filter.Match(e) {
			continue
		}
		if !c.IsZero() && (req.descending && !before(e.ID.Position, c.ID.Position) || !req.descending && !before(c.ID.Position, e.ID.Position)) {
			continue
		}
		all = append(all, e)
	}
	if req.descending {
		slices.Reverse(all)
	}
	n := min(len(all), req.limit)
	return all[:n], len(all) > n
}

func pageEvents(p page) []*schema.Event {
	var out []*schema.Event
	for _, item := range p.items {
		out = append(out, item.event)
	}
	return out
}

// TestPagesEqualTheLog walks random sessions of random logs, page by page, while rows
// are committed, the tape and the log move on and events are appended, and compares
// every page with a list.
func TestPagesEqualTheLog(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	away := brokenHistory(t)
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(10, seed))
		workspace := fmt.Sprint("w", seed)
		w := newWorld(t, r, h, func(events []*schema.Event) { insert(t, conn, events) }, workspace)
		for range 3 {
			if r.IntN(2) == 0 {
				w.move()
			}
			w.history, w.stateAway = h, false
			if r.IntN(3) == 0 {
				w.history, w.stateAway = away, r.IntN(2) == 0
			}
			w.walk(workspace, fmt.Sprint("seed ", seed))
		}
	}
}

// walk reads a session to its end, or its beginning, and checks every page.
func (w *world) walk(workspace, what string) {
	t := w.t
	req := pageRequest{
		limit: pick(w.r, 1, 5, 20, 20, 100), descending: w.r.IntN(2) == 0, payloads: true,
	}
	if w.r.IntN(2) == 0 {
		req.filter = randomFilter(w.r)
	}
	session := pick(w.r, "s1", "s2")
	who := everyKey
	who.Workspace = workspace
	for pages := range 25 {
		what := fmt.Sprintf("%s, page %d of %s: limit %d desc %v epoch %d filter %+v cursor %v; log [%d, %d) committed %d rows %d tape %d warm %d away %v %v",
			what, pages, session, req.limit, req.descending, w.epoch, req.filter, req.cursor.ID.Position,
			w.start, w.end, w.committed, w.rows, w.tapeStart, w.warmAt, w.history.breaker.cb.State(), w.stateAway)
		got, err := w.api(DefaultConfig()).page(t.Context(), who, schema.Scope{Workspace: workspace, Session: session}, &req)
		want, more := w.wantPage(workspace, session, &req)
		if err != nil {
			w.checkRefused(what, session, &req, err, want)
			return
		}
		if got.page.degraded && req.descending && len(got.page.items) < len(want) { // cut where Kafka ends
			if len(got.page.items) == 0 {
				t.Fatalf("%s: an empty page, want %d events", what, len(want))
			}
			want, more = want[:len(got.page.items)], true
		}
		events := pageEvents(got.page)
		for _, e := range events { // ClickHouse and Kafka differ in what no client sees
			if len(e.Payload) == 0 {
				t.Fatalf("%s: event %v has no payload", what, e.ID)
			}
		}
		checkEqual(t, what, events, want)
		if got.page.more != more && !got.page.degraded {
			t.Fatalf("%s: hasMore %v, want %v", what, got.page.more, more)
		}
		if got.cursor.IsZero() && (len(want) > 0 || got.state.EventCount > 0 && !w.stateAway) {
			t.Fatalf("%s: no cursor", what)
		}
		if !got.page.more {
			return
		}
		req.cursor = got.cursor
		if w.r.IntN(3) == 0 {
			w.grow(workspace, w.r.IntN(20))
		}
		if w.r.IntN(6) == 0 {
			w.move()
		}
	}
}

// checkRefused checks that a page was refused for a reason: it does not exist, or
// ClickHouse is away and Kafka does not hold it.
func (w *world) checkRefused(what, session string, req *pageRequest, err error, want []*schema.Event) {
	w.t.Helper()
	var answer *httpapi.Error
	if !errors.As(err, &answer) {
		w.t.Fatalf("%s: %v", what, err)
	}
	switch {
	case answer.Status == 404 && len(want) == 0:
	case answer.Status == 503 && answer.RetryAfter > 0 && w.history.breaker.cb.State() != 0:
		if w.epoch == 1 && w.start == 0 && !w.stateAway {
			w.t.Fatalf("%s: refused though Kafka holds the session whole: %v", what, err)
		}
	default:
		w.t.Fatalf("%s: %v", what, err)
	}
}

// brokenHistory is a History whose breaker is open for the length of the test.
func brokenHistory(t testing.TB) *History {
	t.Helper()
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{"127.0.0.1:1"}, DialTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	cfg := DefaultConfig()
	cfg.Breaker = BreakerConfig{Failures: 1, Open: time.Hour}
	h := NewHistory(conn, cfg, slog.New(slog.DiscardHandler), NewMetrics(nil))
	_, err = h.SessionBase(t.Context(), SessionRef{Workspace: "w", Session: "s"}, everything)
	if !errors.Is(err, ErrUnavailable) {
		t.Fatalf("SessionBase over a closed port = %v, want ErrUnavailable", err)
	}
	return h
}
