package integration

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// dataFiles returns the real event files, or skips the test.
func dataFiles(t *testing.T) []string {
	t.Helper()
	dir := filepath.Join("..", "..", "shared", "data")
	files := []string{filepath.Join(dir, "coffee-calls.ndjson.gz"), filepath.Join(dir, "mouse-sessions.ndjson.gz")}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("real events are not here: %v", err)
		}
	}
	return files
}

// messageIDs returns the message ids of each session in a file's order.
func messageIDs(t *testing.T, files []string) map[string][]string {
	t.Helper()
	sessions := make(map[string][]string)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(z)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var e struct {
				Session string `json:"session_id"`
				Message string `json:"message_id"`
			}
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			sessions[e.Session] = append(sessions[e.Session], e.Message)
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return sessions
}

// importCommand returns playhead import of files into s, with its state kept apart.
func (s *server) importCommand(args ...string) *exec.Cmd {
	s.t.Helper()
	path, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"import", "--data-dir", s.dataDir}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+s.t.TempDir())
	return cmd
}

// checkHistory compares every session's pages with the files' order.
func checkHistory(t *testing.T, s *server, sessions map[string][]string) {
	t.Helper()
	var readers sync.WaitGroup
	defer readers.Wait()
	slots := make(chan struct{}, 4)
	for id, want := range sessions {
		slots <- struct{}{}
		readers.Go(func() {
			defer func() { <-slots }()
			all, err := s.tryPages(id)
			var got []string
			for _, e := range all.Data {
				got = append(got, e.ClientMessageID)
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("history of %s: %s, error %v", id, difference(got, want), err)
			}
		})
	}
}

// difference says how got departs from want, in a line.
func difference(got, want []string) string {
	seen := make(map[string]int)
	for _, g := range got {
		seen[g]++
	}
	lost, doubled := 0, 0
	for _, w := range want {
		if seen[w] == 0 {
			lost++
		}
	}
	for _, n := range seen {
		doubled += n - 1
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Sprintf("%d events, want %d: %d lost, %d doubled, first difference at %d", len(got), len(want), lost, doubled, at)
}

// TestImportOfRealEvents imports both files, twice, and finds every session in file
// order; a listener that resumes from a session's first event gets all the others and
// then what is appended.
func TestImportOfRealEvents(t *testing.T) {
	files := dataFiles(t)
	sessions := messageIDs(t, files)
	s := startServer(t)

	out, err := s.importCommand(files...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "176,179 events accepted") {
		t.Fatalf("import: %v\n%s", err, out)
	}
	out, err = s.importCommand(files...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "0 events accepted, 176,179 duplicates") {
		t.Fatalf("second import: %v\n%s", err, out)
	}
	checkHistory(t, s, sessions)

	const session = "session_2144641057"
	var ids []string
	for _, e := range s.allPages(session).Data {
		ids = append(ids, e.EventID)
	}
	l := s.listen("/v1/sessions/"+session+"/events/stream", ids[0])
	l.awaitIDs(ids[1:], 30*time.Second)
	ids = append(ids, s.append(session, `{"type":"mouse_move","payload":{"x":1,"y":2}}`).Results[0].ID)
	l.awaitIDs(ids[1:], 10*time.Second)

	s.kill()
	s.start()
	checkPages(t, s, session, ids)
}

// TestKillsDuringImport kills the server and the engine, each more than once, while an
// import runs and a listener follows one session.
func TestKillsDuringImport(t *testing.T) {
	files := dataFiles(t)
	sessions := messageIDs(t, files)
	s := startServer(t)

	// Each line imports slowly enough for the kills to fall into it.
	cmd := s.importCommand(append([]string{"--batch-events", "200", "--lanes", "2"}, files...)...)
	output := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	imported := make(chan error, 1)
	go func() { imported <- cmd.Wait() }()

	const session = "session_2144641057"
	eventually(t, 30*time.Second, "the session has begun", func() error {
		status, b, err := s.try(http.MethodGet, "/v1/sessions/"+session, "", "")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d %s %w", status, b, err)
		}
		return nil
	})
	l := s.listen("/v1/sessions/"+session+"/events/stream?from=start", "")
	killed := 0
	for i := range 6 {
		select {
		case err := <-imported:
			if killed < 4 {
				t.Fatalf("the import ended after %d kills, which proves too little: %v\n%s", killed, err, output)
			}
			imported <- err
		default:
			killed++
			if i%2 == 0 {
				if err := syscall.Kill(s.enginePid(), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			} else {
				s.kill()
				s.start()
			}
			awaitProgress(t, s, l)
		}
	}
	select {
	case err := <-imported:
		if err != nil {
			t.Fatalf("import: %v\n%s", err, output)
		}
	case <-time.After(4 * time.Minute):
		_ = cmd.Process.Kill()
		t.Fatalf("the import did not end\n%s", output)
	}
	t.Logf("%d kills; %s", killed, lastLine(output.String()))

	checkHistory(t, s, sessions)
	var ids []string
	for _, e := range s.allPages(session).Data {
		ids = append(ids, e.EventID)
	}
	l.awaitIDs(ids, 30*time.Second)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.connects < 2 {
		t.Errorf("the listener connected %d times; want at least 2, or it resumed across nothing", l.connects)
	}
	for _, c := range l.comments {
		if strings.HasPrefix(c, ": dropped") {
			t.Errorf("the listener was told %q", c)
		}
	}
}

// awaitProgress waits until the server has taken something since, or the session is
// complete.
func awaitProgress(t *testing.T, s *server, l *listener) {
	t.Helper()
	before := len(l.ids())
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) && len(l.ids()) < before+200 {
		time.Sleep(20 * time.Millisecond) // between two looks; without progress the next kill comes all the same
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
