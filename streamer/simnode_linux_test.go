package streamer

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// simNode is one life of a streaming node in a simulation: its tapes and its hub.
type simNode struct {
	run     *simRun
	node    *simulation.Node
	history *simHistory
	tapes   *tape.Tapes
	hub     *Hub
	opened  simOpened

	mu      sync.Mutex // guards what follows
	conns   []*simConn
	streams map[string]*simulation.Stream // by stream's id: when it is served
}

// startNode starts a life of a node.
func (r *simRun) startNode(name string) *simNode {
	n := &simNode{run: r, node: simulation.NewNode(name), streams: make(map[string]*simulation.Stream)}
	s := r.w.Stream("%s", name)
	n.history = newSimHistory(r, n.node)
	n.node.SetSkew(s.Duration(-5*time.Second, 5*time.Second))
	cfg := DefaultConfig()
	cfg.Tape = tape.Config{
		MaxAge: s.Duration(500*time.Millisecond, 20*time.Second), MaxBytes: s.Between(1000, 40_000), MaxSessions: s.Between(1, 20),
		DedupeOffsets: r.log.Rule.Offsets, DedupeAge: r.log.Rule.Age, IdleAfter: s.Duration(time.Second, 30*time.Second),
	}
	cfg.WriteTimeout = s.Duration(time.Second, 40*time.Second)
	cfg.KeepAlive = 15 * time.Second
	cfg.MaxStreams, cfg.MaxReplays = 50, s.Between(1, 4)
	cfg.ReplayReads = 50 // never short: the legs of a replay take one each in one instant, in any order
	cfg.ReplayBytes = s.Between(500, 8000)
	view := simulation.NewView(r.w, r.log, n.node, name, r.errors)
	erased := func(workspace, session string) schema.Position { return r.erasedBelow(name, workspace, session) }
	place := func(string) schema.Placement { return r.log.Placement }
	logger := slog.New(&n.opened)
	past := &Past{History: n.history, Log: view, Epoch: r.log.Epoch, Placement: place, Rule: r.log.Rule, Erased: erased}
	if s.Chance(0.5) {
		past.ShortGap = int64(s.IntN(60))
	}
	var err error
	n.tapes, err = tape.Start(cfg.Tape, tape.Deps{
		Consumer: simulation.NewConsumer(r.w, view, name), Log: view, Past: past, Epoch: r.log.Epoch,
		Partitions: r.log.Placement.Partitions, Placement: place, Erased: erased, Metrics: r.tapeMetrics, Logger: logger, Now: n.node.Now,
	})
	if err == nil {
		n.hub, err = newHub(cfg, Deps{Tapes: n.tapes, Past: past, Metrics: r.hubMetrics, Logger: logger})
	}
	if err != nil {
		r.w.Failf("start %s: %v", name, err)
		return n
	}
	n.hub.wg.Go(n.work)
	r.w.Tracef(name, "starts")
	return n
}

// simOpened is what a node's log says of the tapes it opened.
type simOpened struct {
	mu    sync.Mutex
	tapes []simTape
}

type simTape struct{ partition, from, start int64 }

var _ slog.Handler = (*simOpened)(nil)

// Enabled is part of slog.Handler.
func (*simOpened) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs is part of slog.Handler.
func (o *simOpened) WithAttrs([]slog.Attr) slog.Handler { return o }

// WithGroup is part of slog.Handler.
func (o *simOpened) WithGroup(string) slog.Handler { return o }

// Handle is part of slog.Handler.
func (o *simOpened) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "tape opened" {
		return nil
	}
	var t simTape
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "partition":
			t.partition = int64(a.Value.Uint64())
		case "offset":
			t.from = a.Value.Int64()
		case "start":
			t.start = a.Value.Int64()
		}
		return true
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tapes = append(o.tapes, t)
	return nil
}

// tooLate reports whether a tape of the partition has an offset, and was opened when Kafka had
// deleted what lies at another.
func (o *simOpened) tooLate(partition uint16, gone, offset int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.tapes, func(t simTape) bool {
		return t.partition == int64(partition) && gone < t.from && t.start <= offset
	})
}

// work is the hub's workers: each stream is served when the seed says. Hang-ups are told by
// the listeners, and heartbeats by simListener: the real ones come at random.
func (n *simNode) work() {
	for {
		select {
		case s := <-n.hub.queue:
			n.hub.wg.Go(func() {
				stream := n.stream(s.id)
				stream.Rest(time.Microsecond, 2*time.Millisecond)
				_ = n.node.Gate(stream) // a dead node's streams are served to their end
				n.hub.serve(&worker{entries: make([]*tape.Entry, 0, turnEvents)}, s)
			})
		case <-n.hub.stop:
			return
		}
	}
}

func (n *simNode) stream(id string) *simulation.Stream {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.streams[id]
	if s == nil {
		s = n.run.w.Stream("%s/%s", n.node.Name, id)
		n.streams[id] = s
	}
	return s
}

// kill ends the node as kill -9 does: its connections break.
func (n *simNode) kill() {
	n.run.w.Tracef(n.node.Name, "is killed")
	n.node.Kill()
	n.mu.Lock()
	conns := n.conns
	n.mu.Unlock()
	for _, c := range conns {
		if err := c.Close(); err != nil {
			n.run.w.Failf("close: %v", err)
		}
	}
	n.shut()
}

// shut ends the node in order.
func (n *simNode) shut() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = n.hub.Close(ctx) // a stuck listener is cut
	n.mu.Lock()
	conns := n.conns
	n.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	n.hub.wg.Wait()
	n.tapes.Close()
	n.run.w.Tracef(n.node.Name, "has stopped")
}

// lives is a node that is started, stalls, dies or is stopped, and started again. It returns
// the last life, which runs.
func (r *simRun) lives(slot int) *simNode {
	s := r.w.Stream("slot%d", slot)
	for life := 0; ; life++ {
		s.Rest(0, 3*time.Second)
		n := r.startNode(r.name(slot, life))
		r.enter(slot, n)
		for until := r.w.Now() + s.Duration(0, 40*time.Second); r.w.Now() < until; {
			if r.w.Now() > r.length {
				return n
			}
			s.Rest(0, 5*time.Second)
			if s.Chance(0.1) {
				n.node.Pause()
				s.Rest(0, 5*time.Second)
				n.node.Resume()
				s.Rest(time.Millisecond, time.Second)
			}
		}
		r.enter(slot, nil)
		if s.Chance(0.5) {
			n.kill()
		} else {
			n.shut()
		}
	}
}
