package schema

import (
	"embed"
	"fmt"
	"strconv"
	"strings"
)

// TableEvents is the ClickHouse table that holds the history, one row a record.
const TableEvents = "events"

// TableMigrations records which migrations a database has had.
const TableMigrations = "schema_migrations"

// NextSuffix ends the name of a table's successor while a Step rebuilds it.
const NextSuffix = "_next"

// Migration is one step of the ClickHouse schema, forward and back. It is kept in two
// files, sql/NNN_name.up.sql and sql/NNN_name.down.sql (parseSteps has their form).
type Migration struct {
	Version uint32
	Name    string
	Up      []Step
	Down    []Step // undoes Up, whatever the tables hold by then
}

// Step is one statement of a migration. Statements are idempotent (IF NOT EXISTS and the
// like), so that a crash in the middle is mended by running the migration again, and two
// nodes may run it at the same time.
type Step struct {
	// SQL is the statement, without a semicolon at its end.
	SQL string

	// Rebuild names a table that cannot be brought to its new shape in place, such as one
	// with another sort key. SQL then creates its successor, named Rebuild + NextSuffix;
	// the rows are copied, and the two change places (query.Migrator). Empty for a plain
	// statement.
	Rebuild string
}

//go:embed sql/*.sql
var sqlFiles embed.FS

// CreateMigrations creates the table of applied migrations. A version counts as applied
// while it has a row; two nodes that apply the same version at once leave two equal rows.
const CreateMigrations = `CREATE TABLE IF NOT EXISTS ` + TableMigrations + ` (
  version UInt32, name String, checksum String, applied_at DateTime64(3,'UTC')
) ENGINE = MergeTree ORDER BY version`

// Migrations returns all migrations in the order of their versions, which start at 1
// and have no gaps. A released migration never changes: mend it by a later one.
func Migrations() []Migration {
	entries, err := sqlFiles.ReadDir("sql")
	if err != nil {
		panic(fmt.Sprintf("schema: embedded migrations: %v", err))
	}
	var out []Migration
	for _, e := range entries { // in the order of their names
		base, up := strings.CutSuffix(e.Name(), ".up.sql")
		if !up {
			continue
		}
		number, name, _ := strings.Cut(base, "_")
		version, err := strconv.ParseUint(number, 10, 32)
		if err != nil || int(version) != len(out)+1 {
			panic(fmt.Sprintf("schema: migration %s is not number %d", e.Name(), len(out)+1))
		}
		out = append(out, Migration{
			Version: uint32(version), Name: name,
			Up: parseSteps(readSQL(base + ".up.sql")), Down: parseSteps(readSQL(base + ".down.sql")),
		})
	}
	return out
}

func readSQL(name string) string {
	text, err := sqlFiles.ReadFile("sql/" + name)
	if err != nil {
		panic(fmt.Sprintf("schema: %v", err))
	}
	return string(text)
}

// rebuildDirective stands on a line of its own before the statement that creates the
// successor of the table it names.
const rebuildDirective = "-- rebuild "

// parseSteps reads a migration's file: statements that end with a semicolon at the end
// of a line, the last one without if it likes; lines that begin with "--" are comments,
// but for rebuildDirective.
func parseSteps(text string) []Step {
	var steps []Step
	var step Step
	var sql strings.Builder
	finish := func() {
		step.SQL = strings.TrimRight(strings.TrimSpace(sql.String()), "; \n")
		if step.SQL != "" {
			steps = append(steps, step)
		}
		step = Step{}
		sql.Reset()
	}
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if table, ok := strings.CutPrefix(trimmed, rebuildDirective); ok {
			step.Rebuild = strings.TrimSpace(table)
			continue
		}
		if strings.HasPrefix(trimmed, "--") {
			continue
		}
		sql.WriteString(line)
		if strings.HasSuffix(trimmed, ";") {
			finish()
		}
	}
	finish()
	return steps
}
