package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
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
	native  atomic.Bool // the DSN speaks the native protocol, which has no RowBinary
}

// NewHistory returns a History over conn, which stays the caller's to close.
func NewHistory(conn driver.Conn, cfg Config, log *slog.Logger, m *Metrics) *History {
	h := &History{conn: conn, cfg: cfg, breaker: newBreaker(cfg.Breaker, log, m), metrics: m}
	h.bases = newBaseBatches(h.readBases)
	return h
}

// Rows that the statements of one ReadSession ask for: at first few enough to come soon,
// from which their size is learnt; then what fills Config.ReplayChunkBytes.
const (
	firstChunkRows = 10_000
	minChunkRows   = 64
	maxChunkRows   = 50_000
)

// ReadSession hands at most limit events of a session to emit, in log order or, if
// descending, against it: those with (epoch, offset) in [from, to) that f takes (nil
// takes all), without hidden ones. The partition in from and to is not looked at. The
// zero from is the session's beginning. It returns how many it has handed over.
//
// It asks in chunks of about Config.ReplayChunkBytes and calls emit with no question
// open, so emit may block for as long as it likes. emit runs on the caller's goroutine
// and owns its event; its first error ends the reading and is returned as it is.
func (h *History) ReadSession(
	ctx context.Context, ref SessionRef, from, to schema.Position, f *schema.Filter,
	limit int, descending bool, emit func(*schema.Event) error,
) (int, error) {
	q := sessionRows{ref: ref, from: from, to: to, filter: f, descending: descending}
	return h.readSession(ctx, q, limit, func(e *schema.Event, _ int) error { return emit(e) })
}

// readSession is ReadSession; emit also gets the size of the payload, which may have
// been left out.
func (h *History) readSession(ctx context.Context, q sessionRows, limit int, emit func(*schema.Event, int) error) (int, error) {
	n, rows := 0, firstChunkRows
	for n < limit && before(q.from, q.to) {
		q.limit = min(limit-n, rows)
		c, err := h.readChunk(ctx, &q)
		if err != nil {
			return n, err
		}
		for i, e := range c.events {
			if err := emit(e, c.sizes[i]); err != nil {
				return n, err
			}
			n++
		}
		if c.last {
			return n, nil
		}
		q.goOnAfter(c.events[len(c.events)-1].ID.Position)
		rows = c.nextRows(h.cfg.ReplayChunkBytes)
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
func (q *sessionRows) goOnAfter(p schema.Position) {
	if q.descending {
		q.to = p
	} else {
		q.from = after(p)
	}
}

// chunk is the answer to one sessionRows.
type chunk struct {
	events []*schema.Event
	sizes  []int // of their payloads
	bytes  int   // what the events hold
	last   bool  // there is nothing beyond
}

// nextRows is how many rows like these fill target bytes.
func (c *chunk) nextRows(target int) int {
	each := max(1, c.bytes/len(c.events))
	return min(max(target/each, minChunkRows), maxChunkRows)
}

// readChunk reads the rows of q, fewer than there are if they are much larger than
// expected.
func (h *History) readChunk(ctx context.Context, q *sessionRows) (chunk, error) {
	var c chunk
	tooManyBytes := 2 * h.cfg.ReplayChunkBytes
	query, args := q.statement()
	err := h.ask(ctx, "session", func(ctx context.Context) error {
		c = chunk{events: make([]*schema.Event, 0, min(q.limit, firstChunkRows))}
		return h.events(ctx, q.ref, query, args, func(e *schema.Event, payloadSize int) error {
			c.events = append(c.events, e)
			c.sizes = append(c.sizes, payloadSize)
			if c.bytes += e.Size(); c.bytes > tooManyBytes {
				return errEnough
			}
			return nil
		})
	})
	if err != nil {
		return chunk{}, fmt.Errorf("read session %s: %w", q.ref.Session, err)
	}
	c.last = len(c.events) < q.limit && c.bytes <= tooManyBytes
	h.metrics.rows.Add(float64(len(c.events)))
	return c, nil
}

// errEnough ends the reading of rows without an error.
var errEnough = errors.New("enough")

// events runs a statement that selects eventColumns and calls each for every row.
func (h *History) events(ctx context.Context, ref SessionRef, query string, args []any, each func(*schema.Event, int) error) error {
	scanner := newRowScanner(ref)
	if h.native.Load() {
		return h.rows(ctx, query, args, func(rows driver.Rows) error {
			e, err := scanner.scan(rows)
			if err != nil {
				return err
			}
			return each(e, int(scanner.payloadSize))
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.conn.QueryFormat(ctx, "RowBinary", h.bounded(query), args...)
	if errors.Is(err, clickhouse.ErrFormatNativeUnsupported) {
		h.native.Store(true)
		return h.events(ctx, ref, query, args, each)
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

// rows runs a statement and calls each for every row of its result. If each ends it
// early, the rest of the result is thrown away with its connection.
func (h *History) rows(ctx context.Context, query string, args []any, each func(driver.Rows) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := h.conn.Query(ctx, h.bounded(query), args...)
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
		if brokenConnection(err) && ctx.Err() == nil && time.Since(began) < retryWithin {
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
		"optimize_use_projections":  0, // ClickHouse issue 116801: they may be chosen wrongly
		"optimize_move_to_prewhere": 1,
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

// Unlimited is the limit of a ReadSession that wants all events.
const Unlimited = math.MaxInt
