package query

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Bounds of a timeline.
const (
	defaultTimelineBuckets = 60
	maxTimelineBuckets     = 1000
)

// Activity levels of a bucket, by its share of the busiest bucket's events.
const (
	activityNone   = "none"
	activityLow    = "low"    // up to a third
	activityMedium = "medium" // up to two thirds
	activityHigh   = "high"
)

// sessionDetails is a session with its timeline, as clients read it.
type sessionDetails struct {
	schema.SessionView
	Timeline timelineView `json:"timeline"`
	Degraded bool         `json:"degraded,omitempty"`
}

type timelineView struct {
	IntervalMs int64            `json:"interval_ms"`
	Buckets    []timelineBucket `json:"buckets"`
}

// timelineBucket is what happened from TMs (inclusive) until the next bucket.
type timelineBucket struct {
	TMs           int64   `json:"t_ms"`
	Count         int64   `json:"count"`
	DominantType  *string `json:"dominant_type"` // null without an event
	ActivityLevel string  `json:"activity_level"`
}

func isDetailsParam(name string) bool { return name == "buckets" || name == "interval" }

// getDetails answers GET /v1/sessions/{id}/details.
func (a *API) getDetails(c *fiber.Ctx) error {
	who, session := httpapi.From(c), string([]byte(c.Params("id"))) // the router's string dies with the handler
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	if err := httpapi.CheckParams(q, isDetailsParam); err != nil {
		return err
	}
	cut, err := parseTimelineCut(q)
	if err != nil {
		return err
	}
	if !mayExist(who, session) {
		return errNoSession()
	}
	scope := schema.Scope{Workspace: who.Workspace, Session: session}
	views, err := a.open(c.UserContext(), scope)
	if err != nil {
		return httpapi.LogUnavailable(err)
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), 2*a.cfg.QueryTimeout+a.cfg.LogScan.Timeout+answerGrace)
	defer cancel()
	state, err := views[0].tape.Session(ctx, scope.Workspace, session)
	if err != nil {
		return historyError(err)
	}
	if !state.Exists() || !who.MaySee(session, state.Workflow) {
		return errNoSession()
	}
	view := state.View(session)
	interval, err := cut.interval(view.DurationMs)
	if err != nil {
		return err
	}
	t := timeline{interval: interval, counts: make([]map[string]int64, view.DurationMs/interval+1)}
	degraded, err := a.readTimeline(ctx, views[0], scope, &state, &t)
	if err != nil {
		return historyError(err)
	}
	if degraded {
		c.Set(headerDegraded, sourceDegraded)
	}
	return c.JSON(sessionDetails{SessionView: view, Timeline: t.view(), Degraded: degraded})
}

// timelineCut is how a request wants the timeline cut: by one of the two.
type timelineCut struct {
	buckets    int64
	intervalMs int64
}

func parseTimelineCut(q url.Values) (timelineCut, error) {
	buckets, err := httpapi.One(q, "buckets")
	if err != nil {
		return timelineCut{}, err
	}
	interval, err := httpapi.One(q, "interval")
	if err != nil {
		return timelineCut{}, err
	}
	switch {
	case q.Has("buckets") && q.Has("interval"):
		return timelineCut{}, httpapi.InvalidParameter("interval", "Parameters buckets and interval say the same; give one of them.")
	case q.Has("interval"):
		ms, err := strconv.ParseInt(interval, 10, 64)
		if d, derr := time.ParseDuration(interval); err != nil && derr == nil && d%time.Millisecond == 0 {
			ms, err = d.Milliseconds(), nil
		}
		if err != nil || ms < 1 {
			return timelineCut{}, httpapi.InvalidParameter("interval",
				"Parameter interval is %s; want whole milliseconds, 1 or more, or a duration such as 10s or 5m.", schema.Quote(interval))
		}
		return timelineCut{intervalMs: ms}, nil
	case q.Has("buckets"):
		n, err := strconv.ParseInt(buckets, 10, 64)
		if err != nil || n < 1 || n > maxTimelineBuckets {
			return timelineCut{}, httpapi.InvalidParameter("buckets", "Parameter buckets is %s; want a whole number from 1 to %d.",
				schema.Quote(buckets), maxTimelineBuckets)
		}
		return timelineCut{buckets: n}, nil
	default:
		return timelineCut{buckets: defaultTimelineBuckets}, nil
	}
}

// interval returns the length of a bucket, so that those of t_ms 0 to durationMs are at most
// as many as asked for.
func (c timelineCut) interval(durationMs int64) (int64, error) {
	if c.intervalMs == 0 {
		return durationMs/c.buckets + 1, nil
	}
	if n := durationMs / c.intervalMs; n >= maxTimelineBuckets {
		return 0, httpapi.InvalidParameter("interval", "Parameter interval cuts the session's %d ms into more than %d buckets; want at least %d ms.",
			durationMs, maxTimelineBuckets, durationMs/maxTimelineBuckets+1)
	}
	return c.intervalMs, nil
}

// timeline counts a session's events by time and type.
type timeline struct {
	interval int64              // ms
	counts   []map[string]int64 // of each bucket, by type; nil if empty
}

func (t *timeline) add(bucket int64, kind string, n int64) {
	i := min(max(bucket, 0), int64(len(t.counts)-1))
	if t.counts[i] == nil {
		t.counts[i] = make(map[string]int64)
	}
	t.counts[i][kind] += n
}

func (t *timeline) view() timelineView {
	v := timelineView{IntervalMs: t.interval, Buckets: make([]timelineBucket, len(t.counts))}
	busiest := int64(0)
	for i, kinds := range t.counts {
		b := &v.Buckets[i]
		b.TMs = int64(i) * t.interval
		most := int64(0)
		for kind, n := range kinds {
			b.Count += n
			if n > most || n == most && kind < *b.DominantType {
				most, b.DominantType = n, &kind
			}
		}
		busiest = max(busiest, b.Count)
	}
	for i := range v.Buckets {
		v.Buckets[i].ActivityLevel = activity(v.Buckets[i].Count, busiest)
	}
	return v
}

func activity(n, busiest int64) string {
	switch {
	case n == 0:
		return activityNone
	case 3*n <= busiest:
		return activityLow
	case 3*n <= 2*busiest:
		return activityMedium
	default:
		return activityHigh
	}
}

// readTimeline counts the events that state is the fold of: final rows, and what Kafka and
// the tape hold above them. Without ClickHouse the log alone answers, if it holds all of the
// session's events.
func (a *API) readTimeline(ctx context.Context, v *view, scope schema.Scope, state *schema.Session, t *timeline) (degraded bool, err error) {
	if state.EventCount == 0 {
		return false, nil
	}
	// The state may have come to know more than there was when the request came.
	end := v.end
	if state.Last.Epoch == v.epoch {
		end = max(end, state.Last.Offset+1)
	}
	from := v.committed
	err = a.deps.History.timelineRows(ctx, scope, v.at(from), t)
	if errors.Is(err, ErrUnavailable) {
		start, _, berr := a.deps.Log.Bounds(ctx, v.partition)
		if berr != nil {
			return true, fmt.Errorf("%w: %w", errLogFailed, berr)
		}
		if state.First.Epoch != v.epoch || state.First.Offset < start {
			return true, fmt.Errorf("%w: %w", errNotInKafka, err)
		}
		from, degraded = state.First.Offset, true
		err = nil
	}
	if err != nil {
		return false, err
	}
	return degraded, a.timelineLog(ctx, v, scope, from, end, state, t, degraded)
}

// timelineLog counts what the tape and Kafka hold of [from, end), as far as state goes.
func (a *API) timelineLog(
	ctx context.Context, v *view, scope schema.Scope, from, end int64, state *schema.Session, t *timeline, degraded bool,
) error {
	var scan *logScan
	count := func(e *schema.Event) error {
		if !before(state.Last.Position, e.ID.Position) {
			t.add(e.TMs/t.interval, e.Type, 1)
		}
		return nil
	}
	for from < end {
		events, start, next := v.tape.ScopeEvents(scope, from, tapeStep)
		if start > from {
			if scan == nil {
				reason := "lag"
				if degraded {
					reason = "degraded"
				}
				var err error
				if scan, err = a.newLogScan(ctx, v, scope, reason); err != nil {
					return err
				}
			}
			to := min(start, end)
			if err := scan.read(ctx, from, to, count); err != nil {
				return err
			}
			from = to
			continue
		}
		for _, e := range events {
			if e.ID.Offset < end {
				_ = count(e) // never fails
			}
		}
		if len(events) == tapeStep {
			next = events[len(events)-1].ID.Offset + 1
		}
		from = max(next, from+1)
	}
	return nil
}

// timelineRows counts a session's rows below to.
func (h *History) timelineRows(ctx context.Context, scope schema.Scope, to schema.Position, t *timeline) error {
	query, args := timelineStatement(scope, to, t.interval, h.erased)
	var counts []map[string]int64
	err := h.ask(ctx, "timeline", func(ctx context.Context) error {
		counts = make([]map[string]int64, len(t.counts))
		fresh := timeline{interval: t.interval, counts: counts}
		return h.rows(ctx, query, settingsBySession, args, func(rows driver.Rows) error {
			var bucket, n uint64
			var kind string
			if err := rows.Scan(&bucket, &kind, &n); err != nil {
				return err
			}
			fresh.add(int64(bucket), kind, int64(n))
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("count events of session %s over time: %w", scope.Session, err)
	}
	t.counts = counts
	return nil
}

func timelineStatement(scope schema.Scope, to schema.Position, interval int64, erased Erasures) (string, []any) {
	var s statement
	s.scope(scope)
	s.before(to)
	s.notErased(scope, erased)
	s.visible()
	bucket := s.bind("UInt64", uint64(interval))
	return fmt.Sprintf("SELECT intDiv(t_ms, %s) AS bucket, toString(type) AS kind, count() FROM %s WHERE %s\nGROUP BY bucket, kind",
		bucket, schema.TableEvents, s.condition()), s.args
}
