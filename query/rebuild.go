package query

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/playhead-dev/playhead/schema"
)

// rebuild brings the table of events to a shape that ALTER cannot give it: it makes the
// successor T_next, copies the rows, and lets the two change places. Rows may be inserted
// into T and read from it all the while, by nodes of any version.
//
//	T, T_next          rows are copied, window by window of offsets. Each insert leaves out
//	                   what the successor has, and all have one query id, of which the
//	                   server runs one at a time: so no number of nodes, and no statement
//	                   that outlived its client, copies a row twice. What is left to copy is
//	                   found by comparing counts and checksums: there is no other progress.
//	T frozen           a constraint that nothing passes refuses inserts into T; the
//	                   materialiser waits and tries again. Once those under way have ended,
//	                   the rest is copied.
//	T_next_<nonce>     both are equal. Renaming is how one node claims the exchange: another
//	                   that was as far finds no T_next.
//	T has the shape    after EXCHANGE TABLES. What is called T_next… now is the old table.
//
// A node that is late may refuse inserts into the table that has the shape already. The
// constraint's name has the shape, so that one is known for stale, and dropped: by that node
// as its next step, or else by the next that starts (Migrator.thaw).
//
// The shape of a table stands in its comment, so each state is seen in the names and
// comments alone, and any node goes on from any of them. Both tables need room on the
// disk until the old one is dropped.
type rebuild struct {
	*Migrator
	step    schema.Step
	shape   string // in the comment of a table that has it
	name    string // of the table
	next    string
	claimed string   // T_next_<nonce>, ours alone
	columns []string // that are copied
	queryID string
}

const (
	// rebuildWindow is how many offsets of a Kafka partition are copied by one statement,
	// and how many rows at most.
	rebuildWindow = 250_000

	// rebuildBlockBytes bounds the part that a copying statement builds in memory.
	rebuildBlockBytes = 64 << 20

	// frozenConstraint begins the constraint's name, which stands in the error that inserts get.
	frozenConstraint = "table_is_being_rebuilt_to_"

	// settleTimeout bounds the wait for inserts and mutations that began before the table
	// was frozen.
	settleTimeout = 10 * time.Minute

	// claimPatience is how long a node leaves a claim to another that made it.
	claimPatience = 5 * time.Second

	// shortPass is a pass of copying after which the table may be frozen for the next.
	shortPass = 2 * time.Second

	// rebuildPause is between two looks at what another node does.
	rebuildPause = 100 * time.Millisecond
)

// Codes of ClickHouse's exceptions (ErrorCodes.cpp).
const (
	codeUnknownTable       = 60
	codeUnknownSetting     = 115
	codeQueryIDRuns        = 216
	codeTableSizeExceeds   = 359 // TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT
	codeTableExchanged     = 741 // TABLE_UUID_MISMATCH: the statement met the moment of EXCHANGE TABLES, and did nothing
	rowChecksumExpression  = "sum(cityHash64(kafka_offset, ts, session_id, type, message_id, length(payload)))"
	rebuildWindowCondition = "log_epoch = {epoch:UInt8} AND kafka_partition = {partition:UInt16}" +
		" AND kafka_offset >= {from:UInt64} AND kafka_offset < {to:UInt64}"
)

func newRebuild(m *Migrator, step schema.Step, shape string) *rebuild {
	next := step.Rebuild + schema.NextSuffix
	return &rebuild{Migrator: m, step: step, shape: shape, name: step.Rebuild, next: next, claimed: next + "_" + strings.ToLower(rand.Text()[:8])}
}

// run goes through the states until the table has the shape.
func (r *rebuild) run(ctx context.Context) error {
	var database string
	if err := r.conn.QueryRow(ctx, "SELECT currentDatabase()").Scan(&database); err != nil {
		return fmt.Errorf("rebuild table %s: %w", r.name, err)
	}
	r.queryID = "playhead-migrate/" + database
	var others time.Time // since when another node's claim is all there is to see
	for {
		tables, err := r.tables(ctx)
		if err != nil {
			return fmt.Errorf("rebuild table %s: %w", r.name, err)
		}
		comment, ok := tables[r.name]
		switch {
		case !ok:
			return fmt.Errorf("rebuild table %s: it does not exist", r.name)
		case comment == r.shape:
			if err := r.thaw(ctx, r.name); err != nil {
				return err
			}
			return r.dropOld(ctx, tables)
		}
		claim := r.claimOf(tables)
		switch {
		case claim == "":
			err = r.prepare(ctx, tables)
		case claim != r.claimed && others.IsZero():
			others = time.Now()
		case claim != r.claimed && time.Since(others) < claimPatience:
		case claim != r.claimed: // whoever made it is gone
			err = r.exec(ctx, fmt.Sprintf("RENAME TABLE %s TO %s", claim, r.claimed))
		default:
			r.log.Info("exchanging the tables", "table", r.name)
			err = r.exec(ctx, fmt.Sprintf("EXCHANGE TABLES %s AND %s", r.name, r.claimed))
		}
		// Another node was faster, or its statement (or one of a dead one) still runs.
		if err != nil && !errors.Is(err, errNoTable) && !isException(err, codeUnknownTable, codeTableExists, codeQueryIDRuns, codeTableExchanged) {
			return fmt.Errorf("rebuild table %s: %w", r.name, err)
		}
		if err != nil || claim != "" && claim != r.claimed {
			if err := pauseFor(ctx, rebuildPause); err != nil {
				return err
			}
		}
	}
}

// tables returns the comments of the table and of all that is called T_next….
func (r *rebuild) tables(ctx context.Context) (map[string]string, error) {
	rows, err := r.conn.Query(ctx, fmt.Sprintf(
		"SELECT name, comment FROM system.tables WHERE database = currentDatabase() AND (name = '%s' OR startsWith(name, '%s'))", r.name, r.next))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := make(map[string]string)
	for rows.Next() {
		var name, comment string
		if err := rows.Scan(&name, &comment); err != nil {
			return nil, err
		}
		out[name] = comment
	}
	return out, rows.Err()
}

// claimOf returns the name of a claimed successor, ours first; "" if there is none.
func (r *rebuild) claimOf(tables map[string]string) string {
	if tables[r.claimed] == r.shape {
		return r.claimed
	}
	for name, comment := range tables {
		if name != r.next && name != r.name && comment == r.shape {
			return name
		}
	}
	return ""
}

// prepare makes the successor equal to the table, which is frozen in the end, and claims it.
func (r *rebuild) prepare(ctx context.Context, tables map[string]string) error {
	for name, comment := range tables {
		if name != r.name && comment != r.shape { // of another rebuild, that was given up
			if err := r.exec(ctx, "DROP TABLE IF EXISTS "+name); err != nil {
				return err
			}
		}
	}
	if tables[r.next] != r.shape {
		if err := r.create(ctx); err != nil {
			return err
		}
	}
	if err := r.readColumns(ctx); err != nil {
		return err
	}
	if err := r.copyMost(ctx); err != nil {
		return err
	}
	if err := r.freeze(ctx); err != nil {
		return err
	}
	if err := r.waitForStatements(ctx); err != nil {
		return err
	}
	if err := r.copyRest(ctx); err != nil {
		return err
	}
	return r.exec(ctx, fmt.Sprintf("RENAME TABLE %s TO %s", r.next, r.claimed))
}

func (r *rebuild) create(ctx context.Context) error {
	if err := execIdempotent(ctx, r.conn, r.table.created(r.step.SQL)); err != nil {
		return err
	}
	// Rows that are due on a slower disk go there at once. Rows that are due to be deleted
	// are copied, or the comparison would never come out even.
	keep := r.table
	keep.TTL = 0
	if err := keep.apply(ctx, r.conn, r.next, r.log); err != nil {
		return err
	}
	return r.exec(ctx, fmt.Sprintf("ALTER TABLE %s MODIFY COMMENT '%s'", r.next, r.shape))
}

// readColumns finds what is copied: the columns that both tables store as given.
func (r *rebuild) readColumns(ctx context.Context) error {
	rows, err := r.conn.Query(ctx, fmt.Sprintf("SELECT name FROM system.columns WHERE database = currentDatabase()"+
		" AND table IN ('%s', '%s') AND default_kind IN ('', 'DEFAULT') GROUP BY name HAVING count() = 2 ORDER BY min(position)", r.name, r.next))
	if err != nil {
		return err
	}
	defer rows.Close()
	r.columns = nil
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		r.columns = append(r.columns, name)
	}
	return rows.Err()
}

// copyMost copies until what came meanwhile is little, or does not become less: the rest
// is for when the table is frozen.
func (r *rebuild) copyMost(ctx context.Context) error {
	for last := math.MaxInt; ; {
		windows, err := r.differences(ctx)
		if err != nil || len(windows) == 0 || len(windows) >= last {
			return err
		}
		last = len(windows)
		began := time.Now()
		if err := r.copyWindows(ctx, windows); err != nil || time.Since(began) < shortPass {
			return err
		}
	}
}

// copyRest copies until the tables are equal, which they become once the table is frozen.
func (r *rebuild) copyRest(ctx context.Context) error {
	for {
		windows, err := r.differences(ctx)
		if err != nil || len(windows) == 0 {
			return err
		}
		if err := r.copyWindows(ctx, windows); err != nil {
			return err
		}
	}
}

func (r *rebuild) copyWindows(ctx context.Context, windows []rebuildDifference) error {
	reported := time.Now()
	for i, w := range windows {
		if err := r.copyWindow(ctx, w); err != nil {
			return err
		}
		if time.Since(reported) > time.Second {
			reported = time.Now()
			r.log.Info("copying rows to the table's new shape", "table", r.name, "windows_done", i+1, "windows", len(windows))
		}
	}
	return nil
}

// rebuildKey names a window of offsets.
type rebuildKey struct {
	epoch     uint8
	partition uint16
	number    uint64 // of its first offset, in windows
}

// rebuildSum is what a table holds of a window.
type rebuildSum struct {
	rows, checksum uint64
	minMs, maxMs   int64
}

// rebuildDifference is a window in which the tables differ.
type rebuildDifference struct {
	rebuildKey
	from, to rebuildSum // in the table, in its successor
}

// differences compares the tables, in the order of the log.
func (r *rebuild) differences(ctx context.Context) ([]rebuildDifference, error) {
	next, err := r.sums(ctx, r.next) // first, so that it cannot be ahead
	if err != nil {
		return nil, err
	}
	table, err := r.sums(ctx, r.name)
	if err != nil {
		return nil, err
	}
	var out []rebuildDifference
	for key, sum := range table {
		if had := next[key]; had.rows != sum.rows || had.checksum != sum.checksum {
			out = append(out, rebuildDifference{key, sum, had})
		}
		delete(next, key)
	}
	for key, had := range next { // deleted from the table since
		out = append(out, rebuildDifference{rebuildKey: key, to: had})
	}
	slices.SortFunc(out, func(a, b rebuildDifference) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.partition, b.partition), cmp.Compare(a.number, b.number))
	})
	return out, nil
}

func (r *rebuild) sums(ctx context.Context, table string) (map[rebuildKey]rebuildSum, error) {
	rows, err := r.conn.Query(ctx, fmt.Sprintf("SELECT log_epoch, kafka_partition, intDiv(kafka_offset, %d) AS number, count(), %s,"+
		" toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)) FROM %s GROUP BY log_epoch, kafka_partition, number",
		r.window, rowChecksumExpression, table))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := make(map[rebuildKey]rebuildSum)
	for rows.Next() {
		var k rebuildKey
		var s rebuildSum
		if err := rows.Scan(&k.epoch, &k.partition, &k.number, &s.rows, &s.checksum, &s.minMs, &s.maxMs); err != nil {
			return nil, err
		}
		out[k] = s
	}
	return out, rows.Err()
}

// copyWindow inserts what the successor lacks of a window. What it has and should not
// (rows that were changed or deleted since they were copied) is deleted first.
func (r *rebuild) copyWindow(ctx context.Context, w rebuildDifference) error {
	from := w.number * uint64(r.window)
	params := clickhouse.Parameters{
		"epoch": strconv.Itoa(int(w.epoch)), "partition": strconv.Itoa(int(w.partition)),
		"from": strconv.FormatUint(from, 10), "to": strconv.FormatUint(from+uint64(r.window), 10),
		"min_ms": strconv.FormatInt(w.from.minMs, 10), "max_ms": strconv.FormatInt(w.from.maxMs, 10),
	}
	if w.to.rows > 0 && !r.isBeginning(ctx, w, params) {
		err := r.execWith(ctx, params, fmt.Sprintf("ALTER TABLE %s DELETE WHERE %s SETTINGS mutations_sync = 2", r.next, rebuildWindowCondition))
		if err != nil {
			return err
		}
	}
	if w.from.rows == 0 {
		return nil
	}
	columns := strings.Join(r.columns, ", ")
	return r.execWith(ctx, params, fmt.Sprintf(`INSERT INTO %[1]s (%[2]s)
SELECT %[2]s FROM %[3]s
WHERE %[4]s AND ts >= fromUnixTimestamp64Milli({min_ms:Int64}, 'UTC') AND ts <= fromUnixTimestamp64Milli({max_ms:Int64}, 'UTC')
  AND kafka_offset NOT IN (SELECT kafka_offset FROM %[1]s WHERE %[4]s)
SETTINGS async_insert = 0, insert_deduplicate = 0, max_threads = 1, max_insert_threads = 1,
  min_insert_block_size_rows = %[5]d, min_insert_block_size_bytes = %[6]d, max_partitions_per_insert_block = 0`,
		r.next, columns, r.name, rebuildWindowCondition, rebuildWindow, rebuildBlockBytes))
}

// isBeginning reports whether what the successor has of a window are rows of the table,
// so that inserting the others makes it whole. If in doubt it says no.
func (r *rebuild) isBeginning(ctx context.Context, w rebuildDifference, params clickhouse.Parameters) bool {
	if w.to.rows >= w.from.rows {
		return false
	}
	var sum uint64
	ctx = clickhouse.Context(ctx, clickhouse.WithParameters(params))
	err := r.conn.QueryRow(ctx, fmt.Sprintf("SELECT %s FROM %s WHERE %s AND kafka_offset IN (SELECT kafka_offset FROM %s WHERE %s)",
		rowChecksumExpression, r.name, rebuildWindowCondition, r.next, rebuildWindowCondition)).Scan(&sum)
	return err == nil && sum == w.to.checksum
}

// freeze has the table refuse inserts.
func (r *rebuild) freeze(ctx context.Context) error {
	r.log.Info("refusing inserts until the tables are exchanged", "table", r.name)
	return r.exec(ctx, fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT IF NOT EXISTS %s CHECK 0", r.name, frozenFor(r.shape)))
}

// frozenFor is the name of the constraint of a table that is to get a shape.
func frozenFor(shape string) string { return frozenConstraint + strings.ReplaceAll(shape, " ", "_") }

// thaw drops the constraint that a late node put on a table which has the shape already.
func (m *Migrator) thaw(ctx context.Context, table string) error {
	var comment, create string
	err := m.conn.QueryRow(ctx, "SELECT any(comment), any(create_table_query) FROM system.tables WHERE database = currentDatabase() AND name = '"+
		table+"'").Scan(&comment, &create)
	if err == nil && comment != "" && strings.Contains(create, frozenFor(comment)) {
		m.log.Info("taking inserts again", "table", table)
		err = m.conn.Exec(ctx, fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s", table, frozenFor(comment)))
	}
	if err != nil {
		return fmt.Errorf("take inserts into table %s: %w", table, err)
	}
	return nil
}

// waitForStatements waits until no insert or mutation that began before the table was
// frozen is under way.
func (r *rebuild) waitForStatements(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTimeout,
		fmt.Errorf("inserts or mutations of %s have not ended within %v (system.processes, system.mutations)", r.name, settleTimeout))
	defer cancel()
	for {
		var inserts, mutations uint64
		err := r.conn.QueryRow(ctx, fmt.Sprintf("SELECT count() FROM system.processes WHERE query_kind = 'Insert'"+
			" AND current_database = currentDatabase() AND position(query, '%s') > 0 AND position(query, '%s') = 0", r.name, r.next)).Scan(&inserts)
		if err == nil {
			err = r.conn.QueryRow(ctx, fmt.Sprintf("SELECT count() FROM system.mutations WHERE database = currentDatabase()"+
				" AND table IN ('%s', '%s') AND NOT is_done", r.name, r.next)).Scan(&mutations)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil || inserts+mutations == 0 {
			return err
		}
		if err := pauseFor(ctx, rebuildPause); err != nil {
			return err
		}
	}
}

// dropOld drops what is left of the rebuild: the old table.
func (r *rebuild) dropOld(ctx context.Context, tables map[string]string) error {
	for name := range tables {
		if name == r.name {
			continue
		}
		drop := "DROP TABLE IF EXISTS " + name
		err := r.exec(ctx, drop+" SETTINGS max_table_size_to_drop = 0, max_partition_size_to_drop = 0")
		if isException(err, codeUnknownSetting) {
			err = r.exec(ctx, drop) // a server that has it in its own configuration only
		}
		switch {
		case isException(err, codeTableSizeExceeds):
			r.log.Warn("the old table is too large for this server to drop it when asked to; drop it by hand", "table", name, "error", err)
		case err != nil && !isException(err, codeUnknownTable, codeQueryIDRuns):
			return fmt.Errorf("rebuild table %s: %w", r.name, err)
		}
	}
	return nil
}

func (r *rebuild) exec(ctx context.Context, statement string) error {
	return r.execWith(ctx, nil, statement)
}

// execWith runs a statement under the rebuild's query id, of which the server runs one at
// a time, whoever sends them.
func (r *rebuild) execWith(ctx context.Context, params clickhouse.Parameters, statement string) error {
	opts := []clickhouse.QueryOption{clickhouse.WithQueryID(r.queryID)}
	if params != nil {
		opts = append(opts, clickhouse.WithParameters(params))
	}
	return r.conn.Exec(clickhouse.Context(ctx, opts...), statement)
}

func pauseFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
