package kafka_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/playhead-dev/playhead/schema"
)

// freezer makes listeners whose connections can be frozen, as those of a broker that is
// stopped: they are taken, and nothing that is sent is read.
type freezer struct {
	mu     sync.Mutex
	frozen map[string]chan struct{} // by address; closed when it thaws
}

func (f *freezer) listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return freezingListener{l, f}, nil
}

// freeze freezes the connections of an address, and returns what thaws them.
func (f *freezer) freeze(address string) (thaw func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gate := make(chan struct{})
	f.frozen[address] = gate
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.frozen, address)
		close(gate)
	}
}

type freezingListener struct {
	net.Listener
	freezer *freezer
}

func (l freezingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return freezingConn{conn, l.freezer}, nil
}

type freezingConn struct {
	net.Conn
	freezer *freezer
}

func (c freezingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.freezer.mu.Lock()
	gate := c.freezer.frozen[c.LocalAddr().String()]
	c.freezer.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return n, err
}

// 1. A partition's leader hangs; 2. another takes over; 3. nobody who asks for the end of
// the partition waits for as long as the request may take: each gives up before that. One of
// the next is answered all the same, by the new leader.
func TestALeaderThatHangsIsLeft(t *testing.T) {
	f := &freezer{frozen: make(map[string]chan struct{})}
	cluster, c := startFake(t, 3, 1, kfake.ListenFn(f.listen))
	ensure(t, c)
	l := openLog(t, c)
	produce(t, producer(t, c), 0, "a", "b")
	if end, err := l.HighWatermark(t.Context(), 0); end != 2 || err != nil {
		t.Fatalf("HighWatermark = %d, %v", end, err)
	}
	leader := cluster.LeaderFor(schema.TopicEvents, 0)
	t.Cleanup(f.freeze(cluster.ListenAddrs()[leader]))
	if err := cluster.MoveTopicPartition(schema.TopicEvents, 0, (leader+1)%3); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		end, err := l.HighWatermark(ctx, 0)
		cancel()
		if err == nil && end == 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("HighWatermark = %d, %v, a minute after the leader hung", end, err)
		}
	}
}
