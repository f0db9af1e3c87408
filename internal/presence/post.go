package presence

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/playhead-dev/playhead/schema"
)

// maxPostBytes is the largest message that Send takes.
const maxPostBytes = 32 << 10

// Send hands a message, a JSON text, to whoever receives on the other nodes. A node gets
// it within a second or, should Kafka fail or the node be starting, not at all. It returns
// once Kafka has the message.
func (c *Counter) Send(ctx context.Context, message []byte) error {
	if len(message) > maxPostBytes {
		return fmt.Errorf("send %d bytes: at most %d are taken", len(message), maxPostBytes)
	}
	value, err := json.Marshal(post{V: recordVersion, Node: c.publish.node, Post: message})
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return c.produce(ctx, [][]byte{value})
}

// Receive has fn called with every message that another node sends from now on. fn runs
// on the follower's goroutine and must return at once. There is one receiver: a second
// call replaces the first.
func (c *Counter) Receive(fn func(message []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.receiver = fn
}

// post is a record that carries a message instead of counts.
type post struct {
	V    int             `json:"v"`
	Node string          `json:"node"`
	Post json.RawMessage `json:"post,omitempty"`
}

// deliver hands on the message of a record, if it is one. Those that were sent before this
// node was reading are nobody's any more.
func (c *Counter) deliver(value []byte, old bool) bool {
	if len(value) > maxRecordBytes {
		return false
	}
	var p post
	if json.Unmarshal(value, &p) != nil || p.V != recordVersion || p.Post == nil || schema.CheckID(p.Node) != nil {
		return false
	}
	if old || p.Node == c.publish.node {
		return true
	}
	c.mu.Lock()
	fn := c.receiver
	c.mu.Unlock()
	if fn != nil {
		fn(p.Post)
	}
	return true
}
