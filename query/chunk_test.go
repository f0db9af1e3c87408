package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// logModel is a log over several partitions and two epochs, as a list.
type logModel struct {
	events []*schema.Event
	next   map[schema.Position]int64 // next offset by epoch and partition
	ms     int64
}

const modelPartitions = 3

// append adds an event where its session lies; the second epoch places it elsewhere.
func (m *logModel) append(r *rand.Rand, epoch uint8, workspace, session string, gap int64) {
	place := schema.Placement{Partitions: modelPartitions + int(epoch), Shards: modelPartitions}
	log := schema.Position{Epoch: epoch, Partition: place.Partition(workspace, session) % modelPartitions}
	pos := log
	pos.Offset = m.next[log] + r.Int64N(gap)
	m.next[log] = pos.Offset + 1
	m.ms += r.Int64N(40) - 3
	m.events = append(m.events, randomEvent(r, workspace, session, pos, m.ms))
}

func newLogModel(r *rand.Rand, n int) *logModel {
	m := &logModel{next: make(map[schema.Position]int64), ms: testStartMs}
	for i := range n {
		gap := int64(3)
		if r.IntN(200) == 0 {
			gap = pick[int64](r, 50_000, 1_000_000_000) // windows without a row
		}
		m.append(r, uint8(1+2*i/n), pick(r, "w1", "w1", "w2", "w10"), fmt.Sprint("s", r.IntN(12)), gap)
	}
	return m
}

// want is what the chunks of a scope come to, by definition.
func (m *logModel) want(scope schema.Scope, partition uint16, from, to schema.Position, f *schema.Filter) []*schema.Event {
	var out []*schema.Event
	for _, e := range m.events {
		if scope.Holds(e) && (scope.Session != "" || e.ID.Partition == partition) && !e.Hidden() && (f == nil || f.Match(e)) &&
			!before(e.ID.Position, from) && before(e.ID.Position, to) {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b *schema.Event) int {
		p, q := a.ID.Position, b.ID.Position
		p.Partition, q.Partition = 0, 0
		return p.Compare(q)
	})
	return out
}

// readChunks reads from from to to in chunks, and checks what is promised of each.
func readChunks(t *testing.T, h *History, scope schema.Scope, partition uint16, from, to schema.Position, f *schema.Filter, maxBytes func() int) []*schema.Event {
	t.Helper()
	var got []*schema.Event
	if !before(from, to) {
		return nil
	}
	for before(from, to) {
		limit := maxBytes()
		events, next, err := h.ReadChunk(t.Context(), scope, partition, from, to, f, limit)
		if err != nil {
			t.Fatalf("ReadChunk(%+v, %d, %v, %v): %v", scope, partition, from, to, err)
		}
		if !before(from, next) || before(to, next) {
			t.Fatalf("ReadChunk(%+v, %d, %v, %v): next is %v", scope, partition, from, to, next)
		}
		size := 0
		for i, e := range events {
			if size += e.Size(); size > limit+limit/4 && i > 0 {
				t.Fatalf("a chunk of about %d bytes holds %d", limit, size)
			}
			if before(e.ID.Position, from) || !before(e.ID.Position, next) {
				t.Fatalf("a chunk of [%v, %v) holds %v", from, next, e.ID)
			}
		}
		got, from = append(got, events...), next
	}
	if from != to {
		t.Fatalf("the last chunk ends at %v, want %v itself", from, to)
	}
	return got
}

func TestChunksJoinToTheLog(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	r := rand.New(rand.NewPCG(11, 12))
	m := newLogModel(r, 2500)
	for part := range slices.Chunk(m.events, 900) {
		insert(t, conn, part)
	}
	position := func(partition uint16) schema.Position {
		p := m.events[r.IntN(len(m.events))].ID.Position
		p.Partition = partition
		p.Offset += r.Int64N(3)
		return p
	}
	found, empty := 0, 0
	for i := range 120 {
		h.native.Store(i%5 == 4) // RowBinary, and the driver's blocks
		scope := schema.Scope{Workspace: pick(r, "w1", "w1", "w2", "none")}
		switch r.IntN(3) {
		case 0:
			scope.Session = fmt.Sprint("s", r.IntN(13))
		case 1:
			scope.Workflow = pick(r, "wf1", "wf2", "none")
		}
		partition := uint16(r.IntN(modelPartitions + 1))
		from, to := pick(r, schema.Position{}, position(partition)), pick(r, schema.Position{Epoch: 3, Partition: partition}, position(partition))
		var f *schema.Filter
		if r.IntN(2) == 0 {
			random := randomFilter(r)
			f = &random
		}
		if r.IntN(2) == 0 { // what a dear statement would lead to
			h.paces.set(newReadKey(scope, partition, f), pace{ahead: 200_000})
		}
		least := pick(r, 0, 30_000, 100_000, 1<<20)
		got := readChunks(t, h, scope, partition, from, to, f, func() int { return least + r.IntN(20_000) })
		want := m.want(scope, partition, from, to, f)
		checkEqual(t, fmt.Sprintf("case %d: %+v of partition %d, [%v, %v) %+v", i, scope, partition, from, to, f), got, want)
		if len(want) > 0 {
			found++
		} else {
			empty++
		}
	}
	if n, bytes := h.ahead.holds(); n != 0 || bytes != 0 {
		t.Errorf("%d stretches of %d bytes are kept after the last chunk", n, bytes)
	}
	if found < 40 || empty < 10 {
		t.Errorf("%d cases with events and %d without: the test looks at too little", found, empty)
	}
}

func TestChunkOfNothing(t *testing.T) {
	conn, _ := openEngine(t)
	h := newHistory(t, conn)
	from := schema.Position{Epoch: 2, Partition: 3, Offset: 10}
	for _, to := range []schema.Position{from, {Epoch: 2, Partition: 3, Offset: 9}, {Epoch: 1, Partition: 3, Offset: 90}} {
		events, next, err := h.ReadChunk(t.Context(), schema.Scope{Workspace: "w"}, 3, from, to, nil, 1000)
		if len(events) != 0 || next != from || err != nil {
			t.Errorf("ReadChunk(%v, %v) = %d events, %v, %v, want none, and to stay", from, to, len(events), next, err)
		}
	}
}

// A window may touch so many granules that it reads more than one statement may.
func TestWindowsShrinkUntilTheyReadLittleEnough(t *testing.T) {
	conn, _ := openEngine(t)
	const rows = 60_000
	err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO events (workspace_id, session_id, log_epoch, kafka_partition, kafka_offset, ts, type, frame_id, payload)
		SELECT 'w', 's' || leftPad(toString(intDiv(number, 100)), 6, '0'), 1, 3, number, toDateTime64('2026-01-01 00:00:00', 3, 'UTC'),
			'a', leftPad(toString(number), 150, 'f'), '{}' FROM numbers(%d)`, rows))
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.MaxReadBytes = 4 << 20 // two granules, but not the four of the first window
	cfg.Breaker.Failures = 1
	h := NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
	to := schema.Position{Epoch: 1, Partition: 3, Offset: rows}
	got := readChunks(t, h, schema.Scope{Workspace: "w"}, 3, schema.Position{}, to, nil, func() int { return 8 << 20 })
	if len(got) != rows {
		t.Errorf("%d events, want %d", len(got), rows)
	}
	if shrunk := h.paces.get(readKey{scope: schema.Scope{Workspace: "w"}, partition: 3}).maxWindow; shrunk == 0 {
		t.Error("no window was too large: the test looks at nothing")
	}
	cfg.MaxReadBytes = 10_000 // less than the shortest window
	h = NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
	if _, _, err := h.ReadChunk(t.Context(), schema.Scope{Workspace: "w"}, 3, schema.Position{}, to, nil, 8<<20); !errors.Is(err, ErrScanTooLarge) {
		t.Errorf("ReadChunk = %v, want %v", err, ErrScanTooLarge)
	}
}

func TestPacesAreBounded(t *testing.T) {
	p := newPaces()
	for i := range 3 * maxPaces {
		p.set(readKey{scope: schema.Scope{Workspace: fmt.Sprint(i)}}, pace{eventBytes: i})
	}
	if len(p.of) > maxPaces {
		t.Errorf("%d paces are kept, want at most %d", len(p.of), maxPaces)
	}
	last := 3*maxPaces - 1
	if got := p.get(readKey{scope: schema.Scope{Workspace: fmt.Sprint(last)}}); got.eventBytes != last {
		t.Errorf("the latest pace is %+v", got)
	}
}

// priorityConn keeps the priorities that statements ask for themselves, 0 if they do not.
type priorityConn struct {
	driver.Conn
	asked []int
}

func (c *priorityConn) Query(ctx context.Context, query string, args ...any) (driver.Rows, error) {
	c.keep(query)
	return c.Conn.Query(ctx, query, args...)
}

func (c *priorityConn) QueryFormat(ctx context.Context, format, query string, args ...any) (io.ReadCloser, error) {
	c.keep(query)
	return c.Conn.QueryFormat(ctx, format, query, args...)
}

func (c *priorityConn) keep(query string) {
	priority := 0
	if _, settings, ok := strings.Cut(query, "\nSETTINGS "); ok {
		for setting := range strings.SplitSeq(settings, ", ") {
			_, _ = fmt.Sscanf(setting, "priority = %d", &priority)
		}
	}
	c.asked = append(c.asked, priority)
}

// A page asks for no priority, so that it has the first, that of all statements.
func TestReplaysGiveWayToPagesAndScansToReplays(t *testing.T) {
	engine, _ := openEngine(t)
	conn := &priorityConn{Conn: engine}
	h := NewHistory(conn, DefaultConfig(), newTestLog(t), NewMetrics(nil))
	const page, replay, scan = 0, 5, 10
	asks := func(what string, want int, ask func() error) {
		t.Helper()
		conn.asked = nil
		if err := ask(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if len(conn.asked) == 0 || slices.ContainsFunc(conn.asked, func(p int) bool { return p != want }) {
			t.Errorf("%s: priorities %v, want %d", what, conn.asked, want)
		}
	}
	to := schema.Position{Epoch: 1, Partition: 3, Offset: 1000}
	for _, scope := range []schema.Scope{{Workspace: "w"}, {Workspace: "w", Workflow: "f"}, {Workspace: "w", Session: "s"}} {
		asks(fmt.Sprintf("replay of %+v", scope), replay, func() error {
			_, _, err := h.ReadChunk(t.Context(), scope, 3, schema.Position{Epoch: 1, Partition: 3}, to, nil, 1<<20)
			return err
		})
		asks(fmt.Sprintf("scan of %+v", scope), scan, func() error {
			q := scanQuery{scope: scope, epoch: 1, final: []window{{3, 0, 1000}}, filter: &schema.Filter{}}
			query, args := q.statement()
			return h.rows(t.Context(), query, q.settings(), args, func(driver.Rows) error { return nil })
		})
	}
	asks("page", page, func() error {
		q := windowRows{scope: schema.Scope{Workspace: "w"}, epoch: 1, windows: []window{{3, 0, 1000}}, filter: &schema.Filter{}, limit: 10}
		return h.readWindows(t.Context(), &q, func(*schema.Event, int) {})
	})
}
