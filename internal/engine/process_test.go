package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// childArg makes the test binary an engine process.
const childArg = "playhead-test-engine"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == childArg {
		if err := ChildMain(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == parentArg {
		os.Exit(parent(os.Args[2]))
	}
	os.Exit(m.Run())
}

// parentArg makes the test binary a parent that starts an engine on a data path, prints the child's pid, and
// waits to be killed.
const parentArg = "playhead-test-parent"

func parent(dir string) int {
	p, err := Start(context.Background(), Config{DataPath: dir, LibraryPath: LibraryPath(os.Getenv), ChildArgs: []string{childArg}, Stderr: io.Discard})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(p.Pid())
	select {}
}

func TestChildEndsWithAKilledParent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "engine")
	p := startEngine(t, func(c *Config) { c.DataPath = dir }) // skips without a library
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(os.Args[0], parentArg, dir)
	parent.Stderr = testLog{t}
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Fscan(out, &child); err != nil {
		t.Error(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = parent.Wait() // it was killed
	waitFor(t, "the child to end", func() bool { return errors.Is(syscall.Kill(child, 0), syscall.ESRCH) })
	startEngine(t, func(c *Config) { c.DataPath = dir })
}

// startEngine runs an engine for the test, on dir or, if that is empty, on a directory of its own.
func startEngine(t testing.TB, change func(*Config)) *Process {
	t.Helper()
	cfg := Config{
		DataPath:    filepath.Join(t.TempDir(), "engine"),
		LibraryPath: LibraryPath(os.Getenv),
		ChildArgs:   []string{childArg},
		Log:         slog.New(slog.NewTextHandler(testLog{t}, nil)),
		Stderr:      testLog{t},
	}
	if change != nil {
		change(&cfg)
	}
	p, err := Start(t.Context(), cfg)
	if errors.Is(err, ErrLibraryNotFound) && os.Getenv("PLAYHEAD_REQUIRE_ENGINE") != "1" {
		t.Skipf("no engine to test with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return p
}

// testLog shows what is logged with the test it belongs to.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func open(t testing.TB, p *Process, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	options, err := clickhouse.ParseDSN(p.DSN())
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(options)
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func mustExec(t testing.TB, conn driver.Conn, query string, args ...any) {
	t.Helper()
	if err := conn.Exec(t.Context(), query, args...); err != nil {
		t.Fatalf("Exec(%.120q): %v", query, err)
	}
}

func count(t testing.TB, conn driver.Conn, from string) uint64 {
	t.Helper()
	var n uint64
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM "+from).Scan(&n); err != nil {
		t.Fatalf("count %s: %v", from, err)
	}
	return n
}

func TestStartAnswersPingInsertAndSelect(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustExec(t, conn, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if err := batch.Append(uint64(i), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
	if n := count(t, conn, "t"); n != 10 {
		t.Errorf("count() = %d, want 10", n)
	}
}

func TestStartWithoutLibrarySaysWhatToDo(t *testing.T) {
	_, err := Start(t.Context(), Config{DataPath: t.TempDir(), LibraryPath: filepath.Join(t.TempDir(), "libchdb.so"), ChildArgs: []string{childArg}})
	if !errors.Is(err, ErrLibraryNotFound) {
		t.Fatalf("Start() = %v, want ErrLibraryNotFound", err)
	}
	for _, want := range []string{"scripts/fetch-engine.sh", "npm", "DSN"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Start() = %q, which does not mention %s", err, want)
		}
	}
}

func TestStartReportsEveryBadSetting(t *testing.T) {
	_, err := Start(t.Context(), Config{MaxConcurrent: -1, MaxQueued: -1, MaxMemoryBytes: 1, BackgroundThreads: 100})
	if err == nil {
		t.Fatal("Start accepted a bad configuration")
	}
	for _, want := range []string{"DataPath", "MaxConcurrent", "MaxQueued", "MaxMemoryBytes", "BackgroundThreads"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Start() = %q, which does not mention %s", err, want)
		}
	}
}

func TestSecondEngineOnOneDataPathIsRefused(t *testing.T) {
	p := startEngine(t, nil)
	_, err := Start(t.Context(), Config{DataPath: p.cfg.DataPath, LibraryPath: p.cfg.LibraryPath, ChildArgs: []string{childArg}, Stderr: testLog{t}, Log: p.cfg.Log})
	if !errors.Is(err, ErrDataPathInUse) {
		t.Fatalf("Start() = %v, want ErrDataPathInUse", err)
	}
	if !strings.Contains(err.Error(), fmt.Sprint(p.Pid())) {
		t.Errorf("Start() = %q, which does not name process %d", err, p.Pid())
	}
}

// TestStartThatIsGivenUpEnds gives starts up at several moments before the engine is ready.
func TestStartThatIsGivenUpEnds(t *testing.T) {
	p := startEngine(t, nil)
	for wait := time.Millisecond; wait < 500*time.Millisecond; wait *= 4 {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		given, err := Start(ctx, Config{
			DataPath: filepath.Join(t.TempDir(), "engine"), LibraryPath: p.cfg.LibraryPath, ChildArgs: []string{childArg}, Stderr: testLog{t}, Log: p.cfg.Log,
		})
		cancel()
		switch {
		case err == nil: // it was quick
			if err := given.Close(); err != nil {
				t.Errorf("after %s: Close() = %v", wait, err)
			}
		case !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("after %s: Start() = %v, want DeadlineExceeded", wait, err)
		}
	}
}

func TestWrongPasswordIsRefused(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, func(o *clickhouse.Options) { o.Auth.Password = "guess" })
	wantCode(t, conn.Ping(t.Context()), codeAuthentication)
	resp, err := http.Post("http://"+p.Addr()+"/?query=SELECT+1", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("status without a password = %d, want 403", resp.StatusCode)
	}
}

// wantCode checks that err is what clickhouse-go makes of an exception with that code.
func wantCode(t testing.TB, err error, code int32) {
	t.Helper()
	var e *clickhouse.Exception
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("error = %v, want a clickhouse.Exception of code %d", err, code)
	}
}

// waitFor polls until ok holds.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// 1. rows are inserted, batch after batch; 2. the child is killed in the middle, three times;
// 3. each batch that was acknowledged must be there once, and each that was not, once or not at all.
func TestKilledChildLosesNoAcknowledgedRow(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	mustExec(t, conn, `CREATE TABLE t (batch UInt32, n UInt32, s String, PROJECTION p (SELECT batch, count() GROUP BY batch))
		ENGINE = MergeTree ORDER BY (batch, n) SETTINGS non_replicated_deduplication_window = 1000`)
	const rows = 2000
	acked := map[uint32]bool{}
	insert := func(id uint32) error {
		batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
		if err != nil {
			return err
		}
		for i := range uint32(rows) {
			if err := batch.Append(id, i, "some text that takes room"); err != nil {
				return err
			}
		}
		return batch.Send()
	}
	addr, dsn := p.Addr(), p.DSN()
	id := uint32(0)
	for kill := int64(1); kill <= 3; kill++ {
		pid := p.Pid()
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			time.Sleep(time.Duration(100+70*kill) * time.Millisecond) // not waiting: choosing where the blow falls
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Errorf("kill %d: %v", pid, err)
			}
		}()
		for p.Restarts() < kill {
			id++
			if err := insert(id); err == nil {
				acked[id] = true
			}
		}
		<-killed
		waitFor(t, "the next child", func() bool { return p.Pid() != 0 && p.Pid() != pid })
	}
	if p.Addr() != addr || p.DSN() != dsn {
		t.Errorf("address changed from %s to %s", addr, p.Addr())
	}
	result, err := conn.Query(t.Context(), "SELECT batch, count(), uniqExact(n) FROM t GROUP BY batch SETTINGS optimize_use_projections = 0")
	if err != nil {
		t.Fatal(err)
	}
	stored := map[uint32]bool{}
	for result.Next() {
		var batch uint32
		var n, distinct uint64
		if err := result.Scan(&batch, &n, &distinct); err != nil {
			t.Fatal(err)
		}
		stored[batch] = true
		if n != rows || distinct != rows {
			t.Errorf("batch %d has %d rows, %d distinct, want %d", batch, n, distinct, rows)
		}
	}
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	for batch := range acked {
		if !stored[batch] {
			t.Errorf("batch %d was acknowledged and is lost", batch)
		}
	}
	t.Logf("%d batches of %d rows, %d acknowledged, %d stored, 3 kills", id, rows, len(acked), len(stored))
}

func TestDataSurvivesAnOrderlyStop(t *testing.T) {
	dir := t.TempDir()
	same := func(c *Config) { c.DataPath = dir }
	p := startEngine(t, same)
	conn := open(t, p, nil)
	mustExec(t, conn, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
	mustExec(t, conn, "INSERT INTO t VALUES (1), (2)")
	pid := p.Pid()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("child %d is still there: %v", pid, err)
	}
	p = startEngine(t, same)
	if n := count(t, open(t, p, nil), "t"); n != 2 {
		t.Errorf("count() after a restart = %d, want 2", n)
	}
}

func TestCloseCancelsWhatStillRuns(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	failed := make(chan error, 1)
	go func() {
		failed <- conn.Exec(context.WithoutCancel(t.Context()), "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 7")
	}()
	waitForProcess(t, p, "sipHash64")
	if err := p.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("a query outlived its engine")
	}
}

// waitForProcess waits until a statement whose text holds part runs in the engine.
func waitForProcess(t testing.TB, p *Process, part string) {
	t.Helper()
	conn := open(t, p, nil)
	waitFor(t, part+" to run", func() bool {
		var n uint64
		err := conn.QueryRow(t.Context(), "SELECT count() FROM system.processes WHERE position(query, {part:String}) > 0 AND query NOT LIKE '%system.processes%'", clickhouse.Named("part", part)).Scan(&n)
		return err == nil && n > 0
	})
}

func get(t testing.TB, p *Process, query string, body io.Reader) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.Addr()+"/?"+query, body)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("default", p.cfg.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read %q: %v", query, err)
	}
	return resp.StatusCode, string(text), resp.Header
}
