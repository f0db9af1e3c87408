package query

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// scanTooLargeError is the refusal of a question that would look at too many rows. It is
// ErrScanTooLarge.
type scanTooLargeError struct {
	rows, most int64
	narrower   *span // a range of times that would do; nil if none was found
	cause      error // of a question that was tried; else nil
}

func (e *scanTooLargeError) Error() string {
	return fmt.Sprintf("%v: about %d rows, %d at most", ErrScanTooLarge, e.rows, e.most)
}

func (e *scanTooLargeError) Is(target error) bool { return target == ErrScanTooLarge }

func (e *scanTooLargeError) Unwrap() error { return e.cause }

// answer is the client's error.
func (e *scanTooLargeError) answer() error {
	answer := httpapi.Errorf(422, "scan_too_large", "Answering this would look at about %d events; at most %d are allowed. Narrow it by startTime and endTime.", e.rows, e.most).
		WithDetail("estimated_rows", e.rows).WithDetail("max_rows", e.most).WithCause(e)
	if e.narrower != nil {
		answer = answer.WithDetail("suggested", map[string]int64{"startTime": e.narrower.from, "endTime": e.narrower.to - 1})
	}
	return answer
}

// estimate returns how many rows ClickHouse would look at for a statement, after its key and
// its skip indexes.
func (h *History) estimate(ctx context.Context, query, settings string, args []any) (int64, error) {
	var total int64
	err := h.ask(ctx, "estimate", func(ctx context.Context) error {
		total = 0
		return h.rows(ctx, "EXPLAIN ESTIMATE "+query, settings, args, func(rows driver.Rows) error {
			var database, table string
			var parts, n, marks uint64
			if err := rows.Scan(&database, &table, &parts, &n, &marks); err != nil {
				return err
			}
			total += int64(n)
			return nil
		})
	})
	if err != nil {
		return 0, fmt.Errorf("estimate: %w", err)
	}
	return total, nil
}

// guardCount refuses q if it would look at too many rows, and returns how many it will.
func (a *API) guardCount(ctx context.Context, q *scanQuery) (int64, error) {
	rows, err := a.estimateCount(ctx, q)
	if err != nil || rows <= a.cfg.MaxScanRows {
		return rows, err
	}
	return 0, a.refuseCount(ctx, q, rows, a.cfg.MaxScanRows, nil)
}

func (a *API) estimateCount(ctx context.Context, q *scanQuery) (int64, error) {
	query, args := q.statement()
	return a.deps.History.estimate(ctx, query, q.settings(), args)
}

// refuseCount is the refusal of q, which would look at so many rows, or failed with cause. The
// range it suggests would look at most at so many.
func (a *API) refuseCount(ctx context.Context, q *scanQuery, rows, most int64, cause error) error {
	refusal := &scanTooLargeError{rows: rows, most: a.cfg.MaxScanRows, cause: cause}
	narrower := *q
	filter := *q.filter
	narrower.filter, narrower.spans = &filter, nil // spans are what whole hours leave
	refusal.narrower = a.narrower(ctx, q.scope.Workspace, q.filter, rows, most, false, func(ctx context.Context, s span) (int64, error) {
		since, until := s.from, s.to-1
		filter.SinceMs, filter.UntilMs = &since, &until
		return a.estimateCount(ctx, &narrower)
	})
	return refusal
}

// maxNarrowings bounds how often a suggestion is halved: from 20 years to milliseconds.
const maxNarrowings = 40

// narrower finds a range of times within a filter's for which a question that would look at
// rows looks at most at a number of them. It begins with what the sums of hours promise, at the
// end of the range or, if first, at its beginning, and halves that until ClickHouse's own
// estimate agrees. It is nil where no range does, or ClickHouse does not say: the refusal
// stands without it.
func (a *API) narrower(
	ctx context.Context, workspace string, f *schema.Filter, rows, most int64, first bool, estimate func(context.Context, span) (int64, error),
) *span {
	hours, err := a.deps.History.hoursOf(ctx, workspace, f)
	if err != nil || len(hours) == 0 {
		return nil
	}
	whole := span{hours[0].start, hours[len(hours)-1].start + sumMs}
	if f.SinceMs != nil {
		whole.from = max(whole.from, *f.SinceMs)
	}
	if f.UntilMs != nil {
		whole.to = min(whole.to, *f.UntilMs+1)
	}
	var total int64
	for _, h := range hours {
		total += h.rows
	}
	// A filter's indexes may leave out most rows, everywhere alike for all we know.
	budget := float64(most) * float64(total) / float64(max(rows, 1))
	s := whole
	for i := range hours {
		h := hours[i]
		if !first {
			h = hours[len(hours)-1-i]
		}
		if budget -= float64(h.rows); budget < 0 && i > 0 {
			break
		}
		if first {
			s.to = min(h.start+sumMs, whole.to)
		} else {
			s.from = max(h.start, whole.from)
		}
	}
	for range maxNarrowings {
		if s.to <= s.from {
			return nil
		}
		n, err := estimate(ctx, s)
		switch {
		case err != nil:
			return nil
		case n <= most:
			return &s
		case first:
			s.to = s.from + (s.to-s.from)/2
		default:
			s.from = s.to - (s.to-s.from)/2
		}
	}
	return nil
}

// hourSum is how many rows an hour has.
type hourSum struct {
	start int64 // Unix ms
	rows  int64
}

// maxSuggestedHours bounds the hours that a suggestion looks at: 10 years of them.
const maxSuggestedHours = 88_000

// hoursOf lists the hours in which a workspace has rows, within a filter's times, in order.
func (h *History) hoursOf(ctx context.Context, workspace string, f *schema.Filter) ([]hourSum, error) {
	var s statement
	s.scope(schema.Scope{Workspace: workspace})
	if f.SinceMs != nil {
		s.and("toStartOfHour(ts) >= toDateTime(%s, 'UTC')", s.bind("UInt32", hourSeconds(*f.SinceMs/sumMs*sumMs)))
	}
	if f.UntilMs != nil {
		s.and("toStartOfHour(ts) <= toDateTime(%s, 'UTC')", s.bind("UInt32", hourSeconds(*f.UntilMs)))
	}
	query := fmt.Sprintf("SELECT toUnixTimestamp(toStartOfHour(ts)) AS at, count() FROM %s WHERE %s GROUP BY toStartOfHour(ts) ORDER BY at LIMIT %d",
		schema.TableEvents, s.condition(), maxSuggestedHours)
	var out []hourSum
	err := h.ask(ctx, "hours", func(ctx context.Context) error {
		out = nil
		return h.rows(ctx, query, settingsByHour, s.args, func(rows driver.Rows) error {
			var at uint32
			var n uint64
			if err := rows.Scan(&at, &n); err != nil {
				return err
			}
			out = append(out, hourSum{start: int64(at) * 1000, rows: int64(n)})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list hours: %w", err)
	}
	return out, nil
}

// lookedEnough is the part of Config.MaxScanRows that a page looks at before it is judged by
// what is left: what it looks for may come soon.
const lookedEnough = 20

// guardScan refuses to go on with a page that has found nothing yet if what it still has to
// look through is too much. q is the question for the windows that it has just read in vain,
// legs are where it goes on. Without a filter it lets everything pass: the next row is the page's.
//
// fillWindows calls it after every window in which nothing was found.
func (r *pageReader) guardScan(ctx context.Context, q *windowRows, legs []*leg) error {
	a := r.api
	if len(r.page.items) > 0 || q.filter.IsZero() && q.scope.Workflow == "" {
		return nil
	}
	enough, offsets := a.cfg.MaxScanRows/lookedEnough, int64(0)
	for _, w := range q.windows {
		offsets += w.to - w.from
	}
	if offsets < enough {
		return nil
	}
	h := a.deps.History
	estimate := func(ctx context.Context, q *windowRows) (int64, error) {
		query, args := q.statement(h.erased)
		return h.estimate(ctx, query, settingsByLog, args)
	}
	looked, err := estimate(ctx, q)
	if err != nil || looked < enough {
		return ignoreUnavailable(err)
	}
	rest := *q
	rest.windows = nil
	for _, l := range legs {
		if r.done(l) || !r.inRows(l) {
			continue
		}
		w := window{partition: l.partition, from: l.at.Offset, to: l.rows.Offset}
		if r.req.descending {
			w.from, w.to = l.far.Offset, l.at.Offset
			if l.enter != nil && before(*l.enter, l.at) {
				w.to = max(l.enter.Offset, w.from)
			}
		}
		rest.windows = append(rest.windows, w)
	}
	if len(rest.windows) == 0 {
		return nil
	}
	left, err := estimate(ctx, &rest)
	if err != nil || left <= a.cfg.MaxScanRows {
		return ignoreUnavailable(err)
	}
	refusal := &scanTooLargeError{rows: left, most: a.cfg.MaxScanRows}
	refusal.narrower = r.narrowerPage(ctx, rest, left, estimate)
	return refusal
}

// narrowerPage finds times for which a page that begins anew would not be refused: of what
// lies behind the cursor, if there is one.
func (r *pageReader) narrowerPage(ctx context.Context, q windowRows, rows int64, estimate func(context.Context, *windowRows) (int64, error)) *span {
	filter := *q.filter
	if at := r.req.cursor.ID.TimeMs; !r.req.cursor.IsZero() && r.req.descending {
		filter.UntilMs = &at
	} else if !r.req.cursor.IsZero() {
		filter.SinceMs = &at
	}
	for i := range q.windows { // it begins where its times do
		q.windows[i].from, q.windows[i].to = 0, legOf(r.legs, q.windows[i].partition).rows.Offset
	}
	narrowed := filter
	q.filter = &narrowed
	most := r.api.cfg.MaxScanRows
	return r.api.narrower(ctx, r.scope.Workspace, &filter, rows, most, !r.req.descending, func(ctx context.Context, s span) (int64, error) {
		since, until := s.from, s.to-1
		narrowed.SinceMs, narrowed.UntilMs = &since, &until
		return estimate(ctx, &q)
	})
}

// ignoreUnavailable has a page go on without an estimate: its own question will tell.
func ignoreUnavailable(err error) error {
	if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrScanTooLarge) {
		return nil
	}
	return err
}
