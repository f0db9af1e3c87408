package query

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// Errors of a Migrator that trying again does not mend.
var (
	// ErrMigrationChanged reports that a migration which the database has had differs from
	// the one of the same version in this binary: one of the two is not what was released.
	ErrMigrationChanged = errors.New("an applied migration has changed since")

	// ErrMigrationUnknown reports a database that has had migrations which this binary
	// does not know, and so cannot undo.
	ErrMigrationUnknown = errors.New("the database is newer than this program")

	// ErrWouldDropHistory reports a migration back that drops a table which holds rows.
	ErrWouldDropHistory = errors.New("the table of events holds rows, and this would drop it")
)

// codeTableExists is what the loser of two simultaneous CREATE TABLE may get in spite
// of IF NOT EXISTS (TABLE_ALREADY_EXISTS in ErrorCodes.cpp).
const codeTableExists = 57

// Migrate brings the database's tables to the version of this binary, with the default
// TableConfig; see Migrator.Up.
func Migrate(ctx context.Context, conn driver.Conn) error {
	return NewMigrator(conn, DefaultTableConfig(), nil).Up(ctx, 0)
}

// Migrator brings a database's tables from one version of the schema to another. Its
// methods may be called any number of times and by several processes at once: statements
// are idempotent, and a version counts as applied only after all of them. A process that
// dies in the middle leaves what the next call finishes.
type Migrator struct {
	conn       driver.Conn
	table      TableConfig
	log        *slog.Logger
	migrations []schema.Migration
	window     int64 // offsets that are copied at a time when a table is rebuilt
}

// NewMigrator returns a Migrator over conn, which stays the caller's; take one of
// OpenMigrations, as a rebuild has statements that take longer than a page may. New
// tables are made as table says. log is told of every step that is taken; nil for nobody.
func NewMigrator(conn driver.Conn, table TableConfig, log *slog.Logger) *Migrator {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Migrator{conn: conn, table: table, log: log, migrations: schema.Migrations(), window: rebuildWindow}
}

// OpenMigrations returns a pool for a Migrator: few connections, which wait for an answer
// for up to an hour.
func OpenMigrations(ctx context.Context, c ClickHouseConfig) (driver.Conn, error) {
	c.MaxOpenConns, c.MaxIdleConns, c.ReadTimeout = migrationConns, migrationConns, maxTimeout
	return Open(ctx, c)
}

const migrationConns = 2

// Up applies, in order, the migrations up to the version to (0: all) that the database
// has not had. A database that is newer than the binary is left alone, so that an old
// node may restart in the middle of a rolling upgrade.
func (m *Migrator) Up(ctx context.Context, to uint32) error {
	applied, err := m.applied(ctx)
	if err != nil {
		return err
	}
	for _, mig := range m.migrations {
		if had, ok := applied[mig.Version]; ok {
			if had.checksum != checksum(mig) {
				return fmt.Errorf("migration %d %s: %w", mig.Version, mig.Name, ErrMigrationChanged)
			}
			continue
		}
		if to > 0 && mig.Version > to {
			break
		}
		m.log.Info("applying migration", "version", mig.Version, "name", mig.Name)
		if err := m.steps(ctx, mig.Up, fmt.Sprintf("playhead schema %d", mig.Version)); err != nil {
			return fmt.Errorf("migration %d %s: %w", mig.Version, mig.Name, err)
		}
		if err := m.record(ctx, mig); err != nil {
			return err
		}
	}
	return m.thaw(ctx, schema.TableEvents)
}

// Down undoes, from the newest, the migrations above the version to. It returns
// ErrMigrationUnknown, and changes nothing, if one of them is not of this binary, and
// ErrWouldDropHistory if it would drop the table of events, which has rows, unless
// dropHistory says so.
//
// A node of this binary that starts later migrates up again: Down is for going back to an
// older program, with all nodes stopped.
func (m *Migrator) Down(ctx context.Context, to uint32, dropHistory bool) error {
	applied, err := m.applied(ctx)
	if err != nil {
		return err
	}
	var undo []schema.Migration
	for version, had := range applied {
		if version <= to {
			continue
		}
		i := slices.IndexFunc(m.migrations, func(mig schema.Migration) bool { return mig.Version == version })
		if i < 0 {
			return fmt.Errorf("migration %d: %w", version, ErrMigrationUnknown)
		}
		if had.checksum != checksum(m.migrations[i]) {
			return fmt.Errorf("migration %d %s: %w", version, m.migrations[i].Name, ErrMigrationChanged)
		}
		undo = append(undo, m.migrations[i])
	}
	slices.SortFunc(undo, func(a, b schema.Migration) int { return int(b.Version) - int(a.Version) })
	if to == 0 && !dropHistory {
		if err := m.refuseToDropRows(ctx); err != nil {
			return err
		}
	}
	for _, mig := range undo {
		m.log.Info("undoing migration", "version", mig.Version, "name", mig.Name)
		if err := m.steps(ctx, mig.Down, fmt.Sprintf("playhead schema %d", mig.Version-1)); err != nil {
			return fmt.Errorf("undo migration %d %s: %w", mig.Version, mig.Name, err)
		}
		if err := m.forget(ctx, mig); err != nil {
			return err
		}
	}
	return nil
}

// refuseToDropRows returns ErrWouldDropHistory if the table of events has rows.
func (m *Migrator) refuseToDropRows(ctx context.Context) error {
	var rows uint64
	err := m.conn.QueryRow(ctx, "SELECT toUInt64(ifNull(sum(total_rows), 0)) FROM system.tables"+
		" WHERE database = currentDatabase() AND name = '"+schema.TableEvents+"'").Scan(&rows)
	if err != nil {
		return fmt.Errorf("count rows of %s: %w", schema.TableEvents, err)
	}
	if rows > 0 {
		return fmt.Errorf("%w (%d rows)", ErrWouldDropHistory, rows)
	}
	return nil
}

// steps runs the steps of one migration in one direction. shape names what they lead to,
// for tables that are rebuilt.
func (m *Migrator) steps(ctx context.Context, steps []schema.Step, shape string) error {
	for _, step := range steps {
		var err error
		if step.Rebuild == "" {
			err = execIdempotent(ctx, m.conn, m.table.created(step.SQL))
		} else {
			err = newRebuild(m, step, shape).run(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// MigrationStatus is one migration as a database and a binary know it.
type MigrationStatus struct {
	Version   uint32
	Name      string
	AppliedAt time.Time // zero: not applied
	Known     bool      // this binary has it
	Changed   bool      // ErrMigrationChanged
}

// Status returns the migrations that the database has had or this binary knows, by
// version. It changes nothing.
func (m *Migrator) Status(ctx context.Context) ([]MigrationStatus, error) {
	applied, err := m.read(ctx)
	if exception := (*clickhouse.Exception)(nil); errors.As(err, &exception) && exception.Code == codeUnknownTable {
		applied, err = nil, nil // a new database
	}
	if err != nil {
		return nil, err
	}
	var out []MigrationStatus
	for _, mig := range m.migrations {
		had, ok := applied[mig.Version]
		out = append(out, MigrationStatus{
			Version: mig.Version, Name: mig.Name, AppliedAt: had.at, Known: true, Changed: ok && had.checksum != checksum(mig),
		})
		delete(applied, mig.Version)
	}
	for version, had := range applied {
		out = append(out, MigrationStatus{Version: version, Name: had.name, AppliedAt: had.at})
	}
	slices.SortFunc(out, func(a, b MigrationStatus) int { return int(a.Version) - int(b.Version) })
	return out, nil
}

func execIdempotent(ctx context.Context, conn driver.Conn, statement string) error {
	err := conn.Exec(ctx, statement)
	if isException(err, codeTableExists) {
		return nil
	}
	return err
}

// isException reports whether ClickHouse gave the error, with one of the codes.
func isException(err error, codes ...int32) bool {
	exception := (*clickhouse.Exception)(nil)
	return errors.As(err, &exception) && slices.Contains(codes, exception.Code)
}

// appliedMigration is what the database says about a migration it has had.
type appliedMigration struct {
	name, checksum string
	at             time.Time
}

// applied returns the migrations that the database has had; it makes the table of them if
// there is none. A node whose user may not make tables starts where there is one.
func (m *Migrator) applied(ctx context.Context) (map[uint32]appliedMigration, error) {
	applied, err := m.read(ctx)
	if !isException(err, codeUnknownTable) {
		return applied, err
	}
	if err := execIdempotent(ctx, m.conn, schema.CreateMigrations); err != nil {
		return nil, fmt.Errorf("create table %s: %w", schema.TableMigrations, err)
	}
	return m.read(ctx)
}

func (m *Migrator) read(ctx context.Context) (map[uint32]appliedMigration, error) {
	rows, err := m.conn.Query(ctx, "SELECT version, name, checksum, applied_at FROM "+schema.TableMigrations+" ORDER BY version, applied_at")
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", schema.TableMigrations, err)
	}
	defer rows.Close()
	applied := make(map[uint32]appliedMigration)
	for rows.Next() {
		var version uint32
		var a appliedMigration
		if err := rows.Scan(&version, &a.name, &a.checksum, &a.at); err != nil {
			return nil, fmt.Errorf("read table %s: %w", schema.TableMigrations, err)
		}
		applied[version] = a
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read table %s: %w", schema.TableMigrations, err)
	}
	return applied, nil
}

// record notes that mig is applied.
func (m *Migrator) record(ctx context.Context, mig schema.Migration) error {
	ctx = clickhouse.Context(ctx, clickhouse.WithParameters(clickhouse.Parameters{
		"version": strconv.FormatUint(uint64(mig.Version), 10), "name": mig.Name, "checksum": checksum(mig),
	}))
	err := m.conn.Exec(ctx, "INSERT INTO "+schema.TableMigrations+
		" SELECT {version:UInt32}, {name:String}, {checksum:String}, now64(3)")
	if err != nil {
		return fmt.Errorf("record migration %d %s: %w", mig.Version, mig.Name, err)
	}
	return nil
}

// forget notes that mig is not applied any more.
func (m *Migrator) forget(ctx context.Context, mig schema.Migration) error {
	err := m.conn.Exec(ctx, fmt.Sprintf("ALTER TABLE %s DELETE WHERE version = %d SETTINGS mutations_sync = 2",
		schema.TableMigrations, mig.Version))
	if err != nil {
		return fmt.Errorf("forget migration %d %s: %w", mig.Version, mig.Name, err)
	}
	return nil
}

// checksum is over the statements forward without their layout, so that reindenting a
// migration is no change of it, nor is mending the way back.
func checksum(mig schema.Migration) string {
	h := sha256.New()
	for _, step := range mig.Up {
		if step.Rebuild != "" {
			fmt.Fprintf(h, "rebuild %s;", step.Rebuild)
		}
		fmt.Fprintf(h, "%s;", strings.Join(strings.Fields(step.SQL), " "))
	}
	return hex.EncodeToString(h.Sum(nil))
}
