package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// SessionRef names a session and the Kafka partition of the current log epoch that it
// lives in (schema.Placement).
type SessionRef struct {
	Workspace, Session string
	Partition          uint16
}

// History asks ClickHouse bounded questions, all of them behind one circuit breaker.
// It is safe for concurrent use and holds nothing to close: the connections are its
// caller's.
//
// Errors are an *UnavailableError (errors.Is ErrUnavailable) where ClickHouse failed or
// the breaker is open, ErrScanTooLarge where the question is to blame, and the
// context's error when cancelled.
type History struct {
	conn    driver.Conn
	cfg     Config
	breaker *breaker
	metrics *Metrics
	bases   *baseBatches
	paces   *paces
	ahead   *readAhead
	erased  Erasures    // nil: nothing is
	native  atomic.Bool // the DSN speaks the native protocol, which has no RowBinary
}

// NewHistory returns a History over conn, which stays the caller's to close.
func NewHistory(conn driver.Conn, cfg Config, log *slog.Logger, m *Metrics) *History {
	h := &History{conn: conn, cfg: cfg, breaker: newBreaker(cfg.Breaker, log, m), metrics: m, paces: newPaces()}
	h.ahead = newReadAhead(h.paces.askForLess)
	h.bases = newBaseBatches(h.readBases)
	return h
}

// Hide has h leave out what e says is erased. It is called before h is first used.
func (h *History) Hide(e Erasures) { h.erased = e }

// Scope returns what of the log the session's events are.
func (r SessionRef) Scope() schema.Scope {
	return schema.Scope{Workspace: r.Workspace, Session: r.Session}
}

// readSession hands at most limit events of q, in its direction, to emit, with the size of
// the payload, which may have been left out. It returns how many it has handed over.
//
// It asks in chunks of about Config.ReplayChunkBytes and calls emit with no question
// open, so emit may block for as long as it likes. emit runs on the caller's goroutine
// and owns its event; its first error ends the reading and is returned as it is.
func (h *History) readSession(ctx context.Context, q scopeRows, limit int, emit func(*schema.Event, int) error) (int, error) {
	n, rows := 0, firstChunkRows
	for n < limit && before(q.from, q.to) {
		q.limit = min(limit-n, rows)
		r, err := h.read(ctx, &q, 2*h.cfg.ReplayChunkBytes)
		if err != nil {
			return n, err
		}
		for i, e := range r.events {
			if err := emit(e, r.sizes[i]); err != nil {
				return n, err
			}
			n++
		}
		if r.complete {
			return n, nil
		}
		q.goOnAfter(r.events[len(r.events)-1].ID.Position)
		rows = rowsFor(h.cfg.ReplayChunkBytes, r.bytes/len(r.events))
	}
	return n, nil
}

// before reports whether p lies before q in a session's log, where the partition says
// nothing: another epoch may have placed the session elsewhere.
func before(p, q schema.Position) bool {
	return p.Epoch < q.Epoch || p.Epoch == q.Epoch && p.Offset < q.Offset
}

// after returns the position that follows p.
func after(p schema.Position) schema.Position {
	p.Offset++
	return p
}

// goOnAfter narrows q to what lies beyond p in its direction.
func (q *scopeRows) goOnAfter(p schema.Position) {
	if q.descending {
		q.to = p
	} else {
		q.from = after(p)
	}
}

// Rows that a statement for events asks for: at first few enough to come soon, from which
// their size is learnt; then what fills a number of bytes. ClickHouse reads whole granules
// of 8,192 rows, so two of them take no longer than 10,000 rows.
const (
	firstChunkRows = 16_384
	minChunkRows   = 64
	maxChunkRows   = 100_000
)

// rowsFor is how many rows of each bytes fill target bytes.
func rowsFor(target, each int) int {
	return min(max(target/max(each, 1), minChunkRows), maxChunkRows)
}

// result is the answer to one scopeRows.
type result struct {
	events   []*schema.Event
	sizes    []int // of their payloads
	bytes    int   // what the events hold
	complete bool  // there is nothing beyond
}

// read reads the rows of q: fewer than there are once they hold more than maxBytes.
func (h *History) read(ctx context.Context, q *scopeRows, maxBytes int) (result, error) {
	var r result
	err := h.ask(ctx, q.kind(), func(ctx context.Context) error {
		expected := min(q.limit, firstChunkRows)
		r = result{events: make([]*schema.Event, 0, expected), sizes: make([]int, 0, expected)}
		return h.events(ctx, q, func(e *schema.Event, payloadSize int) error {
			r.events = append(r.events, e)
			r.sizes = append(r.sizes, payloadSize)
			if r.bytes += e.Size(); r.bytes > maxBytes {
				return errEnough
			}
			return nil
		})
	})
	if err != nil {
		return result{}, fmt.Errorf("read history of %s %s: %w", q.kind(), q.name(), err)
	}
	r.complete = len(r.events) < q.limit && r.bytes <= maxBytes
	h.metrics.rows.Add(float64(len(r.events)))
	return r, nil
}

// errEnough ends the reading of rows without an error.
var errEnough = errors.New("enough")

// events asks q and calls each for every row.
func (h *History) events(ctx context.Context, q *scopeRows, each func(*schema.Event, int) error) error {
	query, args := q.statement(h.erased)
	return h.eventRows(ctx, q.scope, h.bounded(query)+q.settings(), args, each)
}

// eventRows runs a statement for eventColumns and calls each for every row.
func (h *History) eventRows(ctx context.Context, scope schema.Scope, query string, args []any, each func(*schema.Event, int) error) error {
	scanner := newRowScanner(scope)
	if h.native.Load() {
		return h.scan(ctx, query, args, func(rows driver.Rows) error {
			e, err := scanner.scan(rows)
			if err != nil {
				return err
			}
			return each(e, int(scanner.payloadSize))
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.conn.QueryFormat(ctx, "RowBinary", query, args...)
	if errors.Is(err, clickhouse.ErrFormatNativeUnsupported) {
		h.native.Store(true)
		return h.eventRows(ctx, scope, query, args, each)
	}
	if err != nil {
		return err
	}
	defer stream.Close()
	r := newRowBinary(stream)
	for r.more() {
		e, err := scanner.decode(r)
		if err == nil {
			err = each(e, int(scanner.payloadSize))
		}
		if err != nil {
			cancel() // or Close would read to the end
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		}
	}
	return r.err
}

// bounded adds the time a statement may take: in the text, since the driver makes a
// setting of this name of the context's deadline.
func (h *History) bounded(query string) string {
	return fmt.Sprintf("%s\nSETTINGS max_execution_time = %g", query, h.cfg.QueryTimeout.Seconds())
}

// rows runs a statement, bounded and with settings of its own, and calls each for every row
// of its result.
func (h *History) rows(ctx context.Context, query, settings string, args []any, each func(driver.Rows) error) error {
	return h.scan(ctx, h.bounded(query)+settings, args, each)
}

// scan runs a statement and calls each for every row of its result. If each ends it
// early, the rest of the result is thrown away with its connection.
func (h *History) scan(ctx context.Context, query string, args []any, each func(driver.Rows) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := h.conn.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := each(rows); err != nil {
			cancel()
			_ = rows.Close() // reads to the end unless cancelled; its error is ours
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// Bounds of one statement beside Config's.
const (
	// answerGrace is how much longer we wait than ClickHouse may work, so that a question
	// that takes too long is ended, and blamed, by ClickHouse itself.
	answerGrace = time.Second
	// retryWithin is how soon a connection must have failed for a second try: one that
	// had died while idle fails at once.
	retryWithin = time.Second
)

// ask runs fn, which asks one or more statements, through the breaker, with Config's
// bounds as settings. fn must be able to start over.
func (h *History) ask(ctx context.Context, kind string, fn func(context.Context) error) error {
	began := time.Now()
	err := h.breaker.do(func() error {
		err := h.try(ctx, fn)
		if (brokenConnection(err) || isException(err, codeTableExchanged)) && ctx.Err() == nil && time.Since(began) < retryWithin {
			err = h.try(ctx, fn)
		}
		return err
	})
	h.metrics.observeQuery(kind, outcome(err), time.Since(began))
	return err
}

func (h *History) try(parent context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(parent, h.cfg.QueryTimeout+answerGrace)
	defer cancel()
	err := fn(clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
		"timeout_overflow_mode":     "throw",
		"max_bytes_to_read":         h.cfg.MaxReadBytes,
		"read_overflow_mode":        "throw",
		"optimize_read_in_order":    1,
		"optimize_use_projections":  0, // but where a statement says so (settingsBySession)
		"optimize_move_to_prewhere": 1,
		"priority":                  1, // before replays, scans and exports
	})))
	if err != nil && errors.Is(parent.Err(), context.Canceled) {
		return fmt.Errorf("%w: %w", context.Canceled, err)
	}
	return err
}

// brokenConnection reports whether err came from the connection, not from ClickHouse.
func brokenConnection(err error) bool {
	var exception *clickhouse.Exception
	return err != nil && !errors.As(err, &exception) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// outcome is the metric label of an error that ask returns.
func outcome(err error) string {
	var unavailable *UnavailableError
	switch {
	case err == nil:
		return outcomeOK
	case errors.Is(err, ErrScanTooLarge):
		return outcomeTooLarge
	case errors.As(err, &unavailable):
		if unavailable.Cause == nil {
			return outcomeRefused
		}
		return outcomeFailed
	default:
		return outcomeCancelled
	}
}
