package streamer

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// keptSeeds are seeds whose runs have failed once.
var keptSeeds = []uint64{}

// Seeds of a campaign: environment SEEDS and SEED say otherwise (make simulate).
const defaultSeeds = 300

func campaign(t *testing.T) simulation.Campaign {
	t.Helper()
	return simulation.Campaign{Run: simulate, Seeds: defaultSeeds, First: 1, Kept: keptSeeds}.Chosen(t, os.Getenv)
}

// Listeners that come and go, read slowly, and resume on other nodes, over nodes that die,
// tapes that lose their place and shed what is old, a Kafka that fails and deletes, and a
// ClickHouse that is away: each gets what lies behind its position once, in order, or is
// told how much it has lost.
func TestSimulatedListenersGetEverythingOnce(t *testing.T) {
	campaign(t).Execute(t)
}

// Some runs differ: those who wait for one tape or one session's state go on together.
func TestSimulationIsRepeatable(t *testing.T) {
	campaign(t).Repeatable(t, 50, 15)
}

// simRun is one run.
type simRun struct {
	w           *simulation.World
	log         *simulation.Log
	table       *simTable
	tapeMetrics *tape.Metrics
	hubMetrics  *Metrics
	errors      float64       // how often a call fails
	lag         time.Duration // of the materialiser, at most a step
	length      time.Duration
	erasures    bool // sessions are erased
	gaps        bool // Kafka deletes what was not copied
	sessions    []simulation.SessionName

	mu     sync.Mutex // guards what follows
	nodes  []*simNode // by slot; nil while it is down
	known  map[string]*schema.Erasures
	heard  map[string]time.Duration // when a process has heard of an erasure, by both names
	all    schema.Erasures
	ending bool
}

// deliveredWithin is how long after the last fault everybody is to have everything.
const deliveredWithin = 5 * time.Minute

func simulate(w *simulation.World) {
	s := w.Stream("world")
	partitions := s.Between(1, 3)
	reg := prometheus.NewRegistry()
	r := &simRun{
		w: w, tapeMetrics: tape.NewMetrics(reg), hubMetrics: NewMetrics(reg),
		log: simulation.NewLog(schema.Placement{Partitions: partitions, Shards: partitions},
			schema.DedupeRule{Offsets: int64(s.Between(5, 120)), Age: s.Duration(time.Second, time.Minute).Truncate(time.Millisecond)}),
		errors: []float64{0, 0.02, 0.1}[s.IntN(3)], lag: s.Duration(100*time.Millisecond, 8*time.Second),
		length: s.Duration(10*time.Second, 60*time.Second), erasures: s.Chance(0.3), gaps: s.Chance(0.1),
		nodes: make([]*simNode, s.Between(1, 2)), known: make(map[string]*schema.Erasures), heard: make(map[string]time.Duration),
	}
	r.table = newSimTable(r.log)
	for i := range 4 {
		name := simulation.SessionName{Workspace: "w", Session: fmt.Sprint("s", i)}
		if i%2 == 0 {
			name.Workflow = "f"
		}
		r.sessions = append(r.sessions, name)
	}
	r.sessions = append(r.sessions, simulation.SessionName{Workspace: "other", Session: "s0"})
	traffic := &simulation.Traffic{World: w, Log: r.log, Sessions: r.sessions, Ids: 12, Pause: 1500 * time.Millisecond}
	if r.erasures {
		traffic.Erase = r.erase
	}
	var faults, materialiser, listening sync.WaitGroup
	for i := range 2 {
		faults.Go(func() { traffic.Run(strconv.Itoa(i), r.length) })
	}
	materialiser.Go(r.materialise)
	if s.Chance(0.5) {
		faults.Go(r.breakHistory)
	}
	if r.gaps || s.Chance(0.3) {
		faults.Go(func() { r.retain(r.gaps) })
	}
	last := make([]*simNode, len(r.nodes))
	for i := range last {
		faults.Go(func() { last[i] = r.lives(i) })
	}
	listeners := make([]*simListener, s.Between(1, 5))
	for i := range listeners {
		listeners[i] = r.newListener(s, i)
		listening.Go(listeners[i].listen)
	}
	faults.Wait()
	w.Calm()
	w.Tracef("world", "is calm")
	r.settle(s, listeners)
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	listening.Wait()
	materialiser.Wait()
	for _, n := range last {
		n.shut()
	}
}

// newListener returns a listener of the seed's choice.
func (r *simRun) newListener(s *simulation.Stream, i int) *simListener {
	l := &simListener{run: r, name: fmt.Sprint("listener", i), slow: s.Chance(0.5)}
	l.s = r.w.Stream("%s", l.name)
	all := views()
	of := r.sessions[s.IntN(len(r.sessions))]
	l.req.Scope = schema.Scope{Workspace: of.Workspace, Session: of.Session}
	l.req.View = all[0]
	switch s.IntN(6) {
	case 0:
		l.req.Scope, l.req.View = schema.Scope{Workspace: "w", Workflow: "f"}, all[1]
	case 1, 2:
		l.req.Scope, l.req.View = schema.Scope{Workspace: "w"}, all[2]
	default:
		l.req.CloseAtEnd = s.Chance(0.1)
	}
	if s.Chance(0.4) {
		l.req.Filter.Only("memory.updated", "last")
	}
	l.req.Heartbeat = 15 * time.Second
	l.req.ReplayWhenSlow, l.req.Notices = s.Chance(0.4), s.Chance(0.5)
	if s.Chance(0.1) {
		l.req.EventsPerMinute = 300
	}
	if s.Chance(0.1) {
		l.req.Speed = 50
	}
	l.partitions = l.req.Scope.Partitions(r.log.Placement)
	sort.Slice(l.partitions, func(i, j int) bool { return l.partitions[i] < l.partitions[j] })
	return l
}

// settle waits until every listener has everything.
func (r *simRun) settle(s *simulation.Stream, listeners []*simListener) {
	s.Rest(time.Second, 2*time.Second)
	for _, of := range r.sessions { // one more event a session brings everybody to the end
		e := &schema.Event{
			Workspace: of.Workspace, Session: of.Session, Workflow: of.Workflow, Type: "last",
			ContentType: schema.DefaultContentType, Payload: []byte(`"last"`),
		}
		r.log.Append(&kgo.Record{
			Topic: schema.TopicEvents, Partition: int32(r.log.Placement.Partition(of.Workspace, of.Session)), Value: e.Payload,
			Timestamp: time.UnixMilli(time.Now().UnixMilli()), Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, "last"),
		})
		s.Rest(time.Millisecond, 10*time.Millisecond)
	}
	for deadline := r.w.Now() + deliveredWithin; ; s.Rest(time.Second, 2*time.Second) {
		left := ""
		for _, l := range listeners {
			if left == "" {
				left = l.behindBy()
			}
		}
		if left == "" {
			return
		}
		if r.w.Now() > deadline {
			r.w.Failf("not delivered in time: %s", left)
			return
		}
	}
}

// over reports whether the run is over.
func (r *simRun) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ending
}

func (r *simRun) name(slot, life int) string {
	name := fmt.Sprintf("n%d.%d", slot, life)
	r.mu.Lock()
	defer r.mu.Unlock()
	// A node reads the control topic before it starts: it knows what there is to know.
	known := new(schema.Erasures)
	for _, of := range r.sessions {
		if e := r.all.Find(of.Workspace, of.Session); e != nil {
			known.Add(e)
			r.heard[name+" "+e.ID] = r.w.Now()
		}
	}
	r.known[name] = known
	return name
}

// enter has listeners find a node, or none.
func (r *simRun) enter(slot int, n *simNode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes[slot] = n
}

// alive returns the nodes that can be reached.
func (r *simRun) alive() (out []*simNode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes {
		if n != nil {
			out = append(out, n)
		}
	}
	return out
}

// pick returns one of them, nil if there is none.
func (r *simRun) pick(s *simulation.Stream) *simNode {
	nodes := r.alive()
	if len(nodes) == 0 {
		return nil
	}
	return nodes[s.IntN(len(nodes))]
}

// find returns the record of an offset, nil if there is none.
func (r *simRun) find(p uint16, offset int64) *simulation.Judged {
	all := r.log.Judged(p)
	i := sort.Search(len(all), func(i int) bool { return all[i].Record.Offset >= offset })
	if i == len(all) || all[i].Record.Offset != offset {
		return nil
	}
	return &all[i]
}

// erase has every node hear of an erasure, sooner or later, and then do what cmd/playhead does.
func (r *simRun) erase(e schema.Erasure) {
	r.mu.Lock()
	r.all.Add(&e)
	r.mu.Unlock()
	s := r.w.Stream("erasure/%s", e.ID)
	for _, n := range r.alive() {
		delay := s.Duration(0, 3*time.Second)
		r.w.Go(func() {
			time.Sleep(delay)
			r.mu.Lock()
			r.known[n.node.Name].Add(&e)
			r.heard[n.node.Name+" "+e.ID] = r.w.Now()
			r.mu.Unlock()
			r.w.Tracef(n.node.Name, "hears of the erasure of %s", e.Session)
			n.tapes.Erase(e.Workspace, e.Session)
			n.hub.EndErased(e.Workspace, e.Session)
		})
	}
}

// erasedBelow is what a node knows of erasures.
func (r *simRun) erasedBelow(name, workspace, session string) schema.Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[name].Below(workspace, session)
}

func (r *simRun) erasedFor(name string, e *schema.Event) bool {
	return e.ID.Precedes(r.erasedBelow(name, e.Workspace, e.Session))
}

// everErased reports whether an event is erased by what anybody knows.
func (r *simRun) everErased(e *schema.Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all.Erased(e.Workspace, e.Session, e.ID.Position)
}

// knewErased reports whether a node knew at a time that an event was erased.
func (r *simRun) knewErased(name string, e *schema.Event, at time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	erasure := r.known[name].Find(e.Workspace, e.Session)
	return erasure != nil && e.ID.Precedes(erasure.Below) && r.heard[name+" "+erasure.ID] < at
}
