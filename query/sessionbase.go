package query

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// SessionBase returns the state of a session as the rows below to leave it: what
// schema.Session.Apply makes of them, read as aggregates. A session without such rows is
// a state that does not exist, not an error. It reads no payload but that of the record
// that created the session; its cost grows with the number of rows (their key, type and
// times). The epoch and offset of to count, its partition does not.
//
// Questions that come at the same time for sessions of one partition share a statement.
func (h *History) SessionBase(ctx context.Context, ref SessionRef, to schema.Position) (schema.Session, error) {
	s, err := h.bases.get(ctx, baseGroup{workspace: ref.Workspace, partition: ref.Partition, to: to}, ref.Session)
	if err != nil {
		return schema.Session{}, fmt.Errorf("read state of session %s: %w", ref.Session, err)
	}
	return s, nil
}

// readBases reads the states of several sessions; those without rows are left out.
func (h *History) readBases(ctx context.Context, g baseGroup, sessions []string) (map[string]schema.Session, error) {
	out := make(map[string]schema.Session, len(sessions))
	err := h.ask(ctx, "session_base", func(ctx context.Context) error {
		all, err := h.typeStates(ctx, g, sessions)
		if err != nil {
			return err
		}
		for session, types := range all {
			s := foldTypes(types)
			if hasType(types, schema.TypeSessionCreated) {
				ref := SessionRef{Workspace: g.workspace, Session: session, Partition: g.partition}
				if err := h.applyCreated(ctx, &s, ref, g.to); err != nil {
					return err
				}
			}
			if end, ok := firstCallEnd(types); ok {
				s.SetCallEnd(unpackPosition(end.first, 0).Offset, end.firstMs)
			}
			out[session] = s
		}
		return nil
	})
	return out, err
}

// typeState is what the rows of one type in one session come to. Positions are packed,
// epoch above offset, so that they are compared as one number.
type typeState struct {
	name                          string
	rows                          uint64
	first, last                   uint64
	firstMs, lastMs               int64 // append times of the first and the last
	firstPartition, lastPartition uint16
	maxMs                         int64
	maxTMs                        uint64
	workflowAt                    uint64 // of the first row that names a workflow; 0 if none does
	workflow                      string
}

const packedOffsetBits = 48 // schema.MaxOffset

func unpackPosition(packed uint64, partition uint16) schema.Position {
	return schema.Position{
		Epoch: uint8(packed >> packedOffsetBits), Partition: partition, Offset: int64(packed & schema.MaxOffset),
	}
}

// typeStatesSQL aggregates by type. Repeats are no part of a session's state.
const typeStatesSQL = `WITH
  bitOr(bitShiftLeft(toUInt64(log_epoch), 48), kafka_offset) AS pos,
  toUnixTimestamp64Milli(ts) AS ms
SELECT session_id, toString(type), count(), min(pos), max(pos), argMin(ms, pos), argMax(ms, pos),
  argMin(kafka_partition, pos), argMax(kafka_partition, pos), max(ms), max(t_ms),
  minIf(pos, workflow_id != ''), argMinIf(toString(workflow_id), pos, workflow_id != '')
FROM ` + schema.TableEvents + `
WHERE %s
GROUP BY session_id, type`

func (h *History) typeStates(ctx context.Context, g baseGroup, sessions []string) (map[string][]typeState, error) {
	var s statement
	s.and("workspace_id = %s", s.bind("String", g.workspace))
	s.and("session_id IN %s", s.bind("Array(String)", sessions))
	s.positions(schema.Position{}, g.to)
	s.and("type NOT IN ('%s', '%s')", schema.TypeDuplicate, schema.TypeDeadLetter)
	out := make(map[string][]typeState)
	err := h.rows(ctx, fmt.Sprintf(typeStatesSQL, s.condition()), s.args, func(rows driver.Rows) error {
		var session string
		var t typeState
		if err := rows.Scan(&session, &t.name, &t.rows, &t.first, &t.last, &t.firstMs, &t.lastMs,
			&t.firstPartition, &t.lastPartition, &t.maxMs, &t.maxTMs,
			&t.workflowAt, &t.workflow); err != nil {
			return err
		}
		out[session] = append(out[session], t)
		return nil
	})
	return out, err
}

// foldTypes joins the types of one session to its state, but for what its creation and
// the end of a call add.
func foldTypes(types []typeState) schema.Session {
	s := schema.NewSession()
	if len(types) == 0 {
		return s
	}
	s.SetExists()
	s.Kind = schema.KindSession
	var start, workflow, first, last *typeState
	for i := range types {
		t := &types[i]
		s.LastMs = max(s.LastMs, t.maxMs)
		if start == nil || t.first < start.first {
			start = t
		}
		if t.workflow != "" && (workflow == nil || t.workflowAt < workflow.workflowAt) {
			workflow = t
		}
		if t.name == schema.TypeSessionEnded {
			s.EndedAt, s.EndedMs = unpackPosition(t.first, 0).Offset, t.firstMs
		}
		if schema.IsHiddenType(t.name) {
			continue
		}
		if s.CountsByType == nil {
			s.CountsByType = make(map[string]int64)
		}
		s.CountsByType[t.name] = int64(t.rows)
		s.EventCount += int64(t.rows)
		s.MaxTMs = max(s.MaxTMs, int64(t.maxTMs))
		if first == nil || t.first < first.first {
			first = t
		}
		if last == nil || t.last > last.last {
			last = t
		}
	}
	s.StartedMs = start.firstMs
	if workflow != nil {
		s.Workflow = workflow.workflow
	}
	if first != nil {
		s.First = schema.EventID{Position: unpackPosition(first.first, first.firstPartition), TimeMs: first.firstMs}
		s.Last = schema.EventID{Position: unpackPosition(last.last, last.lastPartition), TimeMs: last.lastMs}
	}
	return s
}

func hasType(types []typeState, name string) bool {
	for i := range types {
		if types[i].name == name {
			return true
		}
	}
	return false
}

// firstCallEnd returns the type whose first row ends the session if it is a call.
func firstCallEnd(types []typeState) (end typeState, ok bool) {
	for _, t := range types {
		if schema.EndsCall(t.name) && (!ok || t.first < end.first) {
			end, ok = t, true
		}
	}
	return end, ok
}

// createdRows is how many records of a session's creation are read at a time. There is
// one, unless a foreign producer wrote records that do not parse before it.
const createdRows = 16

// applyCreated applies the record that created the session: the first that parses.
func (h *History) applyCreated(ctx context.Context, s *schema.Session, ref SessionRef, to schema.Position) error {
	q := scopeRows{scope: ref.Scope(), to: to, types: []string{schema.TypeSessionCreated}, limit: createdRows}
	for !s.Created {
		n := 0
		err := h.events(ctx, &q, func(e *schema.Event, _ int) error {
			n++
			q.goOnAfter(e.ID.Position)
			s.Apply(e) // a record of this type changes nothing that foldTypes has set
			return nil
		})
		if err != nil || n < createdRows {
			return err
		}
	}
	return nil
}
