package query

import (
	"errors"
	"fmt"
	"strings"
	"testing"

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
	err = conn.QueryRow(t.Context(), "SELECT uniqExact(version), (SELECT count() FROM system.tables WHERE database = 'fresh' AND name = 'events') FROM "+
		schema.TableMigrations).Scan(&versions, &tables)
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(len(schema.Migrations())); versions != want || tables != 1 {
		t.Errorf("database has %d versions and %d events tables, want %d and 1", versions, tables, want)
	}
}

func TestMigrateGoesOnWhereItStopped(t *testing.T) {
	conn, _ := openEngine(t)
	had := uint32(len(schema.Migrations()))
	step := func(n uint32, statements ...string) schema.Migration {
		return schema.Migration{Version: had + n, Name: fmt.Sprint("step ", n), Statements: statements}
	}
	first := step(1, "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x")
	bad := step(2, "CREATE TABLE IF NOT EXISTS b (x UInt8) ENGINE = MergeTree ORDER BY x", "ALTER TABLE nowhere ADD COLUMN y UInt8")
	if err := migrate(t.Context(), conn, append(schema.Migrations(), first, bad)); err == nil || !strings.Contains(err.Error(), "step 2") {
		t.Fatalf("migrate with a bad step = %v, want an error that names it", err)
	}
	mended := step(2, bad.Statements[0], "ALTER TABLE a ADD COLUMN IF NOT EXISTS y UInt8")
	if err := migrate(t.Context(), conn, append(schema.Migrations(), first, mended)); err != nil {
		t.Fatal(err)
	}
	// An older binary on a newer database changes nothing and starts.
	if err := Migrate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	changed := step(1, "CREATE TABLE IF NOT EXISTS a (x UInt64) ENGINE = MergeTree ORDER BY x")
	if err := migrate(t.Context(), conn, append(schema.Migrations(), changed, mended)); !errors.Is(err, ErrMigrationChanged) {
		t.Errorf("migrate with a changed step = %v, want %v", err, ErrMigrationChanged)
	}
	reindented := step(1, "CREATE TABLE IF NOT EXISTS a\n\t(x UInt8)  ENGINE = MergeTree ORDER BY x")
	if err := migrate(t.Context(), conn, append(schema.Migrations(), reindented, mended)); err != nil {
		t.Errorf("migrate with a reindented step = %v", err)
	}
}
