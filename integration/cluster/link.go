package cluster

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

const (
	pieceBytes  = 32 << 10
	dialTimeout = 5 * time.Second
)

// Everybody is the label of a Fault or a Tripwire that is for all connections of a Link.
const Everybody = ""

// Link is a TCP proxy in front of one server or several alike, which take turns. It does
// what networks do: see Fault, Cut and Tripwire.
type Link struct {
	Name string

	ln    net.Listener
	label func(first []byte) string // who a connection belongs to, by its first bytes; may be nil
	wg    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	backends []string
	turn     int
	faults   map[string]Fault // by label
	changed  chan struct{}    // closed and replaced with faults
	flows    map[*flow]struct{}
	wires    map[*Tripwire]struct{}
	closed   bool
}

// flow is one connection through a Link.
type flow struct {
	link     *Link
	up, down *net.TCPConn // to the server, to the client
	gone     chan struct{}
	end      func() // closes both, once

	mu    sync.Mutex // guards what follows
	label string
	armed *strike // of a wire that has been touched
}

// OpenLink listens on a free port of the loopback interface.
func OpenLink(name string, backends ...string) (*Link, error) {
	ln, err := net.Listen("tcp", freeAddr())
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	l := &Link{
		Name: name, ln: ln, backends: backends, faults: make(map[string]Fault), changed: make(chan struct{}),
		flows: make(map[*flow]struct{}), wires: make(map[*Tripwire]struct{}),
	}
	l.wg.Go(l.accept)
	return l, nil
}

// freeAddr finds an address of the loopback interface that nobody listens on, below the
// ports that the system gives to clients: a server that is down for a moment finds it
// free when it comes back.
func freeAddr() string {
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000))
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			_ = ln.Close() // it was only a question
			return addr
		}
	}
}

// Addr is where the Link listens.
func (l *Link) Addr() string { return l.ln.Addr().String() }

// SetBackends changes who the connections from now on go to.
func (l *Link) SetBackends(addrs ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.backends = addrs
}

// Set has a fault hold for the connections with that label, until Heal.
func (l *Link) Set(label string, f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults[label] = f
	l.change()
}

// Heal ends the faults with that label.
func (l *Link) Heal(label string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.faults, label)
	l.change()
}

// change wakes those who wait. l.mu is held.
func (l *Link) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Cut resets the connections with that label, and returns how many there were.
func (l *Link) Cut(label string) int {
	l.mu.Lock()
	var cut []*flow
	for f := range l.flows {
		if label == Everybody || f.name() == label {
			cut = append(cut, f)
		}
	}
	l.mu.Unlock()
	for _, f := range cut {
		f.end()
	}
	return len(cut)
}

// Close ends all connections.
func (l *Link) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	err := l.ln.Close()
	l.Cut(Everybody)
	l.wg.Wait()
	return err
}

func (l *Link) accept() {
	for {
		conn, err := l.ln.Accept()
		if err != nil {
			return // closed
		}
		l.wg.Go(func() { l.serve(conn.(*net.TCPConn)) })
	}
}

func (l *Link) serve(down *net.TCPConn) {
	if f, _ := l.fault(Everybody); f.Refuse {
		reset(down)
		return
	}
	up := l.dial()
	if up == nil {
		reset(down)
		return
	}
	f := &flow{link: l, up: up, down: down, gone: make(chan struct{})}
	f.end = sync.OnceFunc(func() {
		close(f.gone)
		reset(up)
		reset(down)
	})
	l.mu.Lock()
	l.flows[f] = struct{}{}
	closed := l.closed
	l.mu.Unlock()
	if closed {
		f.end()
	}
	var both sync.WaitGroup
	both.Go(func() { f.pump(Up) })
	both.Go(func() { f.pump(Down) })
	both.Wait()
	f.end()
	f.disarm()
	l.mu.Lock()
	delete(l.flows, f)
	l.mu.Unlock()
}

// dial connects to the server whose turn it is, or to the next that lets us in; nil if
// none does.
func (l *Link) dial() *net.TCPConn {
	l.mu.Lock()
	backends := append([]string(nil), l.backends...)
	first := l.turn
	l.turn++
	l.mu.Unlock()
	for i := range backends {
		conn, err := net.DialTimeout("tcp", backends[(first+i)%len(backends)], dialTimeout)
		if err == nil {
			return conn.(*net.TCPConn)
		}
	}
	return nil
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // it may be closed
	_ = c.Close()
}

// fault is what holds for a label now, and what is closed when that changes.
func (l *Link) fault(label string) (Fault, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.faults[Everybody]
	if label != Everybody {
		f = f.with(l.faults[label])
	}
	return f, l.changed
}

func (f *flow) name() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.label
}

// pump carries bytes one way until either side ends.
func (f *flow) pump(d Direction) {
	from, to := f.down, f.up
	if d == Down {
		from, to = f.up, f.down
	}
	buf := make([]byte, pieceBytes)
	for first := true; ; first = false {
		n, err := from.Read(buf)
		if n > 0 {
			if first && d == Up && f.link.label != nil {
				label := f.link.label(buf[:n])
				f.mu.Lock()
				f.label = label
				f.mu.Unlock()
				if fault, _ := f.link.fault(label); fault.Refuse {
					f.end()
					return
				}
			}
			if !f.carry(d, buf[:n], to) {
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if f.pass(d, 0) {
				_ = to.CloseWrite() // it may be gone
			}
			return
		case err != nil:
			f.end()
			return
		}
	}
}

// carry sends one piece on, unless something strikes. It reports whether the flow goes on.
func (f *flow) carry(d Direction, b []byte, to *net.TCPConn) bool {
	if !f.pass(d, len(b)) {
		return false
	}
	if d == Up {
		f.touch(b)
	}
	before, after := f.cut(d, b)
	if len(before) > 0 {
		if _, err := to.Write(before); err != nil {
			f.end()
			return false
		}
	}
	if !f.strikeNow(d) {
		return false
	}
	if len(after) == 0 {
		return true
	}
	if _, err := to.Write(after); err != nil {
		f.end()
		return false
	}
	return true
}

// pass waits until n bytes may go that way; false if the flow has ended.
func (f *flow) pass(d Direction, n int) bool {
	paid := false
	for {
		fault, changed := f.link.fault(f.name())
		if fault.holds(d) {
			select {
			case <-changed:
				continue
			case <-f.gone:
				return false
			}
		}
		wait := fault.wait(n)
		if paid || wait <= 0 {
			return true
		}
		paid = true
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-f.gone:
			timer.Stop()
			return false
		}
	}
}
