package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
)

// Timeouts of a simulated group.
const (
	simSessionTimeout = 10 * time.Second
	simGroupTick      = 400 * time.Millisecond
)

// simGroup is the materialiser's consumer group in a simulation: its coordinator in Kafka,
// with the committed offsets, and what the Kafka client of each process makes of it
// (cooperative rebalancing: a partition is revoked, in one generation, before another
// member is given it, in the next). A member that is not heard of for simSessionTimeout is
// thrown out, and learns of it when it asks.
type simGroup struct {
	w *simulation.World
	s *simulation.Stream

	mu         sync.Mutex // guards what follows
	generation int32
	completing bool // between two generations: nobody may commit
	members    []*simMember
	joined     int          // members there ever were
	owner      []*simMember // by partition; nil: nobody
	committed  map[int32]simOffset
	dirty      bool // the members have changed since the last rebalance
}

type simOffset struct {
	at       int64
	metadata string
}

// simMember is a process's membership: of a life of the process there may be several, one
// after the other.
type simMember struct {
	group *simGroup
	p     *simProcess

	id         string
	generation int32     // as the client knows it
	silent     time.Time // since when nothing was heard; zero while it is
	out        bool      // thrown out, or left
	has        []int32   // partitions, as the client knows them
	seats      int       // partitions it was ever given
}

// simSeat is what the worker of one partition has of the group's member.
type simSeat struct {
	*simMember
	s *simulation.Stream
}

var _ groupMember = (*simSeat)(nil)

func newSimGroup(w *simulation.World, partitions int) *simGroup {
	return &simGroup{w: w, s: w.Stream("group"), owner: make([]*simMember, partitions), committed: make(map[int32]simOffset)}
}

// join makes a process a member, unless it is ending.
func (g *simGroup) join(p *simProcess) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.closing || p.node.Dead() {
		return
	}
	g.joined++
	m := &simMember{group: g, p: p, id: fmt.Sprintf("member-%d", g.joined), generation: g.generation}
	g.members = append(g.members, m)
	p.member = m
	g.dirty = true
	g.w.Tracef("group", "%s is %s", p.node.Name, m.id)
}

// leave takes a member out, by its own will or not.
func (g *simGroup) leave(m *simMember, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.out {
		return
	}
	m.out = true
	g.members = slices.DeleteFunc(g.members, func(o *simMember) bool { return o == m })
	for p := range g.owner {
		if g.owner[p] == m {
			g.owner[p] = nil
		}
	}
	g.dirty = true
	g.w.Tracef("group", "%s is out: %s", m.id, why)
}

// run is the coordinator, until stop is closed.
func (g *simGroup) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(g.s.Duration(simGroupTick/2, simGroupTick)):
		}
		g.expire()
		g.mu.Lock()
		dirty := g.dirty || !g.w.IsCalm() && g.s.Chance(0.01) // or somebody's subscription changes
		g.dirty = false
		g.mu.Unlock()
		if dirty && !g.rebalance() {
			return
		}
	}
}

// expire throws out those who are silent for too long, and reports whether all that are left
// are heard of.
func (g *simGroup) expire() (all bool) {
	g.mu.Lock()
	members := slices.Clone(g.members)
	g.mu.Unlock()
	all = true
	for _, m := range members {
		if !m.p.node.Paused() && !m.p.node.Dead() {
			m.silent = time.Time{}
			continue
		}
		if m.silent.IsZero() {
			m.silent = time.Now()
		}
		if time.Since(m.silent) >= simSessionTimeout {
			g.leave(m, "not heard of")
			continue
		}
		all = false
	}
	return all
}

// rebalance brings the partitions to the members. It reports false when it has to be given
// up, as the world ends.
func (g *simGroup) rebalance() bool {
	for !g.expire() { // who does not join is waited for
		time.Sleep(g.s.Duration(50*time.Millisecond, 200*time.Millisecond))
	}
	target := g.assign()
	revoke := make(map[*simMember][]int32)
	give := make(map[*simMember][]int32)
	g.mu.Lock()
	for p, m := range g.owner {
		if m != nil && m != target[p] {
			revoke[m] = append(revoke[m], int32(p))
		}
	}
	g.mu.Unlock()
	g.next()
	g.call("gives up", revoke, func(m *simMember, partitions []int32) {
		m.p.m.revoked(context.Background(), nil, map[string][]int32{schema.TopicEvents: partitions})
		m.has = slices.DeleteFunc(m.has, func(p int32) bool { return slices.Contains(partitions, p) })
	})
	g.mu.Lock()
	for m, partitions := range revoke {
		for _, p := range partitions {
			if g.owner[p] == m {
				g.owner[p] = nil
			}
		}
	}
	for p, m := range target {
		if g.owner[p] == nil && m != nil && !m.out {
			g.owner[p] = m
			give[m] = append(give[m], int32(p))
		}
	}
	for p := range target {
		g.dirty = g.dirty || g.owner[p] == nil && len(g.members) > 0
	}
	g.mu.Unlock()
	g.next()
	g.call("is given", give, func(m *simMember, partitions []int32) {
		m.has = append(m.has, partitions...)
		for _, p := range partitions {
			m.seats++
			m.p.m.startWorkers(&simSeat{m, g.w.Stream("%s/seat%d-%d", m.id, p, m.seats)}, []int32{p})
		}
	})
	return true
}

// next begins a generation, which all members join.
func (g *simGroup) next() {
	g.mu.Lock()
	g.generation++
	g.completing = true
	for _, m := range g.members {
		m.generation = g.generation
	}
	g.mu.Unlock()
	g.s.Rest(0, 200*time.Millisecond)
	g.mu.Lock()
	g.completing = false
	g.mu.Unlock()
}

// assign chooses an owner for every partition; most stay.
func (g *simGroup) assign() []*simMember {
	g.mu.Lock()
	defer g.mu.Unlock()
	target := slices.Clone(g.owner)
	for p := range target {
		if len(g.members) == 0 {
			target[p] = nil
		} else if target[p] == nil || g.s.Chance(0.4) {
			target[p] = g.members[g.s.IntN(len(g.members))]
		}
	}
	return target
}

// call calls back the members in their processes, all at once, and waits for them. A
// member that is thrown out meanwhile is not waited for.
func (g *simGroup) call(what string, of map[*simMember][]int32, callback func(m *simMember, partitions []int32)) {
	var waits []chan struct{}
	var members []*simMember
	g.mu.Lock()
	for _, m := range g.members {
		if len(of[m]) > 0 {
			members = append(members, m)
		}
	}
	g.mu.Unlock()
	for _, m := range members {
		done := make(chan struct{})
		waits = append(waits, done)
		delay := g.s.Duration(0, 400*time.Millisecond)
		g.w.Go(func() {
			defer close(done)
			time.Sleep(delay)
			m.p.callbacks <- struct{}{}
			defer func() { <-m.p.callbacks }()
			if m.p.node.Gate(m.p.stream) != nil {
				return
			}
			g.w.Tracef(m.p.node.Name, "%s %v", what, of[m])
			callback(m, of[m])
			g.w.Tracef(m.p.node.Name, "%s %v: done", what, of[m])
		})
	}
	for i, done := range waits {
		for waiting := true; waiting; {
			select {
			case <-done:
				waiting = false
			case <-time.After(g.s.Duration(simGroupTick/2, simGroupTick)):
				g.expire()
				g.mu.Lock()
				waiting = !members[i].out
				g.mu.Unlock()
			}
		}
	}
}

// GroupMetadata is part of groupMember.
func (m *simSeat) GroupMetadata() (memberID string, generation int32) {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return m.p.member.id, m.p.member.generation
}

// FetchOffsets is part of groupMember.
func (m *simSeat) FetchOffsets(ctx context.Context, _ string) (kadm.OffsetResponses, error) {
	s := m.s
	if err := m.p.node.Step(ctx, s, 0, 30*time.Millisecond); err != nil {
		return nil, err
	}
	if s.Fault(m.p.errors) {
		return nil, kerr.CoordinatorLoadInProgress
	}
	out := make(kadm.OffsetResponses)
	out[schema.TopicEvents] = make(map[int32]kadm.OffsetResponse)
	m.group.mu.Lock()
	for p, o := range m.group.committed {
		out[schema.TopicEvents][p] = kadm.OffsetResponse{Offset: kadm.Offset{
			Topic: schema.TopicEvents, Partition: p, At: o.at, Metadata: o.metadata,
		}}
	}
	m.group.mu.Unlock()
	return out, m.p.node.Step(ctx, s, 0, 10*time.Millisecond)
}

var errSimCommit = errors.New("simulated commit was lost, or its answer")

// commit is part of groupMember.
func (m *simSeat) commit(ctx context.Context, offsets map[string]map[int32]kgo.EpochOffset,
	before func(*kmsg.OffsetCommitRequest) error,
) (*kmsg.OffsetCommitResponse, error) {
	p, s := m.p, m.s
	if err := p.node.Step(ctx, s, 0, 5*time.Millisecond); err != nil {
		return nil, err
	}
	req := kmsg.NewPtrOffsetCommitRequest()
	req.MemberID, req.Generation = m.GroupMetadata()
	for topic, partitions := range offsets {
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic = topic
		for partition, o := range partitions {
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset = partition, o.Offset
			t.Partitions = append(t.Partitions, rp)
		}
		req.Topics = append(req.Topics, t)
	}
	if err := before(req); err != nil {
		return nil, err
	}
	there, back := s.Duration(0, 10*time.Millisecond), s.Duration(0, 10*time.Millisecond)
	lost, unanswered := s.Fault(p.errors), s.Fault(p.errors)
	if unanswered && p.run.overtakes {
		there = s.Duration(there, 3*time.Second)
	}
	answer := make(chan *kmsg.OffsetCommitResponse, 1)
	m.group.w.Go(func() {
		time.Sleep(there)
		if lost {
			return
		}
		resp := m.group.take(req)
		time.Sleep(back)
		answer <- resp
	})
	if lost || unanswered {
		if err := p.node.Step(ctx, s, 20*time.Millisecond, 3*time.Second); err != nil {
			return nil, err
		}
		return nil, errSimCommit
	}
	select {
	case resp := <-answer:
		if err := p.node.Gate(s); err != nil {
			return nil, err
		}
		return resp, context.Cause(ctx)
	case <-ctx.Done():
		if err := p.node.Gate(s); err != nil {
			return nil, err
		}
		return nil, context.Cause(ctx)
	}
}

// take is the coordinator's answer to a commit.
func (g *simGroup) take(req *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
	g.mu.Lock()
	defer g.mu.Unlock()
	var err *kerr.Error
	switch {
	case !slices.ContainsFunc(g.members, func(m *simMember) bool { return m.id == req.MemberID }):
		err = kerr.UnknownMemberID
	case req.Generation != g.generation:
		err = kerr.IllegalGeneration
	case g.completing:
		err = kerr.RebalanceInProgress
	}
	resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetCommitResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetCommitResponseTopicPartition()
			rp.Partition = p.Partition
			if err != nil {
				rp.ErrorCode = err.Code
			} else {
				g.committed[p.Partition] = simOffset{at: p.Offset, metadata: *p.Metadata}
			}
			g.w.Tracef("group", "%s commits %d/%d %s: %v", req.MemberID, p.Partition, p.Offset, *p.Metadata, err)
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}
