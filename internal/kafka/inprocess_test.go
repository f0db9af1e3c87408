package kafka

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
)

func TestTheDoorwayTakesBothWays(t *testing.T) {
	listen := func() net.Listener {
		t.Helper()
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return tcp
	}
	door, other := openDoorway(listen(), ""), listen()
	defer other.Close()
	met := make(chan string)
	go func() {
		defer close(met)
		for {
			conn, err := door.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v", err)
				}
				return
			}
			name, err := io.ReadAll(conn)
			if err != nil {
				t.Error(err)
			}
			_ = conn.Close()
			met <- string(name)
		}
	}()
	say := func(conn net.Conn, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(conn.LocalAddr().Network())); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		_, inProcess := conn.(*pipeEnd)
		if inProcess {
			return "pipe " + <-met
		}
		return <-met
	}
	host := door.Addr().String()
	if got := say(door.dial(t.Context(), "tcp", host)); got != "pipe tcp" {
		t.Errorf("a client of this process came by %q", got)
	}
	if got := say(net.Dial("tcp", host)); got != "tcp" {
		t.Errorf("a client of another process came by %q", got)
	}
	conn, err := door.dial(t.Context(), "tcp", other.Addr().String())
	if err != nil {
		t.Fatalf("dial another broker: %v", err)
	}
	_ = conn.Close()

	for range 2 {
		if err := door.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	<-met
	if _, err := door.dial(t.Context(), "tcp", host); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after Close: %v, want what TCP says", err)
	}
	if _, err := net.Dial("tcp", host); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("TCP after Close: %v", err)
	}
}

// TestAdvertisedAddress has a broker stand behind another address: clients that have
// learnt of it connect there.
func TestAdvertisedAddress(t *testing.T) {
	const elsewhere = "127.0.0.1:1" // where nobody listens
	broker, err := StartEmbedded(t.TempDir(), "127.0.0.1:0", 1, slog.New(slog.DiscardHandler), Advertise(elsewhere))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	if got := broker.Addr(); got != elsewhere {
		t.Errorf("Addr() = %s, want %s", got, elsewhere)
	}
	if err := EnsureTopics(t.Context(), broker.Config()); err != nil { // in this process by a pipe
		t.Errorf("EnsureTopics() = %v", err)
	}
}
