package materializer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// held is what the table holds of a range of offsets.
type held struct {
	rows     int // rows
	distinct int // distinct offsets among them
}

// offsetRange is [start, end) of one partition. minMs and maxMs bound the records'
// append times and let the server skip parts; maxMs 0 means unknown.
type offsetRange struct {
	start, end   int64
	minMs, maxMs int64
}

// store is the table, as the algorithm needs it. ClickHouse is the one implementation;
// tests put failures between the two.
type store interface {
	// insert writes the rows of b as one block under the token, which is also the query
	// id. nil means that the server says they are kept; any error that they may be.
	insert(ctx context.Context, token string, b *batch) error
	// count counts a range.
	count(ctx context.Context, partition uint16, r offsetRange) (held, error)
	// offsets lists the distinct offsets in a range, ascending.
	offsets(ctx context.Context, partition uint16, r offsetRange) ([]int64, error)
	// kill ends the query of that id, if it runs, and waits until it has ended.
	kill(ctx context.Context, token string) error
	// remove deletes the rows of a range and returns once they are gone. name is the
	// statement's query id and stands in the mutation, for removed.
	remove(ctx context.Context, partition uint16, r offsetRange, name string) error
	// removed ends the statement of a remove of that name, if it runs, and waits until
	// what it has begun is done: nothing of it deletes a row any more.
	removed(ctx context.Context, name string) error
	// end returns one more than the highest offset at or above from; from if none.
	end(ctx context.Context, partition uint16, from int64) (int64, error)
}

// clickHouse is the table in ClickHouse, for one life of the topic.
type clickHouse struct {
	conn    driver.Conn
	epoch   uint8
	timeout time.Duration // of one statement
}

// tableColumn is one column of an insert: its name and type in the table, and its values
// in a batch.
type tableColumn struct {
	name, columnType string
	values           func(*batch) any
}

// tableColumns are the columns in the order of the insert. The types spare the driver's
// HTTP side from asking for them before each insert, in a statement of the same query id.
func tableColumns() []tableColumn {
	return []tableColumn{
		{"workspace_id", "LowCardinality(String)", func(b *batch) any { return b.workspace }},
		{"session_id", "String", func(b *batch) any { return b.session }},
		{"workflow_id", "LowCardinality(String)", func(b *batch) any { return b.workflow }},
		{"log_epoch", "UInt8", func(b *batch) any { return b.epochs }},
		{"kafka_partition", "UInt16", func(b *batch) any { return b.partitions }},
		{"kafka_offset", "UInt64", func(b *batch) any { return b.offset }},
		{"ts", "DateTime64(3, 'UTC')", func(b *batch) any { return b.ts }},
		{"client_ts", "Nullable(DateTime64(3, 'UTC'))", func(b *batch) any { return b.clientTS }},
		{"t_ms", "UInt64", func(b *batch) any { return b.tMs }},
		{"type", "LowCardinality(String)", func(b *batch) any { return b.kind }},
		{"confidence", "Nullable(Float32)", func(b *batch) any { return b.confidence }},
		{"frame_id", "String", func(b *batch) any { return b.frame }},
		{"message_id", "String", func(b *batch) any { return b.messageID }},
		{"metadata", "Map(LowCardinality(String), String)", func(b *batch) any { return b.metadata }},
		{"content_type", "LowCardinality(String)", func(b *batch) any { return b.contentType }},
		{"payload", "String", func(b *batch) any { return b.payload }},
	}
}

const insertStatement = "INSERT INTO " + schema.TableEvents + " (workspace_id, session_id, workflow_id, log_epoch," +
	" kafka_partition, kafka_offset, ts, client_ts, t_ms, type, confidence, frame_id, message_id, metadata," +
	" content_type, payload)"

// insertSettings make one insert one block, kept or refused whole, and known by its
// token. A block is cut by the server only above these bounds, far above a batch's.
func insertSettings(token string) clickhouse.Settings {
	return clickhouse.Settings{
		"async_insert":               0,
		"insert_deduplicate":         1,
		"insert_deduplication_token": token,
		"max_insert_block_size":      2_000_000,
	}
}

func (s *clickHouse) insert(ctx context.Context, token string, b *batch) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	ctx = clickhouse.Context(ctx, clickhouse.WithQueryID(token), clickhouse.WithSettings(insertSettings(token)),
		clickhouse.WithColumnNamesAndTypes(columnTypes()))
	out, err := s.conn.PrepareBatch(ctx, insertStatement)
	if err != nil {
		return fmt.Errorf("insert %s: %w", token, err)
	}
	defer func() { _ = out.Close() }() // gives the connection back if Send was not reached
	columns := out.Columns()
	for i, c := range tableColumns() {
		values := c.values(b)
		if err := reserve(columns[i], values); err != nil {
			return fmt.Errorf("insert %s: %w", token, err)
		}
		if err := out.Column(i).Append(values); err != nil {
			return fmt.Errorf("insert %s: column %s: %w", token, c.name, err)
		}
	}
	// The driver sends a block of unequal columns as an empty one, and the server says
	// OK to that.
	for _, c := range columns {
		if c.Rows() != b.len() {
			return fmt.Errorf("insert %s: column %s has %d rows, the batch %d", token, c.Name(), c.Rows(), b.len())
		}
	}
	if err := out.Send(); err != nil {
		return fmt.Errorf("insert %s: %w", token, err)
	}
	return nil
}

func columnTypes() []clickhouse.ColumnNameAndType {
	var out []clickhouse.ColumnNameAndType
	for _, c := range tableColumns() {
		out = append(out, clickhouse.ColumnNameAndType{Name: c.name, Type: c.columnType})
	}
	return out
}

// reserve makes room in an empty String column for all values at once. Left alone the
// column's buffer grows by a quarter at a time: five times the bytes of a batch of
// payloads to allocate and copy, a third of our CPU time a row (BenchmarkInsert).
func reserve(c column.Interface, values any) error {
	texts, ok := values.([]string)
	if !ok || c.Type() != "String" {
		return nil
	}
	size := 0
	for _, v := range texts {
		size += len(v)
	}
	if err := c.AppendRow(make([]byte, size)); err != nil {
		return fmt.Errorf("column %s: %w", c.Name(), err)
	}
	c.Reset() // empties the column and keeps its buffer
	return nil
}

func (s *clickHouse) count(ctx context.Context, partition uint16, r offsetRange) (held, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var rows, distinct uint64
	err := s.conn.QueryRow(s.params(ctx, partition, r),
		"SELECT count(), uniqExact(kafka_offset) FROM "+schema.TableEvents+r.where()).Scan(&rows, &distinct)
	if err != nil {
		return held{}, fmt.Errorf("count offsets %d to %d of partition %d: %w", r.start, r.end, partition, err)
	}
	return held{rows: int(rows), distinct: int(distinct)}, nil
}

func (s *clickHouse) offsets(ctx context.Context, partition uint16, r offsetRange) ([]int64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	fail := func(err error) ([]int64, error) {
		return nil, fmt.Errorf("list offsets %d to %d of partition %d: %w", r.start, r.end, partition, err)
	}
	rows, err := s.conn.Query(s.params(ctx, partition, r),
		"SELECT DISTINCT kafka_offset FROM "+schema.TableEvents+r.where()+" ORDER BY kafka_offset")
	if err != nil {
		return fail(err)
	}
	defer rows.Close()
	var out []int64
	for rows.Next() {
		var offset uint64
		if err := rows.Scan(&offset); err != nil {
			return fail(err)
		}
		out = append(out, int64(offset))
	}
	if err := rows.Err(); err != nil {
		return fail(err)
	}
	return out, nil
}

func (s *clickHouse) end(ctx context.Context, partition uint16, from int64) (int64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	r := offsetRange{start: from, end: schema.MaxOffset + 1}
	var end uint64
	err := s.conn.QueryRow(s.params(ctx, partition, r),
		"SELECT if(count() = 0, {start:UInt64}, max(kafka_offset) + 1) FROM "+schema.TableEvents+r.where()).Scan(&end)
	if err != nil {
		return 0, fmt.Errorf("find the last offset of partition %d: %w", partition, err)
	}
	return int64(end), nil
}

func (s *clickHouse) kill(ctx context.Context, token string) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	// Written out, as the embedded engine knows ids of ours in this form alone. A token
	// has no character that would need escaping.
	if err := s.conn.Exec(ctx, "KILL QUERY WHERE query_id = '"+token+"' SYNC"); err != nil {
		return fmt.Errorf("kill %s: %w", token, err)
	}
	return nil
}

func (s *clickHouse) remove(ctx context.Context, partition uint16, r offsetRange, name string) error {
	statement := "ALTER TABLE " + schema.TableEvents + " DELETE" + r.where() + " AND '" + name + "' != '' SETTINGS mutations_sync = 0"
	bounded, cancel := s.bound(s.params(ctx, partition, r))
	defer cancel()
	if err := s.conn.Exec(clickhouse.Context(bounded, clickhouse.WithQueryID(name)), statement); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return s.removed(ctx, name)
}

// mutationPause is between two looks at a mutation: they take seconds at least.
const mutationPause = 50 * time.Millisecond

func (s *clickHouse) removed(ctx context.Context, name string) error {
	if err := s.kill(ctx, name); err != nil && !answered(err) {
		return err
	}
	for {
		left, err := s.mutationsLeft(ctx, name)
		if err != nil || left == 0 {
			return err
		}
		sleep(ctx, mutationPause)
	}
}

// mutationsLeft counts the mutations of that name that are not done.
func (s *clickHouse) mutationsLeft(ctx context.Context, name string) (left uint64, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err = s.conn.QueryRow(ctx, "SELECT count() FROM system.mutations WHERE database = currentDatabase() AND table = '"+
		schema.TableEvents+"' AND NOT is_done AND position(command, '"+name+"') > 0").Scan(&left)
	if err != nil {
		return 0, fmt.Errorf("wait for mutation %s: %w", name, err)
	}
	return left, nil
}

// ErrStoreTimeout is the cause of a statement that took longer than
// Config.InsertTimeout.
var ErrStoreTimeout = errors.New("clickhouse did not answer in time")

func (s *clickHouse) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, ErrStoreTimeout)
}

// where selects the range. The offset has a minmax index; the time prunes whole parts.
func (r offsetRange) where() string {
	w := " WHERE log_epoch = {epoch:UInt8} AND kafka_partition = {partition:UInt16}" +
		" AND kafka_offset >= {start:UInt64} AND kafka_offset < {end:UInt64}"
	if r.maxMs > 0 {
		w += " AND ts >= fromUnixTimestamp64Milli({min_ms:Int64}, 'UTC') AND ts <= fromUnixTimestamp64Milli({max_ms:Int64}, 'UTC')"
	}
	return w
}

func (s *clickHouse) params(ctx context.Context, partition uint16, r offsetRange) context.Context {
	p := clickhouse.Parameters{
		"epoch":     strconv.Itoa(int(s.epoch)),
		"partition": strconv.Itoa(int(partition)),
		"start":     strconv.FormatInt(r.start, 10),
		"end":       strconv.FormatInt(r.end, 10),
	}
	if r.maxMs > 0 {
		p["min_ms"], p["max_ms"] = strconv.FormatInt(r.minMs, 10), strconv.FormatInt(r.maxMs, 10)
	}
	return clickhouse.Context(ctx, clickhouse.WithParameters(p))
}

func (in Intent) offsetRange() offsetRange {
	return offsetRange{start: in.Start, end: in.End, minMs: in.MinMs, maxMs: in.MaxMs}
}
