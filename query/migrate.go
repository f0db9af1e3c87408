package query

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// ErrMigrationChanged reports that a migration which the database has had differs from
// the one of the same version in this binary: one of the two is not what was released.
var ErrMigrationChanged = errors.New("an applied migration has changed since")

// codeTableExists is what the loser of two simultaneous CREATE TABLE may get in spite
// of IF NOT EXISTS (TABLE_ALREADY_EXISTS in ErrorCodes.cpp).
const codeTableExists = 57

// Migrate brings the database's tables to the version of this binary: it runs, in
// order, the migrations of schema.Migrations that the database has not had.
//
// It may be run any number of times and by several nodes at once: statements are
// idempotent, and a version counts as applied only after all of its statements. A
// database that is newer than the binary is left alone, so that an old node may restart
// in the middle of a rolling upgrade.
func Migrate(ctx context.Context, conn driver.Conn) error {
	return migrate(ctx, conn, schema.Migrations())
}

func migrate(ctx context.Context, conn driver.Conn, migrations []schema.Migration) error {
	if err := execIdempotent(ctx, conn, schema.CreateMigrations); err != nil {
		return fmt.Errorf("create table %s: %w", schema.TableMigrations, err)
	}
	applied, err := appliedMigrations(ctx, conn)
	if err != nil {
		return err
	}
	for _, m := range migrations {
		sum := checksum(m)
		if had, ok := applied[m.Version]; ok {
			if had != sum {
				return fmt.Errorf("migration %d %s: %w", m.Version, m.Name, ErrMigrationChanged)
			}
			continue
		}
		for _, statement := range m.Statements {
			if err := execIdempotent(ctx, conn, statement); err != nil {
				return fmt.Errorf("migration %d %s: %w", m.Version, m.Name, err)
			}
		}
		if err := recordMigration(ctx, conn, m, sum); err != nil {
			return err
		}
	}
	return nil
}

func execIdempotent(ctx context.Context, conn driver.Conn, statement string) error {
	err := conn.Exec(ctx, statement)
	if exception := (*clickhouse.Exception)(nil); errors.As(err, &exception) && exception.Code == codeTableExists {
		return nil
	}
	return err
}

// appliedMigrations returns the checksum of every version the database has had.
func appliedMigrations(ctx context.Context, conn driver.Conn) (map[uint32]string, error) {
	rows, err := conn.Query(ctx, "SELECT version, checksum FROM "+schema.TableMigrations+" ORDER BY version, applied_at")
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", schema.TableMigrations, err)
	}
	defer rows.Close()
	applied := make(map[uint32]string)
	for rows.Next() {
		var version uint32
		var sum string
		if err := rows.Scan(&version, &sum); err != nil {
			return nil, fmt.Errorf("read table %s: %w", schema.TableMigrations, err)
		}
		applied[version] = sum
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read table %s: %w", schema.TableMigrations, err)
	}
	return applied, nil
}

func recordMigration(ctx context.Context, conn driver.Conn, m schema.Migration, sum string) error {
	ctx = clickhouse.Context(ctx, clickhouse.WithParameters(clickhouse.Parameters{
		"version": strconv.FormatUint(uint64(m.Version), 10), "name": m.Name, "checksum": sum,
	}))
	err := conn.Exec(ctx, "INSERT INTO "+schema.TableMigrations+
		" SELECT {version:UInt32}, {name:String}, {checksum:String}, now64(3)")
	if err != nil {
		return fmt.Errorf("record migration %d %s: %w", m.Version, m.Name, err)
	}
	return nil
}

// checksum is over the statements without their layout, so that reindenting a
// migration is no change of it.
func checksum(m schema.Migration) string {
	h := sha256.New()
	for _, statement := range m.Statements {
		fmt.Fprintf(h, "%s;", strings.Join(strings.Fields(statement), " "))
	}
	return hex.EncodeToString(h.Sum(nil))
}
