package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// comeBack is what a listener waits before it connects again, on average.
const comeBack = 100 * time.Millisecond

// listener follows a stream as a browser's EventSource does: it remembers the last id and
// comes back with it whenever a connection ends.
type listener struct {
	load    *Load
	hearing *hearing
	path    string // with a place to begin, until there is an id
	lastID  string
	random  *rand.Rand
}

// followWorkspace follows everything from the beginning on, until ctx ends.
func (l *Load) followWorkspace(ctx context.Context, name string) {
	n := &listener{load: l, hearing: l.Journal.listen(name, nil, -1), path: "/v1/stream?from=start&on_slow=replay", random: l.random(len(name))}
	n.run(ctx)
}

// followSessions follows one session after the other, each from its start or from an
// event that was acknowledged, until all of it is there.
func (l *Load) followSessions(ctx context.Context, name string, random *rand.Rand) {
	for i := 0; ctx.Err() == nil; i++ {
		s := l.someSession(ctx, random)
		if s == nil {
			return
		}
		n := &listener{load: l, path: "/v1/sessions/" + s.name + "/events/stream?from=start", random: random}
		after := int64(-1)
		if _, known := s.counts(); s.named && random.IntN(2) == 0 {
			last := s.at(random.IntN(known))
			n.lastID, after = last.id, last.offset
		}
		if random.IntN(2) == 0 {
			n.path += "&close=end"
		}
		n.hearing = l.Journal.listen(fmt.Sprintf("%s, %d: %s behind %d", name, i, s.name, after), s, after)
		one, stop := context.WithCancel(ctx)
		go func() { // ends with one
			defer stop()
			await(one, time.Hour, "the session is over", func(context.Context) error { //nolint:errcheck // it ends with one
				if sent, known := s.counts(); s.isEnded() && sent == known && n.hearing.reached(sent-1) {
					return nil
				}
				return errors.New("it is not")
			})
		}()
		n.run(one)
		stop()
	}
}

// someSession waits for a session that somebody writes to.
func (l *Load) someSession(ctx context.Context, random *rand.Rand) *session {
	for ctx.Err() == nil {
		all := l.Journal.all()
		if len(all) > 0 {
			s := all[len(all)-1-random.IntN(min(len(all), 2*(l.cfg.Writers+1)))]
			if _, known := s.counts(); s.named && known > 0 {
				return s
			}
		}
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

func (n *listener) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait, over := n.connect(ctx)
		if over {
			n.hearing.mu.Lock()
			n.hearing.over = true
			n.hearing.mu.Unlock()
			<-ctx.Done()
			return
		}
		pause(ctx, wait+jitter(n.random, comeBack))
	}
}

// connect follows for as long as a connection lasts. over says that there is nothing more.
func (n *listener) connect(ctx context.Context) (wait time.Duration, over bool) {
	j := n.load.Journal
	var dialer net.Dialer
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", n.load.client.front[RoleStreamer])
	if err != nil {
		return 0, false
	}
	defer conn.Close()
	context.AfterFunc(ctx, func() { _ = conn.Close() }) // it may be closed
	patient := &patientConn{conn, n.load.cfg.Patience}

	head := "GET " + n.path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + Key + "\r\n"
	if n.lastID != "" {
		head += "Last-Event-ID: " + n.lastID + "\r\n"
	}
	if _, err := io.WriteString(patient, head+"\r\n"); err != nil {
		return 0, false
	}
	r := bufio.NewReader(patient)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		j.tally(answer{}, err)
		return 0, false
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		a.retryAfter = time.Duration(s) * time.Second
	}
	j.tally(a, nil)
	if res.StatusCode == http.StatusNoContent {
		return 0, true
	}
	if res.StatusCode != http.StatusOK {
		a.body, _ = io.ReadAll(io.LimitReader(res.Body, 1<<10)) // it explains a complaint
		if out, why := judge(a, nil); out == outcomeWrong {
			j.complain("%s, from %q: %s", n.hearing.name, n.lastID, why)
		}
		return min(a.retryAfter, maxRetryAfter), false
	}
	n.hearing.mu.Lock()
	n.hearing.opened++
	n.hearing.mu.Unlock()
	return n.read(bufio.NewReader(res.Body)), false
}

// patientConn gives up when nothing comes for that long.
type patientConn struct {
	net.Conn
	patience time.Duration
}

func (c *patientConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// read takes whole frames; a torn one at the end of a connection does not count. It
// returns what the server wants the client to wait.
func (n *listener) read(r *bufio.Reader) (wait time.Duration) {
	var event, id, data string
	some := false
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return wait
		}
		line = strings.TrimSuffix(line, "\n")
		switch name, value, _ := strings.Cut(line, ": "); {
		case line == "":
			if some {
				n.frame(event, id, data)
			}
			event, id, data, some = "", "", "", false
			continue
		case strings.HasPrefix(line, ": dropped "):
			n.told(strings.TrimPrefix(line, ": dropped "))
			continue
		case strings.HasPrefix(line, ":"):
			continue
		case name == "event":
			event = value
		case name == "id":
			id = value
		case name == "data":
			data = value
		case name == "retry":
			if ms, err := strconv.Atoi(value); err == nil {
				wait = min(time.Duration(ms)*time.Millisecond, maxRetryAfter)
			}
			continue
		}
		some = true
	}
}

func (n *listener) told(count string) {
	lost, err := strconv.Atoi(count)
	if err != nil {
		n.load.Journal.complain("%s: it was told %q", n.hearing.name, count)
	}
	n.hearing.mu.Lock()
	n.hearing.dropped += lost
	n.hearing.mu.Unlock()
}

func (n *listener) frame(event, id, data string) {
	j := n.load.Journal
	if id != "" {
		n.lastID = id
	}
	switch event {
	case "heartbeat":
	case "error":
		var e struct {
			Code string `json:"code"`
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil || e.Code != "CONNECTION_ERROR" {
			j.complain("%s: %s", n.hearing.name, data)
		}
	case "chaos.step":
		s, err := j.saw(id, []byte(data))
		if err != nil {
			j.complain("%s: %v", n.hearing.name, err)
			return
		}
		n.hearing.add(s)
	default:
		j.complain("%s: event %s: %s", n.hearing.name, event, data)
	}
}
