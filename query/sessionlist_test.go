package query

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// listWorld is a log of several partitions that sessions are listed from.
type listWorld struct {
	worlds
	r         *rand.Rand
	workspace string
	sessions  []string
	ms        []int64 // of each partition's last record
	ends      []int64 // what the partitions' ends are said to be; nil: what they are
}

func (w *listWorld) HighWatermark(_ context.Context, p uint16) (int64, error) {
	if w.ends != nil {
		return w.ends[p], nil
	}
	return w.worlds[p].end, nil
}

func (w *listWorld) placement() schema.Placement {
	return schema.Placement{Partitions: len(w.worlds), Shards: len(w.worlds)}
}

func (w *listWorld) api() *API {
	return NewAPI(DefaultConfig(), Deps{
		History: w.worlds[0].history, Tapes: w, Log: w, Committed: w,
		Placement: func(string) schema.Placement { return w.placement() },
		PageSize:  func(string) int { return 100 },
		Epoch:     w.worlds[0].epoch, Dedupe: w.worlds[0].rule, Logger: newTestLog(w.worlds[0].t), Metrics: NewMetrics(nil),
	})
}

// next makes a record of one of the sessions. Times jump over hours, and run back.
func (w *listWorld) next(session string, p uint16, pos schema.Position) *schema.Event {
	r := w.r
	w.ms[p] += pick(r, r.Int64N(40), r.Int64N(1000), r.Int64N(400_000), -r.Int64N(3000), 0)
	if r.IntN(40) == 0 {
		w.ms[p] += r.Int64N(4 * 3_600_000)
	}
	ms := w.ms[p]
	if r.IntN(30) == 0 {
		ms -= r.Int64N(2 * 3_600_000)
	}
	e := randomEvent(r, pick(r, w.workspace, w.workspace, w.workspace, w.workspace, w.workspace+"x"), session, pos, ms)
	e.Workflow = pick(r, "", "", "wf1", "wf2")
	if r.IntN(300) == 0 {
		e.Workflow = "rare"
	}
	switch r.IntN(12) {
	case 0, 1:
		e.Type = schema.TypeSessionCreated
		e.Payload = []byte(pick(r, `{"kind":"call","metadata":{"a":"b"}}`, `{"kind":"conversation"}`, `{"kind":"none"}`))
	case 2:
		e.Type = schema.TypeSessionEnded
	}
	return e
}

func newListWorld(t *testing.T, r *rand.Rand, h *History, insert func([]*schema.Event), workspace string, sessions int) *listWorld {
	w := &listWorld{r: r, workspace: workspace}
	epoch := pick[uint8](r, 1, 1, 2)
	start := pick(r, int64(testStartMs), time.Now().UnixMilli()-5*24*3_600_000)
	for i := range sessions {
		w.sessions = append(w.sessions, fmt.Sprint("s", i))
	}
	for p := range uint16(3) {
		one := &world{t: t, r: r, epoch: epoch, at: p, history: h, insert: insert, rule: schema.DedupeRule{Offsets: 60, Age: 1500 * 1e6}}
		one.windows = schema.NewWindow(one.rule)
		w.worlds, w.ms = append(w.worlds, one), append(w.ms, start)
	}
	if epoch == 2 {
		for range r.IntN(200) {
			session := pick(r, w.sessions...)
			p := w.placement().Partition(workspace, session)
			one := w.worlds[p]
			pos := schema.Position{Epoch: 1, Partition: 5, Offset: int64(len(one.old)*4 + int(p))}
			one.old = append(one.old, w.next(session, p, pos))
		}
		for _, one := range w.worlds {
			if len(one.old) > 0 {
				insert(one.old)
			}
		}
	}
	w.grow(r.IntN(500))
	return w
}

func (w *listWorld) grow(n int) {
	for range n {
		session := pick(w.r, w.sessions...)
		if w.r.IntN(10) == 0 {
			session = fmt.Sprint("new", w.r.IntN(100_000))
		}
		p := w.placement().Partition(w.workspace, session)
		one := w.worlds[p]
		one.append(w.next(session, p, schema.Position{Epoch: one.epoch, Partition: p, Offset: one.end + pick[int64](w.r, 0, 0, 0, 1, 3)}))
	}
}

// want is the list by its definition: all sessions that it holds behind the cursor.
func (w *listWorld) want(req *listRequest) []listItem {
	states := make(map[string]schema.Session)
	for p, one := range w.worlds {
		for _, e := range one.visible(true) {
			if e.Workspace != w.workspace || w.ends != nil && e.ID.Epoch == one.epoch && e.ID.Offset >= w.ends[p] {
				continue
			}
			s, ok := states[e.Session]
			if !ok {
				s = schema.NewSession()
			}
			s.Apply(e)
			states[e.Session] = s
		}
	}
	var out []listItem
	for id, s := range states {
		key := req.key(id, &s)
		after := req.cursor.isZero() || key.compare(req.cursor) > 0
		if req.descending {
			after = req.cursor.isZero() || key.compare(req.cursor) < 0
		}
		if after && req.takes(&s) {
			out = append(out, listItem{key, s})
		}
	}
	slices.SortFunc(out, func(a, b listItem) int {
		if req.descending {
			return b.key.compare(a.key)
		}
		return a.key.compare(b.key)
	})
	return out
}

func (w *listWorld) randomRequest() listRequest {
	r := w.r
	req := listRequest{limit: pick(r, 2, 5, 20, 100), orderBy: pick(r, orderRecency, orderStart), descending: true, cursorWasAbsent: true}
	if req.orderBy == orderStart {
		req.descending = r.IntN(2) == 0
	}
	if r.IntN(3) == 0 {
		req.status = pick(r, schema.StatusActive, schema.StatusEnded)
	}
	if r.IntN(3) == 0 {
		req.kind = pick(r, schema.KindSession, schema.KindCall, schema.KindConversation)
	}
	if r.IntN(2) == 0 {
		req.workflow = pick(r, "wf1", "wf1", "rare", "none")
	}
	at := func() *int64 {
		ms := w.ms[0] - r.Int64N(20*3_600_000)
		return &ms
	}
	if r.IntN(3) == 0 {
		req.after = at()
	}
	if r.IntN(3) == 0 {
		req.before = at()
	}
	return req
}

// read reads a page with bounds that are reached, and with no time if late.
func (w *listWorld) read(t *testing.T, req *listRequest, late bool) (*listReader, error) {
	t.Helper()
	api := w.api()
	views, err := api.open(t.Context(), schema.Scope{Workspace: w.workspace})
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour)
	if late {
		until = time.Time{}
	}
	list := &listReader{
		api: api, workspace: w.workspace, views: views, req: req, until: until,
		bounds: listBounds{places: pick(w.r, 2, 7, 1000), hours: pick(w.r, 2, 1000), rows: pick(w.r, 1, 40, 10_000), named: pick(w.r, 0, 3, 3, 1000)},
	}
	return list, list.read(t.Context())
}

func checkList(t *testing.T, what string, got, want []listItem) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("%s: %d sessions, want %d; the first missing is %+v", what, len(got), len(want), want[i])
		case i >= len(want):
			t.Fatalf("%s: %d sessions, want %d; the first too many is %+v", what, len(got), len(want), got[i])
		}
		g, w := got[i].state.View(got[i].key.id), want[i].state.View(want[i].key.id)
		if got[i].key != want[i].key || !reflect.DeepEqual(g, w) {
			t.Fatalf("%s: session %d is\n%+v at %v, want\n%+v at %v", what, i, g, got[i].key, w, want[i].key)
		}
	}
}

// TestListsEqualTheFold walks random lists, page by page, while rows are committed, the
// tape and the log move on and sessions are appended to, and compares every page with the
// fold of all logs.
func TestListsEqualTheFold(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	away := brokenHistory(t)
	partial, degraded, refused, listed := 0, 0, 0, 0
	for seed := range uint64(9) {
		r := rand.New(rand.NewPCG(12, seed))
		w := newListWorld(t, r, h, func(events []*schema.Event) { insert(t, conn, events) }, fmt.Sprint("l", seed), pick(r, 3, 40, 40))
		for walk := range 6 {
			for _, one := range w.worlds {
				if one.history = h; r.IntN(2) == 0 {
					one.move()
				}
				if walk == 5 {
					one.history = away
				}
				if walk == 5 && seed%2 == 0 { // Kafka has kept it all
					one.start = 0
				}
			}
			req := w.randomRequest()
			seen := make(map[string]bool)
			first := w.want(&req) // of what was there when the walk began
			whole := false
			for pages := 0; pages < 15; pages++ {
				late := r.IntN(4) == 0
				what := fmt.Sprintf("seed %d, walk %d, page %d: %+v late %v", seed, walk, pages, req, late)
				w.ends = nil
				if walk == 4 && (pages == 0 || req.orderBy == orderStart) { // rows are there of records behind the page's end
					for _, one := range w.worlds {
						w.ends = append(w.ends, one.committed)
					}
				}
				got, err := w.read(t, &req, late)
				if err != nil {
					inKafka := true
					for _, one := range w.worlds {
						inKafka = inKafka && one.epoch == 1 && one.start == 0
					}
					if walk != 5 || inKafka || !is503(historyError(err)) {
						t.Fatalf("%s: %v", what, err)
					}
					refused++
					break
				}
				want := w.want(&req)
				more := len(want) > req.limit
				if want = want[:min(len(want), req.limit)]; got.partial {
					if !late || len(got.listed) == req.limit {
						t.Fatalf("%s: partial with %d sessions", what, len(got.listed))
					}
					want, more = want[:min(len(want), len(got.listed))], true
					partial++
				}
				checkList(t, what, got.listed, want)
				if more = more || late && got.more; got.more != more || got.degraded != (walk == 5) && len(got.listed) > 0 {
					t.Fatalf("%s: more %v, degraded %v, want %v, %v", what, got.more, got.degraded, more, walk == 5)
				}
				for _, item := range got.listed {
					if seen[item.key.id] {
						t.Fatalf("%s: %s comes again", what, item.key.id)
					}
					seen[item.key.id] = true
				}
				if got.degraded {
					degraded++
				}
				listed += len(want)
				if whole = !got.more; whole {
					break
				}
				cursor := got.answer().Pagination.NextCursor
				key, _, ok := parseListCursor(*cursor)
				if !ok || key == req.cursor {
					t.Fatalf("%s: cursor %s does not parse, or does not move on", what, *cursor)
				}
				req.cursor = key
				if walk < 4 && r.IntN(3) == 0 {
					w.grow(r.IntN(10))
				}
				if walk < 4 && r.IntN(6) == 0 {
					pick(r, w.worlds...).move()
				}
			}
			if whole && walk < 4 && req.orderBy == orderStart && req.status+req.kind+req.workflow == "" {
				for _, item := range first {
					if !seen[item.key.id] {
						t.Fatalf("seed %d, walk %d: %+v was never shown: %+v", seed, walk, req, item)
					}
				}
			}
		}
	}
	if partial == 0 || degraded == 0 || refused == 0 || listed < 200 {
		t.Errorf("%d partial pages, %d degraded, %d refused, %d sessions; want some of each", partial, degraded, refused, listed)
	}
}

func is503(err error) bool {
	answer, ok := errors.AsType[*httpapi.Error](err)
	return ok && answer.Status == 503 && answer.RetryAfter > 0
}

// TestListOfAWorkflowHasSessionsThatJoinItLate: a session whose rows name no workflow yet
// stands where its rows say, though only a record above them makes it one of the workflow.
func TestListOfAWorkflowHasSessionsThatJoinItLate(t *testing.T) {
	conn, _ := openEngine(t)
	one := &world{t: t, epoch: 1, history: newHistory(t, conn), insert: func(e []*schema.Event) { insert(t, conn, e) }, rule: schema.DedupeRule{Offsets: 1000, Age: 1e12}}
	one.windows = schema.NewWindow(one.rule)
	w := &listWorld{r: rand.New(rand.NewPCG(1, 1)), workspace: "w1", worlds: worlds{one}}
	for i, session := range []string{"late", "other", "another", "late"} {
		e := siteEvent(int64(i), "memo", `{}`)
		if e.Session = session; i == 0 {
			e.Workflow = ""
		}
		one.append(e)
	}
	one.materialise(3)
	one.committed = 3
	for _, named := range []int{0, 100} {
		api := w.api()
		views, err := api.open(t.Context(), schema.Scope{Workspace: "w1"})
		if err != nil {
			t.Fatal(err)
		}
		bounds := defaultListBounds()
		bounds.named = named
		list := &listReader{
			api: api, workspace: "w1", views: views, until: time.Now().Add(time.Hour), bounds: bounds,
			req: &listRequest{limit: 1, orderBy: orderStart, workflow: "wf1"},
		}
		if err := list.read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(list.listed) != 1 || list.listed[0].key.id != "late" || !list.more {
			t.Errorf("naming %d sessions: %+v, more %v, want late and more", named, list.listed, list.more)
		}
	}
}

// TestSessionBasesTakeTheFirstCreation: creations of several sessions are read by their
// offsets, which are those of other records in other partitions.
func TestSessionBasesTakeTheFirstCreation(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	created := func(session string, partition uint16, offset int64, payload string) *schema.Event {
		e := siteEvent(offset, schema.TypeSessionCreated, payload)
		e.Session, e.ID.Partition = session, partition
		return e
	}
	insert(t, conn, []*schema.Event{
		created("a", 0, 1, `{"kind":"call"}`), created("a", 0, 5, `{"kind":"conversation"}`),
		created("b", 1, 5, `{"kind":"session"}`), created("b", 1, 7, `{"kind":"call"}`), created("c", 1, 6, `{"kind":"call"}`),
	})
	partitions := map[string]uint16{"a": 0, "b": 1, "c": 1}
	got, err := h.SessionBases(t.Context(), "w1", 1, []window{{partition: 0, to: 10}, {partition: 1, to: 6}},
		func(s string) uint16 { return partitions[s] }, []string{"a", "b", "c"})
	if err != nil || len(got) != 2 || got["a"].Kind != schema.KindCall || got["b"].Kind != schema.KindSession {
		t.Errorf("SessionBases = %+v, %v, want a as a call, b as a session, and no c, which is in doubt", got, err)
	}
}

func TestListStatementsUseTheSums(t *testing.T) {
	conn, _ := openEngine(t)
	err := conn.Exec(t.Context(), `INSERT INTO events (workspace_id, session_id, log_epoch, kafka_partition, kafka_offset, ts, type, payload)
		SELECT 'w', 's' || toString(intDiv(number, 100)), 1, 3, number, toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalSecond(number), 'a', '{}' FROM numbers(600000)`)
	if err != nil {
		t.Fatal(err)
	}
	plan := func(query, settings string, args []any) string {
		rows, err := conn.Query(t.Context(), "EXPLAIN indexes = 1 "+query+"\nSETTINGS max_execution_time = 3"+settings, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var b strings.Builder
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			b.WriteString(line + "\n")
		}
		return b.String()
	}
	from := int64(testStartMs) + 10*listHourMs
	for _, order := range []string{orderRecency, orderStart} {
		l := &listRows{workspace: "w", req: &listRequest{orderBy: order, descending: true}, bounds: defaultListBounds(), from: from, to: from + listHourMs, at: listKey{ms: from + listHourMs}}
		got := plan(l.statement(nil))
		if !strings.Contains(got, "ReadFromMergeTree (sessions)") || !strings.Contains(got, "toStartOfHour(ts) in") {
			t.Errorf("places by %s do not use the projection and its key:\n%s", order, got)
		}
		query, args := l.hoursStatement(0, endOfHours)
		if got := plan(query, settingsByHour, args); !strings.Contains(got, "ReadFromMergeTree (by_hour)") {
			t.Errorf("hours do not use the projection:\n%s", got)
		}
	}
	s := stateRows{workspace: "w", sessions: []string{"s17", "s4000"}, below: func(s *statement) { s.below(2, []window{{partition: 3, to: 100}}) }}
	query, args := s.statement(nil)
	if got := plan(query, settingsBySession, args); !strings.Contains(got, "ReadFromMergeTree (by_session)") || !strings.Contains(got, "session_id in") {
		t.Errorf("states do not use the projection and its key:\n%s", got)
	}
}
