package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// maxRetryAfter bounds how long a client does what a Retry-After says: these are in a
// hurry.
const maxRetryAfter = time.Second

// writer appends to one session after the other.
type writer struct {
	load   *Load
	name   string
	named  bool
	random *rand.Rand

	session *session
	next    int // number of the next event
	left    int // events until the session ends
	ended   int // sessions so far
}

func newWriter(l *Load, i int, named bool) *writer {
	return &writer{load: l, name: fmt.Sprintf("%sw%d", l.cfg.Prefix, i), named: named, random: l.random(i)}
}

// run appends until ctx ends, and then until what was sent is acknowledged.
func (w *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		if w.session == nil {
			w.session = w.load.Journal.newSession(fmt.Sprintf("%s-%d", w.name, w.ended), w.named)
			w.next, w.left = 0, 1+w.random.IntN(2*w.load.cfg.Length)
		}
		n := 1 + w.random.IntN(w.load.cfg.Batch)
		w.append(n)
		if w.left -= n; w.left <= 0 && ctx.Err() == nil {
			w.end()
			w.session, w.ended = nil, w.ended+1
		}
		pause(ctx, jitter(w.random, w.load.cfg.Pause))
	}
}

// append sends n events until they are acknowledged; unnamed ones once.
func (w *writer) append(n int) {
	j, s := w.load.Journal, w.session
	first := w.next
	w.next += n
	path, contentType, body := w.request(first, n)
	s.begin(first, n, j.Now())
	for {
		a, err := w.load.client.do(w.load.life, RoleIngest, http.MethodPost, path, contentType, body)
		j.tally(a, err)
		acknowledged := w.note(first, n, a, err)
		if acknowledged || !w.named || w.load.life.Err() != nil {
			return
		}
		w.backOff(a)
	}
}

// backOff waits as a client does between two tries.
func (w *writer) backOff(a answer) {
	pause(w.load.life, max(min(a.retryAfter, maxRetryAfter), 20*time.Millisecond+jitter(w.random, 100*time.Millisecond)))
}

// request makes the body of one append, in one of the forms that there are.
func (w *writer) request(first, n int) (path, contentType, body string) {
	events := make([]string, n)
	batch := w.random.IntN(3) == 0 // of any sessions
	for i := range events {
		e := map[string]any{
			"type": "chaos.step", "t_ms": first + i, "workflow_id": "flow",
			"payload": map[string]any{"s": w.session.name, "n": first + i},
		}
		if w.named {
			e["message_id"] = w.session.messageID(first + i)
		}
		if batch {
			e["session_id"] = w.session.name
		}
		b, _ := json.Marshal(e) // maps of plain values always marshal
		events[i] = string(b)
	}
	path = "/v1/sessions/" + w.session.name + "/events"
	if batch {
		path = "/v1/events"
	}
	if w.random.IntN(2) == 0 {
		return path, "application/x-ndjson", strings.Join(events, "\n")
	}
	return path, "application/json", `{"events":[` + strings.Join(events, ",") + `]}`
}

// note takes the answer into the journal, and reports whether all is acknowledged.
func (w *writer) note(first, n int, a answer, err error) bool {
	j, s := w.load.Journal, w.session
	out, why := judge(a, err)
	switch out {
	case outcomeWrong:
		j.complain("append to %s: %s", s.name, why)
		return true // not to go on for ever
	case outcomeAgain:
		return false
	}
	var results struct {
		Results []struct {
			ID    string          `json:"id"`
			Error json.RawMessage `json:"error"`
		} `json:"results"`
	}
	if err := json.Unmarshal(a.body, &results); err != nil || len(results.Results) != n {
		j.complain("append to %s: answer of %d events is %.300s (%v)", s.name, n, a.body, err)
		return true
	}
	all := true
	at := j.Now()
	for i, r := range results.Results {
		if r.ID == "" {
			all = false // of a batch, some; the same again tells
			continue
		}
		if err := s.acknowledge(first+i, r.ID, at); err != nil {
			j.complain("append to %s: %v", s.name, err)
		}
	}
	return all
}

// end ends the session.
func (w *writer) end() {
	j, s := w.load.Journal, w.session
	if sent, known := s.counts(); sent == 0 || known == 0 {
		return // there may be no such session
	}
	for w.load.life.Err() == nil {
		a, err := w.load.client.do(w.load.life, RoleIngest, http.MethodPost, "/v1/sessions/"+s.name+"/end", "", "")
		j.tally(a, err)
		switch out, why := judge(a, err); out {
		case outcomeDone:
			s.mu.Lock()
			s.ended = true
			s.mu.Unlock()
			return
		case outcomeWrong:
			j.complain("end of %s: %s", s.name, why)
			return
		}
		w.backOff(a)
	}
}
