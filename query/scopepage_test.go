package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// worlds are the partitions of one log.
type worlds []*world

func (ws worlds) Open(ctx context.Context, p uint16) (Tape, error) { return ws[p].Open(ctx, p) }

func (ws worlds) Get(p uint16) int64 { return ws[p].Get(p) }

func (ws worlds) Bounds(ctx context.Context, p uint16) (int64, int64, error) {
	return ws[p].Bounds(ctx, p)
}

func (ws worlds) HighWatermark(ctx context.Context, p uint16) (int64, error) {
	return ws[p].HighWatermark(ctx, p)
}

func (ws worlds) OffsetForTime(ctx context.Context, p uint16, ms int64) (int64, error) {
	return ws[p].OffsetForTime(ctx, p, ms)
}

func (ws worlds) Read(ctx context.Context, p uint16, from, to int64, fn func(*kgo.Record) error) (int64, error) {
	return ws[p].Read(ctx, p, from, to, fn)
}

// api returns the paths over all partitions.
func (ws worlds) api(cfg Config) *API {
	w := ws[0]
	return NewAPI(cfg, Deps{
		History: w.history, Tapes: ws, Log: ws, Committed: ws,
		Placement: func(string) schema.Placement { return schema.Placement{Partitions: len(ws), Shards: len(ws)} },
		PageSize:  func(string) int { return 100 },
		Epoch:     w.epoch, Dedupe: w.rule, Logger: newTestLog(w.t), Metrics: NewMetrics(nil),
	})
}

func newWorlds(t testing.TB, r *rand.Rand, h *History, insert func([]*schema.Event), workspace string) worlds {
	epoch := pick[uint8](r, 1, 1, 2)
	const partitions = 3
	var ws worlds
	for p := range uint16(partitions) {
		ws = append(ws, newWorldOf(t, r, h, insert, workspace, epoch, p, partitions))
	}
	return ws
}

// merged lists what of a scope a filter takes, in the order of pages: epoch after epoch, and
// in each its partitions merged by append time, offset order kept within each.
func (ws worlds) merged(scope schema.Scope, req *pageRequest) []*schema.Event {
	legs := make(map[schema.Position][]*schema.Event) // by epoch and partition
	for _, w := range ws {
		for _, e := range w.visible(false) {
			if scope.Holds(e) && req.filter.Match(e) {
				leg := schema.Position{Epoch: e.ID.Epoch, Partition: e.ID.Partition}
				legs[leg] = append(legs[leg], e)
			}
		}
	}
	if req.descending {
		for _, events := range legs {
			slices.Reverse(events)
		}
	}
	direction := func(c int) int {
		if req.descending {
			return -c
		}
		return c
	}
	var out []*schema.Event
	for {
		var next []*schema.Event
		for _, events := range legs {
			if len(events) > 0 {
				next = append(next, events[0])
			}
		}
		if len(next) == 0 {
			return out
		}
		first := slices.MinFunc(next, func(a, b *schema.Event) int {
			return direction(cmp.Or(cmp.Compare(a.ID.Epoch, b.ID.Epoch), cmp.Compare(a.ID.TimeMs, b.ID.TimeMs), cmp.Compare(a.ID.Partition, b.ID.Partition)))
		})
		out = append(out, first)
		leg := schema.Position{Epoch: first.ID.Epoch, Partition: first.ID.Partition}
		legs[leg] = legs[leg][1:]
	}
}

// TestScopePagesEqualTheLog walks random workspaces and workflows, page by page, while rows
// are committed, tapes and logs move on and events are appended. All pages of a walk together
// are what a list says: going up, of all that was there at the end; going down, of all that
// was there at the beginning.
func TestScopePagesEqualTheLog(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	away := brokenHistory(t)
	partial := 0
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(11, seed))
		workspace := fmt.Sprint("v", seed)
		ws := newWorlds(t, r, h, func(events []*schema.Event) { insert(t, conn, events) }, workspace)
		for range 3 {
			for _, w := range ws {
				if w.history = h; r.IntN(2) == 0 {
					w.move()
				}
			}
			if r.IntN(4) == 0 {
				ws[0].history = away
			}
			partial += ws.walk(workspace, fmt.Sprint("seed ", seed))
		}
	}
	if partial == 0 {
		t.Error("no page was partial, want some of those that have no time")
	}
}

// walk reads a scope to its end, or its beginning. It returns how many pages were partial.
func (ws worlds) walk(workspace, what string) (partial int) {
	t, r := ws[0].t, ws[0].r
	req := pageRequest{limit: pick(r, 4, 20, 50, 100), descending: r.IntN(2) == 0, payloads: true}
	if r.IntN(2) == 0 {
		req.filter = randomFilter(r)
	}
	scope := schema.Scope{Workspace: workspace}
	if r.IntN(3) == 0 {
		scope.Workflow = pick(r, "wf1", "wf2")
	}
	cfg := DefaultConfig()
	if r.IntN(4) == 0 {
		cfg.QueryTimeout = 1 // the time for looking is over at once; statements have the history's own
	}
	degraded := ws[0].history.breaker.cb.State() != 0
	want := ws.merged(scope, &req)
	var got []*schema.Event
	what = fmt.Sprintf("%s: scope %+v limit %d desc %v filter %+v epoch %d away %v", what, scope, req.limit, req.descending, req.filter, ws[0].epoch, degraded)
	for pages := 0; ; pages++ {
		if pages == 1000 {
			t.Fatalf("%s: no end after %d pages", what, pages)
		}
		answer, err := ws.api(cfg).page(t.Context(), everyKey, scope, &req)
		if err != nil {
			ws.checkRefused(what, err, degraded)
			return partial
		}
		p := answer.page
		got = append(got, pageEvents(p)...)
		if p.partial {
			if partial++; !p.more {
				t.Fatalf("%s, page %d: partial, and says there is no more", what, pages)
			}
		}
		if len(p.items) > req.limit || len(p.items) < req.limit && p.more && !p.partial && !p.degraded {
			t.Fatalf("%s, page %d: %d events, more %v", what, pages, len(p.items), p.more)
		}
		if p.degraded && req.descending && p.more && len(p.items) < req.limit {
			return partial // cut where Kafka ends
		}
		// The position is exact for streams and exports as well: it says of every partition
		// what has been read.
		for _, w := range ws {
			if _, ok := answer.cursor.Next(w.at); !ok && answer.cursor.ID.Epoch == w.epoch {
				t.Fatalf("%s, page %d: cursor %v says nothing of partition %d", what, pages, answer.cursor, w.at)
			}
		}
		if !p.more {
			break
		}
		req.cursor = answer.cursor
		parsed, err := schema.ParseCursor(answer.cursor.String())
		if err != nil || parsed.String() != answer.cursor.String() {
			t.Fatalf("%s, page %d: cursor %q is read as %v, %v", what, pages, answer.cursor, parsed, err)
		}
		w := ws[r.IntN(len(ws))]
		if pages < 15 && r.IntN(4) == 0 {
			w.grow(workspace, r.IntN(20))
		}
		if r.IntN(6) == 0 {
			w.move()
		}
	}
	if !req.descending {
		want = ws.merged(scope, &req)
	}
	if !slices.EqualFunc(got, want, func(a, b *schema.Event) bool { return a.ID == b.ID }) {
		// While events are appended, the order of the whole is that of the pages: the end of one
		// partition may be shown before another goes on at an earlier time. Nothing is missing
		// or twice all the same, and each partition is in order.
		checkSameEvents(t, what, got, want)
	}
	return partial
}

// checkSameEvents compares partition by partition.
func checkSameEvents(t testing.TB, what string, got, want []*schema.Event) {
	t.Helper()
	split := func(events []*schema.Event) map[uint32][]*schema.Event {
		out := make(map[uint32][]*schema.Event)
		for _, e := range events {
			leg := uint32(e.ID.Epoch)<<16 | uint32(e.ID.Partition)
			out[leg] = append(out[leg], e)
		}
		return out
	}
	gotLegs, wantLegs := split(got), split(want)
	for leg := range maps.Keys(wantLegs) {
		checkEqual(t, fmt.Sprintf("%s: partition %d", what, leg&0xffff), gotLegs[leg], wantLegs[leg])
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d events, want %d", what, len(got), len(want))
	}
}

func (ws worlds) checkRefused(what string, err error, degraded bool) {
	t := ws[0].t
	t.Helper()
	answer, ok := errors.AsType[*httpapi.Error](err)
	if !ok || answer.Status != 503 || answer.RetryAfter <= 0 || !degraded {
		t.Fatalf("%s: %v", what, err)
	}
	for _, w := range ws {
		if w.epoch != 1 || w.start != 0 {
			return
		}
	}
	t.Fatalf("%s: refused though Kafka holds the log whole: %v", what, err)
}

// TestScopePageIsInTimeOrder reads a workspace that nobody appends to.
func TestScopePageIsInTimeOrder(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(12, seed))
		workspace := fmt.Sprint("u", seed)
		ws := newWorlds(t, r, h, func(events []*schema.Event) { insert(t, conn, events) }, workspace)
		for _, w := range ws {
			w.move()
		}
		for _, descending := range []bool{false, true} {
			req := pageRequest{limit: 1 + r.IntN(100), descending: descending, payloads: true}
			scope := schema.Scope{Workspace: workspace}
			want := ws.merged(scope, &req)
			var got []*schema.Event
			for {
				answer, err := ws.api(DefaultConfig()).page(t.Context(), everyKey, scope, &req)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, pageEvents(answer.page)...)
				if req.cursor = answer.cursor; !answer.page.more {
					break
				}
			}
			checkEqual(t, fmt.Sprintf("seed %d descending %v", seed, descending), got, want)
		}
	}
}
