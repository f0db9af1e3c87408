package query

import (
	"context"
	"fmt"
	"strings"

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
	return h.states(ctx, stateRows{
		workspace: g.workspace, sessions: sessions,
		below: func(s *statement) { s.before(g.to) },
		to:    func(string) schema.Position { return g.to },
	})
}

// SessionBases is SessionBase for several sessions of one workspace, at most
// maxBaseBatch, which may lie in several partitions: windows say of each partition of the
// epoch below which offset its rows count. Rows of earlier epochs all count. partition
// tells which of them a session lies in. Sessions without rows are left out.
func (h *History) SessionBases(
	ctx context.Context, workspace string, epoch uint8, windows []window, partition func(session string) uint16, sessions []string,
) (map[string]schema.Session, error) {
	states, err := h.states(ctx, stateRows{
		workspace: workspace, sessions: sessions,
		below: func(s *statement) { s.below(epoch, windows) },
		to: func(session string) schema.Position {
			p := schema.Position{Epoch: epoch, Partition: partition(session)}
			for _, w := range windows {
				if w.partition == p.Partition {
					p.Offset = w.to
				}
			}
			return p
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read states of %d sessions: %w", len(sessions), err)
	}
	return states, nil
}

// below restricts to rows of earlier epochs and, of this one, to those of each window's
// partition below its end. It names nothing of a key (before).
func (s *statement) below(epoch uint8, windows []window) {
	each := []string{packedPosition + " < " + s.bind("UInt64", packPosition(schema.Position{Epoch: epoch}))}
	for _, w := range windows {
		end := schema.Position{Epoch: epoch, Offset: w.to}
		each = append(each, fmt.Sprintf("kafka_partition = %s AND %s < %s",
			s.bind("UInt16", w.partition), packedPosition, s.bind("UInt64", packPosition(end))))
	}
	s.and("(%s)", strings.Join(each, " OR "))
}

// stateRows says of which rows states are read.
type stateRows struct {
	workspace string
	sessions  []string
	below     func(*statement)                     // which rows count
	to        func(session string) schema.Position // the same of one session: those below it
}

// states reads the states of sessions; those without rows are left out.
func (h *History) states(ctx context.Context, q stateRows) (map[string]schema.Session, error) {
	out := make(map[string]schema.Session, len(q.sessions))
	err := h.ask(ctx, "session_base", func(ctx context.Context) error {
		clear(out)
		all, err := h.typeStates(ctx, &q)
		if err != nil {
			return err
		}
		creations, err := h.creations(ctx, &q, all)
		if err != nil {
			return err
		}
		for session, types := range all {
			s := foldTypes(types)
			if payload, ok := creations[session]; ok {
				s.Apply(&schema.Event{Type: schema.TypeSessionCreated, Payload: []byte(payload)})
				if !s.Created { // foreign, and does not parse: a later one may
					ref := SessionRef{Workspace: q.workspace, Session: session}
					if err := h.applyCreated(ctx, &s, ref, q.to(session)); err != nil {
						return err
					}
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

// creations reads the payload of the first record that created each session, of those that
// have one.
func (h *History) creations(ctx context.Context, q *stateRows, all map[string][]typeState) (map[string]string, error) {
	first := make(map[string]uint64)
	var sessions []string
	var offsets []uint64
	for session, types := range all {
		if t := typeNamed(types, schema.TypeSessionCreated); t != nil {
			first[session] = t.first
			sessions = append(sessions, session)
			offsets = append(offsets, t.first&schema.MaxOffset)
		}
	}
	if len(sessions) == 0 {
		return nil, nil
	}
	var s statement
	s.and("workspace_id = %s", s.bind("String", q.workspace))
	s.and("session_id IN %s", s.bind("Array(String)", sessions))
	s.and("kafka_offset IN %s", s.bind("Array(UInt64)", offsets))
	s.and("type = '%s'", schema.TypeSessionCreated)
	out := make(map[string]string, len(sessions))
	err := h.rows(ctx, fmt.Sprintf("SELECT session_id, %s, payload FROM %s WHERE %s", packedPosition, schema.TableEvents, s.condition()),
		settingsBySession, s.args, func(rows driver.Rows) error {
			var session, payload string
			var at uint64
			if err := rows.Scan(&session, &at, &payload); err != nil {
				return err
			}
			if at == first[session] {
				out[session] = payload
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
  ` + packedPosition + ` AS pos,
  toUnixTimestamp64Milli(ts) AS ms
SELECT session_id, toString(type), count(), min(pos), max(pos), argMin(ms, pos), argMax(ms, pos),
  argMin(kafka_partition, pos), argMax(kafka_partition, pos), max(ms), max(t_ms),
  minIf(pos, workflow_id != ''), argMinIf(toString(workflow_id), pos, workflow_id != '')
FROM ` + schema.TableEvents + `
WHERE %s
GROUP BY session_id, type`

// countedRows is the condition of rows that are part of a session's state. The projection
// sessions has it as well, in the same words.
const countedRows = "type NOT IN ('" + schema.TypeDuplicate + "', '" + schema.TypeDeadLetter + "', '" + schema.TypeErased + "')"

// statement writes out the question for what the types of the sessions come to.
func (q *stateRows) statement(erased Erasures) (string, []any) {
	var s statement
	s.and("workspace_id = %s", s.bind("String", q.workspace))
	s.and("session_id IN %s", s.bind("Array(String)", q.sessions))
	q.below(&s)
	if erased != nil {
		s.notPending(erased.PendingErasures(q.workspace))
	}
	s.and(countedRows)
	return fmt.Sprintf(typeStatesSQL, s.condition()), s.args
}

func (h *History) typeStates(ctx context.Context, q *stateRows) (map[string][]typeState, error) {
	query, args := q.statement(h.erased)
	out := make(map[string][]typeState)
	err := h.rows(ctx, query, settingsBySession, args, func(rows driver.Rows) error {
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

// typeNamed returns the type of that name, nil if there is none.
func typeNamed(types []typeState, name string) *typeState {
	for i := range types {
		if types[i].name == name {
			return &types[i]
		}
	}
	return nil
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
