package integration

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/integration/kafkacluster"
	"github.com/playhead-dev/playhead/internal/engine"
	"github.com/playhead-dev/playhead/internal/kafka"
)

// parts are a broker and a ClickHouse that playhead serve connects to as to any others.
type parts struct {
	brokers, dsn string
	replicas     int    // that the brokers can hold
	security     string // further lines of the configuration's part kafka
	engine       *engine.Process
	cluster      *kafkacluster.Cluster // nil: the broker is an embedded one
	dir          string                // of both, but for a cluster
	settings     string                // of nodes, beside those, as they stand in the configuration
}

func startParts(t *testing.T) parts {
	t.Helper()
	needEngine(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := startBrokers(t, dir)
	process, err := engine.Start(t.Context(), engine.Config{
		DataPath: filepath.Join(dir, "clickhouse"), LibraryPath: engine.LibraryPath(os.Getenv),
		Executable: path, ChildArgs: []string{"engine"}, Stderr: io.Discard, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Close(); err != nil {
			t.Errorf("close engine: %v", err)
		}
	})
	p.dsn, p.engine, p.dir = process.DSN(), process, dir
	return p
}

// startBrokers starts an embedded broker, or takes the real cluster.
func startBrokers(t *testing.T, dir string) parts {
	t.Helper()
	if kafkacluster.Asked(t) {
		c := realKafka.Wiped(t)
		return parts{cluster: c, brokers: strings.Join(c.Brokers(), ","), replicas: kafkacluster.Brokers}
	}
	broker, err := kafka.StartEmbedded(filepath.Join(dir, "kafka"), "127.0.0.1:0", 4, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	return parts{brokers: broker.Addr(), replicas: 1}
}

// serve starts a node with the given roles, all if "", and waits until it is ready.
func (p parts) serve(t *testing.T, roles string) *server {
	t.Helper()
	s := p.begin(t, roles)
	s.awaitReady()
	return s
}

// serveWith is serve with settings, as they stand in the configuration file.
func (p parts) serveWith(t *testing.T, roles, settings string) *server {
	t.Helper()
	p.settings = settings
	return p.serve(t, roles)
}

// begin starts a node and does not wait.
func (p parts) begin(t *testing.T, roles string) *server {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "playhead.yaml")
	// Three partitions are enough to need all.
	text := fmt.Sprintf("kafka:\n  replication_factor: %d\n  partitions: 3\n%s%s", p.replicas, p.security, cmp.Or(p.settings, "log:\n  level: info\n"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dataDir: dir, addr: ln.Addr().String(), key: devKey, output: &lockedBuffer{}, exited: make(chan struct{})}
	ln.Close()
	args := []string{"serve", "--config", config, "--listen", s.addr, "--kafka-brokers", p.brokers}
	if roles != "" {
		args = append(args, "--roles", roles)
	}
	s.cmd = exec.Command(path, args...)
	s.cmd.Env = append(os.Environ(), "PLAYHEAD_CLICKHOUSE_DSN="+p.dsn, "PLAYHEAD_BOOTSTRAP_KEY="+devKey)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	t.Cleanup(s.stop)
	return s
}

// TestAnyNodeAnswersForAll runs two full nodes over one log, started at the same time,
// and asks each about what the other took, right after it was acknowledged.
func TestAnyNodeAnswersForAll(t *testing.T) {
	p := startParts(t)
	a := p.serve(t, "")
	b := p.serve(t, "")
	listening := false
	var live *listener
	var ids []string
	for i := range 30 {
		at, other := a, b
		if i%2 == 1 {
			at, other = b, a
		}
		body := fmt.Sprintf(`{"type":"step.done","message_id":"m%d","payload":{"n":%d}}`, i, i)
		ids = append(ids, at.append("shared", body).Results[0].ID)
		if !listening {
			live, listening = b.listen("/v1/sessions/shared/events/stream?from=start", ""), true
		}
		checkPages(t, other, "shared", ids)
		if again := other.append("shared", body); again.Duplicates != 1 || again.Results[0].ID != ids[i] {
			t.Fatalf("the same message on the other node: %+v, want a duplicate of %s", again, ids[i])
		}
	}
	live.awaitIDs(ids, 10*time.Second)
	if status, body := a.do(http.MethodPost, "/v1/sessions/shared/end", "", ""); status != http.StatusOK {
		t.Fatalf("end: %d %s", status, body)
	}
	state := getJSON[struct {
		Status string `json:"status"`
	}](b, "/v1/sessions/shared")
	if state.Status != "ended" {
		t.Errorf("status on the other node = %s, want ended", state.Status)
	}
}

// TestRolesApart runs each role in a process of its own.
func TestRolesApart(t *testing.T) {
	p := startParts(t)
	ingest := p.serve(t, "ingest")
	streamer := p.serve(t, "streamer")
	query := p.serve(t, "query")
	p.serve(t, "materializer")
	var ids []string
	for i := range 20 {
		ids = append(ids, ingest.append("apart", fmt.Sprintf(`{"type":"a","payload":%d}`, i)).Results[0].ID)
	}
	checkPages(t, query, "apart", ids)
	l := streamer.listen("/v1/sessions/apart/events/stream", ids[4])
	l.awaitIDs(ids[5:], 10*time.Second)
	status, b := ingest.do(http.MethodPost, "/v1/sessions/apart/events?ack=materialised", "application/json", `{"type":"b"}`)
	if status != http.StatusOK {
		t.Errorf("ack=materialised with the materialiser elsewhere: %d %s", status, b)
	}
	if status, _ := query.do(http.MethodPost, "/v1/sessions/apart/events", "application/json", `{"type":"b"}`); status != http.StatusMethodNotAllowed {
		t.Errorf("append to a query node: %d, want 405", status)
	}
}

// TestHistoryAway stops ClickHouse: appends, streams and recent pages go on, pages say
// so, and everything is as before when it comes back.
func TestHistoryAway(t *testing.T) {
	p := startParts(t)
	s := p.serve(t, "")
	var ids []string
	for i := range 10 {
		ids = append(ids, s.append("away", fmt.Sprintf(`{"type":"a","payload":%d}`, i)).Results[0].ID)
	}
	status, b := s.do(http.MethodPost, "/v1/sessions/away/events?ack=materialised", "application/json", `{"type":"a"}`)
	if status != http.StatusOK {
		t.Fatalf("append: %d %s", status, b)
	}
	ids = append(ids, idsOf(t, b)...)

	pid := p.engine.Pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	ids = append(ids, s.append("away", `{"type":"a","t_ms":99}`).Results[0].ID)
	eventually(t, 30*time.Second, "pages are served from the log", func() error {
		status, b, err := s.try(http.MethodGet, "/v1/sessions/away/events?pageSize=100", "", "")
		if err != nil || status != http.StatusOK || !strings.Contains(string(b), `"degraded":true`) {
			return fmt.Errorf("%d %s %w", status, b, err)
		}
		return nil
	})
	checkPages(t, s, "away", ids)
	s.listen("/v1/sessions/away/events/stream", ids[2]).awaitIDs(ids[3:], 20*time.Second)

	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "pages come from ClickHouse again", func() error {
		status, b, err := s.try(http.MethodGet, "/v1/sessions/away/events?pageSize=100", "", "")
		if err != nil || status != http.StatusOK || strings.Contains(string(b), "degraded") {
			return fmt.Errorf("%d %s %w", status, b, err)
		}
		return nil
	})
	checkPages(t, s, "away", ids)
}
