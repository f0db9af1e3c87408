package query

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/playhead-dev/playhead/schema"
)

// Settings of statements that look at many rows for one answer: one thread, which gives way
// to statements with a priority of 1 to 9, pages and replays, for 10 ms a block at most so
// that it comes to an end. Those about a session may use by_session; where times leave less of the table's own
// order, ClickHouse prefers that.
const (
	settingsScan          = ", max_threads = 1, priority = 10, low_priority_query_wait_time_ms = 10"
	settingsScanBySession = projectionBySession + settingsScan // or the table's own order, where times say more
)

// scanQuery is a question about all final rows of a scope that a filter takes, counted by
// bucket and type.
type scanQuery struct {
	scope   schema.Scope
	epoch   uint8
	final   []window // of the current epoch's partitions, what is final: [0, committed)
	filter  *schema.Filter
	spans   []span // if not nil: append times, beside the filter's
	width   int64  // of a bucket in ms; 0 for one of all
	untyped bool
	erased  Erasures
}

// span is a range of append times in ms, [from, to).
type span struct{ from, to int64 }

// statement writes q out. Its columns are bucket, type and count.
func (q *scanQuery) statement() (string, []any) {
	var s statement
	s.scope(q.scope)
	s.final(q.epoch, q.final, q.scope.Session == "")
	s.notErased(q.scope, q.erased)
	s.visible()
	s.filter(q.filter)
	s.spans(q.spans)
	kind := "type"
	if q.untyped {
		kind = "''"
	}
	// One row more than may be, so that too many are noticed. Counting ends soon after it.
	return fmt.Sprintf(`SELECT %s AS bucket, %s AS kind, count()
FROM %s
WHERE %s
GROUP BY bucket, kind
LIMIT %d`, s.bucket("toUnixTimestamp64Milli(ts)", q.width), kind, schema.TableEvents, s.condition(), maxTallyCells+1), s.args
}

func (q *scanQuery) settings() string {
	bounds := fmt.Sprintf(", max_rows_to_group_by = %d, group_by_overflow_mode = 'break'", maxTallyCells+1)
	if q.scope.Session != "" {
		return bounds + settingsScanBySession
	}
	return bounds + settingsScan
}

// bucket writes the number of the bucket that a time in ms lies in.
func (s *statement) bucket(ms string, width int64) string {
	if width == 0 {
		return "toInt64(0)"
	}
	return fmt.Sprintf("toInt64(intDiv(%s, %s))", ms, s.bind("Int64", width))
}

// final restricts to rows of earlier epochs and, of this one, to those in the windows. Which
// partition a session lay in before does not matter; the others' are all that had its rows.
func (s *statement) final(epoch uint8, of []window, partitions bool) {
	e := s.bind("UInt8", epoch)
	either := []string{"log_epoch < " + e}
	for _, w := range of {
		if w.to <= w.from {
			continue
		}
		c := fmt.Sprintf("log_epoch = %s AND kafka_offset < %s", e, s.bind("UInt64", uint64(w.to)))
		if w.from > 0 {
			c += " AND kafka_offset >= " + s.bind("UInt64", uint64(w.from))
		}
		if partitions {
			c += " AND kafka_partition = " + s.bind("UInt16", w.partition)
		}
		either = append(either, "("+c+")")
	}
	s.and("(%s)", strings.Join(either, " OR "))
}

// spans restricts to rows appended in any of the spans; nil restricts nothing.
func (s *statement) spans(of []span) {
	if of == nil {
		return
	}
	either := []string{"0"}
	for _, t := range of {
		either = append(either, fmt.Sprintf("(ts >= fromUnixTimestamp64Milli(%s, 'UTC') AND ts < fromUnixTimestamp64Milli(%s, 'UTC'))",
			s.bind("Int64", clampTime(t.from)), s.bind("Int64", min(max(t.to, 0), schema.MaxEventTimeMs+1))))
	}
	s.and("(%s)", strings.Join(either, " OR "))
}

// sumMs is an hour, of which by_hour has sums.
const sumMs = 3_600_000

// hoursQuery is a question for the sums of whole hours of a workspace.
type hoursQuery struct {
	workspace string
	epoch     uint8
	final     []window // as of scanQuery
	filter    *schema.Filter
	hours     span // of whole hours, in ms
	width     int64
}

// statement writes q out. A group of by_hour that lies below the committed offset of its
// partition is final, and added up; one that lies above it is left out; one on both sides is
// in doubt and comes by itself, with its hour, its partition and its first offset. The rows
// are bucket, type, whether it is in doubt, hour (Unix seconds), partition, first offset and
// count.
func (q *hoursQuery) statement() (string, []any) {
	var s statement
	s.scope(schema.Scope{Workspace: q.workspace})
	s.and("toStartOfHour(ts) >= toDateTime(%s, 'UTC')", s.bind("UInt32", hourSeconds(q.hours.from)))
	s.and("toStartOfHour(ts) <= toDateTime(%s, 'UTC')", s.bind("UInt32", hourSeconds(q.hours.to-1)))
	s.visible()
	s.types(q.filter)
	epoch := s.bind("UInt8", q.epoch)
	var partitions []uint16
	var committed []uint64
	for _, w := range q.final {
		partitions = append(partitions, w.partition)
		committed = append(committed, uint64(w.to))
	}
	these := s.bind("Array(UInt16)", partitions)
	s.and("(log_epoch < %s OR log_epoch = %s AND kafka_partition IN %s)", epoch, epoch, these)
	below := fmt.Sprintf("if(epoch < %s, %d, transform(partition, %s, %s, toUInt64(0)))",
		epoch, uint64(schema.MaxOffset)+1, these, s.bind("Array(UInt64)", committed))
	return fmt.Sprintf(`SELECT %s AS bucket, kind, last >= below AS doubt,
  if(doubt, toUnixTimestamp(hour), 0) AS at, if(doubt, partition, 0) AS lies, min(first), sum(n)
FROM (SELECT toStartOfHour(ts) AS hour, type AS kind, log_epoch AS epoch, kafka_partition AS partition,
    count() AS n, min(kafka_offset) AS first, max(kafka_offset) AS last, %s AS below
  FROM %s
  WHERE %s
  GROUP BY toStartOfHour(ts), type, log_epoch, kafka_partition)
WHERE first < below
GROUP BY bucket, kind, doubt, at, lies
LIMIT %d`, s.bucket("toUnixTimestamp(hour) * 1000", q.width), below, schema.TableEvents, s.condition(), maxTallyCells+maxDoubts+1), s.args
}

// hourSeconds is a time as the seconds that an hour's start can have.
func hourSeconds(ms int64) uint32 { return uint32(min(max(ms, 0)/1000, 1<<32-1)) }

// maxDoubts bounds the groups in doubt that are counted row by row: usually those of an hour
// or two of each partition. With more, as after a large backfill, all rows are looked at.
const maxDoubts = 2000

// hourGroup is a group of by_hour in the current epoch.
type hourGroup struct {
	hour      int64 // its start, ms
	partition uint16
	kind      string
}

// doubtsQuery is a question for the final rows of groups in doubt.
type doubtsQuery struct {
	workspace string
	epoch     uint8
	filter    *schema.Filter
	groups    map[hourGroup]int64 // the first offset of each
	final     []window
}

// statement writes q out. Its rows are hour (ms), partition, type and count, of the groups
// and of others in their hours.
func (q *doubtsQuery) statement() (string, []any) {
	type stretch struct {
		first int64
		hours []uint32
	}
	of := make(map[uint16]*stretch)
	for g, first := range q.groups {
		p := of[g.partition]
		if p == nil {
			p = &stretch{first: first}
			of[g.partition] = p
		}
		p.first = min(p.first, first)
		p.hours = append(p.hours, hourSeconds(g.hour))
	}
	var s statement
	s.scope(schema.Scope{Workspace: q.workspace})
	s.and("log_epoch = %s", s.bind("UInt8", q.epoch))
	either := []string{"0"}
	for _, w := range q.final {
		p := of[w.partition]
		if p == nil {
			continue
		}
		slices.SortFunc(p.hours, cmp.Compare)
		either = append(either, fmt.Sprintf("(kafka_partition = %s AND kafka_offset >= %s AND kafka_offset < %s AND toUnixTimestamp(toStartOfHour(ts)) IN %s)",
			s.bind("UInt16", w.partition), s.bind("UInt64", uint64(p.first)), s.bind("UInt64", uint64(w.to)), s.bind("Array(UInt32)", slices.Compact(p.hours))))
	}
	s.and("(%s)", strings.Join(either, " OR "))
	s.visible()
	s.types(q.filter)
	return fmt.Sprintf(`SELECT toInt64(toUnixTimestamp(toStartOfHour(ts))) * 1000 AS at, kafka_partition, type, count()
FROM %s
WHERE %s
GROUP BY at, kafka_partition, type`, schema.TableEvents, s.condition()), s.args
}
