package query

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/playhead-dev/playhead/schema"
)

var everything = schema.Position{Epoch: 255}

var regexpGranules = regexp.MustCompile(`Granules: (\d+/\d+)`)

// unlimited is the limit of who wants all events.
const unlimited = math.MaxInt

// readEvents is readSession for a session's visible events of [from, to).
func (h *History) readEvents(
	ctx context.Context, ref SessionRef, from, to schema.Position, f *schema.Filter,
	limit int, descending bool, emit func(*schema.Event) error,
) (int, error) {
	q := scopeRows{scope: ref.Scope(), from: from, to: to, filter: f, descending: descending}
	return h.readSession(ctx, q, limit, func(e *schema.Event, _ int) error { return emit(e) })
}

// want is what readSession must answer, computed over a list.
func want(log []*schema.Event, ref SessionRef, from, to schema.Position, f *schema.Filter, limit int, descending bool) []*schema.Event {
	var out []*schema.Event
	for _, e := range log {
		if e.Workspace == ref.Workspace && e.Session == ref.Session && !e.Hidden() && (f == nil || f.Match(e)) &&
			!before(e.ID.Position, from) && before(e.ID.Position, to) {
			out = append(out, e)
		}
	}
	if descending {
		slices.Reverse(out)
	}
	return out[:min(limit, len(out))]
}

func collect(t *testing.T, h *History, ref SessionRef, from, to schema.Position, f *schema.Filter, limit int, descending bool) []*schema.Event {
	t.Helper()
	var got []*schema.Event
	n, err := h.readEvents(t.Context(), ref, from, to, f, limit, descending, func(e *schema.Event) error {
		got = append(got, e)
		return nil
	})
	if err != nil {
		t.Fatalf("ReadSession(%v, %v, %v, %+v): %v", ref, from, to, f, err)
	}
	if n != len(got) {
		t.Fatalf("ReadSession says %d events, emitted %d", n, len(got))
	}
	return got
}

func checkEqual(t testing.TB, what string, got, want []*schema.Event) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("%s: %d events, want %d; the first missing is %+v", what, len(got), len(want), *want[i])
		case i >= len(want):
			t.Fatalf("%s: %d events, want %d; the first too many is %+v", what, len(got), len(want), *got[i])
		case !reflect.DeepEqual(got[i], want[i]):
			t.Fatalf("%s: event %d is\n%+v, want\n%+v", what, i, *got[i], *want[i])
		}
	}
}

func TestReadSessionAnswersAsTheFilterMatches(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	r := rand.New(rand.NewPCG(1, 2))
	log := randomLog(r, 3000)
	for part := range slices.Chunk(log, 700) { // several parts
		insert(t, conn, part)
	}
	position := func() schema.Position { return log[r.IntN(len(log))].ID.Position }
	for i := range 400 {
		h.native.Store(i%4 > 1) // RowBinary, and the driver's blocks
		ref := SessionRef{Workspace: pick(r, "w1", "w2"), Session: pick(r, "s1", "s2", "s1x", "none")}
		from, to := pick(r, schema.Position{}, position()), pick(r, everything, position())
		filter := randomFilter(r)
		limit, descending := pick(r, 1, 7, 100, unlimited), i%2 == 1
		got := collect(t, h, ref, from, to, &filter, limit, descending)
		what := fmt.Sprintf("case %d: %v [%v, %v) %+v limit %d desc %v", i, ref, from, to, filter, limit, descending)
		checkEqual(t, what, got, want(log, ref, from, to, &filter, limit, descending))
	}
}

func TestReadSessionReadsInChunksOfBoundedBytes(t *testing.T) {
	conn, _ := openEngine(t)
	cfg := DefaultConfig()
	cfg.ReplayChunkBytes = 64 << 10
	h := NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
	r := rand.New(rand.NewPCG(3, 4))
	log := randomLog(r, 6000)
	for _, e := range log {
		if e.JSONPayload() && r.IntN(10) == 0 { // one chunk overflows, the next is cut to size
			e.Payload = []byte(`"` + strings.Repeat("x", r.IntN(20_000)) + `"`)
		}
	}
	insert(t, conn, log)
	ref := SessionRef{Workspace: "w1", Session: "s1"}
	for _, descending := range []bool{false, true} {
		got := collect(t, h, ref, schema.Position{}, everything, nil, unlimited, descending)
		checkEqual(t, fmt.Sprintf("descending %v", descending), got, want(log, ref, schema.Position{}, everything, nil, unlimited, descending))
	}
}

func TestReadSessionReturnsEmitsError(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	insert(t, conn, randomLog(rand.New(rand.NewPCG(5, 6)), 100))
	stop := errors.New("stop")
	n, err := h.readEvents(t.Context(), SessionRef{Workspace: "w1", Session: "s1"}, schema.Position{}, everything, nil, unlimited, false,
		func(*schema.Event) error { return stop })
	if n != 0 || !errors.Is(err, stop) {
		t.Errorf("ReadSession = %d, %v, want 0 and emit's own error", n, err)
	}
}

// foldRows is SessionBase by its definition.
func foldRows(log []*schema.Event, ref SessionRef, to schema.Position) schema.Session {
	s := schema.NewSession()
	for _, e := range log {
		if e.Workspace == ref.Workspace && e.Session == ref.Session && before(e.ID.Position, to) &&
			e.Type != schema.TypeDuplicate && e.Type != schema.TypeDeadLetter {
			s.Apply(e)
		}
	}
	return s
}

// sameSession compares what states say, and what they come to with any future: the two
// ways of building one keep an end in different fields.
func sameSession(got, want schema.Session) bool {
	future := schema.NewSession()
	future.Apply(&schema.Event{ID: schema.EventID{Position: schema.Position{Epoch: 9}, TimeMs: testStartMs}, Type: "playhead.other"})
	call := future.Clone()
	call.Apply(&schema.Event{
		ID: schema.EventID{Position: schema.Position{Epoch: 9, Offset: 1}, TimeMs: testStartMs}, Type: schema.TypeSessionCreated,
		Payload: []byte(`{"kind":"call"}`),
	})
	return got.Exists() == want.Exists() && got.EndedAt == want.EndedAt && got.EndedMs == want.EndedMs &&
		reflect.DeepEqual(got.Merge(future), want.Merge(future)) && reflect.DeepEqual(got.Merge(call), want.Merge(call))
}

func TestSessionBaseEqualsTheFold(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(7, seed))
		workspace := fmt.Sprint("w", seed)
		log := randomLog(r, 60)
		for _, e := range log {
			e.Workspace = workspace
			switch r.IntN(10) {
			case 0:
				e.Type = schema.TypeSessionCreated
				e.Payload = []byte(pick(r, `{"kind":"call","metadata":{"a":"b"}}`, `{"kind":"conversation"}`, `{"kind":"none"}`, `not json`, `{"kind":"call","metadata":{"a":1}}`))
			case 1:
				e.Type = pick(r, schema.TypeSessionEnded, schema.TypeDuplicate, schema.TypeDeadLetter)
			}
		}
		if seed == 0 { // more creations that do not parse than are read at a time
			for i, e := range log {
				e.Type, e.Payload, e.Session = schema.TypeSessionCreated, []byte("not json"), "s1"
				if i >= 50 {
					e.Payload = []byte(`{"kind":"conversation"}`)
				}
			}
		}
		insert(t, conn, log)
		for i := range 20 {
			ref := SessionRef{Workspace: workspace, Session: pick(r, "s1", "s2", "s1x", "none")}
			to := everything
			if i > 3 {
				to = log[r.IntN(len(log))].ID.Position
			}
			got, err := h.SessionBase(t.Context(), ref, to)
			if err != nil {
				t.Fatal(err)
			}
			w := foldRows(log, ref, to)
			if !sameSession(got, w) {
				t.Fatalf("seed %d: SessionBase(%v, %v) =\n%+v, want\n%+v", seed, ref, to, got, w)
			}
		}
	}
}

func TestFindMessagesFindsTheFirst(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	r := rand.New(rand.NewPCG(8, 9))
	log := randomLog(r, 2000)
	insert(t, conn, log)
	first := make(map[MessageRef]schema.EventID)
	for _, e := range log {
		ref := MessageRef{Session: e.Session, MessageID: e.MessageID}
		if _, ok := first[ref]; !ok && e.Workspace == "w1" && e.MessageID != "" {
			first[ref] = e.ID
		}
	}
	var refs []MessageRef
	for s := range 600 { // two statements
		refs = append(refs, MessageRef{Session: pick(r, "s1", "s2", "none"), MessageID: fmt.Sprint("m-", s%60)}, MessageRef{Session: "s1"})
	}
	got, err := h.FindMessages(t.Context(), "w1", refs)
	if err != nil {
		t.Fatal(err)
	}
	wanted := make(map[MessageRef]schema.EventID)
	for _, ref := range refs {
		if id, ok := first[ref]; ok {
			wanted[ref] = id
		}
	}
	if len(wanted) == 0 || !reflect.DeepEqual(got, wanted) {
		t.Errorf("FindMessages found %d, want %d: %v, want %v", len(got), len(wanted), got, wanted)
	}
}

// explain returns the plan of a statement with the use of indexes.
func explain(t *testing.T, h *History, query, settings string, args []any) string {
	t.Helper()
	rows, err := h.conn.Query(t.Context(), "EXPLAIN indexes = 1 "+h.bounded(query)+settings, args...)
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
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// granulesKept returns how many granules a plan reads in all.
func granulesKept(t *testing.T, plan string) int {
	t.Helper()
	total := 0
	// The last index of each read says what is left.
	for _, read := range strings.Split(plan, "─ReadFromMergeTree")[1:] {
		granules := regexpGranules.FindAllStringSubmatch(read, -1)
		if len(granules) == 0 {
			t.Fatalf("no granules in the plan:\n%s", plan)
		}
		var kept, of int
		if _, err := fmt.Sscanf(granules[len(granules)-1][1], "%d/%d", &kept, &of); err != nil {
			t.Fatal(err)
		}
		total += kept
	}
	return total
}

// TestStatementsUseTheirOrder holds the statements of pages to the order and the indexes that
// are meant to serve them.
func TestStatementsUseTheirOrder(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	err := conn.Exec(t.Context(), `INSERT INTO events (workspace_id, session_id, workflow_id, log_epoch, kafka_partition, kafka_offset, ts, type, frame_id, metadata, payload)
		SELECT 'w', 's' || toString(number % 300), 'wf' || toString(intDiv(number, 100000)), 1, number % 2, intDiv(number, 2),
			toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(number),
			if(number = 333333, 'rare', 'common'), if(number = 333334, 'frame', ''), map('user', toString(number)), '{}' FROM numbers(600000)`)
	if err != nil {
		t.Fatal(err)
	}
	workspace := schema.Scope{Workspace: "w"}
	whole := []window{{0, 0, 300_000}, {1, 0, 300_000}}
	since := int64(testStartMs + 300_000)
	windows := func(f schema.Filter, scope schema.Scope, in []window) (string, []any) {
		q := windowRows{scope: scope, epoch: 1, windows: in, filter: &f, limit: 101}
		return q.statement(nil)
	}
	for _, test := range []struct {
		name     string
		settings string
		most     int // granules of 2,048 rows
		uses     string
		make     func() (string, []any)
	}{
		{"two windows", settingsByLog, 4, "playhead.events", func() (string, []any) {
			return windows(schema.Filter{}, workspace, []window{{0, 100_000, 101_000}, {1, 100_000, 101_000}})
		}},
		{"rare type", settingsByLog, 2, "i_type", func() (string, []any) {
			return windows(schema.Filter{Types: []string{"rare"}}, workspace, whole)
		}},
		{"rare metadata", settingsByLog, 20, "i_metadata", func() (string, []any) {
			return windows(schema.Filter{Metadata: map[string]string{"user": "333333"}}, workspace, whole)
		}},
		{"rare frame", settingsByLog, 20, "i_frame", func() (string, []any) {
			return windows(schema.Filter{FrameID: "frame"}, workspace, whole)
		}},
		{"workflow", settingsByLog, 60, "i_workflow", func() (string, []any) {
			return windows(schema.Filter{}, schema.Scope{Workspace: "w", Workflow: "wf3"}, whole)
		}},
		{"time", settingsByLog, 4, "i_ts", func() (string, []any) {
			until := since + 100
			return windows(schema.Filter{SinceMs: &since, UntilMs: &until}, workspace, whole)
		}},
		{"states of sessions", settingsBySession, 4, "(by_session)", func() (string, []any) {
			var s statement
			s.and("workspace_id = %s AND session_id IN %s", s.bind("String", "w"), s.bind("Array(String)", []string{"s7"}))
			s.before(everything)
			return fmt.Sprintf(typeStatesSQL, s.condition()), s.args
		}},
		{"sums by hour", settingsByHour, 2, "(by_hour)", func() (string, []any) {
			var s statement
			s.and("workspace_id = %s", s.bind("String", "w"))
			return "SELECT log_epoch, kafka_partition, min(kafka_offset), max(kafka_offset) FROM events WHERE " + s.condition() +
				" GROUP BY log_epoch, kafka_partition", s.args
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			query, args := test.make()
			plan := explain(t, h, query, test.settings, args)
			if kept := granulesKept(t, plan); kept > test.most || !strings.Contains(plan, test.uses) {
				t.Errorf("reads %d granules, want at most %d by %s:\n%s", kept, test.most, test.uses, plan)
			}
		})
	}
}

func TestStatementsPruneByTheKey(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	err := conn.Exec(t.Context(), `INSERT INTO events (workspace_id, session_id, log_epoch, kafka_partition, kafka_offset, ts, type, payload)
		SELECT 'w', 's' || toString(intDiv(number, 400000)), if(number % 400000 < 100000, 1, 2), 3, number,
			toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(number), 'a', '{}' FROM numbers(1200000)`)
	if err != nil {
		t.Fatal(err)
	}
	in := func(epoch uint8, offset int64) schema.Position {
		return schema.Position{Epoch: epoch, Partition: 3, Offset: offset}
	}
	for name, q := range map[string]scopeRows{
		"within an epoch":         {from: in(2, 600_000), to: in(2, 610_000)},
		"within an epoch, placed": {from: in(2, 600_000), to: in(2, 610_000), placed: true},
		"from the beginning":      {to: in(1, 410_000)},
		"over two epochs":         {from: in(1, 495_000), to: in(2, 505_000)},
		"all but the end":         {from: in(2, 795_000), to: everything},
		"backwards, one epoch":    {from: in(2, 600_000), to: in(2, 610_000), descending: true},
		"window of a workspace":   {scope: schema.Scope{Workspace: "w"}, partition: 3, from: in(2, 600_000), to: in(2, 610_000)},
	} {
		t.Run(name, func(t *testing.T) {
			q.limit = 100
			if q.scope.Workspace == "" {
				q.scope = schema.Scope{Workspace: "w", Session: "s1"}
			}
			query, args := q.statement(nil)
			plan := explain(t, h, query, q.settings(), args)
			kept := granulesKept(t, plan)
			order := "ReadFromMergeTree (by_session)"
			if q.scope.Session == "" {
				order = "ReadFromMergeTree (playhead.events)"
			}
			if !strings.Contains(plan, "PrimaryKey") || !strings.Contains(plan, order) || kept > 8 {
				t.Errorf("reads %d granules, want at most 8 (10,000 rows), by %s:\n%s", kept, order, plan)
			}
		})
	}
}

// A long session's offsets prune among short sessions as well, where the server would leave
// them out of the key in memory: nearly each mark there is of another session.
func TestALongSessionAmongShortOnesPrunes(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	const short, long = 600_000, 40_000
	err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO events (workspace_id, session_id, log_epoch, kafka_partition, kafka_offset, ts, type, payload)
		SELECT 'w', if(number < %d, 's' || toString(intDiv(number, 1000)), 'long'), 1, 3, number,
			toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(number), 'a', '{}' FROM numbers(%d)`, short, short+long))
	if err != nil {
		t.Fatal(err)
	}
	at := func(offset int64) schema.Position { return schema.Position{Epoch: 1, Partition: 3, Offset: offset} }
	for _, placed := range []bool{false, true} {
		q := scopeRows{
			scope: schema.Scope{Workspace: "w", Session: "long"}, placed: placed,
			from: at(short + long - 1000), to: at(short + long), limit: 100,
		}
		query, args := q.statement(nil)
		plan := explain(t, h, query, q.settings(), args)
		if kept := granulesKept(t, plan); kept > 4 {
			t.Errorf("placed %v: reads %d granules, want at most 4:\n%s", placed, kept, plan)
		}
	}
}

func TestQuestionsThatReadTooMuchAreRefused(t *testing.T) {
	conn, _ := openEngine(t)
	err := conn.Exec(t.Context(), `INSERT INTO events (workspace_id, session_id, log_epoch, kafka_partition, kafka_offset, ts, type, frame_id, payload)
		SELECT 'w', 's', 1, 3, number, toDateTime64('2026-01-01 00:00:00', 3, 'UTC'), 'a', leftPad(toString(number), 60, 'f'), '{}' FROM numbers(600000)`)
	if err != nil {
		t.Fatal(err)
	}
	rare := &schema.Filter{FrameID: "none"}
	read := func(cfg Config, f *schema.Filter) (*History, int, error) {
		h := NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
		n, err := h.readEvents(t.Context(), SessionRef{Workspace: "w", Session: "s"}, schema.Position{}, everything, f, 100, false,
			func(*schema.Event) error { return nil })
		return h, n, err
	}
	cfg := DefaultConfig()
	cfg.Breaker.Failures = 1
	cfg.MaxReadBytes = 4 << 20
	if _, n, err := read(cfg, nil); n != 100 || err != nil {
		t.Errorf("the first page of a long session = %d events, %v, want 100", n, err)
	}
	if h, _, err := read(cfg, rare); !errors.Is(err, ErrScanTooLarge) || errors.Is(err, ErrUnavailable) || h.breaker.cb.State() != 0 {
		t.Errorf("too many bytes: %v, want ErrScanTooLarge and a closed breaker", err)
	}
	cfg = DefaultConfig()
	cfg.Breaker.Failures = 1
	cfg.QueryTimeout = time.Millisecond
	if h, _, err := read(cfg, rare); !errors.Is(err, ErrScanTooLarge) || h.breaker.cb.State() != 0 {
		t.Errorf("too long: %v, want ErrScanTooLarge and a closed breaker", err)
	}
}

func TestCancellationsDoNotOpenTheBreaker(t *testing.T) {
	conn, _ := openEngine(t)
	cfg := DefaultConfig()
	cfg.Breaker.Failures = 1
	h := NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 5 {
		if _, err := h.SessionBase(gone, SessionRef{Workspace: "w", Session: "s"}, everything); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
			t.Fatalf("cancelled: %v, want context.Canceled", err)
		}
	}
	if _, err := h.SessionBase(t.Context(), SessionRef{Workspace: "w", Session: "s"}, everything); err != nil {
		t.Fatal(err)
	}
}

func TestBreakerOpensAndTriesAgain(t *testing.T) {
	conn, p := openEngine(t)
	cfg := DefaultConfig()
	cfg.Breaker = BreakerConfig{Failures: 2, Open: 20 * time.Millisecond}
	h := NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
	ask := func() error {
		_, err := h.SessionBase(t.Context(), SessionRef{Workspace: "w", Session: "s"}, everything)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for refused := false; !refused && time.Now().Before(deadline); {
		err := ask()
		unavailable, ok := errors.AsType[*UnavailableError](err)
		if !ok || unavailable.RetryAfter <= 0 {
			t.Fatalf("without an engine: %v, want ErrUnavailable with RetryAfter", err)
		}
		refused = unavailable.Cause == nil
	}
	if h.breaker.cb.State() == 0 {
		t.Error("the breaker is closed, want it open")
	}
}

// exchangingConn fails statements as ClickHouse does in the moment of EXCHANGE TABLES.
type exchangingConn struct {
	driver.Conn
	left int // statements that fail
}

func (c *exchangingConn) Query(ctx context.Context, query string, args ...any) (driver.Rows, error) {
	if c.left--; c.left >= 0 {
		return nil, &clickhouse.Exception{Code: codeTableExchanged, Message: "Table playhead.events does not match playhead.events_next"}
	}
	return c.Conn.Query(ctx, query, args...)
}

// A question that meets the exchange of a rebuild asks again; one that meets two does not.
func TestAskAgainAfterTheExchangeOfTables(t *testing.T) {
	conn, _ := openEngine(t)
	for left, want := range []error{nil, nil, ErrUnavailable} {
		h := NewHistory(&exchangingConn{conn, left}, DefaultConfig(), newTestLog(t), NewMetrics(nil))
		if _, err := h.SessionBase(t.Context(), SessionRef{Workspace: "w", Session: "s"}, everything); !errors.Is(err, want) {
			t.Errorf("%d statements meet the exchange: %v, want %v", left, err, want)
		}
	}
}
