package materializer

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
)

// keptSeeds are seeds whose runs have failed once.
var keptSeeds = []uint64{}

// Seeds of a campaign: environment SEEDS and SEED say otherwise (make simulate).
const defaultSeeds = 300

func campaign(t *testing.T) simulation.Campaign {
	t.Helper()
	return simulation.Campaign{Run: simulate, Seeds: defaultSeeds, First: 1, Kept: keptSeeds}.Chosen(t, os.Getenv)
}

// Processes that copy a log into ClickHouse, and die, stall and lose their partitions at any
// moment, over a Kafka and a ClickHouse that fail in every way we know of: in the end each
// record is a row once, and no watermark has ever promised more than there was.
func TestSimulatedMaterialisersCopyExactlyOnce(t *testing.T) {
	campaign(t).Execute(t)
}

func TestSimulationIsRepeatable(t *testing.T) {
	campaign(t).Repeatable(t, 100, 0)
}

// simRun is one run.
type simRun struct {
	w        *simulation.World
	s        *simulation.Stream
	log      *simulation.Log
	server   *simServer
	group    *simGroup
	erasures simErasures
	metrics  *Metrics
	errors   float64 // how often a call fails
	slow     float64 // how often a statement is very slow
	length   time.Duration

	overtakes bool // a commit without an answer may be done after the next ones

	mu      sync.Mutex                // guards what follows
	deleted map[uint16]map[int64]bool // by Kafka: false if history had not begun by then
	names   []string                  // of all processes
	marks   map[string]int64
	letters map[schema.Position]bool // kept, of which records
}

// settleWithin is how long after the last fault all is to be copied: stoppedPause, the
// longest pause and some statements.
const settleWithin = 10 * time.Minute

func simulate(w *simulation.World) {
	s := w.Stream("world")

	partitions := s.Between(1, 3)
	r := &simRun{
		w: w, s: s, server: newSimServer(w), group: newSimGroup(w, partitions), metrics: NewMetrics(nil),
		log: simulation.NewLog(schema.Placement{Partitions: partitions, Shards: partitions},
			schema.DedupeRule{Offsets: int64(s.Between(5, 120)), Age: s.Duration(time.Second, time.Minute).Truncate(time.Millisecond)}),
		errors: []float64{0, 0.02, 0.1, 0.3}[s.IntN(4)], slow: []float64{0, 0.01, 0.05}[s.IntN(3)],
		length: s.Duration(10*time.Second, 60*time.Second), deleted: make(map[uint16]map[int64]bool), marks: make(map[string]int64),
		letters: make(map[schema.Position]bool),
	}
	pauses, powerLoss, retention, crashes := s.Chance(0.6), s.Chance(0.3), s.Chance(0.2), s.Chance(0.7)
	if pauses {
		// A stalled process that sends its insert after the server has lost its token is
		// stopped by nothing (docs/architecture.md, "What is not guaranteed").
		powerLoss = false
	}
	if r.overtakes = s.Chance(0.2); r.overtakes {
		// A commit that wipes out an announcement, while what was announced is on its way still:
		// likewise.
		crashes, r.slow = false, 0
	}
	var faults, coordinator sync.WaitGroup
	end := make(chan struct{})
	coordinator.Go(func() { r.group.run(end) })
	for i := range 2 {
		faults.Go(func() { r.traffic().Run(strconv.Itoa(i), r.length) })
	}
	if crashes {
		faults.Go(func() { r.breakServer(powerLoss) })
	}
	if retention {
		faults.Go(r.retain)
	}
	last := make([]*simProcess, s.Between(1, 3))
	for i := range last {
		faults.Go(func() { last[i] = r.lives(i, pauses) })
	}
	faults.Wait()
	w.Calm()
	w.Tracef("world", "is calm")
	// One more record a partition has everybody look once more, so that nothing rests on what
	// was committed last: a commit that arrived late may have been the last.
	s.Rest(3*time.Second, 4*time.Second)
	r.appendLast()
	r.settle()
	for _, p := range last {
		p.shut()
	}
	close(end)
	coordinator.Wait()
	r.check()
}

// traffic is what is appended.
func (r *simRun) traffic() *simulation.Traffic {
	t := &simulation.Traffic{World: r.w, Log: r.log, Ids: 12, Pause: 1200 * time.Millisecond, Erase: r.erase}
	for i := range 5 {
		t.Sessions = append(t.Sessions, simulation.SessionName{Workspace: "w", Session: fmt.Sprint("s", i)})
	}
	t.Sessions = append(t.Sessions, simulation.SessionName{Workspace: "other", Session: "s0"})
	return t
}

// appendLast appends an event to every partition.
func (r *simRun) appendLast() {
	for p := range r.log.Placement.Partitions {
		e := &schema.Event{Workspace: "w", Session: r.sessionIn(uint16(p)), Type: "last", ContentType: schema.DefaultContentType, Payload: []byte("1")}
		r.log.Append(&kgo.Record{
			Topic: schema.TopicEvents, Partition: int32(p), Timestamp: time.UnixMilli(time.Now().UnixMilli()), Value: e.Payload,
			Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, "last"),
		})
	}
}

func (r *simRun) sessionIn(partition uint16) string {
	for i := 0; ; i++ {
		if id := fmt.Sprint("last", i); r.log.Placement.Partition("w", id) == partition {
			return id
		}
	}
}

// erase has every process hear of an erasure, sooner or later.
func (r *simRun) erase(e schema.Erasure) {
	r.erasures.mu.Lock()
	r.erasures.all.Add(&e)
	r.erasures.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.names {
		delay := r.s.Duration(0, 10*time.Second)
		time.AfterFunc(delay, func() { r.erasures.hears(name, &e) })
	}
}

// lives is a process that is started, stalls, dies or is stopped, and is started again, until
// the faults end. It returns the last life, which runs.
func (r *simRun) lives(slot int, pauses bool) *simProcess {
	s := r.w.Stream("slot%d", slot)
	s.Rest(0, 3*time.Second)
	for life := 0; ; life++ {
		name := fmt.Sprintf("p%d.%d", slot, life)
		r.mu.Lock()
		r.names = append(r.names, name)
		r.mu.Unlock()
		p := r.startProcess(name)
		for next := r.w.Now() + s.Duration(0, 20*time.Second); r.w.Now() < next; {
			if r.w.Now() > r.length {
				return p
			}
			s.Rest(0, 4*time.Second)
			if pauses && s.Chance(0.2) {
				p.node.Pause()
				s.Tracef("stalls %s", name)
				s.Rest(0, 2*simSessionTimeout)
				s.Tracef("wakes %s", name)
				p.node.Resume()
				s.Rest(time.Millisecond, 4*time.Second)
			}
		}
		if s.Chance(0.7) {
			p.kill()
		} else {
			p.shut()
		}
		s.Rest(0, 8*time.Second)
	}
}

// breakServer has ClickHouse die and come back.
func (r *simRun) breakServer(powerLoss bool) {
	s := r.w.Stream("breaker")
	for r.w.Now() < r.length {
		s.Rest(0, 15*time.Second)
		r.server.crash(powerLoss && s.Chance(0.5))
		s.Rest(0, 6*time.Second)
		r.server.up()
	}
}

// retain has Kafka delete its oldest records now and then, some of them too soon.
func (r *simRun) retain() {
	s := r.w.Stream("retention")
	for r.w.Now() < r.length {
		s.Rest(0, 20*time.Second)
		p := uint16(s.IntN(r.log.Placement.Partitions))
		old, end, _ := r.log.Bounds(p)
		start := end - int64(s.IntN(80))
		if start <= old {
			continue
		}
		r.log.Retain(p, start)
		r.w.Tracef("kafka", "partition %d begins at %d now", p, start)
		r.group.mu.Lock()
		_, begun := r.group.committed[int32(p)]
		r.group.mu.Unlock()
		r.mu.Lock()
		if r.deleted[p] == nil {
			r.deleted[p] = make(map[int64]bool)
		}
		for offset := old; offset < start; offset++ {
			// What is gone before anybody has committed an offset, history never had.
			r.deleted[p][offset] = begun
		}
		r.mu.Unlock()
	}
}

// published checks what is promised by a watermark: that the table has all below it once.
func (r *simRun) published(p *simProcess, partition uint16, next int64) {
	if p.node.Dead() {
		return
	}
	p.stream.Tracef("publishes %d/%d", partition, next)
	r.mu.Lock()
	defer r.mu.Unlock()
	key := fmt.Sprint(partition)
	from := r.marks[key] // all below it was looked at, and rows do not vanish
	for _, j := range r.log.Judged(partition) {
		offset := j.Record.Offset
		if offset < from || offset >= next {
			continue
		}
		if _, deleted := r.deleted[partition][offset]; deleted {
			continue
		}
		if n := r.server.holds(partition, offset); n != 1 {
			r.w.Failf("%s publishes watermark %d of partition %d, and the table holds %d rows of offset %d", p.node.Name, next, partition, n, offset)
		}
	}
	r.marks[key] = max(from, next)
}

// settle waits until all is copied and nothing is in doubt.
func (r *simRun) settle() {
	for deadline := r.w.Now() + settleWithin; ; r.s.Rest(time.Second, 2*time.Second) {
		left := r.left()
		if left == "" {
			return
		}
		if r.w.Now() > deadline {
			r.w.Failf("not copied in time: %s", left)
			return
		}
	}
}

// left says what is still to be copied.
func (r *simRun) left() string {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	for p := range r.log.Placement.Partitions {
		o, ok := r.group.committed[int32(p)]
		records := r.log.Judged(uint16(p))
		if len(records) == 0 {
			continue
		}
		state, _, err := decodeCommitted(o.at, o.metadata, r.log.Epoch)
		if last := records[len(records)-1].Record.Offset; !ok || err != nil || state.next <= last || !state.intent.IsZero() {
			return fmt.Sprintf("partition %d: committed %+v %v, last offset %d", p, state, err, last)
		}
	}
	return ""
}

// check compares the table with the log.
func (r *simRun) check() {
	lost := 0
	for p := range r.log.Placement.Partitions {
		partition := uint16(p)
		rows := make(map[int64]row)
		for _, row := range r.server.rows[partition] {
			rows[row.offset] = row // twice is told where it happens
		}
		for _, j := range r.log.Judged(partition) {
			row, ok := rows[j.Record.Offset]
			delete(rows, j.Record.Offset)
			switch {
			case ok:
				r.checkRow(&j, row)
			default:
				missed, deleted := r.deleted[partition][j.Record.Offset]
				if !deleted {
					r.w.Failf("the table has no row of offset %d of partition %d", j.Record.Offset, p)
				} else if missed {
					lost++
				}
			}
		}
		for offset := range rows {
			r.w.Failf("the table has a row of offset %d of partition %d, where there is no record", offset, p)
		}
	}
	var m dto.Metric
	if err := r.metrics.gapOffsets.Write(&m); err != nil {
		r.w.Failf("metric: %v", err)
	}
	if said := m.GetCounter().GetValue(); lost > 0 && said < float64(lost) {
		r.w.Failf("%d records are lost to retention, and a gap of %v offsets was told", lost, said)
	}
}

// checkRow compares a row with its record.
func (r *simRun) checkRow(j *simulation.Judged, got row) {
	kind := ""
	switch j.Kind {
	case simulation.Event:
		kind = j.Event.Type
	case simulation.Duplicate:
		kind = schema.TypeDuplicate
	case simulation.DeadLetter:
		kind = schema.TypeDeadLetter
	}
	at := schema.Position{Epoch: r.log.Epoch, Partition: uint16(j.Record.Partition), Offset: j.Record.Offset}
	claim := schema.ClaimOf(j.Record.Headers) // of what is no event as well
	erased := r.erasures.all.Erased(claim.Workspace, claim.Session, at)
	if got.kind == schema.TypeErased && erased {
		return
	}
	if got.kind != kind && r.judgeable(j) {
		r.w.Failf("row of offset %d of partition %d is a %s, want %s", j.Record.Offset, j.Record.Partition, got.kind, kind)
		return
	}
	if ms := j.Record.Timestamp.UnixMilli(); got.ms != ms {
		r.w.Failf("row of offset %d of partition %d is of %d, want %d", j.Record.Offset, j.Record.Partition, got.ms, ms)
	}
	// Who announced the row may have known of an erasure, and who settled it not.
	if j.Kind == simulation.DeadLetter && !erased && !r.letters[at] {
		r.w.Failf("no letter is kept of offset %d of partition %d, which is no event", at.Offset, at.Partition)
	}
	if j.Kind == simulation.Event && got.kind == kind &&
		(got.session != j.Event.Session || got.messageID != j.Event.MessageID || got.payload != string(j.Event.Payload)) {
		r.w.Failf("row of offset %d of partition %d is %+v, want %+v", j.Record.Offset, j.Record.Partition, got, j.Event)
	}
}

// judgeable reports whether Kafka has kept all that a record may repeat; else a reader that
// began later cannot know.
func (r *simRun) judgeable(j *simulation.Judged) bool {
	return len(r.deleted[uint16(j.Record.Partition)]) == 0
}
