package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/query"
)

// operate runs a command of playhead for operators against the server's Kafka and
// ClickHouse.
func (s *server) operate(args ...string) (output string, exitCode int) {
	s.t.Helper()
	path, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, append(args, "--data-dir", s.dataDir)...)
	out, _ := cmd.CombinedOutput()
	s.t.Logf("playhead %s: exit code %d\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out)
	return string(out), cmd.ProcessState.ExitCode()
}

// operateWell is operate for commands that must succeed.
func (s *server) operateWell(args ...string) string {
	s.t.Helper()
	out, code := s.operate(args...)
	if code != 0 {
		s.t.Fatalf("playhead %s: exit code %d", strings.Join(args, " "), code)
	}
	return out
}

// inSQL runs a statement in the server's ClickHouse.
func (s *server) inSQL(statement string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dataDir, "dev.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	var state struct {
		DSN string `json:"clickhouse_dsn"`
	}
	if err := json.Unmarshal(b, &state); err != nil {
		s.t.Fatal(err)
	}
	cfg := query.DefaultClickHouseConfig()
	cfg.DSN = state.DSN
	conn, err := query.Open(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.Exec(s.t.Context(), statement); err != nil {
		s.t.Fatal(err)
	}
}

// counted sums what a rebuild says before a word, over all partitions.
func counted(t *testing.T, output, word string) (sum int) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(\d+) `+word).FindAllStringSubmatch(output, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

const operateSessions = 4

// history lists the event ids of the sessions.
func (s *server) history() (ids []string, err error) {
	for i := range operateSessions {
		p, err := s.tryPages(fmt.Sprint("s", i))
		if err != nil {
			return nil, err
		}
		for _, e := range p.Data {
			ids = append(ids, e.EventID)
		}
	}
	return ids, nil
}

// 1. rows vanish, then whole tables; 2. an operator has them made anew while the server
// runs, and a start does so by itself; 3. history is what it was.
func TestOperatorsRebuildHistory(t *testing.T) {
	s := startServer(t)
	for i := range operateSessions {
		var events []string
		for n := range 200 {
			events = append(events, fmt.Sprintf(`{"type":"demo.tick","payload":{"n":%d}}`, n))
		}
		status, b := s.do(http.MethodPost, fmt.Sprintf("/v1/sessions/s%d/events?ack=materialised", i), "application/json",
			`{"events":[`+strings.Join(events, ",")+`]}`)
		if status != http.StatusOK {
			t.Fatalf("append: %d %s", status, b)
		}
	}
	want, err := s.history()
	if err != nil || len(want) != 200*operateSessions {
		t.Fatalf("history has %d events, %v", len(want), err)
	}
	wantHistory := func(what string) {
		t.Helper()
		eventually(t, 60*time.Second, what, func() error {
			got, err := s.history()
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("history has %d events, want %d", len(got), len(want))
			}
			return err
		})
	}

	if out := s.operateWell("rebuild", "--all", "--dry-run"); counted(t, out, "missing") != 0 || counted(t, out, "records checked") != len(want) {
		t.Errorf("a dry run over whole history: %s", out)
	}
	s.inSQL("ALTER TABLE events DELETE WHERE kafka_offset % 4 = 1 SETTINGS mutations_sync = 2")
	out := s.operateWell("rebuild", "--all", "--from", "0")
	if counted(t, out, "missing") == 0 || counted(t, out, "inserted") != counted(t, out, "missing") {
		t.Errorf("a rebuild after a loss: %s", out)
	}
	wantHistory("missing rows are back")
	s.inSQL("ALTER TABLE events UPDATE payload = 'wrong' WHERE kafka_offset % 4 = 2 SETTINGS mutations_sync = 2")
	s.operateWell("rebuild", "--all", "--replace", "--from", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
	wantHistory("replaced rows are back")
	for _, e := range getJSON[page](s, "/v1/sessions/s0/events?include=payload&pageSize=100").Data {
		if strings.Contains(string(e.Payload), "wrong") {
			t.Fatalf("a replaced row is as it was: %s", e.Payload)
		}
	}

	if out := s.operateWell("migrate", "status"); !strings.Contains(out, "events") || strings.Contains(out, " no ") {
		t.Errorf("migrate status: %s", out)
	}
	if out, code := s.operate("migrate", "down"); code != 1 || !strings.Contains(out, "nodes run") {
		t.Errorf("migrate down beside a node: exit code %d, %s", code, out)
	}

	s.operateWell("migrate", "down", "--to", "1", "--force")
	if out := s.operateWell("migrate", "status"); !strings.Contains(out, " no ") {
		t.Errorf("migrate status after down: %s", out)
	}
	s.operateWell("migrate", "up")
	wantHistory("history is there after down and up")

	s.stop()
	if err := os.RemoveAll(filepath.Join(s.dataDir, "clickhouse")); err != nil {
		t.Fatal(err)
	}
	s.start()
	wantHistory("a lost table is made anew")
}
