package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// listBounds bound the list's statements. What a statement groups is bounded by the hours it
// looks at, by the number of rows in them.
type listBounds struct {
	places int // that a statement returns
	hours  int // with rows, that are looked up at a time
	rows   int // of the hours that the first statement looks at; one hour at least
	named  int // sessions of a workflow that a statement names
}

func defaultListBounds() listBounds {
	return listBounds{places: 1024, hours: 4096, rows: 1 << 14, named: 2048}
}

// Later statements look at more hours, as long as there is little in them.
const (
	maxListWindow    = 1 << 22 // rows of them
	listWindowGrowth = 4
)

const (
	listHourMs = int64(time.Hour / time.Millisecond)
	recentMs   = 32 * 24 * listHourMs       // how far back hours are looked up first
	endOfHours = (int64(1)<<32 - 1) * 1_000 // ClickHouse counts hours' seconds in 32 bits
)

// listRows finds places of the list in the table: of every session in every hour, when it
// began there, or when it was last active there.
type listRows struct {
	history   *History
	bounds    listBounds
	workspace string
	req       *listRequest
	at        listKey   // all places up to it have been found
	places    []listKey // found and not yet used, in the list's direction
	hours     []hourRows
	looked    [2]int64 // hours that were looked up: [from, to), Unix ms
	low, high int64    // hours that may matter: [low, high)
	window    int      // rows of the next hours to look at
	begun     bool     // something has been asked
	ended     bool     // there are no more hours

	// Of a workflow with few sessions, only those are looked for, in many hours at once.
	few      bool
	only     []string
	hot      []string // sessions that may be the workflow's by what lies above the committed offsets
	from, to int64    // hours under way: [from, to); none if equal
}

// hourRows is how many rows of the workspace lie in an hour; at least as many as sessions.
type hourRows struct {
	ms   int64
	rows uint64
}

func newListRows(h *History, bounds listBounds, workspace string, req *listRequest, at listKey) *listRows {
	l := &listRows{history: h, bounds: bounds, workspace: workspace, req: req, at: at, high: endOfHours, window: bounds.rows}
	if req.after != nil { // a session is never active before it starts
		l.low = floorHour(*req.after)
	}
	if req.before != nil && req.orderBy == orderStart {
		l.high = min(l.high, floorHour(*req.before)+listHourMs)
	}
	if req.descending {
		last := at.ms
		if at.id == "" { // no session of that time: or an hour that ends here would be looked at for ever
			last--
		}
		l.high = min(l.high, floorHour(last)+listHourMs)
		l.looked = [2]int64{l.high, l.high}
	} else {
		l.low = max(l.low, floorHour(at.ms))
		l.looked = [2]int64{l.low, l.low}
	}
	return l
}

func floorHour(ms int64) int64 { return min(ms, endOfHours) / listHourMs * listHourMs }

// fill finds more places, unless there are some, and none if there are no more. Past until
// it returns errPageLate, but not before it has asked once.
func (l *listRows) fill(ctx context.Context, until time.Time) error {
	for len(l.places) == 0 && !l.ended {
		if l.begun && time.Now().After(until) {
			return errPageLate
		}
		if !l.begun {
			l.begun = true
			if err := l.nameSessions(ctx); err != nil {
				return err
			}
		}
		if l.ended {
			return nil
		}
		if l.from == l.to {
			found, err := l.nextWindow(ctx)
			if err != nil {
				return err
			}
			if l.ended = !found; l.ended {
				return nil
			}
		}
		places, err := l.history.listPlaces(ctx, l)
		if err != nil {
			return err
		}
		l.places = places
		if len(places) == l.bounds.places {
			l.at = places[len(places)-1]
			continue
		}
		if l.req.descending {
			l.at = listKey{ms: l.from}
		} else {
			l.at = listKey{ms: l.to}
		}
		l.from, l.to = 0, 0
		if len(places) < l.bounds.places/2 {
			l.window = min(l.window*listWindowGrowth, maxListWindow)
		}
	}
	return nil
}

// nameSessions finds the sessions that may be of the list's workflow, if they are few. A
// session is of a workflow only if one of its records names it.
func (l *listRows) nameSessions(ctx context.Context) error {
	if l.req.workflow == "" || len(l.hot) > l.bounds.named {
		return nil
	}
	found, err := l.history.workflowSessions(ctx, l.workspace, l.req.workflow, l.bounds.named+1)
	if errors.Is(err, ErrScanTooLarge) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.only = append(found, l.hot...); len(l.only) > l.bounds.named {
		l.only = nil
		return nil
	}
	l.few, l.ended = true, len(l.only) == 0
	return nil
}

// workflowSessions returns at most limit sessions that have a row of the workflow.
func (h *History) workflowSessions(ctx context.Context, workspace, workflow string, limit int) ([]string, error) {
	var s statement
	s.scope(schema.Scope{Workspace: workspace, Workflow: workflow})
	var found []string
	err := h.ask(ctx, "workflow_sessions", func(ctx context.Context) error {
		found = nil
		query := fmt.Sprintf("SELECT DISTINCT session_id FROM %s WHERE %s LIMIT %d", schema.TableEvents, s.condition(), limit)
		return h.rows(ctx, query, settingsByLog, s.args, func(rows driver.Rows) error {
			var session string
			if err := rows.Scan(&session); err != nil {
				return err
			}
			found = append(found, session)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("look for sessions of workflow %s: %w", workflow, err)
	}
	return found, nil
}

// nextWindow chooses the hours to look at next: at least one, and as many as hold no more
// than window rows. It reports whether there are any.
func (l *listRows) nextWindow(ctx context.Context) (bool, error) {
	if len(l.hours) == 0 {
		if err := l.lookUp(ctx); err != nil || len(l.hours) == 0 {
			return false, err
		}
	}
	n, rows := 0, uint64(0)
	for n < len(l.hours) && (n == 0 || l.few || rows+l.hours[n].rows <= uint64(l.window)) {
		rows += l.hours[n].rows
		n++
	}
	first, last := l.hours[0].ms, l.hours[n-1].ms
	l.from, l.to = min(first, last), max(first, last)+listHourMs
	l.hours = l.hours[n:]
	return true, nil
}

// lookUp finds the next hours that have rows: first in the recent past, then in all time.
func (l *listRows) lookUp(ctx context.Context) error {
	for len(l.hours) == 0 {
		from, to := l.looked[1], l.high
		if l.req.descending {
			from, to = l.low, l.looked[0]
			if l.looked[0] == l.looked[1] { // the first time
				from = max(from, min(to, floorHour(time.Now().UnixMilli()))-recentMs)
			}
		}
		if from >= to {
			return nil
		}
		hours, err := l.history.listHours(ctx, l, from, to)
		if err != nil {
			return err
		}
		l.hours, l.looked = hours, [2]int64{from, to}
		if n := len(hours); n == l.bounds.hours {
			l.looked = [2]int64{hours[n-1].ms, hours[n-1].ms + listHourMs}
		}
	}
	return nil
}

// listHours returns the hours in [from, to) that the workspace has rows in: the first ones
// in the list's direction, as many as bounds allow.
func (h *History) listHours(ctx context.Context, l *listRows, from, to int64) ([]hourRows, error) {
	query, args := l.hoursStatement(from, to)
	var hours []hourRows
	err := h.ask(ctx, "session_hours", func(ctx context.Context) error {
		hours = hours[:0]
		return h.rows(ctx, query, settingsByHour, args, func(rows driver.Rows) error {
			var seconds uint32
			var n uint64
			if err := rows.Scan(&seconds, &n); err != nil {
				return err
			}
			hours = append(hours, hourRows{int64(seconds) * 1000, n})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("look up hours: %w", err)
	}
	return hours, nil
}

func (l *listRows) hoursStatement(from, to int64) (string, []any) {
	var s statement
	s.and("workspace_id = %s", s.bind("String", l.workspace))
	s.hours(from, to)
	direction := ""
	if l.req.descending {
		direction = " DESC"
	}
	return fmt.Sprintf("SELECT toUnixTimestamp(toStartOfHour(ts)) AS hour, count() FROM %s WHERE %s\nGROUP BY toStartOfHour(ts) ORDER BY hour%s LIMIT %d",
		schema.TableEvents, s.condition(), direction, l.bounds.hours), s.args
}

// hours restricts to rows of whole hours [from, to), Unix ms, in the projections' words.
func (s *statement) hours(from, to int64) {
	s.and("toStartOfHour(ts) >= toDateTime(%s, 'UTC')", s.bind("UInt32", uint32(min(max(from, 0), endOfHours)/1000)))
	s.and("toStartOfHour(ts) < toDateTime(%s, 'UTC')", s.bind("UInt32", uint32(min(max(to, 0), endOfHours)/1000)))
}

// Places of sessions, in the words of the projection sessions: when the first of the rows
// was appended, and when the last.
const (
	startPlace   = "argMinIf(ts, " + packedPosition + ", " + countedRows + ")"
	recencyPlace = "maxIf(ts, " + countedRows + ")"
)

// settingsSessions has the projection sessions answer.
const settingsSessions = ", optimize_use_projections = 1, preferred_optimize_projection_name = 'sessions'"

// listPlaces finds the next places in the hours of l.
func (h *History) listPlaces(ctx context.Context, l *listRows) ([]listKey, error) {
	var pending []schema.Erasure
	if h.erased != nil {
		pending = h.erased.PendingErasures(l.workspace)
	}
	query, settings, args := l.statement(pending)
	var places []listKey
	err := h.ask(ctx, "session_places", func(ctx context.Context) error {
		places = nil
		return h.rows(ctx, query, settings, args, func(rows driver.Rows) error {
			var k listKey
			if err := rows.Scan(&k.id, &k.ms); err != nil {
				return err
			}
			places = append(places, k)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("look for sessions in %d hours: %w", (l.to-l.from)/listHourMs, err)
	}
	return places, nil
}

// statement writes out the question for the next places. It looks at an hour more than
// asked, that in which a session stands if it does not stand here, and so leaves out most of
// those that are active for hours. While erasures are pending it reads rows: sums cannot
// leave anything out.
func (l *listRows) statement(pending []schema.Erasure) (query, settings string, args []any) {
	var s statement
	s.and("workspace_id = %s", s.bind("String", l.workspace))
	place, from, to := startPlace, l.from-listHourMs, l.to
	if l.req.orderBy == orderRecency {
		place, from, to = recencyPlace, l.from, l.to+listHourMs
	}
	s.hours(from, to)
	s.and("session_id != ''")
	if l.few {
		s.and("session_id IN %s", s.bind("Array(String)", l.only))
	}
	settings = settingsSessions
	if len(pending) > 0 {
		settings = settingsByLog
		s.notPending(pending)
		s.and("ts >= fromUnixTimestamp64Milli(%s, 'UTC') AND ts < fromUnixTimestamp64Milli(%s, 'UTC')",
			s.bind("Int64", clampTime(from)), s.bind("Int64", clampTime(to)))
	}
	compare, direction := ">", ""
	if l.req.descending {
		compare, direction = "<", " DESC"
	}
	having := fmt.Sprintf("ms >= %s AND ms < %s AND (ms, session_id) %s (%s, %s)",
		s.bind("Int64", l.from), s.bind("Int64", l.to), compare, s.bind("Int64", l.at.ms), s.bind("String", l.at.id))
	return fmt.Sprintf("SELECT session_id, toUnixTimestamp64Milli(%s) AS ms FROM %s WHERE %s\nGROUP BY session_id HAVING %s\nORDER BY ms%[5]s, session_id%[5]s LIMIT %[6]d",
		place, schema.TableEvents, s.condition(), having, direction, l.bounds.places), settings, s.args
}
