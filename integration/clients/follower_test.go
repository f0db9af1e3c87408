package clients

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// job says what a client is to follow. It is the argument of the client programs.
type job struct {
	URL       string            `json:"url"`
	Headers   map[string]string `json:"headers"`
	Types     []string          `json:"types"`     // that an EventSource listens to
	Protocols []string          `json:"protocols"` // of a WebSocket
	Send      []message         `json:"send"`      // on a WebSocket, each time it opens

	// Of the programs of services, whose URL is the server's.
	Key string `json:"key,omitempty"`
	ID  string `json:"id,omitempty"`
}

// message is one of a WebSocket: text, or else binary in base64.
type message struct {
	Text   string `json:"text"`
	Binary string `json:"binary"`
}

// whole returns j without nulls, which the programs would have to expect.
func (j job) whole() job {
	if j.Headers == nil {
		j.Headers = map[string]string{}
	}
	if j.Types == nil {
		j.Types = []string{}
	}
	if j.Send == nil {
		j.Send = []message{}
	}
	if j.Protocols == nil {
		j.Protocols = []string{}
	}
	return j
}

// record is one thing that happened to a client.
type record struct {
	Kind string `json:"kind"` // event, frame, binary, open, lost, end, retry, comment, ping, fault
	Type string `json:"type"`
	ID   string `json:"id"`
	Data string `json:"data"`
	Code int    `json:"code"` // of end: the HTTP status or the WebSocket's close code; of retry: milliseconds

	at time.Time
}

// follower is a running client and all that it reported.
type follower struct {
	client string
	stop   func() // ends the client and waits for it; may be called again

	mu      sync.Mutex
	records []record
}

func (f *follower) note(r record) {
	r.at = time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = append(f.records, r)
}

// of returns the records of a kind, in order.
func (f *follower) of(kind string) []record {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []record
	for _, r := range f.records {
		if r.Kind == kind {
			out = append(out, r)
		}
	}
	return out
}

// await waits until the client reported n things of a kind, and returns all of them.
func (f *follower) await(t *testing.T, kind string, n int, within time.Duration) []record {
	t.Helper()
	var got []record
	eventually(t, within, f.client+" reports "+kind, func() error {
		got = f.of(kind)
		if len(got) >= n {
			return nil
		}
		err := fmt.Errorf("%d of %d; last: %s", len(got), n, f.last())
		if len(f.of("end"))+len(f.of("fault")) > 0 && kind != "stopped" {
			t.Fatalf("%s ended: %v", f.client, err)
		}
		return err
	})
	return got
}

// last describes the newest reports.
func (f *follower) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, r := range f.records[max(0, len(f.records)-4):] {
		fmt.Fprintf(&b, "%s %s %s %d %.200q; ", r.Kind, r.Type, r.ID, r.Code, r.Data)
	}
	return b.String()
}

// client is one third-party client.
type client struct {
	name    string
	lacks   func() (what string, err error) // what is not installed, if err says so
	start   func(t *testing.T, j job) *follower
	browser bool // sends no headers of ours: its key is in the URL or the subprotocol
}

// Where scripts/fetch-clients.sh puts the programs' libraries.
var (
	nodeModules = filepath.Join("node", "node_modules")
	python      = filepath.Join("..", "..", "bin", "clients-venv", "bin", "python")
)

// need skips the test without the client, or fails it where all are required.
func (c client) need(t *testing.T) {
	t.Helper()
	what, err := c.lacks()
	if err == nil {
		return
	}
	if os.Getenv("PLAYHEAD_REQUIRE_CLIENTS") == "1" && (!c.browser || canInstallChromium()) {
		t.Fatalf("%s is required and missing: %v", what, err)
	}
	t.Skipf("%s is not installed (scripts/fetch-clients.sh): %v", what, err)
}

func lacksNothing() (string, error) { return "", nil }

func lacksNode() (string, error) {
	_, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(nodeModules)
	}
	return "Node with the clients' packages", err
}

func lacksPython() (string, error) {
	_, err := os.Stat(python)
	return "Python with the clients' packages", err
}

func node(program string) func(*testing.T, job) *follower {
	return func(t *testing.T, j job) *follower {
		return startProgram(t, j, "node", filepath.Join("node", filepath.FromSlash(program)))
	}
}

func pythonProgram(program string) func(*testing.T, job) *follower {
	return func(t *testing.T, j job) *follower {
		return startProgram(t, j, python, "-B", filepath.Join("python", program))
	}
}

// startProgram runs a client program on a job until the test ends.
func startProgram(t *testing.T, j job, name string, args ...string) *follower {
	t.Helper()
	arg, err := json.Marshal(j.whole())
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Base(args[len(args)-1])
	cmd := exec.Command(name, append(args, string(arg))...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := &follower{client: program}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewReader(stdout)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				break
			}
			var r record
			if err := json.Unmarshal(line, &r); err != nil {
				r = record{Kind: "fault", Data: string(line)}
			}
			f.note(r)
		}
		_ = cmd.Wait()
	}()
	f.stop = sync.OnceFunc(func() {
		stdin.Close()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if text := strings.TrimSpace(stderr.String()); text != "" {
			t.Errorf("%s: %s", program, text)
		}
	})
	t.Cleanup(f.stop)
	return f
}
