package engine

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// answer is the response to one statement. Nothing is sent before the first byte of the result, so an error
// until then becomes a status; one after that becomes an exception block at the end of the body, marked by
// the tag that the headers announced, as ClickHouse does it.
type answer struct {
	ctx      context.Context
	w        http.ResponseWriter
	control  *http.ResponseController
	req      *request
	format   string
	tag      string
	spoolDir string

	started bool
	direct  io.Writer // takes bytes past the framing: where an exception block goes
	framed  io.Writer // takes bytes of the result
	coding  encoder   // nil without Content-Encoding
	spool   *spool    // nil unless wait_end_of_query
	native  *nativeEncoder
}

func newAnswer(ctx context.Context, w http.ResponseWriter, req *request, spoolDir string) *answer {
	return &answer{ctx: ctx, w: w, control: http.NewResponseController(w), req: req, tag: rand.Text()[:16], spoolDir: spoolDir}
}

// sendTimeout is how long a client may take over one piece of the result before its statement is cancelled.
const (
	sendTimeout = 60 * time.Second
	pieceBytes  = 1 << 20
)

func (a *answer) start() error {
	if a.started {
		return nil
	}
	a.direct = connWriter{a}
	if a.req.waitEnd {
		a.spool = &spool{dir: a.spoolDir}
		a.direct = a.spool
	}
	if a.req.httpCompression {
		var name string
		if a.coding, name = httpEncoder(a.req.acceptEncoding, a.direct); a.coding != nil {
			a.direct = a.coding
			a.w.Header().Set("Content-Encoding", name)
		}
	}
	a.framed = a.direct
	if a.req.compress {
		frames, err := newFrameWriter(a.direct, a.req.settings["network_compression_method"])
		if err != nil {
			return err
		}
		a.framed = frames
	}
	if a.format == "Native" && a.req.clientRevision > 0 {
		a.native = newNativeEncoder(a.req.clientRevision)
	}
	h := a.w.Header()
	h.Set("Content-Type", contentType(a.format))
	h.Set("X-ClickHouse-Format", a.format)
	if !a.req.waitEnd {
		h.Set("X-ClickHouse-Exception-Tag", a.tag)
	}
	a.started = true
	return nil
}

// Write sends bytes of the result. A chunk in Native must hold whole blocks.
func (a *answer) Write(chunk []byte) (int, error) {
	if err := a.start(); err != nil {
		return 0, err
	}
	out := chunk
	if a.native != nil {
		var err error
		if out, err = a.native.encode(chunk); err != nil {
			return 0, err
		}
	}
	if _, err := a.framed.Write(out); err != nil {
		return 0, err
	}
	return len(chunk), nil
}

// flush makes the client see what was written, so that a slow query shows its first rows.
func (a *answer) flush() error {
	if a.spool != nil || !a.started {
		return nil
	}
	if a.coding != nil {
		if err := a.coding.Flush(); err != nil {
			return err
		}
	}
	return a.control.Flush()
}

// finish completes the response: err is what became of the statement.
func (a *answer) finish(err error) {
	if err == nil && a.started && a.coding != nil {
		err = a.coding.Close()
		a.coding = nil
	}
	if a.spool != nil {
		defer a.spool.close()
		if err == nil {
			err = a.spool.copyTo(connWriter{a})
		}
		if err != nil { // nothing was sent yet
			a.w.Header().Del("Content-Encoding")
			a.started = false
		}
	}
	switch {
	case err == nil:
		_ = a.start()
	case a.started:
		a.failWithin(err)
	default:
		a.fail(err)
	}
}

// fail answers with a status.
func (a *answer) fail(err error) {
	e := asException(err)
	body := e.text + "\n"
	h := a.w.Header()
	h.Set("X-ClickHouse-Exception-Code", strconv.Itoa(e.code))
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if a.ctx.Err() != nil {
		// The body may be half read, so the connection is of no more use.
		h.Set("Connection", "close")
	}
	_ = a.control.SetWriteDeadline(time.Now().Add(sendTimeout))
	a.w.WriteHeader(e.status())
	_, _ = io.WriteString(a.w, body) // a client that is gone needs no answer
}

// failWithin ends a body that has begun.
func (a *answer) failWithin(err error) {
	text := asException(err).text
	if len(text) > maxExceptionBytes {
		text = text[:maxExceptionBytes]
	}
	_ = a.control.SetWriteDeadline(time.Now().Add(sendTimeout))
	block := fmt.Sprintf("\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n", a.tag, text, len(text)+1, a.tag)
	to := io.Writer(a.w)
	if a.coding != nil {
		to = a.coding
	}
	_, werr := io.WriteString(to, block)
	if a.coding != nil && werr == nil {
		werr = a.coding.Close()
	}
	if werr != nil {
		// The client must not take a cut body for a whole one.
		panic(http.ErrAbortHandler)
	}
}

const maxExceptionBytes = 15 << 10 // clients look for a block of at most 16 KiB

// connWriter sends to the client, piece by piece, each with its own deadline.
type connWriter struct{ a *answer }

func (c connWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if c.a.ctx.Err() != nil {
			return written, cancelled(c.a.ctx)
		}
		part := p[:min(len(p), pieceBytes)]
		if err := c.a.control.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
			return written, fmt.Errorf("send result: %w", err)
		}
		n, err := c.a.w.Write(part)
		written += n
		if err != nil {
			return written, newException(codeNetworkError, "NETWORK_ERROR", "Send result: %s", err)
		}
		p = p[n:]
	}
	return written, nil
}

// spool holds a whole result back, in memory up to spoolMemoryBytes and in a file beyond.
type spool struct {
	dir    string
	memory []byte
	file   *os.File
}

const spoolMemoryBytes = 8 << 20

func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && len(s.memory)+len(p) <= spoolMemoryBytes {
		s.memory = append(s.memory, p...)
		return len(p), nil
	}
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, "result-*")
		if err != nil {
			return 0, fmt.Errorf("spool result: %w", err)
		}
		s.file = f
		// Nameless from here on: gone with the process, however that ends.
		if err := os.Remove(f.Name()); err != nil {
			return 0, fmt.Errorf("spool result: %w", err)
		}
		if _, err := f.Write(s.memory); err != nil {
			return 0, fmt.Errorf("spool result: %w", err)
		}
		s.memory = nil
	}
	return s.file.Write(p)
}

func (s *spool) copyTo(w io.Writer) error {
	if s.file == nil {
		_, err := w.Write(s.memory)
		return err
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("spool result: %w", err)
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, s.file, make([]byte, 256<<10))
	return err
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}

// contentType is what ClickHouse answers for the formats people fetch with a browser or curl.
func contentType(format string) string {
	switch format {
	case "JSON", "JSONCompact", "JSONStrings":
		return "application/json; charset=UTF-8"
	case "JSONEachRow", "JSONLines", "NDJSON", "JSONCompactEachRow":
		return "application/x-ndjson; charset=UTF-8"
	case "TabSeparated", "TSV", "TabSeparatedWithNames", "TSVWithNames":
		return "text/tab-separated-values; charset=UTF-8"
	case "CSV", "CSVWithNames":
		return "text/csv; charset=UTF-8; header=" + map[bool]string{true: "present", false: "absent"}[format == "CSVWithNames"]
	case "XML":
		return "application/xml; charset=UTF-8"
	case "Parquet", "Arrow", "ArrowStream", "Native", "RowBinary", "ORC", "Avro":
		return "application/octet-stream"
	}
	return "text/plain; charset=UTF-8"
}
