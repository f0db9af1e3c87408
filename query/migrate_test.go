package query

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/schema"
)

// 1. several nodes start at once on an empty database; 2. each ends with all tables, and
// none reports an error; 3. a later start changes nothing.
func TestMigrateByManyNodesAtOnceAndAgain(t *testing.T) {
	admin, process := openEngine(t)
	if err := admin.Exec(t.Context(), "CREATE DATABASE fresh"); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultClickHouseConfig()
	cfg.DSN = strings.Replace(process.DSN(), "/playhead", "/fresh", 1)
	conn, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var nodes errgroup.Group
	for range 6 {
		nodes.Go(func() error { return Migrate(t.Context(), conn) })
	}
	if err := nodes.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	var versions, tables uint64
	err = conn.QueryRow(t.Context(), "SELECT uniqExact(version), (SELECT count() FROM system.tables WHERE database = 'fresh' AND name LIKE 'events%') FROM "+
		schema.TableMigrations).Scan(&versions, &tables)
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(len(schema.Migrations())); versions != want || tables != 1 {
		t.Errorf("database has %d versions and %d events tables, want %d and 1", versions, tables, want)
	}
}

// extended returns a Migrator that knows further migrations.
func extended(t *testing.T, conn driver.Conn, further ...schema.Migration) *Migrator {
	m := NewMigrator(conn, DefaultTableConfig(), newTestLog(t))
	m.migrations = slices.Concat(m.migrations, further)
	return m
}

// plain makes the n-th migration after the released ones.
func plain(n uint32, down string, up ...string) schema.Migration {
	m := schema.Migration{Version: uint32(len(schema.Migrations())) + n, Name: fmt.Sprint("step ", n), Down: []schema.Step{{SQL: down}}}
	for _, sql := range up {
		m.Up = append(m.Up, schema.Step{SQL: sql})
	}
	return m
}

func TestMigrateGoesOnWhereItStopped(t *testing.T) {
	conn, _ := openEngine(t)
	first := plain(1, "DROP TABLE IF EXISTS a", "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x")
	createB := "CREATE TABLE IF NOT EXISTS b (x UInt8) ENGINE = MergeTree ORDER BY x"
	bad := plain(2, "DROP TABLE IF EXISTS b", createB, "ALTER TABLE nowhere ADD COLUMN y UInt8")
	if err := extended(t, conn, first, bad).Up(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "step 2") {
		t.Fatalf("migrate with a bad step = %v, want an error that names it", err)
	}
	mended := plain(2, "DROP TABLE IF EXISTS b", createB, "ALTER TABLE a ADD COLUMN IF NOT EXISTS y UInt8")
	if err := extended(t, conn, first, mended).Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	// An older binary on a newer database changes nothing and starts.
	if err := Migrate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	changed := plain(1, "DROP TABLE IF EXISTS a", "CREATE TABLE IF NOT EXISTS a (x UInt64) ENGINE = MergeTree ORDER BY x")
	if err := extended(t, conn, changed, mended).Up(t.Context(), 0); !errors.Is(err, ErrMigrationChanged) {
		t.Errorf("migrate with a changed step = %v, want %v", err, ErrMigrationChanged)
	}
	if err := extended(t, conn, changed, mended).Down(t.Context(), 1, false); !errors.Is(err, ErrMigrationChanged) {
		t.Errorf("back over a changed step = %v, want %v", err, ErrMigrationChanged)
	}
	reindented := plain(1, "DROP TABLE IF EXISTS a", "CREATE TABLE IF NOT EXISTS a\n\t(x UInt8)  ENGINE = MergeTree ORDER BY x")
	if err := extended(t, conn, reindented, mended).Up(t.Context(), 0); err != nil {
		t.Errorf("migrate with a reindented step = %v", err)
	}
}

func TestMigrateForwardAndBack(t *testing.T) {
	conn, _ := openEngine(t)
	had := uint32(len(schema.Migrations()))
	a := plain(1, "DROP TABLE IF EXISTS a", "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x")
	b := plain(2, "ALTER TABLE a DROP COLUMN IF EXISTS y", "ALTER TABLE a ADD COLUMN IF NOT EXISTS y UInt8")
	m := extended(t, conn, a, b)
	wantColumns := func(what string, want uint64) {
		t.Helper()
		var got uint64
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM system.columns WHERE database = currentDatabase() AND table = 'a'").Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s: table a has %d columns, want %d", what, got, want)
		}
	}
	if err := m.Up(t.Context(), had+1); err != nil {
		t.Fatal(err)
	}
	wantColumns("up to the first", 1)
	if err := m.Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wantColumns("up", 2)
	if err := NewMigrator(conn, DefaultTableConfig(), nil).Down(t.Context(), had, false); !errors.Is(err, ErrMigrationUnknown) {
		t.Errorf("back by a program that does not know the migration = %v, want %v", err, ErrMigrationUnknown)
	}
	for range 2 { // again changes nothing
		if err := m.Down(t.Context(), had+1, false); err != nil {
			t.Fatal(err)
		}
		wantColumns("down to the first", 1)
	}
	if err := m.Down(t.Context(), had, false); err != nil {
		t.Fatal(err)
	}
	wantColumns("down", 0)
	status, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range status {
		if s.Version != uint32(i+1) || s.AppliedAt.IsZero() != (s.Version > had) || !s.Known || s.Changed {
			t.Errorf("status %d of %d = %+v", i+1, len(status), s)
		}
	}
}

func TestMigrateBackKeepsHistoryUnlessTold(t *testing.T) {
	conn, _ := openEngine(t)
	m := NewMigrator(conn, DefaultTableConfig(), newTestLog(t))
	if err := conn.Exec(t.Context(), "INSERT INTO events (kafka_offset) SELECT 1"); err != nil {
		t.Fatal(err)
	}
	if err := m.Down(t.Context(), 0, false); !errors.Is(err, ErrWouldDropHistory) {
		t.Fatalf("Down(0) over rows = %v, want %v", err, ErrWouldDropHistory)
	}
	if err := m.Down(t.Context(), 0, true); err != nil {
		t.Fatal(err)
	}
	if err := m.Up(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	var rows uint64
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM events").Scan(&rows); err != nil || rows != 0 {
		t.Errorf("rows after down and up = %d, %v; want 0", rows, err)
	}
}
