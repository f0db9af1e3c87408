package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/integration/kafkacluster"
	"github.com/playhead-dev/playhead/internal/engine"
	"github.com/playhead-dev/playhead/internal/openapi/conform"
)

// binary returns the path of playhead, built once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "playhead-integration-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	path := filepath.Join(dir, "playhead")
	args := append([]string{"build"}, raceFlags...)
	out, err := exec.Command("go", append(args, "-o", path, "github.com/playhead-dev/playhead/cmd/playhead")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build playhead: %w\n%s", err, out)
	}
	return path, nil
})

// For TestMain to remove and close.
var (
	builtIn   string // the directory of the built binary
	realKafka kafkacluster.Shared
)

func TestMain(m *testing.M) {
	answers := conform.Watch(&http.DefaultTransport)
	code := m.Run()
	if err := answers.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if builtIn != "" {
		_ = os.RemoveAll(builtIn)
	}
	if err := realKafka.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "kafka cluster:", err)
		code = 1
	}
	os.Exit(code)
}

// needEngine skips the test where the embedded ClickHouse is not installed.
func needEngine(t *testing.T) {
	t.Helper()
	_, err := os.Stat(engine.LibraryPath(os.Getenv))
	switch {
	case err == nil:
	case os.Getenv("PLAYHEAD_REQUIRE_ENGINE") == "1":
		t.Fatalf("the engine library is required and missing: %v", err)
	default:
		t.Skipf("the engine library is not installed (scripts/fetch-engine.sh): %v", err)
	}
}

// server is one running playhead dev.
type server struct {
	t       *testing.T
	dataDir string
	addr    string
	key     string
	brokers string // empty: one of its own
	cmd     *exec.Cmd
	output  *lockedBuffer
	exited  chan struct{}
}

// devKey is long enough to pass for a key and plainly none of anybody's.
const devKey = "pk_test_0123456789abcdef0123456789abcdef"

// newServer prepares a server in a fresh data directory, on a free port.
func newServer(t *testing.T) *server {
	t.Helper()
	needEngine(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	s := &server{t: t, dataDir: t.TempDir(), addr: addr, key: devKey}
	if kafkacluster.Asked(t) {
		s.brokers = strings.Join(realKafka.Wiped(t).Brokers(), ",")
	}
	t.Cleanup(s.stop)
	return s
}

// startServer starts a server and waits until it is ready.
func startServer(t *testing.T) *server {
	t.Helper()
	s := newServer(t)
	s.start()
	return s
}

// start runs the server and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	path, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	s.output = &lockedBuffer{}
	s.exited = make(chan struct{})
	s.cmd = exec.Command(path, "dev", "--listen", s.addr, "--data-dir", s.dataDir, "--log-level", "info")
	s.cmd.Env = append(os.Environ(), "PLAYHEAD_DEV_KEY="+s.key, "PLAYHEAD_KAFKA_BROKERS="+s.brokers)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	s.awaitReady()
}

func (s *server) awaitReady() {
	s.t.Helper()
	eventually(s.t, 60*time.Second, "server is ready", func() error {
		select {
		case <-s.exited:
			s.t.Fatalf("server exited while starting:\n%s", s.output)
		default:
		}
		res, err := http.Get(s.url("/readyz"))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(res.Body)
			return fmt.Errorf("readyz: %d %s", res.StatusCode, b)
		}
		return nil
	})
}

// kill ends the server as a power cut would, and waits until it is gone.
func (s *server) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.exited
}

// stop ends the server in order, if it runs.
func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	select {
	case <-s.exited:
	default:
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.exited:
		case <-time.After(60 * time.Second):
			s.t.Errorf("server did not stop within 60 s")
			_ = s.cmd.Process.Kill()
			<-s.exited
		}
	}
	if s.t.Failed() {
		s.t.Logf("server output:\n%s", s.output)
	}
}

// exitCode returns the exit code of the server that has ended.
func (s *server) exitCode() int { return s.cmd.ProcessState.ExitCode() }

// enginePid returns the process id of the server's engine child.
func (s *server) enginePid() int {
	s.t.Helper()
	var pid int
	eventually(s.t, 20*time.Second, "engine child runs", func() error {
		entries, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			return err
		}
		for _, e := range entries {
			b, err := os.ReadFile(e)
			if err != nil {
				continue
			}
			var ppid int
			fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
			if _, err := fmt.Sscan(fields[1], &ppid); err == nil && ppid == s.cmd.Process.Pid {
				_, err := fmt.Sscan(filepath.Base(filepath.Dir(e)), &pid)
				return err
			}
		}
		return errors.New("no child")
	})
	return pid
}

func (s *server) url(path string) string { return "http://" + s.addr + path }

// do sends a request with the server's key and returns status and body.
func (s *server) do(method, path, contentType, body string) (int, []byte) {
	s.t.Helper()
	status, b, err := s.try(method, path, contentType, body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return status, b
}

func (s *server) try(method, path, contentType, body string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url(path), strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, b, err
}

// getJSON decodes the answer of a GET, which must be 200.
func getJSON[T any](s *server, path string) T {
	s.t.Helper()
	status, b := s.do(http.MethodGet, path, "", "")
	if status != http.StatusOK {
		s.t.Fatalf("GET %s: %d %s", path, status, b)
	}
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		s.t.Fatalf("GET %s: %v in %s", path, err, b)
	}
	return v
}

// appended is the answer to an append.
type appended struct {
	Results []struct {
		ID        string          `json:"id"`
		MessageID string          `json:"message_id"`
		Duplicate bool            `json:"duplicate"`
		TMs       int64           `json:"t_ms"`
		Error     json.RawMessage `json:"error"`
	} `json:"results"`
	Accepted   int `json:"accepted"`
	Duplicates int `json:"duplicates"`
}

// append appends to a session and returns the answer, which must be 200.
func (s *server) append(session, body string) appended {
	s.t.Helper()
	status, b := s.do(http.MethodPost, "/v1/sessions/"+session+"/events", "application/json", body)
	if status != http.StatusOK {
		s.t.Fatalf("append to %s: %d %s", session, status, b)
	}
	var a appended
	if err := json.Unmarshal(b, &a); err != nil {
		s.t.Fatalf("append to %s: %v in %s", session, err, b)
	}
	return a
}

// idsOf returns the event ids in an append's answer.
func idsOf(t *testing.T, answer []byte) []string {
	t.Helper()
	var a appended
	if err := json.Unmarshal(answer, &a); err != nil {
		t.Fatalf("%v in %s", err, answer)
	}
	var out []string
	for _, r := range a.Results {
		out = append(out, r.ID)
	}
	return out
}

// page is one history page.
type page struct {
	Data []struct {
		EventID         string          `json:"eventId"`
		MessageID       int             `json:"messageId"`
		EventTypeName   string          `json:"eventTypeName"`
		Timestamp       int64           `json:"timestamp"`
		PayloadSize     int             `json:"payloadSize"`
		ClientMessageID string          `json:"clientMessageId"`
		TMs             int64           `json:"tMs"`
		Payload         json.RawMessage `json:"payload"`
	} `json:"data"`
	Pagination struct {
		NextCursor string `json:"nextCursor"`
		HasMore    bool   `json:"hasMore"`
		Limit      int    `json:"limit"`
	} `json:"pagination"`
}

// allPages reads a session's history to its end and returns the pages as one.
func (s *server) allPages(session string) page {
	s.t.Helper()
	all, err := s.tryPages(session)
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

func (s *server) tryPages(session string) (page, error) {
	var all page
	for {
		path := "/v1/sessions/" + session + "/events?pageSize=100&cursor=" + all.Pagination.NextCursor
		status, b, err := s.try(http.MethodGet, path, "", "")
		if err != nil || status != http.StatusOK {
			return all, fmt.Errorf("GET %s: %d %s %w", path, status, b, err)
		}
		var p page
		if err := json.Unmarshal(b, &p); err != nil {
			return all, fmt.Errorf("GET %s: %w in %s", path, err, b)
		}
		all.Data = append(all.Data, p.Data...)
		all.Pagination = p.Pagination
		if !p.Pagination.HasMore {
			return all, nil
		}
	}
}

// lockedBuffer collects a process's output.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits until check returns nil.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", within, what, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at the condition
	}
}
