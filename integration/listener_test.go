package integration

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// frame is one event of a stream.
type frame struct{ event, id, data string }

// listener follows a session like a browser's EventSource: it remembers the last id
// and comes back with it whenever the connection ends.
type listener struct {
	t      *testing.T
	s      *server
	path   string
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	frames   []frame
	comments []string
	lastID   string
	connects int
	status   int // of the last answer that was not 200
}

// listen starts a listener on path, from lastID on if that is not "".
func (s *server) listen(path, lastID string) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{t: s.t, s: s, path: path, lastID: lastID, cancel: cancel, done: make(chan struct{})}
	go l.run(ctx)
	s.t.Cleanup(l.stop)
	return l
}

func (l *listener) stop() {
	l.cancel()
	<-l.done
}

func (l *listener) run(ctx context.Context) {
	defer close(l.done)
	for ctx.Err() == nil {
		l.follow(ctx)
		select {
		case <-time.After(50 * time.Millisecond): // as a client's retry: would
		case <-ctx.Done():
		}
	}
}

func (l *listener) follow(ctx context.Context) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.s.url(l.path), nil)
	if err != nil {
		l.t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+l.s.key)
	l.mu.Lock()
	if l.lastID != "" {
		req.Header.Set("Last-Event-ID", l.lastID)
	}
	l.mu.Unlock()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return
	}
	defer res.Body.Close()
	l.mu.Lock()
	if res.StatusCode != http.StatusOK {
		l.status = res.StatusCode
		l.mu.Unlock()
		return
	}
	l.connects++
	l.mu.Unlock()
	l.read(bufio.NewReader(res.Body))
}

// read takes whole frames; a torn one at the end of a connection does not count.
func (l *listener) read(r *bufio.Reader) {
	var f frame
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "":
			if f != (frame{}) {
				l.mu.Lock()
				l.frames = append(l.frames, f)
				if f.id != "" {
					l.lastID = f.id
				}
				l.mu.Unlock()
			}
			f = frame{}
		case strings.HasPrefix(line, ":"):
			l.mu.Lock()
			l.comments = append(l.comments, line)
			l.mu.Unlock()
		case strings.HasPrefix(line, "event: "):
			f.event = line[len("event: "):]
		case strings.HasPrefix(line, "id: "):
			f.id = line[len("id: "):]
		case strings.HasPrefix(line, "data: "):
			f.data = line[len("data: "):]
		}
	}
}

// ids returns the ids seen so far.
func (l *listener) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, f := range l.frames {
		if f.id != "" {
			out = append(out, f.id)
		}
	}
	return out
}

// awaitIDs waits until the listener has seen exactly want, in order, each once.
func (l *listener) awaitIDs(want []string, within time.Duration) {
	l.t.Helper()
	eventually(l.t, within, "listener has seen everything", func() error {
		got := l.ids()
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				l.t.Fatalf("frame %d of %s is %s, want %s", i, l.path, got[i], want[i])
			}
		}
		if len(got) > len(want) {
			l.t.Fatalf("%s: %d frames, want %d; first extra %s", l.path, len(got), len(want), got[len(want)])
		}
		if len(got) < len(want) {
			return fmt.Errorf("%d of %d frames", len(got), len(want))
		}
		return nil
	})
}
