package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// run imports sources and returns what was told to people, too.
func run(t *testing.T, ctx context.Context, cfg Config, sources ...Source) (Summary, string, error) { //nolint:revive // t first, as in every helper
	t.Helper()
	var told bytes.Buffer
	im, err := New(cfg, NewProgress(&told, false))
	if err != nil {
		t.Fatal(err)
	}
	summary, err := im.Run(ctx, sources)
	return summary, told.String(), err
}

func wantCounts(t *testing.T, got Summary, accepted, duplicates, failed int) {
	t.Helper()
	if got.Accepted != int64(accepted) || got.Duplicates != int64(duplicates) || got.Failed != int64(failed) {
		t.Errorf("accepted, duplicates, failed = %d, %d, %d; want %d, %d, %d",
			got.Accepted, got.Duplicates, got.Failed, accepted, duplicates, failed)
	}
}

func wantNoCheckpoint(t *testing.T, cfg Config) {
	t.Helper()
	entries, err := os.ReadDir(cfg.StateDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if len(entries) != 0 {
		t.Errorf("the state folder holds %v, want nothing", entries)
	}
}

func TestEveryFaultIsSurvivedInOrder(t *testing.T) {
	const lines, sessions = 6000, 37
	text, perSession := corpus(lines, sessions)
	server := newFakeServer(t)
	server.fault = func(n int) fault {
		if n%3 != 0 { // two of three pass
			return noFault
		}
		return fault(n/3) % faultKinds
	}
	cfg := testConfig(t, server.start())
	summary, told, err := run(t, t.Context(), cfg, Source{Path: writeFile(t, "events.ndjson", text)})
	if err != nil {
		t.Fatalf("%v\n%s", err, told)
	}
	wantCounts(t, summary, lines, 0, 0)
	server.wantLogs(perSession)
	wantNoCheckpoint(t, cfg)
	if !server.keys["Bearer pk_test"] || len(server.keys) != 1 {
		t.Errorf("keys = %v", server.keys)
	}
}

func TestARestartOfTheServerIsSurvived(t *testing.T) {
	const lines, sessions = 4000, 20
	text, perSession := corpus(lines, sessions)
	server := newFakeServer(t)
	var (
		r        *restartable
		restarts sync.WaitGroup
		seen     atomic.Int64
	)
	r = startRestartable(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		server.ServeHTTP(w, req)
		if seen.Add(1) == 30 {
			restarts.Go(func() {
				r.down()
				r.up()
			})
		}
	}))
	cfg := testConfig(t, "http://"+r.address)
	summary, told, err := run(t, t.Context(), cfg, Source{Path: writeFile(t, "events.ndjson", text)})
	restarts.Wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, told)
	}
	wantCounts(t, summary, lines, 0, 0)
	server.wantLogs(perSession)
}

func TestSourcesOfEveryKind(t *testing.T) {
	const lines = 500
	text, perSession := corpus(lines, 5)
	var zipped, zstded bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	_, err := io.WriteString(gz, text)
	if err := errors.Join(err, gz.Close()); err != nil {
		t.Fatal(err)
	}
	zw, err := zstd.NewWriter(&zstded)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(zw, text)
	if err := errors.Join(err, zw.Close()); err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) func(*testing.T) Source {
		return func(t *testing.T) Source { return Source{Path: writeFile(t, name, text)} }
	}
	for name, source := range map[string]func(*testing.T) Source{
		"plain":             file("events.ndjson", text),
		"gzip":              file("events.ndjson.gz", zipped.String()),
		"zstd":              file("events.ndjson.zst", zstded.String()),
		"gzip misnamed":     file("events.txt", zipped.String()),
		"two gzip members":  file("events.gz", zipped.String()+zipped.String()[:0]),
		"no last line end":  file("events", strings.TrimSuffix(text, "\n")),
		"CRLF and blanks":   file("events", "\r\n  \r\n"+strings.ReplaceAll(text, "\n", "\r\n\r\n")),
		"byte order mark":   file("events", "\xef\xbb\xbf"+text),
		"reader":            func(*testing.T) Source { return Source{Name: "in", Reader: strings.NewReader(text)} },
		"compressed reader": func(*testing.T) Source { return Source{Name: "in", Reader: &zstded} },
	} {
		t.Run(name, func(t *testing.T) {
			server := newFakeServer(t)
			summary, told, err := run(t, t.Context(), testConfig(t, server.start()), source(t))
			if err != nil {
				t.Fatalf("%v\n%s", err, told)
			}
			wantCounts(t, summary, lines, 0, 0)
			server.wantLogs(perSession)
		})
	}
}

func TestASecondImportIsAllDuplicates(t *testing.T) {
	const lines = 700
	text, perSession := corpus(lines, 9)
	server := newFakeServer(t)
	cfg := testConfig(t, server.start())
	first, _, err := run(t, t.Context(), cfg, Source{Path: writeFile(t, "events.ndjson", text)})
	if err != nil {
		t.Fatal(err)
	}
	wantCounts(t, first, lines, 0, 0)

	// The same content under another name, and by pipe; a copy that has grown.
	again, _, err := run(t, t.Context(), cfg, Source{Path: writeFile(t, "other-name", text)})
	if err != nil {
		t.Fatal(err)
	}
	wantCounts(t, again, 0, lines, 0)
	grown := text + `{"session_id":"s-0","type":"tick","payload":` + fmt.Sprint(perSession["s-0"]) + "}\n"
	perSession["s-0"]++
	again, _, err = run(t, t.Context(), cfg, Source{Name: "in", Reader: strings.NewReader(grown)})
	if err != nil {
		t.Fatal(err)
	}
	wantCounts(t, again, 1, lines, 0)
	server.wantLogs(perSession)
}

func TestEqualLinesAreDifferentEvents(t *testing.T) {
	text := strings.Repeat(`{"session_id":"s","type":"beat"}`+"\n", 10)
	server := newFakeServer(t)
	summary, _, err := run(t, t.Context(), testConfig(t, server.start()), Source{Name: "in", Reader: strings.NewReader(text)})
	if err != nil {
		t.Fatal(err)
	}
	wantCounts(t, summary, 10, 0, 0)
}

// interrupt runs an import against server and cancels it when the n-th request of this run
// is being served. It returns when the server has finished all of them.
func interrupt(t *testing.T, server *fakeServer, cfg Config, n int, sources ...Source) (Summary, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before, _, _ := server.stats()
	serving := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		server.ServeHTTP(w, r)
		if requests, _, _ := server.stats(); requests >= before+n {
			cancel()
		}
	}))
	defer serving.Close()
	cfg.URL = serving.URL
	summary, _, err := run(t, ctx, cfg, sources...)
	return summary, err
}

func TestAnInterruptedImportIsResumed(t *testing.T) {
	const lines, sessions = 6000, 23
	text, perSession := corpus(lines, sessions)
	small, smallSessions := corpus(50, 1)
	small = strings.ReplaceAll(small, `"s-0"`, `"other"`)
	perSession["other"] = smallSessions["s-0"]
	path, smallPath := writeFile(t, "events.ndjson", text), writeFile(t, "small.ndjson", small)
	sources := []Source{{Path: smallPath}, {Path: path}}

	server := newFakeServer(t)
	cfg := testConfig(t, "http://unset.test")
	_, err := interrupt(t, server, cfg, 80, sources...)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the first run ended with %v, want a cancellation", err)
	}
	_, offered, held := server.stats()
	if held == 0 || held == lines+50 {
		t.Fatalf("the interruption came too early or too late: %d events held", held)
	}

	// The same workspace at another address.
	cfg.URL = server.start()
	second, told, err := run(t, t.Context(), cfg, sources...)
	if err != nil {
		t.Fatalf("%v\n%s", err, told)
	}
	server.wantLogs(perSession)
	_, offeredAll, _ := server.stats()
	if second.Resumed < 50 || second.Resumed > int64(held) {
		t.Errorf("resumed after %d lines, want 50 to %d", second.Resumed, held)
	}
	if sent := offeredAll - offered; int64(sent) != lines+50-second.Resumed {
		t.Errorf("the second run sent %d events, want those after the %d lines acknowledged", sent, second.Resumed)
	}
	if got := int64(held) + second.Accepted; got != lines+50 {
		t.Errorf("held %d, then accepted %d; want %d in all", held, second.Accepted, lines+50)
	}
	wantNoCheckpoint(t, cfg)

	// All is done: the next run begins anew.
	third, _, err := run(t, t.Context(), cfg, sources...)
	if err != nil {
		t.Fatal(err)
	}
	wantCounts(t, third, 0, lines+50, 0)
}

func TestACheckpointHoldsForItsFileOnly(t *testing.T) {
	const lines = 3000
	text, _ := corpus(lines, 11)
	server := newFakeServer(t)
	cfg := testConfig(t, "http://unset.test")
	path := writeFile(t, "events.ndjson", text)
	if _, err := interrupt(t, server, cfg, 50, Source{Path: path}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	restarted := cfg
	restarted.Restart = true
	summary, err := interrupt(t, server, restarted, 1, Source{Path: path})
	if !errors.Is(err, context.Canceled) || summary.Resumed != 0 {
		t.Errorf("--restart: resumed %d lines, error %v; want none and a cancellation", summary.Resumed, err)
	}

	cfg.URL = server.start()
	if err := os.WriteFile(path, []byte(strings.Replace(text, "tick", "tock", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	summary, _, err = run(t, t.Context(), cfg, Source{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if summary.Resumed != 0 || summary.Accepted+summary.Duplicates != lines {
		t.Errorf("after the file changed: %+v; want all %d lines sent", summary, lines)
	}
}

func TestLinesThatCannotBeImported(t *testing.T) {
	const good = `{"session_id":"s","type":"tick","message_id":"m-%d"}`
	long := `{"session_id":"s","type":"tick","payload":"` + strings.Repeat("x", 5000) + `"}`
	for name, c := range map[string]struct {
		line, want  string
		refuse      string // the server's code for the message id "bad"
		refuseBatch bool
	}{
		"not JSON":             {line: `{"session_id":`, want: "in:3: is not a JSON object: unexpected end of JSON input (invalid_line)"},
		"a number":             {line: `17`, want: "in:3: is not a JSON object"},
		"two objects":          {line: `{} {}`, want: "in:3: is not a JSON object"},
		"an array":             {line: `[{"session_id":"s"}]`, want: "in:3: is a JSON array; want one event a line"},
		"no session":           {line: `{"type":"tick"}`, want: "in:3: session_id: is missing"},
		"empty object":         {line: `{}`, want: "in:3: session_id: is missing"},
		"a session of numbers": {line: `{"session_id":7,"type":"tick"}`, want: "in:3: session_id: is a JSON number; want a string"},
		"a bad session":        {line: `{"session_id":"a b","type":"tick"}`, want: `in:3: session_id: is "a b"`},
		"no type":              {line: `{"session_id":"s"}`, want: "in:3: type: is missing"},
		"a bad type":           {line: `{"session_id":"s","type":"7"}`, want: `in:3: type: is "7"`},
		"a reserved type":      {line: `{"session_id":"s","type":"playhead.x"}`, want: "in:3: type: is \"playhead.x\", which is reserved"},
		"an empty message id":  {line: `{"session_id":"s","type":"t","message_id":""}`, want: "in:3: message_id: is empty"},
		"a line too long":      {line: long, want: "in:3: has more than 4,096 bytes"},
		"refused by the server": {
			line: `{"session_id":"s","type":"tick","message_id":"bad"}`, refuse: "session_ended",
			want: "in:3: refused (session_ended)",
		},
		"refused with its batch": {
			line: `{"session_id":"s","type":"tick","message_id":"bad"}`, refuseBatch: true,
			want: "in:3: one of them is wrong (invalid_field)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad := func(e sentEvent) bool { return e.Message == "bad" }
			server := newFakeServer(t)
			server.refuse = func(e sentEvent) string {
				if bad(e) {
					return c.refuse
				}
				return ""
			}
			if c.refuseBatch {
				server.refuseBatch = bad
			}
			cfg := testConfig(t, server.start())
			cfg.MaxLineBytes = 4096
			text := fmt.Sprintf(good+"\n\n%s\n"+good+"\n"+good+"\n", 1, c.line, 2, 3)

			_, told, err := run(t, t.Context(), cfg, Source{Name: "in", Reader: strings.NewReader(text)})
			line, ok := errors.AsType[*LineError](err)
			if !ok || line.Line != 3 {
				t.Fatalf("stop: error = %v, want one about line 3", err)
			}
			if !strings.Contains(told, c.want) {
				t.Errorf("stop: told %q, want %q in it", told, c.want)
			}
			if !server.holds("s", "m-1") {
				t.Error("stop: the line before was not sent")
			}

			cfg.SkipErrors = true
			summary, told, err := run(t, t.Context(), cfg, Source{Name: "in", Reader: strings.NewReader(text)})
			if err != nil {
				t.Fatalf("skip: %v", err)
			}
			if summary.Failed != 1 || summary.Accepted+summary.Duplicates != 3 {
				t.Errorf("skip: %v; want 3 in and 1 failed", summary)
			}
			if !strings.Contains(told, c.want) {
				t.Errorf("skip: told %q, want %q in it", told, c.want)
			}
		})
	}
}

func TestDamagedFilesKeepWhatWasRead(t *testing.T) {
	const lines = 3000
	text, _ := corpus(lines, 3)
	var zipped bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	_, err := io.WriteString(gz, text)
	if err := errors.Join(err, gz.Close()); err != nil {
		t.Fatal(err)
	}
	server := newFakeServer(t)
	cut := zipped.String()[:zipped.Len()*3/4]
	summary, _, err := run(t, t.Context(), testConfig(t, server.start()), Source{Path: writeFile(t, "cut.gz", cut)})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "cut.gz after line ") {
		t.Errorf("error = %v, want an unexpected end after some line of cut.gz", err)
	}
	if _, _, held := server.stats(); held == 0 || summary.Accepted != int64(held) {
		t.Errorf("accepted = %d, held = %d; want the same and more than 0", summary.Accepted, held)
	}
}

func TestWhatNoRetryHelps(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		code   string
	}{
		"key":       {401, "invalid_key"},
		"scope":     {403, "insufficient_scope"},
		"path":      {404, "not_found"},
		"parameter": {400, "unknown_parameter"},
		"redirect":  {308, "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			r := startRestartable(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				requests.Add(1)
				if c.status < 400 {
					w.Header().Set("Location", "http://elsewhere.test/")
				}
				answer(w, c.status, errorBody(c.code, "no"))
			}))
			_, _, err := run(t, t.Context(), testConfig(t, "http://"+r.address), Source{Name: "in", Reader: strings.NewReader("")})
			status, ok := errors.AsType[*StatusError](err)
			if !ok || status.Status != c.status || status.Code != c.code {
				t.Errorf("error = %v, want %d %s", err, c.status, c.code)
			}
			if requests.Load() != 1 {
				t.Errorf("requests = %d, want 1", requests.Load())
			}
		})
	}
}

func TestItGivesUpInTheEnd(t *testing.T) {
	text, _ := corpus(500, 5)
	server := newFakeServer(t)
	var mended atomic.Bool
	server.fault = func(n int) fault {
		if n > 5 && !mended.Load() {
			return busy
		}
		return noFault
	}
	cfg := testConfig(t, server.start())
	cfg.RetryFor = 40 * time.Millisecond
	path := writeFile(t, "events.ndjson", text)
	_, _, err := run(t, t.Context(), cfg, Source{Path: path})
	status, ok := errors.AsType[*StatusError](err)
	if !errors.Is(err, ErrGaveUp) || !ok || status.Code != "shutting_down" {
		t.Fatalf("error = %v, want ErrGaveUp because of shutting_down", err)
	}
	mended.Store(true)
	if _, told, err := run(t, t.Context(), cfg, Source{Path: path}); err != nil {
		t.Fatalf("%v\n%s", err, told)
	}
	if _, _, held := server.stats(); held != 500 {
		t.Errorf("held = %d, want 500", held)
	}
}

func TestAServerThatHangsIsRetried(t *testing.T) {
	server := newFakeServer(t)
	release := make(chan struct{})
	var once sync.Once
	hang := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		hung := false
		once.Do(func() { hung = true })
		if hung {
			<-release
			return
		}
		server.ServeHTTP(w, req)
	})
	r := startRestartable(t, hang)
	defer close(release)
	cfg := testConfig(t, "http://"+r.address)
	cfg.RequestTimeout = 300 * time.Millisecond
	text, perSession := corpus(100, 2)
	if _, _, err := run(t, t.Context(), cfg, Source{Name: "in", Reader: strings.NewReader(text)}); err != nil {
		t.Fatal(err)
	}
	server.wantLogs(perSession)
}

func TestCancellingEndsABlockedRead(t *testing.T) {
	server := newFakeServer(t)
	cfg := testConfig(t, server.start())
	in, out := io.Pipe()
	defer out.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	go func() {
		_, _ = io.WriteString(out, `{"session_id":"s","type":"tick"}`+"\n")
		cancel(why)
	}()
	if _, _, err := run(t, ctx, cfg, Source{Name: "in", Reader: in}); !errors.Is(err, why) {
		t.Errorf("error = %v, want the cause of the cancellation", err)
	}
}

func TestMissingFilesAreFoundBeforeAnythingIsSent(t *testing.T) {
	server := newFakeServer(t)
	text, _ := corpus(10, 1)
	cfg := testConfig(t, server.start())
	for _, bad := range []string{filepath.Join(t.TempDir(), "missing"), t.TempDir()} {
		if _, _, err := run(t, t.Context(), cfg, Source{Path: writeFile(t, "good", text)}, Source{Path: bad}); err == nil {
			t.Errorf("import of %s succeeded", bad)
		}
	}
	if requests, _, _ := server.stats(); requests != 0 {
		t.Errorf("requests = %d, want none", requests)
	}
}

func TestVeryRegularBodiesAreNotSentCompressed(t *testing.T) {
	server := newFakeServer(t)
	cfg := testConfig(t, server.start())
	s, err := newSender(cfg, new(counters), NewProgress(io.Discard, false))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	random := make([]byte, 1000)
	for i := range random {
		random[i] = byte(rand.N(256))
	}
	f := func(name string, body []byte, want string) {
		t.Helper()
		if _, encoding := s.encode(body); encoding != want {
			t.Errorf("%s: encoding = %q, want %q", name, encoding, want)
		}
	}
	text, _ := corpus(1000, 50)
	f("events", []byte(text), "zstd")
	f("zeros", make([]byte, 1<<20), "")
	f("noise", random, "")
}

// TestRealFiles imports the data sets that are kept beside the project.
func TestRealFiles(t *testing.T) {
	for name, want := range map[string]struct{ sessions, events int }{
		"coffee-calls.ndjson.gz":   {400, 5638},
		"mouse-sessions.ndjson.gz": {9, 170541},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("../../../shared/data", name)
			if _, err := os.Stat(path); err != nil {
				t.Skipf("the data set is not here: %v", err)
			}
			server := newFakeServer(t)
			server.fault = func(n int) fault {
				if n%10 == 0 {
					return resetAfter
				}
				return noFault
			}
			cfg := testConfig(t, server.start())
			cfg.BatchEvents = DefaultBatchEvents
			summary, told, err := run(t, t.Context(), cfg, Source{Path: path})
			if err != nil {
				t.Fatalf("%v\n%s", err, told)
			}
			t.Log(summary)
			wantCounts(t, summary, want.events, 0, 0)
			if len(server.logs) != want.sessions {
				t.Errorf("sessions = %d, want %d", len(server.logs), want.sessions)
			}
			for session, events := range server.logs {
				for i, e := range events {
					if got, want := e.Message, fmt.Sprintf("%s-%d", session, i); got != want {
						t.Fatalf("event %d of session %s is %s, want %s", i, session, got, want)
					}
				}
			}
		})
	}
}

// A quota that is used up ends no import, however long it takes to come back.
func TestAnImportWaitsForItsQuota(t *testing.T) {
	text, perSession := corpus(20, 2)
	server := newFakeServer(t)
	server.fault = func(n int) fault {
		if n <= 2 { // the attempt at the end of RetryFor too
			return overQuota
		}
		return noFault
	}
	cfg := testConfig(t, server.start())
	cfg.Lanes, cfg.RetryFor = 1, 40*time.Millisecond
	summary, told, err := run(t, t.Context(), cfg, Source{Path: writeFile(t, "events.ndjson", text)})
	if err != nil || summary.Accepted != 20 {
		t.Fatalf("%v, error %v; want 20 accepted\n%s", summary, err, told)
	}
	server.wantLogs(perSession)
}
