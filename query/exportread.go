package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/schema"
)

// pieceBytes is how much of an answer is handed on at a time.
const pieceBytes = 256 << 10

// Bounds of one statement's memory in ClickHouse: a block that a window's rows are sorted
// in, which they fit in unless they are large; and what larger ones may take before they
// are sorted on disk.
const (
	exportBlockRows  = 2 * exportWindow
	exportBlockBytes = 128 << 20
	exportSortBytes  = 256 << 20
)

// errStalled ends a statement that sends nothing.
var errStalled = errors.New("clickhouse sends nothing")

// read hands the bytes of an export to out, in order. One statement is read at a time, and
// the next ahead of it while Config.ReadAhead allows, each at most BufferBytes ahead of
// out. It returns out's first error as it is.
func (x *Exports) read(ctx context.Context, req *exportRequest, plan *exportPlan, out func([]byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	begun := 0
	var reading []*exportRead // at most two; the first is being sent
	defer func() {
		cancel()
		for _, r := range reading {
			r.discard()
		}
	}()
	// start begins the next statement, if there is one.
	start := func(aheadOfOthers bool) error {
		var sp exportSpan
		var ok bool
		var err error
		if req.format.oneStatement {
			ok = begun == 0
		} else if err = x.persist(ctx, func() (bool, error) {
			sp, ok, err = plan.next(ctx)
			return true, err
		}); err != nil {
			return err
		}
		if !ok && begun > 0 {
			return nil
		}
		r := x.startRead(ctx, req, plan.q, sp, begun == 0)
		r.ahead = aheadOfOthers
		reading = append(reading, r)
		begun++
		return nil
	}
	var join joiner
	if req.format.join != nil {
		join = req.format.join()
	}
	if err := start(false); err != nil {
		return err
	}
	for len(reading) > 0 {
		if x.takeAhead() {
			had := len(reading)
			err := start(true)
			if len(reading) == had {
				x.giveAhead()
			}
			if err != nil {
				return err
			}
		}
		if join != nil {
			join.next()
		}
		for piece := range reading[0].pieces {
			var err error
			if join != nil {
				err = join.write(piece, out)
			} else {
				err = out(piece)
			}
			x.pool.Put(&piece)
			if err != nil {
				return err
			}
		}
		if err := reading[0].err; err != nil {
			return err
		}
		x.finished(reading[0])
		reading = reading[1:]
		if len(reading) == 0 {
			if err := start(false); err != nil {
				return err
			}
		} else if reading[0].ahead { // no longer ahead of anything
			reading[0].ahead = false
			x.giveAhead()
		}
	}
	if join != nil {
		return join.end(out)
	}
	return nil
}

func (x *Exports) takeAhead() bool {
	select {
	case x.ahead <- struct{}{}:
		return true
	default:
		return false
	}
}

func (x *Exports) giveAhead() { <-x.ahead }

// finished counts what a statement gave.
func (x *Exports) finished(r *exportRead) { x.metrics.rows.Add(float64(r.rows)) }

// exportRead is one statement being read by a goroutine that ends with its context.
type exportRead struct {
	x      *Exports
	rows   int64
	ahead  bool
	pieces chan []byte // closed at the end, by the goroutine
	err    error       // valid once pieces is closed
}

// discard waits for the goroutine, whose context has ended, and gives back what it held.
func (r *exportRead) discard() {
	for piece := range r.pieces {
		r.x.pool.Put(&piece)
	}
	if r.ahead {
		r.x.giveAhead()
	}
}

func (x *Exports) startRead(ctx context.Context, req *exportRequest, q *exportQuery, sp exportSpan, first bool) *exportRead {
	r := &exportRead{x: x, rows: sp.rows, pieces: make(chan []byte, max(x.cfg.BufferBytes/pieceBytes, 1))}
	text, args := q.rowsStatement(req.format, sp)
	format := req.format.rest
	if first {
		format = req.format.first
	}
	settings := q.useProjection(x.settings(req))
	go func() { // owned by read, which waits for the end of pieces
		defer close(r.pieces)
		r.err = r.run(ctx, format, text, args, settings, req.format.oneStatement)
	}()
	return r
}

// rowsStatement is the statement for the rows of a window, or of all legs.
func (q *exportQuery) rowsStatement(f *exportFormat, sp exportSpan) (string, []any) {
	legs := []exportLeg{sp.exportLeg}
	switch {
	case f.oneStatement:
		legs = q.legs
	case sp.rows == 0:
		legs = nil // for what a format writes without rows
	}
	s := q.statement(legs...)
	return fmt.Sprintf("SELECT %s\nFROM %s\nWHERE %s\nORDER BY %s", f.columns, schema.TableEvents, s.condition(), q.order()), s.args
}

// settings are those of a statement. A window is sorted in one block by one thread: merging
// several sorted blocks row by row costs twice as much as reading, sorting and formatting
// do together.
func (x *Exports) settings(req *exportRequest) clickhouse.Settings {
	s := clickhouse.Settings{
		"max_threads":                    1,
		"max_block_size":                 exportBlockRows,
		"preferred_block_size_bytes":     exportBlockBytes,
		"max_bytes_before_external_sort": exportSortBytes,
		"optimize_read_in_order":         1,
		// In WHERE a name is the table's column, not what the result calls so.
		"prefer_column_name_to_alias": 1,
	}
	if req.format.oneStatement {
		s["max_threads"] = x.cfg.Threads
	}
	maps.Copy(s, req.format.settings)
	if req.format.innerKey != "" {
		s[req.format.innerKey] = req.inner
	}
	return s
}

// exportAttempts is how often a statement that fails is asked again in all, with waits
// between that let ClickHouse restart.
const exportAttempts = 8

// run asks until the answer is complete. The rows below a watermark do not change and their
// order is total, so a second answer begins with the bytes of the first: these are read
// over, once they have been seen to be the same.
func (r *exportRead) run(ctx context.Context, format, text string, args []any, settings clickhouse.Settings, once bool) error {
	var sent int64 // bytes handed on, and their hash
	hash := xxh3.New()
	err := r.x.persist(ctx, func() (bool, error) {
		err := r.attempt(ctx, format, text, args, settings, &sent, hash)
		return !errors.Is(err, errAnswersDiffer) && !(once && sent > 0), err
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("export: %w", err)
	}
	return err
}

// persist calls ask until it succeeds, says that there is no point, or has failed
// exportAttempts times. It returns ctx's cause if that ends.
func (x *Exports) persist(ctx context.Context, ask func() (again bool, err error)) error {
	wait := 100 * time.Millisecond
	for attempt := 1; ; attempt++ {
		again, err := ask()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil, !again, attempt == exportAttempts:
			return err
		}
		x.metrics.retries.Inc()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// errAnswersDiffer reports that a statement gave something else than before.
var errAnswersDiffer = errors.New("clickhouse gave other bytes for the same rows")

func (r *exportRead) attempt(
	parent context.Context, format, text string, args []any, settings clickhouse.Settings, sent *int64, hash *xxh3.Hasher,
) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	stall := time.AfterFunc(r.x.cfg.StatementTimeout, func() { cancel(errStalled) })
	defer stall.Stop()
	var stream io.ReadCloser
	began := time.Now()
	err := r.x.breaker.do(func() (err error) {
		stream, err = r.x.conn.QueryFormat(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), format, text, args...)
		return r.x.causeOf(ctx, parent, err)
	})
	if err == nil {
		err = r.pass(ctx, stream, stall, sent, hash)
		cancel(nil) // or Close would read on
		_ = stream.Close()
		if err != nil && parent.Err() == nil {
			cause := err
			err = r.x.breaker.do(func() error { return cause })
		}
	}
	r.x.queries.observeQuery("export", outcome(err), time.Since(began))
	return err
}

// causeOf tells a caller who went away from a server that does not answer.
func (x *Exports) causeOf(ctx, parent context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case parent.Err() != nil:
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case errors.Is(context.Cause(ctx), errStalled):
		return fmt.Errorf("%w for %v", errStalled, x.cfg.StatementTimeout)
	default:
		return err
	}
}

// pass hands on what the stream holds beyond the first sent bytes, which it compares.
func (r *exportRead) pass(ctx context.Context, stream io.Reader, stall *time.Timer, sent *int64, hash *xxh3.Hasher) error {
	if *sent > 0 {
		again := xxh3.New()
		n, err := io.Copy(again, &stalling{io.LimitReader(stream, *sent), stall, r.x.cfg.StatementTimeout})
		if err != nil {
			return err
		}
		if n < *sent || again.Sum64() != hash.Sum64() {
			return errAnswersDiffer
		}
	}
	for {
		piece := *r.x.pool.Get().(*[]byte)
		n, err := fill(stream, piece[:pieceBytes], stall, r.x.cfg.StatementTimeout)
		stall.Stop()
		if n == 0 {
			r.x.pool.Put(&piece)
		} else {
			_, _ = hash.Write(piece[:n])
			*sent += int64(n)
			select {
			case r.pieces <- piece[:n]:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(context.Cause(ctx), errStalled):
			return errStalled
		default:
			return err
		}
	}
}

// fill reads until b is full or the stream ends. (io.ReadFull has one error for an answer
// that ends within b and for one that was cut off.)
func fill(stream io.Reader, b []byte, stall *time.Timer, after time.Duration) (n int, err error) {
	for n < len(b) && err == nil {
		var got int
		stall.Reset(after)
		got, err = stream.Read(b[n:])
		n += got
	}
	return n, err
}

// stalling puts a timer off with every read.
type stalling struct {
	io.Reader
	timer *time.Timer
	after time.Duration
}

func (s *stalling) Read(p []byte) (int, error) {
	s.timer.Reset(s.after)
	return s.Reader.Read(p)
}

// ask is History.ask over the pool and with the bounds of exports, for short statements.
func (x *Exports) ask(ctx context.Context, q *exportQuery, fn func(context.Context) error) error {
	began := time.Now()
	err := x.breaker.do(func() error {
		bounded, cancel := context.WithTimeout(ctx, x.cfg.StatementTimeout)
		defer cancel()
		err := fn(clickhouse.Context(bounded, clickhouse.WithSettings(q.useProjection(clickhouse.Settings{
			"max_threads": x.cfg.Threads,
		}))))
		if err != nil && errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("%w: %w", context.Canceled, err)
		}
		return err
	})
	x.queries.observeQuery("export_plan", outcome(err), time.Since(began))
	return err
}

// rows runs a short statement and calls each for every row of its result.
func (x *Exports) rows(ctx context.Context, text string, args []any, each func(driver.Rows) error) error {
	rows, err := x.conn.Query(ctx, text, args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := each(rows); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}
