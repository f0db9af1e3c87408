package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/integration/kafkacluster"
	"github.com/playhead-dev/playhead/schema"
)

// persistent appends to one session by way of two nodes, an event at a time: what is not
// acknowledged is sent again under the same message id, until it is.
type persistent struct {
	session string
	nodes   []*server

	mu  sync.Mutex
	ids []string // acknowledged, in order; "" for one that was asked for more than once
}

// run appends until ctx ends; the event under way is finished.
func (w *persistent) run(ctx context.Context, t *testing.T) {
	for n := 0; ctx.Err() == nil; n++ {
		body := fmt.Sprintf(`{"type":"a","message_id":"%s-%d","payload":%d}`, w.session, n, n)
		for try := 0; ; try++ {
			status, b, err := w.nodes[(n+try)%len(w.nodes)].try(http.MethodPost, "/v1/sessions/"+w.session+"/events", "application/json", body)
			if err == nil && status == http.StatusOK {
				id := idsOf(t, b)[0]
				if try > 0 {
					id = "" // of a repeat perhaps, where the first was written after all
				}
				w.mu.Lock()
				w.ids = append(w.ids, id)
				w.mu.Unlock()
				break
			}
			if status >= 400 && status != http.StatusServiceUnavailable {
				t.Errorf("append while a broker is away: %d %s", status, b)
				return
			}
			if t.Failed() || try > 1000 {
				t.Errorf("append: %d %s %v", status, b, err)
				return
			}
			time.Sleep(20 * time.Millisecond) // between two tries, as a client would
		}
		time.Sleep(20 * time.Millisecond) // or the pages below take longer than all the rest
	}
}

func (w *persistent) acked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ids)
}

// checkPages holds the session's pages against what was acknowledged: each message once, in
// order, under the id that was answered. It returns all ids.
func (w *persistent) checkPages(t *testing.T, s *server) (ids []string) {
	t.Helper()
	acked, p := w.acked(), s.allPages(w.session)
	if len(p.Data) != len(acked) {
		t.Errorf("pages of %s hold %d events, want %d", w.session, len(p.Data), len(acked))
	}
	for i, e := range p.Data {
		if want := fmt.Sprintf("%s-%d", w.session, i); e.ClientMessageID != want {
			t.Fatalf("event %d of %s is message %s, want %s", i, w.session, e.ClientMessageID, want)
		}
		if i < len(acked) && acked[i] != "" && acked[i] != e.EventID {
			t.Errorf("event %d of %s is %s, want %s", i, w.session, e.EventID, acked[i])
		}
		ids = append(ids, e.EventID)
	}
	return ids
}

// awaitMore waits until each writer has n more events acknowledged.
func awaitMore(t *testing.T, writers []*persistent, n int, when string) {
	t.Helper()
	began := time.Now()
	for _, w := range writers {
		from := len(w.acked())
		eventually(t, 2*time.Minute, "appends go on "+when, func() error {
			if got := len(w.acked()) - from; got < n {
				return fmt.Errorf("%d of %d in %s", got, n, w.session)
			}
			return nil
		})
	}
	t.Logf("%s %s: %d more of each session after %v", time.Now().UTC().Format("15:04:05.000"), when, n, time.Since(began).Round(time.Millisecond))
}

// TestBrokersComeAndGo kills and pauses the leader of a partition that is written to, rolls
// the brokers, and stops a node for longer than its session, under appends and listeners:
// what was acknowledged is there, once, in order, in streams, pages and ClickHouse.
func TestBrokersComeAndGo(t *testing.T) {
	if !kafkacluster.Asked(t) {
		t.Skip("the embedded broker is part of no cluster (make test-kafka)")
	}
	p := startParts(t)
	c := p.cluster
	nodes := []*server{p.serve(t, ""), p.serve(t, "")}
	if status, b := nodes[0].do(http.MethodPatch, "/admin/v1/limits", "application/json", `{"appends_per_second":0,"reads_per_second":0}`); status != http.StatusOK {
		t.Fatalf("limits: %d %s", status, b)
	}
	var writers []*persistent
	for i := range 3 {
		writers = append(writers, &persistent{session: fmt.Sprint("s", i), nodes: nodes})
	}
	var writing sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer func() { stop(); writing.Wait() }()
	for _, w := range writers {
		writing.Go(func() { w.run(ctx, t) })
	}
	awaitMore(t, writers, 20, "with all brokers")
	var listeners []*listener
	for i, w := range writers {
		listeners = append(listeners, nodes[i%2].listen("/v1/sessions/"+w.session+"/events/stream?from=start&on_slow=replay", ""))
	}

	whole, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	first := writers[0].acked()[0]
	leader := func() *kafkacluster.Broker {
		t.Helper()
		id, err := schema.ParseEventID(first)
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Leader(whole, schema.TopicEvents, int32(id.Partition))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	back := func(err error) {
		t.Helper()
		if err := errors.Join(err, c.Await(whole)); err != nil {
			t.Fatal(err)
		}
		awaitMore(t, writers, 20, "with all brokers again")
	}

	b := leader()
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitMore(t, writers, 20, "with the leader killed")
	p.serve(t, "").stop() // a start does not need all brokers
	back(b.Start())

	b = leader()
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	awaitMore(t, writers, 20, "with the leader paused")
	back(b.Resume())

	rolled := kafkacluster.Brokers
	if testing.Short() {
		rolled = 1
	}
	for n := range rolled {
		b := c.Broker(n + 1)
		if err := b.Stop(whole); err != nil {
			t.Fatal(err)
		}
		awaitMore(t, writers, 20, fmt.Sprintf("with broker %d rolled", n+1))
		back(b.Start())
	}

	// A node that hangs for longer than the group waits for it, and then goes on with what
	// it was about to insert and commit, as if nothing had been.
	hung := nodes[1].cmd.Process
	members := func() int {
		t.Helper()
		groups, err := c.Admin().DescribeGroups(t.Context(), schema.GroupMaterializer)
		if err != nil {
			t.Fatal(err)
		}
		return len(groups[schema.GroupMaterializer].Members)
	}
	eventually(t, time.Minute, "both nodes share the partitions", func() error {
		if n := members(); n != 2 {
			return fmt.Errorf("%d members", n)
		}
		return nil
	})
	if err := hung.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hung.Signal(syscall.SIGCONT) }() // or nothing could stop it
	eventually(t, time.Minute, "the group goes on without the node that hangs", func() error {
		if n := members(); n != 1 {
			return fmt.Errorf("%d members", n)
		}
		return nil
	})
	if err := hung.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	awaitMore(t, writers, 20, "with a node that hung")

	stop()
	writing.Wait()
	for i, w := range writers {
		ids := w.checkPages(t, nodes[0])
		if other := w.checkPages(t, nodes[1]); !slices.Equal(other, ids) {
			t.Errorf("%s: the nodes' pages differ", w.session)
		}
		listeners[i].awaitIDs(ids, time.Minute)
		listeners[i].mu.Lock()
		if comments := strings.Join(listeners[i].comments, "\n"); strings.Contains(comments, "dropped") {
			t.Errorf("%s: the listener was told %s", w.session, comments)
		}
		listeners[i].mu.Unlock()
	}
	conn := p.clickhouse(t)
	for _, w := range writers {
		want := uint64(len(w.acked()))
		eventually(t, time.Minute, "history has all of it, once", func() error {
			if got := count(t, conn, "session_id = '"+w.session+"' AND type = 'a'"); got != want {
				return fmt.Errorf("%d rows of %s, want %d", got, w.session, want)
			}
			return nil
		})
	}
}
