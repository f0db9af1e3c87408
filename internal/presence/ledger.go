package presence

import (
	"fmt"
	"time"
)

// Bounds of what is folded from other nodes: about 40 MB at most.
const (
	maxPeers   = 1024
	maxFolded  = 100_000
	maxChanged = 10_000 // entries of one change; more make it a snapshot
)

// Limits are the most streams that may be open; 0 is no limit.
type Limits struct {
	PerWorkspace int
	PerKey       int // of one workspace
	PerClass     int // of one key and class
}

// What a LimitError is about.
const (
	OfWorkspace = "workspace"
	OfKey       = "key"
	OfClass     = "class"
)

// LimitError reports that as many streams are open as there may be.
type LimitError struct {
	Of    string // OfWorkspace, OfKey or OfClass
	Limit int
	Open  int // on all nodes, as far as is known; Limit or more
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%d streams of the %s are open; at most %d may be", e.Open, e.Of, e.Limit)
}

// entry is what streams are counted by.
type entry struct{ workspace, key, class string }

// keyOf is a key of a workspace.
type keyOf struct{ workspace, key string }

// ledger holds the counts of this node and of the others. It knows neither Kafka nor the
// time, and is not safe for concurrent use.
type ledger struct {
	timeout time.Duration

	own   map[entry]int
	peers map[string]*peer
	// folded counts the entries of all peers.
	folded int
	// expiry is when the first of the peers may be forgotten, or before; it means
	// nothing while there are none.
	expiry time.Time

	// The sums over own and all peers; zeros are not kept. classes leaves out the entries
	// without a class, which nobody asks for.
	workspaces map[string]int
	keys       map[keyOf]int
	classes    map[entry]int
	// ownOpen and peersOpen are the sums of everything.
	ownOpen, peersOpen int

	// What to publish next: everything, or the changed entries.
	all     bool
	changed map[entry]struct{}
}

// peer is another node, as heard.
type peer struct {
	seq      uint64 // of its last record
	unbroken uint64 // all records from this one to seq were heard
	heard    time.Time
	entries  map[entry]stated
}

// stated is what a peer said about an entry, and when: seq is the record's.
type stated struct {
	open int
	seq  uint64
}

func newLedger(timeout time.Duration) *ledger {
	return &ledger{
		timeout: timeout,
		own:     make(map[entry]int), peers: make(map[string]*peer),
		workspaces: make(map[string]int), keys: make(map[keyOf]int), classes: make(map[entry]int),
		changed: make(map[entry]struct{}),
	}
}

// bump adds n to m[k] and keeps no zero.
func bump[K comparable](m map[K]int, k K, n int) {
	if n += m[k]; n == 0 {
		delete(m, k)
	} else {
		m[k] = n
	}
}

func (l *ledger) sum(e entry, n int) {
	bump(l.workspaces, e.workspace, n)
	bump(l.keys, keyOf{e.workspace, e.key}, n)
	if e.class != "" {
		bump(l.classes, e, n)
	}
}

// admit returns the limit that one more stream would pass, the narrowest first, or nil.
func (l *ledger) admit(e entry, limits Limits) *LimitError {
	if open := l.classes[e]; e.class != "" && limits.PerClass > 0 && open >= limits.PerClass {
		return &LimitError{Of: OfClass, Limit: limits.PerClass, Open: open}
	}
	if open := l.keys[keyOf{e.workspace, e.key}]; limits.PerKey > 0 && open >= limits.PerKey {
		return &LimitError{Of: OfKey, Limit: limits.PerKey, Open: open}
	}
	if open := l.workspaces[e.workspace]; limits.PerWorkspace > 0 && open >= limits.PerWorkspace {
		return &LimitError{Of: OfWorkspace, Limit: limits.PerWorkspace, Open: open}
	}
	return nil
}

// add opens (n is 1) or ends (-1) a stream of this node.
func (l *ledger) add(e entry, n int) {
	bump(l.own, e, n)
	l.ownOpen += n
	l.sum(e, n)
	if l.all {
		return
	}
	l.changed[e] = struct{}{}
	if len(l.changed) > maxChanged {
		l.publishAll()
	}
}

// publishAll makes the next publication a snapshot.
func (l *ledger) publishAll() {
	l.all = true
	clear(l.changed)
}

// take returns what is to be published, and forgets that it is.
func (l *ledger) take() (open map[entry]int, snapshot bool) {
	if l.all {
		l.all = false
		open = make(map[entry]int, len(l.own))
		for e, n := range l.own {
			open[e] = n
		}
		return open, true
	}
	open = make(map[entry]int, len(l.changed))
	for e := range l.changed {
		open[e] = l.own[e]
	}
	clear(l.changed)
	return open, false
}

// fold takes in a record of another node, heard at the time given. It returns how many
// of its entries were dropped because of the bounds.
func (l *ledger) fold(m *message, heard time.Time) (dropped int) {
	p := l.peers[m.Node]
	if p == nil {
		if len(m.entries) == 0 {
			return 0 // a goodbye, or a change of nothing
		}
		if len(l.peers) >= maxPeers {
			return len(m.entries)
		}
		p = &peer{entries: make(map[entry]stated)}
		if expiry := heard.Add(l.timeout); len(l.peers) == 0 || expiry.Before(l.expiry) {
			l.expiry = expiry
		}
		l.peers[m.Node] = p
	}
	if m.Seq <= p.seq {
		return 0 // repeated or late
	}
	if m.Seq != p.seq+1 {
		p.unbroken = m.Seq
	}
	p.seq = m.Seq
	if heard.After(p.heard) {
		p.heard = heard
	}
	for e, open := range m.entries {
		if !l.state(p, e, open) {
			dropped++
		}
	}
	if m.Last && p.unbroken <= m.Snapshot {
		for e, s := range p.entries {
			if s.seq < m.Snapshot {
				l.state(p, e, 0)
			}
		}
		if len(p.entries) == 0 && len(m.entries) == 0 {
			delete(l.peers, m.Node)
		}
	}
	return dropped
}

// state sets what a peer has open of an entry; false if there is no room.
func (l *ledger) state(p *peer, e entry, open int) bool {
	was, had := p.entries[e]
	switch {
	case open > 0 && !had && l.folded >= maxFolded:
		return false
	case open > 0:
		p.entries[e] = stated{open: open, seq: p.seq}
		if !had {
			l.folded++
		}
	case had:
		delete(p.entries, e)
		l.folded--
	}
	l.peersOpen += open - was.open
	l.sum(e, open-was.open)
	return true
}

// expire forgets the peers that were not heard for the timeout, and returns how many.
func (l *ledger) expire(now time.Time) (forgotten int) {
	if len(l.peers) == 0 || now.Before(l.expiry) {
		return 0
	}
	l.expiry = now.Add(l.timeout)
	for node, p := range l.peers {
		expiry := p.heard.Add(l.timeout)
		if !now.Before(expiry) {
			for e := range p.entries {
				l.state(p, e, 0)
			}
			delete(l.peers, node)
			forgotten++
		} else if expiry.Before(l.expiry) {
			l.expiry = expiry
		}
	}
	return forgotten
}
