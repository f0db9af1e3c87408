package query

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/internal/engine"
	"github.com/playhead-dev/playhead/schema"
)

func TestTableConfigReportsEveryProblem(t *testing.T) {
	c := TableConfig{TTL: time.Minute, PartitionBy: "week", StoragePolicy: "a'b", MoveAfter: 3 * time.Hour, MoveToVolume: "x", MoveToDisk: "y z"}
	err := c.Validate()
	for _, want := range []string{
		"clickhouse.table.ttl is 1m0s", `clickhouse.table.partition_by is "week"; want month or day`, `clickhouse.table.storage_policy is "a'b"`,
		"clickhouse.table.move_after is 3h0m0s; want less than ttl", `clickhouse.table.move_to_disk is "y z"`, `clickhouse.table.move_to_volume is "x" with`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate() = %v; want it to say %q", err, want)
		}
	}
	if err := DefaultTableConfig().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	c = DefaultTableConfig()
	c.MoveToDisk = "cold"
	if err := c.Validate(); err == nil {
		t.Error("a disk to move to without a time is accepted")
	}
}

// newLogTo hands each line to line.
func newLogTo(line func(string)) *slog.Logger {
	return slog.New(slog.NewTextHandler(lineWriter(line), nil))
}

type lineWriter func(string)

func (w lineWriter) Write(p []byte) (int, error) { w(string(p)); return len(p), nil }

// alterations counts what is logged of them.
type alterations struct{ made []string }

func (a *alterations) apply(t *testing.T, conn driver.Conn, c TableConfig) error {
	t.Helper()
	before := len(a.made)
	err := ApplyTable(t.Context(), conn, c, newLogTo(func(line string) {
		t.Log(line)
		a.made = append(a.made, line)
	}))
	if err == nil {
		again := len(a.made)
		if err := ApplyTable(t.Context(), conn, c, newLogTo(func(line string) { a.made = append(a.made, line) })); err != nil {
			t.Fatal(err)
		}
		if len(a.made) > again {
			t.Errorf("applied twice, %+v alters twice: %q, then %q", c, a.made[before:again], a.made[again:])
		}
	}
	return err
}

func tableIs(t *testing.T, conn driver.Conn) tableState {
	t.Helper()
	s, err := readTable(t.Context(), conn, schema.TableEvents)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTableIsAlteredOnceAndBack(t *testing.T) {
	conn, _ := openEngine(t)
	var a alterations
	c := DefaultTableConfig()
	if err := a.apply(t, conn, c); err != nil || len(a.made) > 0 {
		t.Fatalf("the defaults: %v, alters %q", err, a.made)
	}
	for _, ttl := range []time.Duration{24 * time.Hour, maxTableAge, 30 * 24 * time.Hour, 0} {
		c.TTL = ttl
		if err := a.apply(t, conn, c); err != nil {
			t.Fatal(err)
		}
		if got := tableIs(t, conn).ttl; got != c.ttl() {
			t.Errorf("TTL of the table = %q, want %q", got, c.ttl())
		}
	}
	if len(a.made) != 5 { // four, and once the settings
		t.Errorf("alterations = %q", a.made)
	}
	c.PartitionBy = PartitionByDay
	if err := a.apply(t, conn, c); !errors.Is(err, ErrTableConfig) || !strings.Contains(err.Error(), "partition_by") {
		t.Errorf("another partition_by on a table that is there = %v, want %v", err, ErrTableConfig)
	}
	c = DefaultTableConfig()
	c.StoragePolicy = "none_of_that_name"
	if err := a.apply(t, conn, c); !errors.Is(err, ErrTableConfig) {
		t.Errorf("a policy that the server has not = %v, want %v", err, ErrTableConfig)
	}
}

func TestRowsExpire(t *testing.T) {
	conn, _ := openEngine(t)
	for _, row := range []struct {
		offset int
		ts     string
	}{{1, "now64(3) - INTERVAL 40 DAY"}, {2, "now64(3) - INTERVAL 1 HOUR"}, {3, "toDateTime64('2250-01-01', 3, 'UTC')"}} {
		mustExec(t, conn, fmt.Sprintf("INSERT INTO events (kafka_offset, ts) SELECT %d, %s", row.offset, row.ts))
	}
	c := DefaultTableConfig()
	c.TTL = 30 * 24 * time.Hour
	if err := ApplyTable(t.Context(), conn, c, newTestLog(t)); err != nil {
		t.Fatal(err)
	}
	var left []uint64
	waitFor(t, func() bool {
		mustExec(t, conn, "OPTIMIZE TABLE events FINAL")
		left = nil
		if err := conn.QueryRow(t.Context(), "SELECT groupArray(kafka_offset) FROM (SELECT kafka_offset FROM events ORDER BY kafka_offset)").Scan(&left); err != nil {
			t.Fatal(err)
		}
		return !slices.Contains(left, 1)
	})
	if !slices.Equal(left, []uint64{2, 3}) {
		t.Errorf("rows left = %v, want those of an hour ago and of the far future", left)
	}
}

func TestTableByDayFromTheBeginning(t *testing.T) {
	admin, process := openEngine(t)
	mustExec(t, admin, "CREATE DATABASE daily")
	conn := openAs(t, strings.Replace(process.DSN(), "/playhead", "/daily", 1))
	c := DefaultTableConfig()
	c.PartitionBy = PartitionByDay
	for range 2 {
		if err := NewMigrator(conn, c, newTestLog(t)).Up(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if err := ApplyTable(t.Context(), conn, c, newTestLog(t)); err != nil {
			t.Fatal(err)
		}
	}
	if got := tableIs(t, conn).partitionKey; got != "toYYYYMMDD(ts)" {
		t.Errorf("table has PARTITION BY %s", got)
	}
	// Every statement that makes the table can be told.
	for _, m := range schema.Migrations() {
		for _, step := range slices.Concat(m.Up, m.Down) {
			if creates := strings.HasPrefix(step.SQL, "CREATE TABLE IF NOT EXISTS "+schema.TableEvents); creates && c.created(step.SQL) == step.SQL {
				t.Errorf("migration %d makes the table, and not as configured: %.200s", m.Version, step.SQL)
			}
		}
	}
}

func openAs(t *testing.T, dsn string) driver.Conn {
	t.Helper()
	cfg := DefaultClickHouseConfig()
	cfg.DSN = dsn
	conn, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// 1. the table is on one disk; 2. a policy with a second volume is configured, and an age
// at which parts move there; 3. old rows move, new ones stay, all are read; 4. a table
// that is rebuilt keeps to it.
func TestOldRowsMoveToTheColdVolume(t *testing.T) {
	dir := t.TempDir()
	process, err := engine.Start(t.Context(), engine.Config{
		DataPath: filepath.Join(dir, "engine"), ColdPath: filepath.Join(dir, "cold"), LibraryPath: engine.LibraryPath(os.Getenv),
		ChildArgs: []string{engineChild}, Log: newTestLog(t), Stderr: testLog{t},
	})
	if errors.Is(err, engine.ErrLibraryNotFound) && os.Getenv("PLAYHEAD_REQUIRE_ENGINE") != "1" {
		t.Skipf("no engine to test with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Close(); err != nil {
			t.Errorf("close engine: %v", err)
		}
	})
	conn := openAs(t, process.DSN())
	if err := Migrate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	mustExec(t, conn, "INSERT INTO events (kafka_offset, ts) SELECT number, now64(3) - INTERVAL 100 DAY FROM numbers(10)")
	mustExec(t, conn, "INSERT INTO events (kafka_offset, ts) SELECT 100 + number, now64(3) FROM numbers(10)")
	var a alterations
	for _, c := range []TableConfig{
		{PartitionBy: PartitionByMonth, StoragePolicy: engine.TieredPolicy, MoveAfter: 30 * 24 * time.Hour, MoveToVolume: "cold"},
		{PartitionBy: PartitionByMonth, StoragePolicy: engine.TieredPolicy, MoveAfter: 40 * 24 * time.Hour, MoveToDisk: "cold", TTL: 400 * 24 * time.Hour},
	} {
		if err := a.apply(t, conn, c); err != nil {
			t.Fatal(err)
		}
		wantDisks(t, conn)
	}
	m := rebuilder(t, conn)
	m.table = TableConfig{PartitionBy: PartitionByMonth, StoragePolicy: engine.TieredPolicy, MoveAfter: 30 * 24 * time.Hour, MoveToVolume: "cold"}
	if err := m.Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := a.apply(t, conn, m.table); err != nil {
		t.Fatal(err)
	}
	wantDisks(t, conn)
}

// wantDisks waits until the offsets below 100 are on the cold disk; the others are not.
func wantDisks(t *testing.T, conn driver.Conn) {
	t.Helper()
	var rows uint64
	waitFor(t, func() bool {
		var cold, hot uint64
		err := conn.QueryRow(t.Context(), "SELECT sumIf(rows, disk_name = 'cold' AND partition != toString(toYYYYMM(now()))),"+
			" sumIf(rows, disk_name = 'default' AND partition = toString(toYYYYMM(now())))"+
			" FROM system.parts WHERE database = currentDatabase() AND table = 'events' AND active").Scan(&cold, &hot)
		if err != nil {
			t.Fatal(err)
		}
		return cold == 10 && hot == 10
	})
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM events").Scan(&rows); err != nil || rows != 20 {
		t.Errorf("rows = %d, %v; want 20", rows, err)
	}
}
