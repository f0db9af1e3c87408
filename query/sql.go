package query

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/playhead-dev/playhead/schema"
)

// statement is SQL with its bound parameters. Only constants of this package become
// text; whatever came from outside is a parameter.
type statement struct {
	where []string
	args  []any
}

// bind adds a parameter and returns its place in the text.
func (s *statement) bind(chType string, value any) string {
	name := "p" + strconv.Itoa(len(s.args))
	s.args = append(s.args, clickhouse.Named(name, value))
	return "{" + name + ":" + chType + "}"
}

func (s *statement) and(format string, args ...any) {
	s.where = append(s.where, fmt.Sprintf(format, args...))
}

// condition joins everything and-ed so far.
func (s *statement) condition() string { return strings.Join(s.where, "\n  AND ") }

// scope restricts to what sc holds: for a session, the prefix of the table's key.
func (s *statement) scope(sc schema.Scope) {
	s.and("workspace_id = %s", s.bind("String", sc.Workspace))
	if sc.Session != "" {
		s.and("session_id = %s", s.bind("String", sc.Session))
	}
	if sc.Workflow != "" {
		s.and("workflow_id = %s", s.bind("String", sc.Workflow))
	}
}

// positions restricts to positions in [from, to), in the order of (log_epoch,
// kafka_offset): the end of the table's key. The zero from is the log's beginning.
//
// It is spelt as comparisons of single columns. ClickHouse compares tuples as well, but
// uses its key only for what it can take apart; within one epoch, the common case, this
// is a plain range of offsets.
func (s *statement) positions(from, to schema.Position) {
	if from.Epoch == to.Epoch {
		s.and("log_epoch = %s", s.bind("UInt8", to.Epoch))
		s.and("kafka_offset >= %s", s.bind("UInt64", uint64(from.Offset)))
		s.and("kafka_offset < %s", s.bind("UInt64", uint64(to.Offset)))
		return
	}
	if !from.IsZero() {
		epoch := s.bind("UInt8", from.Epoch)
		s.and("log_epoch >= %s", epoch)
		s.and("(log_epoch > %s OR kafka_offset >= %s)", epoch, s.bind("UInt64", uint64(from.Offset)))
	}
	epoch := s.bind("UInt8", to.Epoch)
	s.and("log_epoch <= %s", epoch)
	s.and("(log_epoch < %s OR kafka_offset < %s)", epoch, s.bind("UInt64", uint64(to.Offset)))
}

// before restricts to positions before to, of any partition, for those who read all of a
// session. It names nothing of a key: by_session alone is read for a session, but ClickHouse
// plans a read of the table's own order as well, and looks through all of that key where a
// condition names it in part, which takes 30 ms at 100 million rows.
func (s *statement) before(to schema.Position) {
	s.and("%s < %s", packedPosition, s.bind("UInt64", packPosition(to)))
}

// visible leaves hidden rows out. Nothing is gained by an index here, and startsWith, which
// some can use, costs 10 ms of planning at 100 million rows.
func (s *statement) visible() {
	s.and("substring(type, 1, %d) != '%s'", len(schema.ReservedTypePrefix), schema.ReservedTypePrefix)
}

// filter restricts to what f takes, exactly as f.Match does.
func (s *statement) filter(f *schema.Filter) {
	s.types(f)
	if f.ConfidenceGTE != nil {
		// As bits: no text of a float on the way. NULL is not >= anything.
		s.and("confidence >= reinterpretAsFloat32(%s)", s.bind("UInt32", math.Float32bits(*f.ConfidenceGTE)))
	}
	if f.FromTMs != nil {
		s.and("t_ms >= %s", s.bind("Int64", *f.FromTMs))
	}
	if f.ToTMs != nil {
		s.and("t_ms <= %s", s.bind("Int64", *f.ToTMs))
	}
	if f.FrameID != "" {
		s.and("frame_id = %s", s.bind("String", f.FrameID))
	}
	if f.SinceMs != nil {
		s.and("ts >= fromUnixTimestamp64Milli(%s, 'UTC')", s.bind("Int64", clampTime(*f.SinceMs)))
	}
	if f.UntilMs != nil {
		s.and("ts <= fromUnixTimestamp64Milli(%s, 'UTC')", s.bind("Int64", clampTime(*f.UntilMs)))
	}
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		s.metadata(k, f.Metadata[k])
	}
}

// metadata restricts to events with a key of a value. The first condition is the index's
// expression (i_metadata) and says where to look; a key with a "=" in it may let a wrong
// event through there, never stop a right one.
func (s *statement) metadata(key, value string) {
	s.and("has(arrayMap((k, v) -> concat(k, '=', v), mapKeys(metadata), mapValues(metadata)), %s)", s.bind("String", key+"="+value))
	k := s.bind("String", key)
	s.and("mapContains(metadata, %s) AND metadata[%s] = %s", k, k, s.bind("String", value))
}

func (s *statement) types(f *schema.Filter) {
	if slices.Contains(f.Prefixes, "") || len(f.Types)+len(f.Prefixes) == 0 {
		return // every type
	}
	var kinds []string
	if len(f.Types) > 0 {
		kinds = append(kinds, "type IN "+s.bind("Array(String)", f.Types))
	}
	for _, p := range f.Prefixes {
		kinds = append(kinds, "startsWith(type, "+s.bind("String", p)+")")
	}
	s.and("(%s)", strings.Join(kinds, " OR "))
}

// clampTime keeps a bound within what ts can hold, where every row lies: pruning by
// month goes wrong beyond it.
func clampTime(ms int64) int64 { return min(max(ms, 0), schema.MaxEventTimeMs) }

// eventColumns are what rowScanner reads, in its order; before them comes the session
// where the scope does not name it. The common content type travels as "", which costs
// nothing to scan. The payload comes last, as it is or as "".
const eventColumns = `log_epoch, kafka_partition, kafka_offset, toUnixTimestamp64Milli(ts),
  toUnixTimestamp64Milli(client_ts), t_ms, type, workflow_id, message_id, frame_id, confidence,
  metadata, if(content_type = '` + schema.DefaultContentType + `', '', content_type), length(payload), `

// scopeRows is a question for rows of one scope: of a session wherever they lie, of a
// workflow or workspace those of one Kafka partition.
type scopeRows struct {
	scope      schema.Scope
	partition  uint16          // says nothing about a session
	from, to   schema.Position // [from, to); their partition says nothing, unless placed
	placed     bool            // a session lies in to's partition in to's epoch
	filter     *schema.Filter  // nil takes all
	types      []string        // if not nil: exactly these types, hidden ones included
	limit      int
	descending bool
	noPayloads bool // leave the payloads out; their sizes come all the same
	replay     bool // of a stream's past: gives way to pages
}

func (q *scopeRows) statement(erased Erasures) (string, []any) {
	var s statement
	s.scope(q.scope)
	columns := eventColumns
	if q.scope.Session == "" {
		columns = "session_id, " + columns
		s.and("kafka_partition = %s", s.bind("UInt16", q.partition))
	}
	from := q.from
	from.Epoch = max(from.Epoch, 1)
	if q.placed && from.Epoch == q.to.Epoch { // all of the table's own key is named: see before
		s.and("kafka_partition = %s", s.bind("UInt16", q.to.Partition))
	}
	s.positions(from, q.to)
	s.notErased(q.scope, erased)
	if q.types != nil {
		s.and("type IN %s", s.bind("Array(String)", q.types))
	} else {
		s.visible()
	}
	if q.filter != nil {
		s.filter(q.filter)
	}
	payload := "payload"
	if q.noPayloads {
		payload = "''"
	}
	return fmt.Sprintf(`SELECT %s
FROM %s
WHERE %s
ORDER BY %s
LIMIT %s`, columns+payload, schema.TableEvents, s.condition(), q.order(), s.bind("UInt64", uint64(q.limit))), s.args
}

// Settings of statements, behind those that all have. Which of the table's orders serves a
// statement is said, not left to be found: it may be found wrongly where ORDER BY and LIMIT
// meet (ClickHouse issue 116801). TestStatementsUseTheirOrder holds them to it. The skip
// indexes are of the table's own order, and would be looked through in vain for a projection.
const (
	projectionBySession = ", optimize_use_projections = 1, preferred_optimize_projection_name = 'by_session'"

	settingsBySession = projectionBySession + ", use_skip_indexes = 0"
	settingsByHour    = ", optimize_use_projections = 1, preferred_optimize_projection_name = 'by_hour'"
	settingsByLog     = "" // the table's own order: projections are off for every statement (History.try)
)

// settingsReplay come beside those: a replay's statement waits while a page's runs, for
// 100 ms a block at most (docs/benchmarks.md, "Replays of the workspace").
const settingsReplay = ", priority = 5, low_priority_query_wait_time_ms = 100"

func (q *scopeRows) settings() string {
	settings := settingsByLog
	if q.scope.Session != "" {
		settings = settingsBySession
	}
	if q.replay {
		settings += settingsReplay
	}
	return settings
}

// kind is the question's label in metrics.
func (q *scopeRows) kind() string {
	switch {
	case q.scope.Session != "":
		return "session"
	case q.scope.Workflow != "":
		return "workflow"
	default:
		return "workspace"
	}
}

// name is what of its kind the question is about, for errors.
func (q *scopeRows) name() string {
	return cmp.Or(q.scope.Session, q.scope.Workflow, q.scope.Workspace)
}

// order is the log's. All columns of the key stand in it, so that the rows are read in the
// key's order and reading stops at the limit.
func (q *scopeRows) order() string {
	columns := []string{"workspace_id", "session_id", "log_epoch", "kafka_offset"}
	if q.scope.Session == "" {
		columns = []string{"workspace_id", "kafka_partition", "log_epoch", "kafka_offset"}
	}
	if q.descending {
		for i := range columns {
			columns[i] += " DESC"
		}
	}
	return strings.Join(columns, ", ")
}
