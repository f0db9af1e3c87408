package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
)

// simProcess is one life of a process that runs a materialiser in a simulation.
type simProcess struct {
	run    *simRun
	node   *simulation.Node
	stream *simulation.Stream
	errors float64
	m      *Materializer

	member  *simMember // who it is in the group now; guarded by simGroup.mu
	closing bool       // it joins no more; likewise

	callbacks chan struct{}  // held while the group calls back: one at a time
	stop      chan struct{}  // closed to end heartbeat
	wg        sync.WaitGroup // heartbeat
}

// startProcess starts a life of a process and has it join the group.
func (r *simRun) startProcess(name string) *simProcess {
	node := simulation.NewNode(name)
	p := &simProcess{
		run: r, node: node, stream: r.w.Stream("%s", name), errors: r.errors,
		callbacks: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	cfg := DefaultConfig()
	cfg.MaxBatchRows = p.stream.Between(3, 40)
	cfg.Linger = p.stream.Duration(0, time.Second)
	cfg.BatchInterval = cfg.Linger + p.stream.Duration(0, time.Second)
	cfg.RevokeTimeout = p.stream.Duration(0, 5*time.Second)
	cfg.InsertTimeout = p.stream.Duration(time.Second, 20*time.Second)
	cfg.SessionTimeout = simSessionTimeout
	view := simulation.NewView(r.w, r.log, node, name, r.errors)
	m, err := New(cfg, Deps{
		Log: view, Epoch: r.log.Epoch, Rule: r.log.Rule, Metrics: r.metrics,
		Placement:   func(string) schema.Placement { return r.log.Placement },
		Erased:      r.erasures.of(name),
		DeadLetters: newSimLetters(r, node),
		Published:   func(partition uint16, next int64) { r.published(p, partition, next) },
	})
	if err != nil {
		r.w.Failf("New: %v", err)
	}
	m.store = newSimStore(r, node, cfg.InsertTimeout)
	tails := 0
	m.openTail = func(partition uint16, from int64) (*tail, error) {
		r.mu.Lock()
		tails++
		n := tails
		r.mu.Unlock()
		view := simulation.NewView(r.w, r.log, node, fmt.Sprintf("%s/tail%d", name, n), r.errors)
		return &tail{cl: &simTail{view: view, partition: partition, next: from}}, nil
	}
	jitter := r.w.Stream("%s/pause", name)
	m.random = func(below time.Duration) time.Duration { return jitter.Duration(0, below-1) }
	p.m = m
	r.group.join(p)
	p.wg.Go(p.heartbeat)
	return p
}

// heartbeat is how the process's Kafka client learns that its member was thrown out: it gives
// up the partitions and joins again.
func (p *simProcess) heartbeat() {
	s := p.run.w.Stream("%s/heartbeat", p.node.Name)
	for {
		select {
		case <-p.stop:
			return
		case <-time.After(s.Duration(300*time.Millisecond, 2*time.Second)):
		}
		if p.node.Gate(s) != nil {
			return
		}
		p.run.group.mu.Lock()
		m, out := p.member, p.member.out
		p.run.group.mu.Unlock()
		if !out {
			continue
		}
		p.callbacks <- struct{}{}
		s.Tracef("%s has lost %v", m.id, m.has)
		p.m.lost(context.Background(), nil, map[string][]int32{schema.TopicEvents: slices.Clone(m.has)})
		p.run.group.join(p)
		<-p.callbacks
	}
}

// kill ends the process as kill -9 does. It waits for what is left of it.
func (p *simProcess) kill() {
	p.run.w.Tracef(p.node.Name, "is killed")
	p.node.Kill()
	close(p.stop)
	p.m.mu.Lock()
	p.m.closed = true
	var all []int32
	for partition := range p.m.owned {
		all = append(all, int32(partition))
	}
	p.m.mu.Unlock()
	slices.Sort(all)
	p.m.lost(context.Background(), nil, map[string][]int32{schema.TopicEvents: all})
	p.end()
}

// end waits for the callback that runs and for heartbeat. A callback that comes later finds
// nothing to do.
func (p *simProcess) end() {
	p.callbacks <- struct{}{}
	<-p.callbacks
	p.wg.Wait()
}

// shut ends the process in order, as Run does.
func (p *simProcess) shut() {
	p.run.w.Tracef(p.node.Name, "stops")
	p.m.stop()
	p.run.group.mu.Lock()
	p.closing = true
	m := p.member
	p.run.group.mu.Unlock()
	p.run.group.leave(m, "left")
	close(p.stop)
	p.end()
}

// simTail is the consumer of a tail.
type simTail struct {
	view      *simulation.View
	partition uint16
	next      int64
	failed    error // a lost place stays lost
}

func (t *simTail) PollRecords(ctx context.Context, limit int) kgo.Fetches {
	if t.failed != nil {
		return simulation.Fetches(t.partition, nil, 0, t.failed)
	}
	records, next, highWatermark, err := t.view.Poll(ctx, t.partition, t.next, limit)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		t.failed = err
	}
	t.next = next
	return simulation.Fetches(t.partition, records, highWatermark, err)
}

// SetOffsets is part of consumer: never called, as every batch can be read.
func (*simTail) SetOffsets(map[string]map[int32]kgo.EpochOffset) {
	panic("materializer: a simulated batch cannot be read")
}

func (*simTail) Close() {}

// simLetters is where one process keeps its dead letters, which the run sees.
type simLetters struct {
	run     *simRun
	node    *simulation.Node
	streams []*simulation.Stream // by partition
}

var _ DeadLetters = (*simLetters)(nil)

func newSimLetters(r *simRun, node *simulation.Node) *simLetters {
	l := &simLetters{run: r, node: node}
	for p := range r.log.Placement.Partitions {
		l.streams = append(l.streams, r.w.Stream("%s/letters%d", node.Name, p))
	}
	return l
}

var errSimLetters = errors.New("simulated letters are not kept, or nobody knows")

// Keep is part of DeadLetters.
func (l *simLetters) Keep(ctx context.Context, letters []*schema.DeadLetter) error {
	s := l.streams[letters[0].At.Partition]
	if err := l.node.Step(ctx, s, 0, 20*time.Millisecond); err != nil {
		return err
	}
	if s.Fault(l.run.errors) {
		return errSimLetters
	}
	l.run.mu.Lock()
	for _, letter := range letters {
		l.run.letters[letter.At] = true
	}
	l.run.mu.Unlock()
	if s.Fault(l.run.errors) {
		return errSimLetters
	}
	return l.node.Gate(s)
}

// simErasures is what the processes know of erasures: each hears of one in its own time.
type simErasures struct {
	mu    sync.Mutex
	known map[string]*schema.Erasures // by process
	all   schema.Erasures
}

// hears has a process know of an erasure.
func (e *simErasures) hears(name string, erasure *schema.Erasure) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(name).Add(erasure)
}

func (e *simErasures) set(name string) *schema.Erasures {
	s := e.known[name]
	if s == nil {
		s = new(schema.Erasures)
		if e.known == nil {
			e.known = make(map[string]*schema.Erasures)
		}
		e.known[name] = s
	}
	return s
}

// of returns what the process of that name knows.
func (e *simErasures) of(name string) schema.ErasedBelow {
	return func(workspace, session string) schema.Position {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.set(name).Below(workspace, session)
	}
}
