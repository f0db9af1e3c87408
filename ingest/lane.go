package ingest

import (
	"sync"

	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/schema"
)

// maxUnpassed bounds the message ids a lane remembers because the tail has not passed
// their records yet: ten seconds' worth at 100,000 events a second, about 100 MB.
const maxUnpassed = 1_000_000

// lane is one Kafka partition as the appender sees it: its tail, and what the tail
// cannot know yet. A record is the tail's business once the tail has passed it, so
// everything here goes when Tail.Next is beyond it.
type lane struct {
	partition uint16

	// mu guards the fields below. It is the last lock to take; nothing is called under it.
	mu     sync.Mutex
	tail   Tail // nil until it was opened once
	claims map[xxh3.Uint128]claim
	starts map[sessionKey]start
	done   []passing // a queue from head on, nearly in offset order
	head   int
}

// claim says that a request is appending a message id, or has done so.
type claim struct {
	req  *request // nil once acknowledged
	item int
	id   schema.EventID // set once acknowledged
}

type sessionKey struct{ workspace, session string }

// start is a session whose first record is on its way, by which its later events know
// when it began and what workflow it belongs to.
type start struct {
	req      *request // who owns the entry
	ms       int64    // Unix ms
	workflow string
}

// passing is an acknowledged record's entry, to be forgotten when the tail passes it.
// Exactly one of key and session is set.
type passing struct {
	offset  int64
	key     xxh3.Uint128
	session sessionKey
}

func newLane(partition uint16) *lane {
	return &lane{
		partition: partition,
		claims:    make(map[xxh3.Uint128]claim),
		starts:    make(map[sessionKey]start),
	}
}

// prune forgets what lies below next, the tail's next offset. An entry out of offset
// order only delays those behind it. It returns how many were forgotten.
func (l *lane) prune(next int64) (forgotten int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.head < len(l.done) && l.done[l.head].offset < next {
		p := l.done[l.head]
		l.head++
		forgotten++
		if p.session != (sessionKey{}) {
			delete(l.starts, p.session)
			continue
		}
		delete(l.claims, p.key)
	}
	if l.head > 1024 && l.head > len(l.done)/2 {
		l.done = append(l.done[:0], l.done[l.head:]...)
		l.head = 0
	}
	if l.head == len(l.done) {
		l.done, l.head = l.done[:0], 0
	}
	return forgotten
}

// full reports whether the tail is so far behind that no more can be remembered.
func (l *lane) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.done)-l.head >= maxUnpassed
}

// take claims a message id for an item of r. If it is claimed already it returns that
// claim and false.
func (l *lane) take(key xxh3.Uint128, r *request, item int) (claim, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, taken := l.claims[key]; taken {
		return c, false
	}
	l.claims[key] = claim{req: r, item: item}
	return claim{}, true
}

// drop gives up a claim whose record was not written, as far as is known.
func (l *lane) drop(key xxh3.Uint128) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.claims, key)
}

// settle turns a claim into the acknowledged record's id, until the tail has passed it.
func (l *lane) settle(key xxh3.Uint128, id schema.EventID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claims[key] = claim{id: id}
	l.done = append(l.done, passing{offset: id.Offset, key: key})
}

// begin returns when a session began whose first record the tail has not seen: now, for
// the first request that asks.
func (l *lane) begin(key sessionKey, r *request, nowMs int64, workflow string) start {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.starts[key]
	if !ok {
		s = start{req: r, ms: nowMs}
	}
	if s.workflow == "" {
		s.workflow = workflow
	}
	l.starts[key] = s
	return s
}

// begun settles the starts that r owns: kept until the tail passes offset, or dropped
// if offset is negative, as none of the session's records was written. It reports
// whether the entry now waits for the tail.
func (l *lane) begun(key sessionKey, r *request, offset int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.starts[key]
	switch {
	case !ok || s.req != r:
	case offset < 0:
		delete(l.starts, key)
	default:
		s.req = nil
		l.starts[key] = s
		l.done = append(l.done, passing{offset: offset, session: key})
		return true
	}
	return false
}
