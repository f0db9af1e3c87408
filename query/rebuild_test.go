package query

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/schema"
)

// reordered rebuilds the table of events in another order, with a projection, and back.
func reordered() schema.Migration {
	create := func(order, projection string) string {
		return `CREATE TABLE IF NOT EXISTS events_next (
  workspace_id LowCardinality(String), session_id String, workflow_id LowCardinality(String), log_epoch UInt8,
  kafka_partition UInt16, kafka_offset UInt64, ts DateTime64(3, 'UTC'), client_ts Nullable(DateTime64(3, 'UTC')),
  t_ms UInt64, type LowCardinality(String), confidence Nullable(Float32), frame_id String, message_id String,
  metadata Map(LowCardinality(String), String), content_type LowCardinality(String), payload String` + projection + `
) ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (` + order + `)
SETTINGS non_replicated_deduplication_window = 10000`
	}
	return schema.Migration{
		Version: uint32(len(schema.Migrations())) + 1, Name: "reordered",
		Up: []schema.Step{{Rebuild: "events", SQL: create("workspace_id, kafka_partition, log_epoch, intDiv(kafka_offset, 64), session_id, kafka_offset",
			",\n  PROJECTION counts (SELECT workspace_id, type, count() GROUP BY workspace_id, type)")}},
		Down: []schema.Step{{Rebuild: "events", SQL: create("workspace_id, session_id, log_epoch, kafka_offset", "")}},
	}
}

// rebuilder returns a Migrator that knows reordered and copies few rows at a time.
func rebuilder(t *testing.T, conn driver.Conn) *Migrator {
	m := extended(t, conn, reordered())
	m.window = 50
	return m
}

// contents is a table's rows in all their columns, and its order.
type contents struct {
	rows, offsets, hash uint64
	order               string
}

func contentsOf(t *testing.T, conn driver.Conn) (c contents) {
	t.Helper()
	err := conn.QueryRow(t.Context(), `SELECT count(), uniqExact(log_epoch, kafka_partition, kafka_offset), sum(cityHash64(
		workspace_id, session_id, workflow_id, log_epoch, kafka_partition, kafka_offset, ts, toString(client_ts), t_ms, type,
		toString(confidence), frame_id, message_id, toString(metadata), content_type, payload)),
		(SELECT sorting_key FROM system.tables WHERE database = currentDatabase() AND name = 'events') FROM events`).Scan(
		&c.rows, &c.offsets, &c.hash, &c.order)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantSame checks that b holds the rows of a, once each, in an order that begins so.
func wantSame(t *testing.T, what string, b, a contents, order string) {
	t.Helper()
	if a.rows != b.rows || b.rows != b.offsets || a.hash != b.hash || !strings.HasPrefix(b.order, order) {
		t.Errorf("%s: table is %+v, want the rows of %+v by %s", what, b, a, order)
	}
}

// wantOneTable checks that nothing is left of a rebuild.
func wantOneTable(t *testing.T, conn driver.Conn) {
	t.Helper()
	var names []string
	if err := conn.QueryRow(t.Context(), "SELECT groupArray(name) FROM system.tables WHERE database = currentDatabase() AND startsWith(name, 'events')").Scan(&names); err != nil {
		t.Fatal(err)
	}
	if len(names) != 1 {
		t.Errorf("tables of events are %v, want one", names)
	}
}

const (
	oldOrder = "workspace_id, session_id"
	newOrder = "workspace_id, kafka_partition"
)

func TestRebuildForwardAndBackKeepsEveryRow(t *testing.T) {
	conn, _ := openEngine(t)
	m := rebuilder(t, conn)
	if err := m.Down(t.Context(), uint32(len(schema.Migrations())), false); err != nil {
		t.Fatal(err)
	}
	insert(t, conn, randomLog(rand.New(rand.NewPCG(1, 1)), 2000))
	before := contentsOf(t, conn)
	for range 2 {
		if err := m.Up(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		wantSame(t, "up", contentsOf(t, conn), before, newOrder)
		if err := m.Down(t.Context(), uint32(len(schema.Migrations())), false); err != nil {
			t.Fatal(err)
		}
		wantSame(t, "down", contentsOf(t, conn), before, oldOrder)
		wantOneTable(t, conn)
	}
	insert(t, conn, randomLog(rand.New(rand.NewPCG(2, 2)), 5)) // inserts are taken again
}

// 1. a rebuild dies at any moment, and the server too; 2. others go on from there;
// 3. each row is there once. Rows that were changed or deleted after they were copied
// are as they were changed.
func TestRebuildGoesOnAfterAnyDeath(t *testing.T) {
	conn, process := openEngine(t)
	r := rand.New(rand.NewPCG(3, 3))
	insert(t, conn, randomLog(r, 3000))
	for round := range 14 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(10+r.IntN(400))*time.Millisecond)
		err := rebuilder(t, conn).Up(ctx, 0)
		cancel()
		t.Logf("round %d: %v", round, err)
		switch {
		case err == nil:
			if err := rebuilder(t, conn).Down(t.Context(), uint32(len(schema.Migrations())), false); err != nil {
				t.Fatal(err)
			}
		case round%5 == 1:
			if err := syscall.Kill(process.Pid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return conn.Ping(t.Context()) == nil })
		case round%5 == 2:
			mustExec(t, conn, "ALTER TABLE events UPDATE payload = '' WHERE kafka_offset % 7 = 1 SETTINGS mutations_sync = 2")
		case round%5 == 3:
			mustExec(t, conn, "ALTER TABLE events DELETE WHERE kafka_offset BETWEEN 100 AND 190 SETTINGS mutations_sync = 2")
		}
	}
	before := contentsOf(t, conn)
	if err := rebuilder(t, conn).Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "after many deaths", contentsOf(t, conn), before, newOrder)
	wantOneTable(t, conn)
}

func mustExec(t *testing.T, conn driver.Conn, statement string) {
	t.Helper()
	if err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 30 s")
		}
	}
}

// 1. four nodes rebuild at once, one of which dies; 2. meanwhile rows are inserted, each
// again until it is acknowledged, and counted; 3. no count lacks an acknowledged row or
// fails but for the moment of the exchange, and in the end each is there once.
func TestRebuildByManyNodesWhileRowsComeAndAreRead(t *testing.T) {
	conn, _ := openEngine(t)
	insert(t, conn, randomLog(rand.New(rand.NewPCG(4, 4)), 1500))
	var acknowledged atomic.Uint64
	acknowledged.Store(1500)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var around errgroup.Group
	var refused int
	around.Go(func() error {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := uint64(0); ctx.Err() == nil; i++ {
			<-tick.C
			token := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": fmt.Sprint("t", i)}))
			for {
				err := conn.Exec(token, fmt.Sprintf("INSERT INTO events (kafka_partition, kafka_offset, ts, log_epoch) SELECT 9, %d + number, now64(3), 1 FROM numbers(10)", 10*i))
				if err == nil {
					break
				}
				if !strings.Contains(err.Error(), frozenConstraint) && !isException(err, codeTableExchanged) {
					return err
				}
				if refused++; refused > 3000 {
					return fmt.Errorf("inserts are refused for ever: %w", err)
				}
				<-tick.C
			}
			acknowledged.Add(10)
		}
		return nil
	})
	around.Go(func() error {
		for ctx.Err() == nil {
			want := acknowledged.Load()
			var got uint64
			err := conn.QueryRow(t.Context(), "SELECT count() FROM events").Scan(&got)
			if isException(err, codeTableExchanged) {
				continue
			}
			if err != nil {
				return err
			}
			if got < want {
				return fmt.Errorf("count is %d, %d rows were acknowledged", got, want)
			}
		}
		return nil
	})
	var nodes errgroup.Group
	for i := range 4 {
		nodes.Go(func() error {
			ctx := t.Context()
			if i == 0 {
				var end context.CancelFunc
				ctx, end = context.WithTimeout(ctx, 150*time.Millisecond)
				defer end()
			}
			m := rebuilder(t, conn)
			m.window = 300
			if err := m.Up(ctx, 0); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	if err := nodes.Wait(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := around.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d rows, %d inserts refused meanwhile", acknowledged.Load(), refused)
	got := contentsOf(t, conn)
	if got.rows != acknowledged.Load() || got.offsets != got.rows || !strings.HasPrefix(got.order, newOrder) {
		t.Errorf("table is %+v, want %d rows once each by %s", got, acknowledged.Load(), newOrder)
	}
	wantOneTable(t, conn)
}

// 1. a node is about to refuse inserts when another exchanges the tables; 2. it refuses them
// into the new one; 3. its next step takes them again, and if it dies, the next node's start.
func TestRebuildTakesInsertsAgainAfterALateFreeze(t *testing.T) {
	conn, _ := openEngine(t)
	insert(t, conn, randomLog(rand.New(rand.NewPCG(8, 8)), 100))
	m := rebuilder(t, conn)
	if err := m.Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	mig := m.migrations[len(m.migrations)-1]
	late := newRebuild(m, mig.Up[0], fmt.Sprintf("playhead schema %d", mig.Version))
	for name, next := range map[string]func() error{
		"its next step":   func() error { return late.run(t.Context()) },
		"the next start":  func() error { return rebuilder(t, conn).Up(t.Context(), 0) },
		"an older node's": func() error { return NewMigrator(conn, DefaultTableConfig(), nil).Up(t.Context(), 0) },
	} {
		late.queryID = "late"
		if err := late.freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		const row = "INSERT INTO events (kafka_offset, ts) SELECT 1, now64(3)"
		if err := conn.Exec(t.Context(), row); err == nil || !strings.Contains(err.Error(), frozenConstraint) {
			t.Fatalf("insert into the frozen table = %v", err)
		}
		if err := next(); err != nil {
			t.Fatal(err)
		}
		if err := conn.Exec(t.Context(), row); err != nil {
			t.Errorf("insert after %s = %v", name, err)
		}
	}
}

// An older node's start leaves the table frozen that a newer one is about to exchange.
func TestRebuildStaysFrozenForAnOlderNode(t *testing.T) {
	conn, _ := openEngine(t)
	m := rebuilder(t, conn)
	mig := m.migrations[len(m.migrations)-1]
	newer := newRebuild(m, mig.Up[0], fmt.Sprintf("playhead schema %d", mig.Version))
	newer.queryID = "newer"
	if err := newer.freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := NewMigrator(conn, DefaultTableConfig(), nil).Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := conn.Exec(t.Context(), "INSERT INTO events (kafka_offset) SELECT 1"); err == nil {
		t.Error("an insert was taken, and might be lost")
	}
}

// A claim whose maker is gone is taken over; one of a living node is left to it.
func TestRebuildTakesOverAClaim(t *testing.T) {
	conn, _ := openEngine(t)
	insert(t, conn, randomLog(rand.New(rand.NewPCG(5, 5)), 300))
	before := contentsOf(t, conn)
	m := rebuilder(t, conn)
	mig := m.migrations[len(m.migrations)-1]
	dead := newRebuild(m, mig.Up[0], fmt.Sprintf("playhead schema %d", mig.Version))
	dead.queryID = "dead"
	tables, err := dead.tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.prepare(t.Context(), tables); err != nil {
		t.Fatal(err)
	}
	if err := conn.Exec(t.Context(), "INSERT INTO events (kafka_offset) SELECT 1"); err == nil {
		t.Error("an insert between claim and exchange was taken, and would be lost")
	}
	if err := m.Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "taken over", contentsOf(t, conn), before, newOrder)
	if err := conn.Exec(t.Context(), fmt.Sprintf("EXCHANGE TABLES events AND %s", dead.claimed)); !isException(err, codeUnknownTable) {
		t.Errorf("the dead one's exchange = %v, want unknown table", err)
	}
}

// A migration that was given up for another leaves nothing that the other would take.
func TestRebuildLeavesAnothersSuccessorAside(t *testing.T) {
	conn, _ := openEngine(t)
	insert(t, conn, randomLog(rand.New(rand.NewPCG(6, 6)), 300))
	before := contentsOf(t, conn)
	mustExec(t, conn, "CREATE TABLE events_next (kafka_offset UInt64) ENGINE = MergeTree ORDER BY kafka_offset COMMENT 'another'")
	mustExec(t, conn, "INSERT INTO events_next SELECT 1")
	if err := rebuilder(t, conn).Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "up", contentsOf(t, conn), before, newOrder)
	wantOneTable(t, conn)
}

// 1. two nodes find the same window to be copied; 2. one copies it after the other; 3. each
// row is there once.
func TestRebuildCopiesAWindowOnce(t *testing.T) {
	conn, _ := openEngine(t)
	insert(t, conn, randomLog(rand.New(rand.NewPCG(7, 7)), 300))
	m := rebuilder(t, conn)
	rb := newRebuild(m, m.migrations[len(m.migrations)-1].Up[0], "x")
	if err := errors.Join(rb.create(t.Context()), rb.readColumns(t.Context())); err != nil {
		t.Fatal(err)
	}
	windows, err := rb.differences(t.Context())
	if err != nil || len(windows) < 2 {
		t.Fatalf("differences = %+v, %v", windows, err)
	}
	for range 2 {
		if err := rb.copyWindows(t.Context(), windows); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := rb.differences(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("copied twice, %d of %d windows differ, %v", len(left), len(windows), err)
	}
}

func TestRebuildNeedsTheTable(t *testing.T) {
	conn, _ := openEngine(t)
	mustExec(t, conn, "DROP TABLE events SYNC")
	err := rebuilder(t, conn).Up(t.Context(), 0)
	if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("rebuild without a table = %v", err)
	}
}

func TestRebuildCopiesTheColumnsOfBoth(t *testing.T) {
	conn, _ := openEngine(t)
	m := rebuilder(t, conn)
	rb := newRebuild(m, m.migrations[len(m.migrations)-1].Up[0], "x")
	mustExec(t, conn, "ALTER TABLE events ADD COLUMN gone UInt8")
	mustExec(t, conn, "CREATE TABLE events_next AS events")
	mustExec(t, conn, "ALTER TABLE events_next DROP COLUMN gone, ADD COLUMN new UInt8, ADD COLUMN made UInt8 MATERIALIZED 1")
	if err := rb.readColumns(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(rb.columns) != 16 || slices.Contains(rb.columns, "gone") || slices.Contains(rb.columns, "new") {
		t.Errorf("columns = %v, want the 16 of the first table", rb.columns)
	}
}
