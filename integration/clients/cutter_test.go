package clients

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
)

// cutter is a TCP proxy that breaks connections after a random number of bytes from the
// server: now by closing, which a body without a length cannot be told from its end, now
// by a reset. After its last cut it lets everything pass.
type cutter struct {
	ln     net.Listener
	target string
	plan   cuts
	retry  []byte // put before the first byte of a body of events

	mu     sync.Mutex // guards all below; no I/O under it
	random *rand.Rand
	left   int // cuts to make
	made   []connection
	passed bytes.Buffer // what the server sent, as far as it was passed on
	asked  bytes.Buffer // what the clients sent
	held   chan struct{}
	open   map[net.Conn]struct{}
	closed bool
	relays sync.WaitGroup
}

// cuts says how a proxy breaks connections.
type cuts struct {
	number int
	most   int // bytes a connection carries before its cut, and at least 1
	// wholeHead spares the response's head. Chromium takes a head that was cut off for a
	// whole one if it came over plain HTTP, finds no Access-Control-Allow-Origin in it, and
	// never comes back.
	wholeHead bool
}

// startCutter starts a proxy to target for a client. Where it cuts, it also tells clients
// of event streams to come back after 20 ms, since some wait 3 s otherwise.
func startCutter(t *testing.T, client, target string, plan cuts) *cutter {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{ln: ln, target: target, random: newRandom(t, client), left: plan.number, plan: plan, open: make(map[net.Conn]struct{})}
	if plan.number > 0 {
		c.retry = []byte("retry: 20\n")
	}
	c.relays.Go(c.accept)
	t.Cleanup(c.close)
	return c
}

// seed is what all randomness of this run comes from.
var seed = sync.OnceValues(func() (uint64, error) {
	if text := os.Getenv("PLAYHEAD_CLIENTS_SEED"); text != "" {
		return strconv.ParseUint(text, 10, 64)
	}
	return uint64(time.Now().UnixNano()), nil
})

// newRandom returns randomness of the run's seed and of what it is for.
func newRandom(t *testing.T, purpose string) *rand.Rand {
	t.Helper()
	n, err := seed()
	if err != nil {
		t.Fatalf("PLAYHEAD_CLIENTS_SEED: %v", err)
	}
	return rand.New(rand.NewPCG(n, xxh3.HashString(t.Name()+" "+purpose)))
}

func (c *cutter) addr() string { return c.ln.Addr().String() }

// connection is one that a client made.
type connection struct {
	at    time.Time
	spoke time.Time // when the server last sent something
}

// connections returns those that were made, the oldest first.
func (c *cutter) connections() []connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.made)
}

// cutsLeft returns how many cuts are still to come.
func (c *cutter) cutsLeft() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// requests returns what the clients sent so far.
func (c *cutter) requests() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.asked.Bytes())
}

// sever breaks all open connections.
func (c *cutter) sever() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		conn.Close()
	}
}

// sent returns what the server sent so far.
func (c *cutter) sent() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.passed.Bytes())
}

// hold stops reading from the server until release is called.
func (c *cutter) hold() (release func()) {
	held := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = held
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held = nil
		close(held)
	})
}

func (c *cutter) close() {
	c.ln.Close()
	c.mu.Lock()
	c.closed = true
	for conn := range c.open {
		conn.Close()
	}
	if c.held != nil {
		close(c.held)
		c.held = nil
	}
	c.mu.Unlock()
	c.relays.Wait()
}

func (c *cutter) accept() {
	for {
		client, err := c.ln.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		number := len(c.made)
		c.made = append(c.made, connection{at: time.Now()})
		c.mu.Unlock()
		c.relays.Go(func() { c.relay(client, number) })
	}
}

// keep notes a connection for close, or closes it if that has been.
func (c *cutter) keep(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		if c.closed {
			conn.Close()
		} else {
			c.open[conn] = struct{}{}
		}
	}
	return !c.closed
}

func (c *cutter) forget(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
		delete(c.open, conn)
	}
}

func (c *cutter) relay(client net.Conn, number int) {
	up, err := net.Dial("tcp", c.target)
	if err != nil {
		client.Close() // the server is away
		return
	}
	_ = up.(*net.TCPConn).SetReadBuffer(32 << 10) // so that hold is soon felt
	if !c.keep(client, up) {
		return
	}
	defer c.forget(client, up)
	c.relays.Go(func() {
		_, _ = io.Copy(io.MultiWriter(up, recorder{c}), client)
		up.Close() // the client hung up
	})
	budget, reset := c.draw()
	head := &headSplitter{insert: c.retry}
	buf := make([]byte, 16<<10)
	for {
		if held := c.holding(); held != nil {
			<-held
		}
		n, err := up.Read(buf)
		out := head.pass(buf[:n])
		if budget >= 0 && c.plan.wholeHead {
			budget += head.passed()
		}
		cut := budget >= 0 && len(out) >= budget
		if cut {
			out = out[:budget]
		}
		if budget >= 0 {
			budget -= len(out)
		}
		if _, werr := client.Write(out); werr != nil {
			return
		}
		c.mu.Lock()
		c.passed.Write(out)
		if n > 0 {
			c.made[number].spoke = time.Now()
		}
		if cut {
			c.left--
		}
		c.mu.Unlock()
		if cut && reset {
			_ = client.(*net.TCPConn).SetLinger(0)
		}
		if cut || err != nil {
			return
		}
	}
}

// recorder keeps what clients send.
type recorder struct{ c *cutter }

func (r recorder) Write(b []byte) (int, error) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.c.asked.Write(b)
}

func (c *cutter) holding() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held
}

// draw returns after how many bytes a new connection breaks, -1 for never, and how.
func (c *cutter) draw() (bytes int, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left <= 0 {
		return -1, false
	}
	return 1 + c.random.IntN(c.plan.most), c.random.IntN(2) == 0
}

// headSplitter puts bytes between the head of an event stream's response and its body.
type headSplitter struct {
	insert []byte
	head   []byte
	done   bool
	size   int // of the head, until passed has told
}

// passed returns the size of the head, once, when it has passed; otherwise 0.
func (h *headSplitter) passed() int {
	n := h.size
	h.size = 0
	return n
}

func (h *headSplitter) pass(b []byte) []byte {
	if h.done || len(h.insert) == 0 {
		return b
	}
	h.head = append(h.head, b...)
	end := bytes.Index(h.head, []byte("\r\n\r\n"))
	if end < 0 {
		return nil
	}
	h.done = true
	if !bytes.Contains(h.head[:end], []byte("text/event-stream")) {
		return h.head
	}
	h.size = end + 4
	out := append([]byte(nil), h.head[:end+4]...)
	out = append(out, h.insert...)
	return append(out, h.head[end+4:]...)
}
