package query

import (
	"context"
	"fmt"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// window is a stretch of one Kafka partition.
type window struct {
	partition uint16
	from, to  int64 // offsets [from, to)
}

// windowRows is a question for rows of a workflow or workspace in several partitions at
// once, a window of each. Its cost is bounded by the windows, whatever the filter takes.
type windowRows struct {
	scope      schema.Scope
	epoch      uint8
	windows    []window // of different partitions
	filter     *schema.Filter
	limit      int // rows of each partition
	descending bool
	noPayloads bool
}

// statement writes q out. Every window is a range of the table's key, and all of them are
// one statement, since the fixed cost of a statement is that of thousands of rows.
func (q *windowRows) statement(erased Erasures) (string, []any) {
	var s statement
	s.scope(q.scope)
	s.and("log_epoch = %s", s.bind("UInt8", q.epoch))
	s.windows(q.windows)
	s.notErased(q.scope, erased)
	s.visible()
	s.filter(q.filter)
	payload, order := "payload", "kafka_partition, kafka_offset"
	if q.noPayloads {
		payload = "''"
	}
	if q.descending {
		order = "kafka_partition, kafka_offset DESC"
	}
	return fmt.Sprintf(`SELECT session_id, %s
FROM %s
WHERE %s
ORDER BY %s
LIMIT %s BY kafka_partition`, eventColumns+payload, schema.TableEvents, s.condition(), order, s.bind("UInt64", uint64(q.limit))), s.args
}

// windows restricts to rows in any of w.
func (s *statement) windows(w []window) {
	ranges := make([]string, len(w))
	for i, w := range w {
		ranges[i] = fmt.Sprintf("(kafka_partition = %s AND kafka_offset >= %s AND kafka_offset < %s)",
			s.bind("UInt16", w.partition), s.bind("UInt64", uint64(w.from)), s.bind("UInt64", uint64(w.to)))
	}
	s.and("(%s)", strings.Join(ranges, " OR "))
}

// readWindows calls emit for the rows of q, those of one partition after the other's, with
// the size of the payload.
func (h *History) readWindows(ctx context.Context, q *windowRows, emit func(*schema.Event, int)) error {
	type row struct {
		event *schema.Event
		size  int
	}
	var rows []row
	err := h.ask(ctx, "windows", func(ctx context.Context) error {
		rows = rows[:0]
		query, args := q.statement(h.erased)
		return h.eventRows(ctx, q.scope, h.bounded(query)+settingsByLog, args, func(e *schema.Event, size int) error {
			rows = append(rows, row{e, size})
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read windows of %d partitions: %w", len(q.windows), err)
	}
	h.metrics.rows.Add(float64(len(rows)))
	for _, r := range rows {
		emit(r.event, r.size)
	}
	return nil
}

// edgesAt finds where a time lies in the log: of each partition the first offset whose
// record was appended at ms or later or, descending, behind the last at ms or earlier.
// A partition without such a row below its window's end is absent. Record times may run back
// within a partition, so rows on the far side may match a bound by time as well.
func (h *History) edgesAt(ctx context.Context, scope schema.Scope, epoch uint8, in []window, ms int64, descending bool) (map[uint16]int64, error) {
	var s statement
	parts := make([]string, len(in))
	for i, w := range in {
		s.where = s.where[:0]
		s.scope(scope)
		s.and("kafka_partition = %s", s.bind("UInt16", w.partition))
		s.and("log_epoch = %s", s.bind("UInt8", epoch))
		s.and("kafka_offset >= %s AND kafka_offset < %s", s.bind("UInt64", uint64(w.from)), s.bind("UInt64", uint64(w.to)))
		compare, direction := ">=", ""
		if descending {
			compare, direction = "<=", " DESC"
		}
		s.and("ts %s fromUnixTimestamp64Milli(%s, 'UTC')", compare, s.bind("Int64", clampTime(ms)))
		parts[i] = fmt.Sprintf(`SELECT * FROM (SELECT kafka_partition, kafka_offset FROM %s WHERE %s
ORDER BY workspace_id%[3]s, kafka_partition%[3]s, log_epoch%[3]s, kafka_offset%[3]s LIMIT 1)`, schema.TableEvents, s.condition(), direction)
	}
	found := make(map[uint16]int64)
	err := h.ask(ctx, "edges", func(ctx context.Context) error {
		clear(found)
		return h.rows(ctx, strings.Join(parts, "\nUNION ALL\n"), settingsByLog, s.args, func(rows driver.Rows) error {
			var partition uint16
			var offset uint64
			if err := rows.Scan(&partition, &offset); err != nil {
				return err
			}
			found[partition] = int64(offset)
			if descending {
				found[partition]++
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("find %d ms in %d partitions: %w", ms, len(in), err)
	}
	return found, nil
}

// oldWindows returns, of the log's epochs before the given one, the stretches of the
// partitions in which the workspace has rows.
func (h *History) oldWindows(ctx context.Context, workspace string, before uint8) (map[uint8][]window, error) {
	var s statement
	s.and("workspace_id = %s", s.bind("String", workspace))
	s.and("log_epoch < %s", s.bind("UInt8", before))
	found := make(map[uint8][]window)
	err := h.ask(ctx, "partitions", func(ctx context.Context) error {
		clear(found)
		query := fmt.Sprintf(`SELECT log_epoch, kafka_partition, min(kafka_offset), max(kafka_offset)
FROM %s WHERE %s GROUP BY log_epoch, kafka_partition ORDER BY log_epoch, kafka_partition`, schema.TableEvents, s.condition())
		return h.rows(ctx, query, settingsByHour, s.args, func(rows driver.Rows) error {
			var epoch uint8
			var partition uint16
			var first, last uint64
			if err := rows.Scan(&epoch, &partition, &first, &last); err != nil {
				return err
			}
			found[epoch] = append(found[epoch], window{partition, int64(first), int64(last) + 1})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list partitions before epoch %d: %w", before, err)
	}
	return found, nil
}
