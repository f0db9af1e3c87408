package kafka

import (
	"encoding/binary"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// answers is a connection of the embedded broker on which an answer waits until what it
// may tell of is on disk.
type answers struct {
	net.Conn
	disk *durability

	// Of the frame being read; only the broker's reading goroutine is there.
	head [frameHead]byte
	got  int // bytes of head
	left int // bytes of the frame after head

	mu   sync.Mutex // guards open
	open []openRequest
}

// durableListener makes answers of a listener's connections.
type durableListener struct {
	net.Listener
	disk *durability
}

// Accept implements net.Listener.
func (l durableListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &answers{Conn: conn, disk: l.disk}, nil
}

// openRequest is a request whose answer is to come. Answers come in the order of the
// requests, but for those that want none (a produce with acks=0).
type openRequest struct {
	key         kmsg.Key
	correlation uint32
}

// A request begins with the length of what follows, its kind, version and correlation
// id; an answer with the length and the correlation id, all big endian
// (kafka.apache.org/protocol, "The Messages").
const (
	frameHead      = 4 + 2 + 2 + 4
	lengthBytes    = 4
	answerHead     = 4 + 4
	afterLength    = frameHead - lengthBytes
	maxOpenAnswers = 1024 // of a client that never wants one
)

func (c *answers) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.note(p[:n])
	return n, err
}

// note finds the requests in what is read, however it is cut.
func (c *answers) note(b []byte) {
	for len(b) > 0 {
		if c.left > 0 {
			skip := min(c.left, len(b))
			c.left -= skip
			b = b[skip:]
			continue
		}
		n := copy(c.head[c.got:], b)
		c.got += n
		b = b[n:]
		if c.got < frameHead {
			return
		}
		c.got = 0
		c.left = max(0, int(binary.BigEndian.Uint32(c.head[:]))-afterLength)
		c.opened(openRequest{
			key:         kmsg.Key(binary.BigEndian.Uint16(c.head[lengthBytes:])),
			correlation: binary.BigEndian.Uint32(c.head[lengthBytes+4:]),
		})
	}
}

func (c *answers) opened(r openRequest) {
	switch r.key {
	case kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn, kmsg.EndTxn, kmsg.TxnOffsetCommit:
		c.disk.transactions.Store(true)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) == maxOpenAnswers {
		c.open = append(c.open[:0], c.open[1:]...)
	}
	c.open = append(c.open, r)
}

// answered returns the kind of request that an answer belongs to.
func (c *answers) answered(correlation uint32) (kmsg.Key, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.open {
		if r.correlation == correlation {
			c.open = append(c.open[:0], c.open[i+1:]...)
			return r.key, true
		}
	}
	return 0, false
}

// Write sends one answer, whole: so the broker does it. If the disk fails the connection
// ends without it, and the client does not know what became of its request.
func (c *answers) Write(p []byte) (int, error) {
	if c.waits(p) {
		if err := c.disk.wait(); err != nil {
			_ = c.Close()
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// waits reports whether an answer may tell of something written: any but those to the
// few kinds of request that a connection begins with or keeps alive by.
func (c *answers) waits(p []byte) bool {
	if len(p) < answerHead {
		return true
	}
	key, known := c.answered(binary.BigEndian.Uint32(p[lengthBytes:]))
	if !known {
		return true
	}
	switch key {
	case kmsg.ApiVersions, kmsg.Metadata, kmsg.FindCoordinator, kmsg.Heartbeat,
		kmsg.SASLHandshake, kmsg.SASLAuthenticate:
		return false
	default:
		return true
	}
}
