package streamer

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// op is what a command does to a running stream.
type op string

const (
	opSubscribe op = "subscribe" // another filter or position
	opSeek      op = "seek"      // another position
	opPause     op = "pause"
	opResume    op = "resume"
	opSpeed     op = "speed"
	opCancel    op = "cancel"
	opAnswer    op = "answer" // nothing but the answer to a command that was carried out already
)

// command changes a running subscription. It is made by whoever the client spoke to, who
// has checked it, and carried out by whoever runs the subscription.
type command struct {
	op op

	filter  *schema.Filter    // of opSubscribe; nil: as it is
	to      []schema.Position // of opSubscribe and opSeek, one for each leg; nil: where it is
	speed   float64           // of opSpeed; 0: as fast as it goes
	reason  error             // of opCancel
	notices *bool             // of opSubscribe; nil: as it is
	binary  *bool             // of opSubscribe; nil: as it is

	answer answer        // sent behind what the command does; zero: none
	done   chan struct{} // closed when it is carried out; nil: nobody waits
}

// answer is {"ack":ref} or {"error":…,"ref":ref}.
type answer struct {
	wanted bool
	ref    json.RawMessage            // as the client wrote it; null if it gave none
	err    map[string]any             // the error; nil: none
	data   map[string]json.RawMessage // further members
	pong   []byte                     // if not nil: this is the answer to a ping
}

// maxInbox bounds the commands that wait to be carried out.
const maxInbox = 64

// errInboxFull refuses a command of a client that sends them faster than they are done.
var errInboxFull = errors.New("too many commands wait")

// post has a command carried out. It returns errInboxFull if too many wait.
func (s *subscription) post(c command) error {
	s.inboxMu.Lock()
	if len(s.inbox) >= maxInbox {
		s.inboxMu.Unlock()
		return errInboxFull
	}
	s.inbox = append(s.inbox, c)
	if c.filter != nil {
		if s.asked == nil {
			asked := s.req
			s.asked = &asked
		}
		s.asked.Filter = *c.filter
	}
	s.inboxMu.Unlock()
	s.mail.Store(true)
	s.Wake()
	return nil
}

// obey carries out the commands that wait, and appends their answers.
func (s *subscription) obey(dst []byte) []byte {
	if !s.mail.Swap(false) {
		return dst
	}
	s.inboxMu.Lock()
	inbox := s.inbox
	s.inbox = nil
	s.inboxMu.Unlock()
	for i := range inbox {
		s.do(&inbox[i])
		if inbox[i].answer.wanted {
			dst = s.wire.answer(dst, inbox[i].answer)
		}
		if inbox[i].done != nil {
			close(inbox[i].done)
		}
	}
	return dst
}

func (s *subscription) do(c *command) {
	switch c.op {
	case opPause:
		s.paused = true
	case opResume:
		s.paused = false
		s.restartPace()
		s.refresh()
	case opSpeed:
		if s.pace == nil {
			s.pace = new(pacer)
		}
		s.pace.setSpeed(c.speed, time.Now())
		if c.speed == 0 {
			s.pace = nil
		}
	case opSubscribe, opSeek:
		s.move(c)
	case opCancel:
		s.end(c.reason)
	case opAnswer:
	}
}

// move gives the subscription another filter or position.
func (s *subscription) move(c *command) {
	s.detach()
	if c.filter != nil {
		s.req.Filter = *c.filter
		s.filterKey = s.req.Filter.Key()
	}
	if c.notices != nil {
		s.req.Notices = *c.notices
	}
	if w, ok := s.wire.(*socket); ok && c.binary != nil {
		w.binary = *c.binary
	}
	for i := range c.to {
		s.legs[i].pos = c.to[i]
	}
	s.dropped.Store(0)
	s.caughtUp = false
	s.restartPace()
}

func (s *subscription) restartPace() {
	if s.pace != nil {
		s.pace.restart()
	}
}
