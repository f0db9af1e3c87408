package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/fasthttp/websocket"
)

// followSocket follows everything from the beginning on by WebSocket, until ctx ends.
func (l *Load) followSocket(ctx context.Context, name string) {
	n := &listener{load: l, hearing: l.Journal.listen(name, nil, -1), path: "/v1/stream/ws?from=start&on_slow=replay", random: l.random(len(name))}
	for ctx.Err() == nil {
		pause(ctx, n.socket(ctx)+jitter(n.random, comeBack))
	}
}

// socket follows for as long as a connection lasts.
func (n *listener) socket(ctx context.Context) (wait time.Duration) {
	j := n.load.Journal
	patience := n.load.cfg.Patience
	dialer := websocket.Dialer{HandshakeTimeout: patience}
	header := http.Header{"Authorization": {"Bearer " + Key}}
	if n.lastID != "" {
		header.Set("Last-Event-ID", n.lastID)
	}
	conn, res, err := dialer.DialContext(ctx, "ws://"+n.load.client.front[RoleStreamer]+n.path, header)
	if err != nil {
		if res == nil {
			j.tally(answer{}, err)
			return 0
		}
		a := answer{status: res.StatusCode}
		if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
			a.retryAfter = time.Duration(s) * time.Second
		}
		_ = res.Body.Close() // the package has read it
		j.tally(a, nil)
		if out, why := judge(a, nil); out == outcomeWrong {
			j.complain("%s, from %q: %s", n.hearing.name, n.lastID, why)
		}
		return min(a.retryAfter, maxRetryAfter)
	}
	_ = res.Body.Close() // there is none
	defer conn.Close()   //nolint:errcheck // nothing is in flight
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	n.hearing.mu.Lock()
	n.hearing.opened++
	n.hearing.mu.Unlock()
	alive := func() error { return conn.SetReadDeadline(time.Now().Add(patience)) }
	pong := conn.PingHandler()
	conn.SetPingHandler(func(data string) error {
		return errors.Join(alive(), pong(data))
	})
	for {
		if alive() != nil {
			return wait
		}
		_, message, err := conn.ReadMessage()
		if err != nil {
			var closed *websocket.CloseError
			if errors.As(err, &closed) && closed.Code >= 4000 && (closed.Code < 4003 || closed.Code > 4005) {
				j.complain("%s: closed with %d %s", n.hearing.name, closed.Code, closed.Text)
			}
			return wait
		}
		n.message(message)
	}
}

// message takes one message as a frame is taken.
func (n *listener) message(b []byte) {
	var m struct {
		Type, ID, Cursor string
		Data             json.RawMessage
	}
	if err := json.Unmarshal(b, &m); err != nil {
		n.load.Journal.complain("%s: %v in %.300s", n.hearing.name, err, b)
		return
	}
	switch m.Type {
	case "chaos.step":
		n.frame(m.Type, m.ID, string(m.Data))
	case "playhead.dropped":
		var told struct{ Count json.Number }
		if err := json.Unmarshal(m.Data, &told); err != nil {
			n.load.Journal.complain("%s: %v in %.300s", n.hearing.name, err, b)
		}
		n.told(told.Count.String())
	case "error":
		n.frame("error", "", string(m.Data))
	default:
		n.load.Journal.complain("%s: %.300s", n.hearing.name, b)
	}
	if m.Cursor != "" {
		n.lastID = m.Cursor
	} else if m.ID != "" {
		n.lastID = m.ID
	}
}
