package query

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Why an export ended before its end.
var (
	errClientGone = errors.New("the client went away")
	errClientSlow = errors.New("the client stopped reading")
	errTooLong    = errors.New("the export took longer than query.export.max_duration")
)

// Outcomes of an export, the label of playhead_exports_total.
const (
	exportComplete = "complete"
	exportRefused  = "refused" // too many ran
	exportClient   = "client"  // it went away, or stopped reading
	exportExpired  = "expired" // it took too long
	exportStopped  = "stopped" // the node stops
	exportFailed   = "failed"  // ClickHouse did
)

// send writes the export's answer. A body that is not complete is left without its end, so
// that no client takes it for a whole one: the caller closes nc.
func (x *Exports) send(nc net.Conn, o *opening) {
	ctx, cancel := context.WithTimeoutCause(x.life, x.cfg.MaxDuration, errTooLong)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	_ = nc.SetReadDeadline(time.Time{})
	watched := make(chan struct{})
	go func() { // ends with the connection, or by the deadline below
		defer close(watched)
		_, _ = io.Copy(io.Discard, nc) // a client has nothing more to say, but may say it
		stop(errClientGone)            // no effect if the export has ended otherwise
	}()
	body := &exportBody{ctx: ctx, conn: nc, timeout: x.cfg.WriteTimeout}
	err := x.sendBody(ctx, body, o)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	outcome := exportOutcome(err)
	x.metrics.exports.WithLabelValues(o.req.format.name, outcome).Inc()
	x.metrics.bytes.Add(float64(body.sent))
	if outcome == exportFailed {
		x.deps.Logger.Warn("export was cut off", "request_id", o.requestID, "format", o.req.format.name, "error", err)
	}
	_ = nc.SetReadDeadline(time.Unix(1, 0)) // wakes the watcher
	<-watched
}

func exportOutcome(err error) string {
	switch {
	case err == nil:
		return exportComplete
	case errors.Is(err, errClientGone), errors.Is(err, errClientSlow):
		return exportClient
	case errors.Is(err, errTooLong):
		return exportExpired
	case errors.Is(err, errStopping):
		return exportStopped
	default:
		return exportFailed
	}
}

func (x *Exports) sendBody(ctx context.Context, body *exportBody, o *opening) error {
	if err := body.write(o.head); err != nil {
		return err
	}
	out, end := func(b []byte) error { _, err := body.Write(b); return err }, func() error { return nil }
	if o.req.coding != "" {
		buffered := bufio.NewWriterSize(body, codedChunkBytes)
		coder, err := newCoder(o.req.coding, buffered)
		if err != nil {
			return err
		}
		out = func(b []byte) error { _, err := coder.Write(b); return err }
		end = func() error { return errors.Join(coder.Close(), buffered.Flush()) }
	}
	// Cancelled while a write blocks: wake it.
	defer context.AfterFunc(ctx, func() { _ = body.conn.SetWriteDeadline(time.Unix(1, 0)) })()
	if err := x.read(ctx, &o.req, o.plan, out); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	return body.end()
}

// codedChunkBytes is how much of a compressed body is sent at a time.
const codedChunkBytes = 64 << 10

// newCoder compresses fast rather than well: an export is to keep up with ClickHouse.
func newCoder(name string, w io.Writer) (io.WriteCloser, error) {
	if name == "gzip" {
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	}
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindowBytes))
}

const zstdWindowBytes = 1 << 20

// exportBody writes a chunked body (RFC 9112, 7.1), with a deadline for each chunk.
type exportBody struct {
	ctx     context.Context // of the export
	conn    net.Conn
	timeout time.Duration
	sent    int64 // bytes of chunks
}

// Write sends p as chunks of at most pieceBytes.
func (b *exportBody) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), pieceBytes)]
		chunk := net.Buffers{fmt.Appendf(nil, "%x\r\n", len(part)), part, []byte("\r\n")}
		if err := b.deadline(); err != nil {
			return written, err
		}
		if _, err := chunk.WriteTo(b.conn); err != nil {
			return written, b.failed(err)
		}
		b.sent += int64(len(part))
		written += len(part)
		p = p[len(part):]
	}
	return written, nil
}

// end sends the chunk that ends a whole body.
func (b *exportBody) end() error { return b.write([]byte("0\r\n\r\n")) }

func (b *exportBody) write(p []byte) error {
	if err := b.deadline(); err != nil {
		return err
	}
	if _, err := b.conn.Write(p); err != nil {
		return b.failed(err)
	}
	return nil
}

func (b *exportBody) deadline() error {
	if err := b.conn.SetWriteDeadline(time.Now().Add(b.timeout)); err != nil {
		return b.failed(err)
	}
	// After that: whoever ends ctx wakes a write by a deadline of its own.
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return nil
}

func (b *exportBody) failed(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%w for %v", errClientSlow, b.timeout)
	}
	return fmt.Errorf("%w: %w", errClientGone, err)
}
