package clients

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

// devKey is long enough to pass for a key and plainly none of anybody's.
const devKey = "pk_test_0123456789abcdef0123456789abcdef"

// kept is what all tests of the package share, for TestMain to end.
var kept struct {
	sync.Mutex
	dir    string // of the binary and of the shared server's data
	server *server
	chrome *chromium
}

func TestMain(m *testing.M) {
	answers := conform.Watch(&http.DefaultTransport)
	code := m.Run()
	if err := answers.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if n, err := seed(); code != 0 && err == nil {
		fmt.Fprintf(os.Stderr, "to repeat the cuts: PLAYHEAD_CLIENTS_SEED=%d\n", n)
	}
	if kept.chrome != nil {
		kept.chrome.close()
	}
	if err := endShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := realKafka.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "kafka cluster:", err)
		code = 1
	}
	if kept.dir != "" {
		_ = os.RemoveAll(kept.dir)
	}
	os.Exit(code)
}

// realKafka is the cluster of the shared server, if the suite runs on one.
var realKafka kafkacluster.Shared

// keptDir returns a directory that lasts as long as the test binary.
var keptDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "playhead-clients-")
	kept.Lock()
	defer kept.Unlock()
	kept.dir = dir
	return dir, err
})

// binary returns the path of playhead, built once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := keptDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "playhead")
	args := append([]string{"build"}, raceFlags...)
	out, err := exec.Command("go", append(args, "-o", path, "github.com/playhead-dev/playhead/cmd/playhead")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build playhead: %w\n%s", err, out)
	}
	return path, nil
})

// server is one playhead dev, which may be stopped and started again.
type server struct {
	dataDir string
	addr    string
	env     []string
	cmd     *exec.Cmd
	output  *lockedBuffer
	exited  chan struct{}
}

// newServer prepares a server with its data in dir, on a free port.
func newServer(dir string, env ...string) (*server, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	return &server{dataDir: dir, addr: ln.Addr().String(), env: env}, nil
}

// ownServer starts a server for one test.
func ownServer(t *testing.T, env ...string) *server {
	t.Helper()
	needEngine(t)
	if kafkacluster.Asked(t) { // one of its own too: the shared server is in use meanwhile
		var own kafkacluster.Shared
		t.Cleanup(func() {
			if err := own.Close(); err != nil {
				t.Error(err)
			}
		})
		env = append(env, "PLAYHEAD_KAFKA_BROKERS="+strings.Join(own.Wiped(t).Brokers(), ","))
	}
	s, err := newServer(t.TempDir(), env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("server output:\n%s", s.output)
		}
	})
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// sharedServer returns the server that tests use which need none of their own.
func sharedServer(t *testing.T) *server {
	t.Helper()
	needEngine(t)
	starting.Lock()
	defer starting.Unlock()
	kept.Lock()
	s := kept.server
	kept.Unlock()
	if s != nil {
		return s
	}
	dir, err := keptDir()
	if err != nil {
		t.Fatal(err)
	}
	var env []string
	if kafkacluster.Asked(t) {
		env = append(env, "PLAYHEAD_KAFKA_BROKERS="+strings.Join(realKafka.Wiped(t).Brokers(), ","))
	}
	data, err := os.MkdirTemp(dir, "data") //nolint:usetesting // it outlives the test
	if err != nil {
		t.Fatal(err)
	}
	if s, err = newServer(data, env...); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	kept.Lock()
	defer kept.Unlock()
	kept.server = s
	return s
}

// starting is held while the shared server is started or ended; taken before kept.
var starting sync.Mutex

// endShared ends the shared server, if it runs, after all tests.
func endShared() error {
	starting.Lock()
	defer starting.Unlock()
	kept.Lock()
	s := kept.server
	kept.server = nil
	kept.Unlock()
	if s == nil {
		return nil
	}
	if err := s.stop(); err != nil {
		return fmt.Errorf("shared server: %w\n%s", err, s.output)
	}
	return nil
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

// start runs the server and waits until it is ready.
func (s *server) start() error {
	path, err := binary()
	if err != nil {
		return err
	}
	s.output = &lockedBuffer{}
	s.exited = make(chan struct{})
	s.cmd = exec.Command(path, "dev", "--listen", s.addr, "--data-dir", s.dataDir, "--log-level", "warn")
	s.cmd.Env = append(append(os.Environ(), "PLAYHEAD_DEV_KEY="+devKey), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := s.ready()
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("server exited while starting:\n%s", s.output)
		case <-time.After(20 * time.Millisecond): // between two looks
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("server is not ready after 60 s: %w\n%s", err, s.output)
		}
	}
}

func (s *server) ready() error {
	res, err := http.Get("http://" + s.addr + "/readyz")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %d", res.StatusCode)
	}
	return nil
}

// stop ends the server in order, if it runs.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	select {
	case <-s.exited:
		return nil
	default:
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
		return nil
	case <-time.After(60 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.exited
		return fmt.Errorf("server did not stop within 60 s\n%s", s.output)
	}
}

// post sends a JSON body with the server's key, wants the status, and decodes the
// answer into out unless that is nil.
func (s *server) post(t *testing.T, path, body string, want int, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+devKey)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		t.Fatalf("POST %s: %d %s, error %v; want %d", path, res.StatusCode, b, err, want)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("POST %s: %v in %s", path, err, b)
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

// errNothingYet is for eventually, where there is nothing better to say.
var errNothingYet = errors.New("not yet")

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
