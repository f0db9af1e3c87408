package engine

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"
)

// listener answers ClickHouse's HTTP protocol from the sessions of a pool: as much of it as clickhouse-go
// and curl use. Sessions (session_id), roles and external tables are answered with code 48.
type listener struct {
	pool     *pool
	database string
	password string
	spoolDir string
	log      *slog.Logger
}

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// An earlier response on this connection has left its own behind.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	h := w.Header()
	h.Set("X-ClickHouse-Server-Display-Name", "playhead")
	h.Set("X-ClickHouse-Timezone", "UTC")
	switch {
	case r.URL.Path == "/ping", r.URL.Path == "/replicas_status":
		_, _ = io.WriteString(w, "Ok.\n")
		return
	case r.URL.Path != "/" && r.URL.Path != "":
		http.Error(w, "There is no handle "+r.URL.Path, http.StatusNotFound)
		return
	case r.Method == http.MethodGet && r.URL.RawQuery == "":
		_, _ = io.WriteString(w, "Ok.\n")
		return
	case r.Method != http.MethodGet && r.Method != http.MethodPost && r.Method != http.MethodHead:
		http.Error(w, "Only GET and POST are supported", http.StatusNotImplemented)
		return
	}
	a := newAnswer(r.Context(), w, &request{}, l.spoolDir)
	if err := authenticate(r, l.password); err != nil {
		a.fail(err)
		return
	}
	req, err := parseRequest(r, l.database)
	if err != nil {
		a.fail(err)
		return
	}
	a.req = req
	h.Set("X-ClickHouse-Query-Id", req.id)
	l.serve(a)
}

// serve registers the statement before it reads the body, so that it can be killed by its id at any time.
func (l *listener) serve(a *answer) {
	run, err := l.pool.begin(a.ctx, a.req.id)
	if err != nil {
		a.fail(err)
		return
	}
	defer run.end()
	a.ctx = run.ctx
	// Wakes a read of the body, which knows nothing of contexts.
	stop := context.AfterFunc(run.ctx, func() { _ = a.control.SetReadDeadline(time.Now()) })
	defer stop()

	st, rows, err := a.req.readStatement()
	if err != nil {
		a.fail(err)
		return
	}
	run.setText(st.text)
	a.format = resultFormat(st, a.req)
	if id, wait, ok := st.killTarget(); ok && !a.req.readOnly {
		a.finish(l.kill(a, run, id, wait))
		return
	}
	err = l.execute(a, run, st, rows)
	if err != nil && rows != nil && run.ctx.Err() == nil {
		drain(a, rows)
	}
	a.finish(err)
}

// resultFormat is the format of the result: by the text, by the request, or ClickHouse's default.
func resultFormat(st statement, req *request) string {
	format := st.format
	if format == "" {
		format = req.format
	}
	if format == "" {
		return "TabSeparated"
	}
	return format
}

// kill ends the statement of a query id, be it running, waiting for its turn or still reading its body. With
// wait (SYNC) it returns when nothing more of that statement can happen. The reply is KILL's own.
func (l *listener) kill(a *answer, self *run, id string, wait bool) error {
	target := l.pool.kill(id, self)
	args := params{"id": escapeParam(id), "text": "", "found": "0"}
	if target != nil {
		args["text"], args["found"] = escapeParam(target.getText()), "1"
	}
	status := "waiting"
	if wait && target != nil {
		select {
		case <-target.done:
			status = "finished"
		case <-a.ctx.Done():
			return cancelled(a.ctx)
		}
	}
	reply, err := l.pool.onControl("SELECT "+quote(status)+" AS kill_status, {id:String} AS query_id, 'default' AS user, {text:String} AS query WHERE {found:UInt8}", a.format, args)
	if err != nil || len(reply) == 0 {
		return err
	}
	_, err = a.Write(reply)
	return err
}

func escapeParam(s string) string {
	return strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`, "\x00", `\0`).Replace(s)
}

// execute runs a statement on a session of its own.
func (l *listener) execute(a *answer, r *run, st statement, rows io.Reader) (err error) {
	s := l.pool.tryAcquire()
	if s == nil && isProbe(st) {
		return l.probe(a, st)
	}
	if s == nil {
		if s, err = l.pool.acquire(r.ctx); err != nil {
			return err
		}
	}
	// The engine keeps state per thread while a statement runs.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	keep := false
	release := r.guard(s)
	defer func() {
		release()
		if !keep {
			s.discard()
		}
		l.pool.release(s)
	}()
	if err := l.pool.prepare(s, a.req.database, a.req.settings); err != nil {
		return err
	}
	if r.ctx.Err() != nil {
		return cancelled(r.ctx)
	}
	if st.hasData {
		if a.req.readOnly {
			return errReadOnly()
		}
		err := l.insert(a, s.session, st, rows)
		keep = err == nil
		return err
	}
	class, count := s.session.classify(st.text)
	switch {
	case count > 1:
		keep = true
		return newException(codeSyntaxError, "SYNTAX_ERROR", "Multi-statements are not allowed")
	case class != classReadOnly && class != classUnknown && a.req.readOnly:
		keep = true
		return errReadOnly()
	case class == classControl && isSelect(st):
		keep = true
		return newException(codeNotImplemented, "NOT_IMPLEMENTED", "INTO OUTFILE is not allowed")
	case !settingName.MatchString(a.format):
		keep = true
		return newException(codeUnknownFormat, "UNKNOWN_FORMAT", "Unknown format %s", a.format)
	case class == classReadOnly && isSelect(st) && streams(a.format):
		err = l.stream(a, s.session, st)
	case class == classReadOnly && isSelect(st):
		err = l.pipe(a, r, s.session, st)
	default:
		// What the engine streams is SELECT alone. The others have small results.
		var result []byte
		if result, err = s.session.query(st.text, a.format, a.req.params); err == nil && len(result) > 0 {
			_, err = a.Write(result)
		}
	}
	keep = class == classReadOnly && err == nil
	return err
}

// isProbe recognises what clickhouse-go asks on a new connection, and as a ping.
func isProbe(st statement) bool {
	return st.text == "SELECT 1" || st.text == "SELECT displayName(), version(), revision(), timezone()"
}

// probe answers while every slot is taken: a busy engine is not a dead one, and who comes to KILL what keeps
// it busy needs a connection.
func (l *listener) probe(a *answer, st statement) error {
	result, err := l.pool.onControl(st.text, a.format, nil)
	if err == nil {
		_, err = a.Write(result)
	}
	return err
}

func errReadOnly() error {
	return newException(codeReadonly, "READONLY", "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. You should use method POST for modifying queries")
}

func isSelect(st statement) bool {
	return st.verb == "SELECT" || st.verb == "WITH" || st.verb == "FROM"
}

// streams reports whether chunks of that format, each a complete output of the engine, make a complete
// output when put one after the other. Formats with a head or a foot do not.
func streams(format string) bool {
	switch format {
	case "Native", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV", "JSONEachRow", "JSONLines", "NDJSON",
		"JSONCompactEachRow", "JSONStringsEachRow", "JSONCompactStringsEachRow", "RowBinary", "LineAsString", "Null":
		return true
	}
	return false
}

// stream sends a result chunk by chunk, each a block of rows.
func (l *listener) stream(a *answer, s *session, st statement) error {
	result, err := s.stream(st.text, a.format, a.req.params)
	if err != nil {
		return err
	}
	defer result.close()
	for chunks := 0; ; chunks++ {
		chunk, err := result.next()
		if err != nil {
			return err
		}
		if len(chunk) == 0 {
			return nil
		}
		if chunks == 1 {
			// A second chunk: this is not a small result, which would go out whole with its length.
			if err := a.flush(); err != nil {
				return err
			}
		}
		if _, err := a.Write(chunk); err != nil {
			return err
		}
		if chunks > 0 {
			if err := a.flush(); err != nil {
				return err
			}
		}
	}
}

// pipe sends a result in a format with a head and a foot: the engine writes it, as it is produced, to a pipe.
func (l *listener) pipe(a *answer, r *run, s *session, st statement) error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe for the result: %w", err)
	}
	defer func() { _ = read.Close() }()
	failed := make(chan error, 1)
	go func() {
		// By another thread, since the pipe's other end is read by this one. Ends with the statement, which
		// ends with the context.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		text := fmt.Sprintf("%s\nINTO OUTFILE '/dev/fd/%d' TRUNCATE FORMAT %s", st.unformatted, write.Fd(), a.format)
		_, err := s.query(text, a.format, a.req.params)
		_ = write.Close()
		failed <- err
	}()
	buf := make([]byte, 256<<10)
	_, sendErr := io.CopyBuffer(struct{ io.Writer }{a}, struct{ io.Reader }{read}, buf)
	if sendErr != nil {
		// Nobody reads on: cancel, and let the engine write its rest to nowhere.
		r.cancel(sendErr)
		_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{read}, buf)
	}
	if err := <-failed; sendErr == nil {
		return err
	}
	return sendErr
}

// insert feeds rows to an INSERT. It commits only a body that was read to its end; until the engine commits,
// an error leaves nothing behind that is smaller than max_insert_block_size rows.
func (l *listener) insert(a *answer, s *session, st statement, rows io.Reader) error {
	format := st.dataFormat
	if format == "" {
		format = a.req.format
	}
	if format == "" {
		format = "Values"
	}
	if !settingName.MatchString(format) {
		return newException(codeUnknownFormat, "UNKNOWN_FORMAT", "Unknown format %s", format)
	}
	in, err := s.insert(st.text, format, a.req.params)
	if err != nil {
		return err
	}
	defer in.close()
	buf := make([]byte, 256<<10)
	for {
		n, err := rows.Read(buf)
		if n > 0 && !in.append(buf[:n]) {
			_, err := in.finish()
			if err == nil {
				err = newException(codeUnknownException, "UNKNOWN_EXCEPTION", "The engine took no more rows and gave no reason")
			}
			return err
		}
		if err == io.EOF {
			break
		}
		if a.ctx.Err() != nil {
			return cancelled(a.ctx)
		}
		if err != nil {
			return bodyError(err)
		}
	}
	written, err := in.finish()
	if err != nil {
		return err
	}
	a.w.Header().Set("X-ClickHouse-Summary", fmt.Sprintf(`{"read_rows":"0","read_bytes":"0","written_rows":"%d"}`, written))
	return nil
}

// drain reads what the client still sends, within bounds: a client that is cut off while it sends sees a
// broken connection instead of the error.
func drain(a *answer, rows io.Reader) {
	_ = a.control.SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.Copy(io.Discard, io.LimitReader(rows, drainBytes))
	_ = a.control.SetReadDeadline(time.Time{})
}

const (
	drainTimeout = 10 * time.Second
	drainBytes   = 1 << 30
)
