package query

import (
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

// session restricts to one session: the prefix of the table's key.
func (s *statement) session(ref SessionRef) {
	s.and("workspace_id = %s", s.bind("String", ref.Workspace))
	s.and("session_id = %s", s.bind("String", ref.Session))
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

// visible leaves hidden rows out.
func (s *statement) visible() { s.and("NOT startsWith(type, '%s')", schema.ReservedTypePrefix) }

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
		key := s.bind("String", k)
		s.and("mapContains(metadata, %s) AND metadata[%s] = %s", key, key, s.bind("String", f.Metadata[k]))
	}
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

// eventColumns are what rowScanner reads, in its order. Common values travel as "",
// which costs nothing to scan. The payload comes last, as it is or as "".
const eventColumns = `log_epoch, kafka_partition, kafka_offset, toUnixTimestamp64Milli(ts),
  toUnixTimestamp64Milli(client_ts), t_ms, type, workflow_id, message_id, frame_id, confidence,
  if(empty(metadata), '', toJSONString(metadata)),
  if(content_type = '` + schema.DefaultContentType + `', '', content_type), length(payload), `

// sessionRows is a question for rows of one session.
type sessionRows struct {
	ref        SessionRef
	from, to   schema.Position // [from, to)
	filter     *schema.Filter  // nil takes all
	types      []string        // if not nil: exactly these types, hidden ones included
	limit      int
	descending bool
	noPayloads bool // leave the payloads out; their sizes come all the same
}

func (q *sessionRows) statement() (string, []any) {
	var s statement
	s.session(q.ref)
	s.positions(q.from, q.to)
	if q.types != nil {
		s.and("type IN %s", s.bind("Array(String)", q.types))
	} else {
		s.visible()
	}
	if q.filter != nil {
		s.filter(q.filter)
	}
	direction := ""
	if q.descending {
		direction = " DESC"
	}
	// All columns of the key stand in ORDER BY, so that the rows are read in its order
	// and reading stops at the limit.
	payload := "payload"
	if q.noPayloads {
		payload = "''"
	}
	return fmt.Sprintf(`SELECT %s
FROM %s
WHERE %s
ORDER BY workspace_id%[4]s, session_id%[4]s, log_epoch%[4]s, kafka_offset%[4]s
LIMIT %[5]s`, eventColumns+payload, schema.TableEvents, s.condition(), direction, s.bind("UInt64", uint64(q.limit))), s.args
}
