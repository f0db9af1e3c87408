package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/schema"
)

// verify compares the table with what historyData says of it: otherwise the pages would
// not hold what the report says.
func (d *historyData) verify(ctx context.Context, conn driver.Conn) error {
	var rows, misplaced, mistimed, long, first, last uint64
	longFrom, longTo, longEvents := d.longRange()
	err := conn.QueryRow(ctx, fmt.Sprintf(`SELECT count(),
		countIf((xxh3(workspace_id) %% %[1]d + xxh3(session_id) %% %[2]d) %% %[1]d != kafka_partition),
		countIf(toUnixTimestamp64Milli(ts) != %[3]d + intDiv(toInt64(kafka_offset) * %[4]d, %[5]d)),
		countIf(session_id = %[6]s), minIf(kafka_offset, session_id = %[6]s), maxIf(kafka_offset, session_id = %[6]s)
		FROM %[7]s`, d.placement.Partitions, d.placement.Shards, historyStart.UnixMilli(), historyLife.Milliseconds(), d.perPartition,
		quoteText(d.long()), schema.TableEvents)).Scan(&rows, &misplaced, &mistimed, &long, &first, &last)
	if err != nil {
		return fmt.Errorf("verify rows: %w", err)
	}
	if int64(rows) != d.rows() || misplaced+mistimed > 0 || int64(long) != longEvents || int64(first) != d.longOffset(0) || int64(last) != d.longOffset(longEvents-1) {
		return fmt.Errorf("the table has %d rows, %d in the wrong partition, %d at the wrong time, and a long session of %d rows at offsets %d to %d; want %d, none, none, %d at %d to %d",
			rows, misplaced, mistimed, long, first, last, d.rows(), longEvents, longFrom, longTo)
	}
	random := historyRandom(0, 0, 0)
	for range 10 {
		name, shard, from, to := d.wholeCall(random)
		err := conn.QueryRow(ctx, fmt.Sprintf("SELECT countIf(kafka_partition = %d), min(kafka_offset), max(kafka_offset) FROM %s WHERE workspace_id = %s AND session_id = %s",
			d.partitions[shard], schema.TableEvents, quoteText(d.workspace), quoteText(name))).Scan(&rows, &first, &last)
		if err != nil {
			return fmt.Errorf("verify sessions: %w", err)
		}
		if rows < callEvents*2/5 || rows > callEvents*7/5 || int64(first) != from || int64(last) < to-callSpan/20 || int64(last) >= to {
			return fmt.Errorf("session %s has %d rows at offsets %d to %d, want about %d, or half of that beside the long one, in %d to %d", name, rows, first, last, callEvents, from, to)
		}
	}
	return nil
}

// historyStorage records what the table takes on the disk.
func historyStorage(ctx context.Context, c *comparison, dsn string, rows int64) (err error) {
	conn, err := openClickHouse(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	const parts = " WHERE database = currentDatabase() AND table = '" + schema.TableEvents + "'"
	var all, projections, projectionRows uint64
	found, err := conn.Query(ctx, "SELECT name, sum(bytes_on_disk), sum(rows) FROM system.projection_parts"+parts+" AND active GROUP BY name ORDER BY name")
	if err != nil {
		return fmt.Errorf("size of projections: %w", err)
	}
	perRow := func(bytes uint64) float64 { return float64(bytes) / float64(rows) }
	for found.Next() {
		var name string
		var bytes uint64
		if err := found.Scan(&name, &bytes, &projectionRows); err != nil {
			return fmt.Errorf("size of projections: %w", err)
		}
		projections += bytes
		c.add("table", "projection "+name, "B/row", perRow(bytes))
		c.note("Projection %s has %s rows.", name, number(float64(projectionRows)))
	}
	if err := errors.Join(found.Err(), found.Close()); err != nil {
		return fmt.Errorf("size of projections: %w", err)
	}
	var count uint64
	if err := conn.QueryRow(ctx, "SELECT sum(bytes_on_disk), count() FROM system.parts"+parts+" AND active").Scan(&all, &count); err != nil {
		return fmt.Errorf("size of parts: %w", err)
	}
	var indexes uint64
	indexSizes, err := conn.Query(ctx, "SELECT name, data_compressed_bytes + marks_bytes FROM system.data_skipping_indices"+parts+" ORDER BY name")
	if err != nil {
		return fmt.Errorf("size of indexes: %w", err)
	}
	for indexSizes.Next() {
		var name string
		var bytes uint64
		if err := indexSizes.Scan(&name, &bytes); err != nil {
			return fmt.Errorf("size of indexes: %w", err)
		}
		indexes += bytes
		c.add("table", "index "+name, "B/row", perRow(bytes))
	}
	if err := errors.Join(indexSizes.Err(), indexSizes.Close()); err != nil {
		return fmt.Errorf("size of indexes: %w", err)
	}
	c.add("table", "rows in the order of the log, without indexes", "B/row", perRow(all-projections-indexes))
	c.add("table", "all", "B/row", perRow(all))
	c.add("table", "all", "GB", float64(all)/1e9)
	c.add("table", "active parts", "parts", float64(count))
	return nil
}

// openClickHouse connects as the server does.
func openClickHouse(ctx context.Context, dsn string) (clickhouse.Conn, error) {
	cfg := query.DefaultClickHouseConfig()
	cfg.DSN = dsn
	return query.Open(ctx, cfg)
}
