package cluster

import (
	"fmt"
	"sync"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// place is where a record lies.
type place struct {
	partition uint16
	offset    int64
}

// placeOf reads the place out of an event id or a cursor that begins with one.
func placeOf(id string) (place, error) {
	const idLen = len(schema.EventIDPrefix) + 26
	if len(id) > idLen {
		id = id[:idLen]
	}
	e, err := schema.ParseEventID(id)
	if err != nil {
		return place{}, err
	}
	if e.Epoch != 1 {
		return place{}, fmt.Errorf("%s is of epoch %d; the log has never begun anew", id, e.Epoch)
	}
	return place{e.Partition, e.Offset}, nil
}

// ack is what the writer was told of one event.
type ack struct {
	place
	number int
	id     string
	tried  time.Duration // since the journal's start, when it was first sent
	at     time.Duration // when it was acknowledged; 0: never
}

// session is what the one writer of a session was told. Events are numbered from 0; the
// next is sent only when the one before was acknowledged, or given up.
type session struct {
	name  string
	named bool // its events have message ids, and are sent until they are acknowledged

	mu    sync.Mutex // guards what follows
	acks  []ack      // by number
	known int        // how many from the first on were acknowledged, without a gap
	ended bool       // its end was acknowledged
}

// messageID is that of an event by its number.
func (s *session) messageID(n int) string { return fmt.Sprintf("%s.%d", s.name, n) }

// begin notes that events from first on are sent for the first time.
func (s *session) begin(first, n int, at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.acks) < first+n {
		s.acks = append(s.acks, ack{number: len(s.acks), tried: at})
	}
}

// acknowledge notes what the answer said of an event.
func (s *session) acknowledge(n int, id string, at time.Duration) error {
	p, err := placeOf(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &s.acks[n]
	if a.at == 0 {
		a.place, a.id, a.at = p, id, at
	}
	for s.known < len(s.acks) && s.acks[s.known].at != 0 {
		s.known++
	}
	return nil
}

// counts are how many events were sent, and how many from the first on acknowledged.
func (s *session) counts() (sent, acknowledged int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acks), s.known
}

func (s *session) at(n int) ack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acks[n]
}

func (s *session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// seen is one event as a listener or a pager got it.
type seen struct {
	place
	session *session
	number  int
	at      time.Duration
}

// hearing is what one listener got, over all of its connections.
type hearing struct {
	name    string
	session *session // nil: the whole workspace
	after   int64    // offset behind which it wants its session; -1: all of it
	began   time.Duration

	mu      sync.Mutex // guards what follows
	seen    []seen
	dropped int // events that the server said it has left out
	opened  int // connections
	over    bool
}

// wants are the events of a session's that it should get. The position decides, and not
// the number: where a message was taken twice, by two nodes at once, the second's id lies
// behind events that followed the first.
func (h *hearing) wants(events []*record) (out []place) {
	for _, e := range events {
		if e.offset > h.after {
			out = append(out, e.place)
		}
	}
	return out
}

// add notes an event.
func (h *hearing) add(s seen) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, s)
}

// reached reports whether it has got the event of that number.
func (h *hearing) reached(number int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.seen) - 1; i >= 0; i-- {
		if h.seen[i].number == number {
			return true
		}
	}
	return false
}

func (h *hearing) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen) + h.dropped
}

// notFound is an acknowledged event that a node said it does not have.
type notFound struct {
	session *session
	number  int
}

// hidden notes an event that was not found by its id, for the Audit to judge.
func (j *Journal) hidden(s *session, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.notFound = append(j.notFound, notFound{s, n})
}

// suspicion is an answer that is wrong unless the event it was asked behind repeats
// another: then its id lies behind events that followed the first.
type suspicion struct {
	behind    place
	complaint string
}

// suspect complains of an answer about what follows an event, nil: about all there is.
func (j *Journal) suspect(behind *ack, format string, args ...any) {
	if behind == nil {
		j.complain(format, args...)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.suspicions = append(j.suspicions, suspicion{behind.place, j.stamped(format, args...)})
}

// maxComplaints bounds what is kept word for word; all are counted.
const maxComplaints = 50

// Journal is what clients were told. Safe for concurrent use.
type Journal struct {
	start time.Time

	mu         sync.Mutex // guards what follows
	sessions   []*session
	byName     map[string]*session
	hearings   []*hearing
	notFound   []notFound
	suspicions []suspicion
	complaints []string
	wrong      int

	requests, refused, unanswered int
}

func newJournal() *Journal {
	return &Journal{start: time.Now(), byName: make(map[string]*session)}
}

// Now is the journal's clock.
func (j *Journal) Now() time.Duration { return time.Since(j.start) }

func (j *Journal) newSession(name string, named bool) *session {
	s := &session{name: name, named: named}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sessions = append(j.sessions, s)
	j.byName[name] = s
	return s
}

func (j *Journal) find(name string) *session {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.byName[name]
}

// all are the sessions so far.
func (j *Journal) all() []*session {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.sessions[:len(j.sessions):len(j.sessions)]
}

func (j *Journal) listen(name string, s *session, after int64) *hearing {
	h := &hearing{name: name, session: s, after: after, began: j.Now()}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.hearings = append(j.hearings, h)
	return h
}

// complain notes an answer that nothing excuses.
func (j *Journal) complain(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.wrong++
	if len(j.complaints) < maxComplaints {
		j.complaints = append(j.complaints, j.stamped(format, args...))
	}
}

// stamped is a text with the journal's time before it.
func (j *Journal) stamped(format string, args ...any) string {
	return fmt.Sprintf("%7.3fs ", j.Now().Seconds()) + fmt.Sprintf(format, args...)
}

// tally counts a request by its outcome.
func (j *Journal) tally(a answer, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.requests++
	switch {
	case err != nil:
		j.unanswered++
	case a.status == 429 || a.status == 503:
		j.refused++
	}
}
