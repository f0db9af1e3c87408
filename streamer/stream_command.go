package streamer

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// takeCommand answers POST /v1/streams/{id}/commands: the commands of a socket for any
// stream, given by another request. The key that opened the stream gives any; keys with
// scope control or admin may end every stream of the workspace.
func (h *Hub) takeCommand(c *fiber.Ctx) error {
	who := httpapi.From(c)
	if who.Scopes&(control.ScopeRead|control.ScopeControl|control.ScopeAdmin) == 0 {
		return httpapi.Errorf(fiber.StatusForbidden, httpapi.CodeInsufficientScope, "To command a stream, the API key wants the scope read, control or admin.").
			WithDetail("required", (control.ScopeRead | control.ScopeControl | control.ScopeAdmin).Names())
	}
	if err := httpapi.NoParams(c); err != nil {
		return err
	}
	id := strings.Clone(c.Params("id"))
	body, err := httpapi.PlainBody(c)
	if err != nil {
		return err
	}
	body = bytes.Clone(body) // it may go to other nodes, and dies with the request
	o, err := parseOrder(body)
	if err != nil {
		return err
	}
	if o.op != opSeek && o.op != opSubscribe { // those depend on the stream
		if _, err := h.command(c.UserContext(), who, Request{}, o, true); err != nil {
			return err
		}
	}
	s := h.find(id)
	if s == nil && h.relay != nil && h.mayBeElsewhere(id) {
		return h.pass(c, relayed{Connection: id, Who: who, Command: body})
	}
	if s == nil {
		return httpapi.NotFound("stream")
	}
	if err := mayCommand(who, s, o.op); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), commandTimeout)
	defer cancel()
	status, err := h.carryOut(ctx, who, s, o)
	if err != nil {
		return err
	}
	if status != statusDone {
		c.Status(fiber.StatusAccepted)
	}
	return c.JSON(fiber.Map{"connection_id": id, "status": status})
}

// What became of a command by another request.
const (
	statusDone    = "done"    // carried out
	statusWaiting = "waiting" // the stream will, once its client takes what it is being sent
	statusSent    = "sent"    // to the other nodes, of which one may hold the stream
)

// mayCommand returns why the key may not give the command. To who cannot see the stream it
// is not there.
func mayCommand(who control.Principal, s *subscription, what op) error {
	switch {
	case s.req.Scope.Workspace != who.Workspace:
		return httpapi.NotFound("stream")
	case who.KeyID == s.req.KeyID:
		return nil
	case who.Scopes&(control.ScopeControl|control.ScopeAdmin) == 0 || who.Session != "" || who.Workflow != "":
		return httpapi.NotFound("stream")
	case what != opCancel:
		return httpapi.Errorf(fiber.StatusForbidden, httpapi.CodeInsufficientScope, "Another key may only cancel the stream, not %s it.", schema.Quote(string(what))).
			WithParam("op")
	default:
		return nil
	}
}

// commandWait is how long a request waits for its command to be carried out.
const commandWait = 2 * time.Second

// carryOut has a command carried out that is not the stream's own client's.
func (h *Hub) carryOut(ctx context.Context, who control.Principal, s *subscription, o order) (status string, err error) {
	cmd, err := h.command(ctx, who, s.request(), o, true)
	if err != nil {
		return "", err
	}
	if cmd.op == opCancel {
		s.end(cmd.reason) // now, whatever it is waiting for
		return statusDone, nil
	}
	cmd.done = make(chan struct{})
	if err := s.post(cmd); err != nil {
		return "", httpapi.Errorf(fiber.StatusTooManyRequests, httpapi.CodeRateLimited, "Too many commands wait for the stream.").WithRetryAfter(time.Second)
	}
	timer := time.NewTimer(commandWait)
	defer timer.Stop()
	select {
	case <-cmd.done:
		return statusDone, nil
	case <-timer.C:
		return statusWaiting, nil
	case <-s.ctx.Done():
		return "", httpapi.NotFound("stream")
	}
}

// mayBeElsewhere reports whether id is that of a stream of another node.
func (h *Hub) mayBeElsewhere(id string) bool {
	rest, ok := strings.CutPrefix(id, idPrefix)
	return ok && len(rest) > nodeIDLen && len(rest) <= maxIDLen && schema.CheckID(rest) == nil && !strings.HasPrefix(rest, h.node)
}

// relayed is a command to a stream of another node.
type relayed struct {
	Connection string            `json:"connection"`
	Who        control.Principal `json:"who"`
	Command    json.RawMessage   `json:"command"`
}

// pass hands a command to the other nodes: one of them may hold the stream. Nobody can say
// whether any does, so the answer is the same for all.
func (h *Hub) pass(c *fiber.Ctx, r relayed) error {
	ctx, cancel := context.WithTimeout(c.UserContext(), commandTimeout)
	defer cancel()
	if err := h.relay(ctx, marshal(r)); err != nil {
		return httpapi.LogUnavailable(err)
	}
	return c.Status(fiber.StatusAccepted).JSON(fiber.Map{"connection_id": r.Connection, "status": statusSent})
}

// Deliver takes a command that another node's Relay was given, and carries it out if the
// stream is one of this hub's. It returns at once, as a command may have to look things up;
// with too many under way it drops the command.
func (h *Hub) Deliver(message []byte) {
	var r relayed
	if err := json.Unmarshal(message, &r); err != nil {
		h.logger.Warn("relayed command cannot be read", "error", err)
		return
	}
	s := h.find(r.Connection)
	if s == nil {
		return
	}
	o, err := parseOrder(r.Command)
	if err == nil {
		err = mayCommand(r.Who, s, o.op)
	}
	if err != nil {
		h.logger.Info("relayed command was refused", "stream", s.id, "error", err)
		return
	}
	if !h.beginDelivery() {
		h.logger.Warn("relayed command was dropped: too many are under way", "stream", s.id)
		return
	}
	go func() { // ends with commandTimeout; Close waits for it
		defer h.endDelivery()
		ctx, cancel := context.WithTimeout(s.ctx, commandTimeout)
		defer cancel()
		if _, err := h.carryOut(ctx, r.Who, s, o); err != nil {
			h.logger.Info("relayed command was refused", "stream", s.id, "error", err)
		}
	}()
}

// maxDeliveries bounds the relayed commands under way.
const maxDeliveries = 256

// beginDelivery counts a delivery, unless there are too many or the hub is closing.
func (h *Hub) beginDelivery() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing || h.deliveries >= maxDeliveries {
		return false
	}
	h.deliveries++
	h.wg.Add(1)
	return true
}

func (h *Hub) endDelivery() {
	h.mu.Lock()
	h.deliveries--
	h.mu.Unlock()
	h.wg.Done()
}

// EndKey ends the streams that were opened with a key that is revoked.
func (h *Hub) EndKey(keyID string) {
	h.mu.Lock()
	var of []*subscription
	for _, s := range h.subs {
		if s.req.KeyID == keyID {
			of = append(of, s)
		}
	}
	h.mu.Unlock()
	for _, s := range of {
		s.end(errKeyEnded)
	}
}

// find returns an open stream of this node, or nil.
func (h *Hub) find(id string) *subscription {
	h.mu.Lock()
	s := h.subs[id]
	h.mu.Unlock()
	if s == nil || s.ctx.Err() != nil {
		return nil // or about to be taken down
	}
	return s
}
