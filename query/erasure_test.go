package query

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// erasureList is a store of erasures in memory.
type erasureList struct {
	mu  sync.Mutex
	all []schema.Erasure
	set schema.Erasures
}

func (l *erasureList) add(e schema.Erasure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
	l.set.Add(&e)
}

func (l *erasureList) ErasedBelow(workspace, session string) schema.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.set.Below(workspace, session)
}

func (l *erasureList) list(want func(*schema.Erasure) bool) (out []schema.Erasure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.all {
		if want(&l.all[i]) {
			out = append(out, l.all[i])
		}
	}
	return out
}

func (l *erasureList) Erasures(workspace string) []schema.Erasure {
	return l.list(func(e *schema.Erasure) bool { return e.Workspace == workspace })
}

func (l *erasureList) PendingErasures(workspace string) []schema.Erasure {
	return l.list(func(e *schema.Erasure) bool { return e.Workspace == workspace && !e.Done() })
}

func (l *erasureList) ErasedWorkspaces(pending bool) (out []string) {
	for _, e := range l.list(func(e *schema.Erasure) bool { return !pending || !e.Done() }) {
		out = append(out, e.Workspace)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (l *erasureList) FinishErasure(_ context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.all {
		if l.all[i].ID == id {
			l.all[i].DoneMs = time.Now().UnixMilli()
		}
	}
	return nil
}

func (l *erasureList) ForgetErasure(_ context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(e schema.Erasure) bool { return e.ID == id })
	return nil
}

func (l *erasureList) done(id string) bool {
	return len(l.list(func(e *schema.Erasure) bool { return e.ID == id && e.Done() })) == 1
}

// foundRow is what the tests look at of a row.
type foundRow struct {
	session, kind, payload, message, workflow, content string
	position                                           uint64
	metadata                                           map[string]string
	ms                                                 int64
	client                                             *time.Time
	tMs                                                uint64
}

func allRows(t *testing.T, conn driver.Conn, where string) []foundRow {
	t.Helper()
	rows, err := conn.Query(t.Context(), "SELECT session_id, toString(type), payload, message_id, toString(workflow_id), toString(content_type), "+packedPosition+
		" AS pos, metadata, toUnixTimestamp64Milli(ts), client_ts, t_ms FROM events WHERE "+where+" ORDER BY pos, kafka_partition")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []foundRow
	for rows.Next() {
		var r foundRow
		if err := rows.Scan(&r.session, &r.kind, &r.payload, &r.message, &r.workflow, &r.content, &r.position, &r.metadata, &r.ms, &r.client, &r.tMs); err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// eraserWorld is a table with rows, and an eraser over it.
type eraserWorld struct {
	t      *testing.T
	conn   driver.Conn
	log    *world
	store  *erasureList
	eraser *Eraser
	now    time.Time
}

func newEraserWorld(t *testing.T, conn driver.Conn) *eraserWorld {
	w := &eraserWorld{t: t, conn: conn, log: &world{t: t}, store: &erasureList{}, now: time.UnixMilli(testStartMs).Add(time.Hour)}
	w.eraser = NewEraser(EraserDeps{
		Conn: conn, Store: w.store, Log: w.log, Committed: w.log, Partitions: 1, Epoch: 2,
		Logger: newTestLog(t), Now: func() time.Time { return w.now },
	})
	w.eraser.rechecked = w.now
	return w
}

// until makes rounds until a condition holds: mutations take their time.
func (w *eraserWorld) until(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if err := w.eraser.round(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func (w *eraserWorld) erasure(id, workspace, session string, below schema.Position) schema.Erasure {
	return schema.Erasure{ID: id, Workspace: workspace, Session: session, Below: below, AtMs: w.now.Add(-eraserDelay).UnixMilli()}
}

func TestErasedRowsBecomeStubs(t *testing.T) {
	conn, _ := openEngine(t)
	r := rand.New(rand.NewPCG(1, 1))
	events := randomLog(r, 3000)
	for half := range slices.Chunk(events, 1000) { // several parts
		insert(t, conn, half)
	}
	before := allRows(t, conn, "1")
	w := newEraserWorld(t, conn)
	below := events[2000].ID.Position
	w.store.add(w.erasure("one", "w1", "s1", below))
	w.store.add(w.erasure("older", "w1", "s1", events[500].ID.Position))
	w.store.add(w.erasure("two", "w1", "s2", schema.Position{Epoch: 1, Offset: 100}))
	w.log.end, w.log.committed = 1_000_000, 1_000_000
	w.until("all are done", func() bool { return len(w.store.PendingErasures("w1")) == 0 })

	key := func(r foundRow) string { return fmt.Sprint(r.position, " ", r.ms) } // one partition an epoch
	after := allRows(t, conn, "1")
	if len(after) != len(before) {
		t.Fatalf("%d rows are left of %d: table and log cannot be compared", len(after), len(before))
	}
	of := make(map[string]*schema.Event)
	for _, e := range events {
		of[fmt.Sprint(packPosition(e.ID.Position), " ", e.ID.TimeMs)] = e
	}
	stubs := 0
	for i, row := range after {
		e := of[key(row)]
		if e == nil {
			t.Fatalf("row %s is of no record", key(row))
		}
		if !w.store.set.Erased(e.Workspace, e.Session, e.ID.Position) {
			if fmt.Sprint(row) != fmt.Sprint(before[i]) && row.client == nil {
				t.Fatalf("a row that is not erased was %+v and is %+v", before[i], row)
			}
			if row.kind != e.Type {
				t.Fatalf("a row that is not erased is %s, was %s", row.kind, e.Type)
			}
			continue
		}
		stubs++
		if row.kind != schema.TypeErased || row.session+row.payload+row.message+row.workflow+row.content != "" || len(row.metadata) > 0 || row.client != nil || row.tMs != 0 {
			t.Fatalf("an erased row still says %+v", row)
		}
	}
	if stubs < 300 {
		t.Fatalf("%d rows were erased; the test is of no use", stubs)
	}
	// What other questions are answered from follows.
	for projection, question := range map[string]string{
		"by_hour":  "SELECT sum(n) FROM (SELECT toStartOfHour(ts) AS hour, type, count() AS n FROM events WHERE workspace_id = 'w1' AND type = '" + schema.TypeErased + "' GROUP BY hour, type)",
		"sessions": "SELECT sum(n) FROM (SELECT toStartOfHour(ts) AS hour, session_id, count() AS n FROM events WHERE workspace_id = 'w1' AND session_id = '' GROUP BY hour, session_id)",
	} {
		var counted uint64
		err := conn.QueryRow(t.Context(), question+" SETTINGS optimize_use_projections = 1, preferred_optimize_projection_name = '"+projection+
			"', force_optimize_projection_name = '"+projection+"'").Scan(&counted)
		if err != nil || counted != uint64(stubs) {
			t.Errorf("projection %s has %d erased rows, %v; want %d", projection, counted, err, stubs)
		}
	}
	var held uint64
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM mergeTreeProjection(currentDatabase(), 'events', 'by_session')"+
		" WHERE workspace_id = 'w1' AND session_id = '' AND payload = '' AND type = '"+schema.TypeErased+"'").Scan(&held); err != nil || held != uint64(stubs) {
		t.Errorf("projection by_session has %d erased rows, %v; want %d", held, err, stubs)
	}
	// Nothing pending, nothing to do.
	if rows, err := w.eraser.rows(t.Context(), "w1", w.store.Erasures("w1")); err != nil || sum(rows) != 0 {
		t.Errorf("%d rows are left to erase, %v", sum(rows), err)
	}
}

func TestAnErasureIsNotDoneBeforeAllOfItIsRows(t *testing.T) {
	conn, _ := openEngine(t)
	at := func(offset int64) *schema.Event {
		return &schema.Event{
			ID:        schema.EventID{Position: schema.Position{Epoch: 2, Offset: offset}, TimeMs: testStartMs},
			Workspace: "w", Session: "s", Type: "a", ContentType: schema.DefaultContentType, Payload: []byte("{}"),
		}
	}
	insert(t, conn, []*schema.Event{at(0), at(1)})
	w := newEraserWorld(t, conn)
	w.store.add(w.erasure("e", "w", "s", schema.Position{Epoch: 2, Offset: 10}))
	w.log.end, w.log.committed = 20, 5
	kinds := func() (out []string) {
		for _, r := range allRows(t, conn, "workspace_id = 'w'") {
			out = append(out, r.kind)
		}
		return out
	}
	w.until("what is there is erased", func() bool { return !slices.Contains(kinds(), "a") })
	for range 5 {
		if err := w.eraser.round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if w.store.done("e") {
		t.Fatal("the erasure is done, with records that are not rows yet")
	}
	// A materialiser that had not heard when it made its batch.
	insert(t, conn, []*schema.Event{at(7), at(12)})
	w.log.committed = 20
	w.until("the erasure is done", func() bool { return w.store.done("e") })
	if got := kinds(); !slices.Equal(got, []string{schema.TypeErased, schema.TypeErased, schema.TypeErased, "a"}) {
		t.Errorf("rows are %v, want the last alone as it was", got)
	}

	// A table put back from a backup.
	insert(t, conn, []*schema.Event{at(3)})
	w.now = w.now.Add(eraserRecheck)
	w.until("it is erased once more", func() bool { return strings.Count(fmt.Sprint(kinds()), "a ") == 0 && len(kinds()) == 5 })
	if !w.store.done("e") {
		t.Error("the erasure is pending again")
	}

	// Kafka deletes the records; a day later nobody needs to remember.
	w.until("the look at what is done has ended", func() bool { return w.eraser.rechecked.Equal(w.now) })
	w.now = time.Now().Add(keepErasures)
	w.log.start = 9
	w.until("the look at what is done has ended", func() bool { return w.eraser.rechecked.Equal(w.now) })
	if len(w.store.Erasures("w")) != 1 {
		t.Fatal("the erasure is forgotten while Kafka can bring back what it took")
	}
	w.now, w.log.start = w.now.Add(eraserRecheck), 10
	w.until("the erasure is forgotten", func() bool { return len(w.store.Erasures("w")) == 0 })
}

func TestAnErasedWorkspaceIsStubsAlone(t *testing.T) {
	conn, _ := openEngine(t)
	r := rand.New(rand.NewPCG(5, 5))
	events := randomLog(r, 500)
	insert(t, conn, events)
	w := newEraserWorld(t, conn)
	w.store.add(w.erasure("e", "w1", "", schema.Position{}))
	w.log.end, w.log.committed = 10, 9
	for range 3 {
		if err := w.eraser.round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if w.store.done("e") {
		t.Fatal("the erasure is done before the records that were there then are rows")
	}
	w.log.end, w.log.committed = 1_000_000, 10 // others go on appending
	w.until("the erasure is done", func() bool { return w.store.done("e") })
	for _, row := range allRows(t, conn, "workspace_id = 'w1'") {
		if row.kind != schema.TypeErased {
			t.Fatalf("a row of the erased workspace is %+v", row)
		}
	}
	var others, want uint64
	for _, e := range events {
		if e.Workspace == "w2" {
			want++
		}
	}
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM events WHERE workspace_id = 'w2' AND type != '"+schema.TypeErased+"'").Scan(&others); err != nil || others != want {
		t.Errorf("%d rows of the other workspace are left, %v; want %d", others, err, want)
	}
}

// TestManyErasuresShareMutations: the longest names fit into a statement, and one round
// begins what there is to begin.
func TestManyErasuresShareMutations(t *testing.T) {
	conn, _ := openEngine(t)
	w := newEraserWorld(t, conn)
	var events []*schema.Event
	for i := range 2*maxErasedAtOnce + 10 {
		session := fmt.Sprintf("%0*d", schema.MaxIDLen, i)
		at := schema.Position{Epoch: 2, Offset: int64(i)}
		events = append(events, &schema.Event{
			ID: schema.EventID{Position: at, TimeMs: testStartMs}, Workspace: fmt.Sprint("w", i%2), Session: session, Type: "a", Payload: []byte("{}"),
		})
		at.Offset++
		w.store.add(w.erasure(session, fmt.Sprint("w", i%2), session, at))
	}
	insert(t, conn, events)
	w.log.end, w.log.committed = 1_000_000, 1_000_000
	if err := w.eraser.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	var begun uint64
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM system.mutations WHERE table = 'events'").Scan(&begun); err != nil || begun != 4 {
		t.Errorf("the first round has begun %d mutations, %v; want 4", begun, err)
	}
	w.until("all are done", func() bool { return len(w.store.ErasedWorkspaces(true)) == 0 })
	if rows := allRows(t, conn, "session_id != ''"); len(rows) > 0 {
		t.Errorf("%d rows are left", len(rows))
	}
}

// TestNothingErasedIsShownBeforeItIsAStub holds the condition of statements against the set.
func TestNothingErasedIsShownBeforeItIsAStub(t *testing.T) {
	conn, _ := openEngine(t)
	r := rand.New(rand.NewPCG(9, 9))
	events := randomLog(r, 1000)
	insert(t, conn, events)
	list := &erasureList{}
	for i := range 6 {
		list.add(schema.Erasure{ID: fmt.Sprint(i), Workspace: "w1", Session: pick(r, "s1", "s2"), Below: events[r.IntN(len(events))].ID.Position})
	}
	list.add(schema.Erasure{ID: "whole", Workspace: "w2"})
	for _, scope := range []schema.Scope{
		{Workspace: "w1"}, {Workspace: "w1", Session: "s1"}, {Workspace: "w1", Session: "s2"}, {Workspace: "w1", Session: "s1x"},
		{Workspace: "w1", Workflow: "wf1"}, {Workspace: "w2"}, {Workspace: "w2", Session: "s1"},
	} {
		var s statement
		s.scope(scope)
		s.notErased(scope, list)
		rows, err := conn.Query(t.Context(), "SELECT "+packedPosition+", session_id FROM events WHERE "+s.condition(), s.args...)
		if err != nil {
			t.Fatal(err)
		}
		var got, want []string
		for rows.Next() {
			var pos uint64
			var session string
			if err := rows.Scan(&pos, &session); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(session, pos))
		}
		if err := cmp.Or(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if scope.Holds(e) && !list.set.Erased(e.Workspace, e.Session, e.ID.Position) {
				want = append(want, fmt.Sprint(e.Session, packPosition(e.ID.Position)))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%+v: %d rows are shown, want %d", scope, len(got), len(want))
		}
	}
}
