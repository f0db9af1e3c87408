package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// exportWindow is how many offsets are counted as one, and how many rows a window has at
// most: what one statement sorts in one block, and what is read again after a failure.
const exportWindow = 65_536

// exportLeg is a stretch of one Kafka partition's log.
type exportLeg struct {
	epoch     uint8
	partition uint16
	from, to  int64 // [from, to)
	sinceMs   int64 // if not 0: only what was appended then or later
}

// compare is the order of an export.
func (l exportLeg) compare(p schema.Position) int {
	return schema.Position{Epoch: l.epoch, Partition: l.partition}.Compare(schema.Position{Epoch: p.Epoch, Partition: p.Partition})
}

// exportQuery is what the statements of one export have in common.
type exportQuery struct {
	scope  schema.Scope
	filter *schema.Filter
	erased Erasures    // nil: nothing is
	legs   []exportLeg // in the order of the export
}

// statement restricts to the events of legs.
func (q *exportQuery) statement(legs ...exportLeg) *statement {
	s := new(statement)
	s.scope(q.scope)
	var stretches []string
	for _, l := range legs {
		one := fmt.Sprintf("kafka_partition = %s AND log_epoch = %s AND kafka_offset >= %s AND kafka_offset < %s",
			s.bind("UInt16", l.partition), s.bind("UInt8", l.epoch), s.bind("UInt64", uint64(l.from)), s.bind("UInt64", uint64(l.to)))
		if l.sinceMs > 0 {
			one += fmt.Sprintf(" AND ts >= fromUnixTimestamp64Milli(%s, 'UTC')", s.bind("Int64", clampTime(l.sinceMs)))
		}
		stretches = append(stretches, one)
	}
	switch len(stretches) {
	case 0:
		s.and("0")
	case 1:
		s.and("%s", stretches[0])
	default:
		s.and("((%s))", strings.Join(stretches, ") OR ("))
	}
	s.visible()
	s.filter(q.filter)
	s.notErased(q.scope, q.erased)
	return s
}

// order is the order of an export in the words of the key that its rows are read by, so
// that they need no sorting. Over several epochs of several partitions it is none: then they
// are sorted, on disk if they are many.
func (q *exportQuery) order() string {
	if q.scope.Session != "" {
		return "workspace_id, session_id, log_epoch, kafka_offset"
	}
	for _, l := range q.legs {
		if l.epoch != q.legs[0].epoch {
			return "log_epoch, kafka_partition, kafka_offset"
		}
	}
	return "workspace_id, kafka_partition, log_epoch, kafka_offset"
}

// useProjection says which of the table's orders serves the statements: sql.go has why it is
// said.
func (q *exportQuery) useProjection(s clickhouse.Settings) clickhouse.Settings {
	s["optimize_use_projections"] = 0
	if q.scope.Session != "" {
		s["optimize_use_projections"], s["preferred_optimize_projection_name"] = 1, "by_session"
	}
	return s
}

// exportPlan cuts an export into windows of about exportWindow rows, going by counts that it
// asks for as it goes: windows without rows are not read at all.
type exportPlan struct {
	x    *Exports
	q    *exportQuery
	legs []exportLeg // what is not yet counted

	units   []exportUnit // counted, of counted, and not yet handed out
	counted exportLeg
	ahead   int64 // offsets to count next
}

// exportUnit are the rows of exportWindow offsets.
type exportUnit struct {
	unit int64 // first offset / exportWindow
	rows int64
}

// Offsets that one statement counts: few at first, so that an export begins at once; the
// more, the more of them are empty, where a workspace is sparse in a partition. And how many
// units it returns at most.
const (
	firstCounted = 16 * exportWindow
	usualCounted = 256 * exportWindow
	maxUnits     = 4096
)

// exportSpan is one window.
type exportSpan struct {
	exportLeg
	rows int64
}

func (x *Exports) plan(q *exportQuery) *exportPlan {
	return &exportPlan{x: x, q: q, legs: slices.Clone(q.legs), ahead: firstCounted}
}

// prime counts until there is a window, or the end.
func (p *exportPlan) prime(ctx context.Context) error {
	for len(p.units) == 0 && len(p.legs) > 0 {
		if err := p.count(ctx); err != nil {
			return err
		}
	}
	return nil
}

// next returns the next window that has rows; ok is false at the end. After an error it
// may be called again.
func (p *exportPlan) next(ctx context.Context) (w exportSpan, ok bool, err error) {
	if err := p.prime(ctx); err != nil || len(p.units) == 0 {
		return exportSpan{}, false, err
	}
	n := 0
	for n < len(p.units) && (n == 0 || w.rows+p.units[n].rows <= p.x.windowRows) {
		w.rows += p.units[n].rows
		n++
	}
	w.exportLeg = p.counted
	w.from = max(p.counted.from, p.units[0].unit*exportWindow)
	w.to = min(p.counted.to, (p.units[n-1].unit+1)*exportWindow)
	p.units = p.units[n:]
	return w, true, nil
}

// count asks for the counts of the next offsets.
func (p *exportPlan) count(ctx context.Context) error {
	leg := &p.legs[0]
	p.counted = *leg
	if leg.to-leg.from > p.ahead {
		p.counted.to = (leg.from + p.ahead) / exportWindow * exportWindow
	}
	s := p.q.statement(p.counted)
	text := fmt.Sprintf("SELECT intDiv(kafka_offset, %d) AS unit, count() FROM %s\nWHERE %s\nGROUP BY unit ORDER BY unit LIMIT %d",
		exportWindow, schema.TableEvents, s.condition(), maxUnits)
	var units []exportUnit
	err := p.x.ask(ctx, p.q, func(ctx context.Context) error {
		units = nil
		return p.x.rows(ctx, text, s.args, func(rows driver.Rows) error {
			var unit, rowsOf uint64
			if err := rows.Scan(&unit, &rowsOf); err != nil {
				return err
			}
			units = append(units, exportUnit{unit: int64(unit), rows: int64(rowsOf)})
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("count rows to export: %w", err)
	}
	p.units = units
	switch {
	case len(units) == maxUnits: // there may be more
		p.counted.to = min(p.counted.to, (units[maxUnits-1].unit+1)*exportWindow)
		p.ahead = usualCounted
	case len(units) == 0:
		p.ahead = min(8*p.ahead, schema.MaxOffset)
	case p.ahead < usualCounted:
		p.ahead = min(4*p.ahead, usualCounted)
	case int64(len(units))*exportWindow > (p.counted.to-p.counted.from)/8:
		p.ahead = usualCounted
	}
	if leg.from = p.counted.to; leg.from >= leg.to {
		p.legs = p.legs[1:]
	}
	return nil
}

// cut ends q after its first n rows, and returns the event id of the last of these; the
// zero id if there are no more than n.
func (x *Exports) cut(ctx context.Context, q *exportQuery, n int) (schema.EventID, error) {
	p := x.plan(q)
	left := int64(n)
	for {
		w, ok, err := p.next(ctx)
		if err != nil || !ok {
			return schema.EventID{}, err
		}
		if left -= w.rows; left > 0 {
			continue
		}
		if left == 0 {
			if _, more, err := p.next(ctx); err != nil || !more {
				return schema.EventID{}, err
			}
		}
		last, err := x.nth(ctx, q, w.exportLeg, w.rows+left)
		if err != nil {
			return schema.EventID{}, err
		}
		q.endAfter(last.Position)
		return last, nil
	}
}

// nth returns the id of the nth event of a leg, from 1.
func (x *Exports) nth(ctx context.Context, q *exportQuery, l exportLeg, n int64) (schema.EventID, error) {
	s := q.statement(l)
	text := fmt.Sprintf("SELECT kafka_offset, toUnixTimestamp64Milli(ts) FROM %s\nWHERE %s\nORDER BY kafka_offset LIMIT 1 OFFSET %s",
		schema.TableEvents, s.condition(), s.bind("UInt64", uint64(n-1)))
	id := schema.EventID{}
	err := x.ask(ctx, q, func(ctx context.Context) error {
		return x.rows(ctx, text, s.args, func(rows driver.Rows) error {
			var offset uint64
			if err := rows.Scan(&offset, &id.TimeMs); err != nil {
				return err
			}
			id.Position = schema.Position{Epoch: l.epoch, Partition: l.partition, Offset: int64(offset)}
			return nil
		})
	})
	if err == nil && id.IsZero() {
		err = errRowsMoved
	}
	if err != nil {
		return schema.EventID{}, fmt.Errorf("find the end of a part: %w", err)
	}
	return id, nil
}

// errRowsMoved reports that rows that had been counted were gone: an erasure.
var errRowsMoved = errors.New("rows were erased meanwhile")

// endAfter drops what lies behind p in the order of the export.
func (q *exportQuery) endAfter(p schema.Position) {
	for i := range q.legs {
		if c := q.legs[i].compare(p); c >= 0 {
			if c == 0 {
				q.legs[i].to = min(q.legs[i].to, p.Offset+1)
				i++
			}
			q.legs = q.legs[:i]
			return
		}
	}
}

// beginAfter drops p and what lies before it.
func (q *exportQuery) beginAfter(p schema.Position) {
	q.legs = slices.DeleteFunc(q.legs, func(l exportLeg) bool { return l.compare(p) < 0 })
	if len(q.legs) > 0 && q.legs[0].compare(p) == 0 {
		q.legs[0].from = max(q.legs[0].from, p.Offset+1)
	}
	q.dropEmpty()
}

func (q *exportQuery) dropEmpty() {
	q.legs = slices.DeleteFunc(q.legs, func(l exportLeg) bool { return l.from >= l.to })
}

// pastLegs returns the legs of log epochs before epoch, where the table alone knows what
// there is.
func (x *Exports) pastLegs(ctx context.Context, q *exportQuery, epoch uint8) ([]exportLeg, error) {
	if epoch <= 1 {
		return nil, nil
	}
	var s statement
	s.scope(q.scope)
	s.and("log_epoch < %s", s.bind("UInt8", epoch))
	text := fmt.Sprintf("SELECT log_epoch, kafka_partition, min(kafka_offset), max(kafka_offset) FROM %s\nWHERE %s\nGROUP BY log_epoch, kafka_partition ORDER BY log_epoch, kafka_partition",
		schema.TableEvents, s.condition())
	var legs []exportLeg
	err := x.ask(ctx, q, func(ctx context.Context) error {
		legs = nil
		return x.rows(ctx, text, s.args, func(rows driver.Rows) error {
			var l exportLeg
			var from, last uint64
			if err := rows.Scan(&l.epoch, &l.partition, &from, &last); err != nil {
				return err
			}
			l.from, l.to = int64(from), int64(last)+1
			legs = append(legs, l)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("find earlier epochs to export: %w", err)
	}
	return legs, nil
}
