package schema

import _ "embed" // the migrations' SQL

// TableEvents is the ClickHouse table that holds the history, one row a record.
const TableEvents = "events"

// TableMigrations records which migrations a database has had.
const TableMigrations = "schema_migrations"

// Migration is one step of the ClickHouse schema. Its statements are idempotent
// (IF NOT EXISTS and the like), so that two nodes may run it at the same time and a
// crash in the middle is mended by running it again.
type Migration struct {
	Version    uint32
	Name       string
	Statements []string
}

//go:embed sql/001_events.sql
var sqlEvents string

// CreateMigrations creates the table of applied migrations. Rows are only ever added;
// two nodes that apply the same version at once leave two equal rows.
const CreateMigrations = `CREATE TABLE IF NOT EXISTS ` + TableMigrations + ` (
  version UInt32, name String, checksum String, applied_at DateTime64(3,'UTC')
) ENGINE = MergeTree ORDER BY version`

// Migrations returns all migrations in the order of their versions, which start at 1
// and have no gaps. A released migration never changes: mend it by a later one.
func Migrations() []Migration {
	return []Migration{
		{Version: 1, Name: "events", Statements: []string{sqlEvents}},
	}
}
