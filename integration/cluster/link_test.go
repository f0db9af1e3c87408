package cluster

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// echo answers each line with itself, on a Link of its own.
func echo(t *testing.T) *Link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with ln
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				defer c.Close()
				_, _ = io.Copy(c, c) // until it is cut
			}()
		}
	}()
	l, err := OpenLink("echo", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

// talker sends lines and reads what comes back.
type talker struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func talk(t *testing.T, l *Link) *talker {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &talker{t, conn, bufio.NewReader(conn)}
}

func (k *talker) say(line string) {
	k.t.Helper()
	if _, err := io.WriteString(k.conn, line+"\n"); err != nil {
		k.t.Fatal(err)
	}
}

// hear returns the next line, or what came of one before the connection ended.
func (k *talker) hear() string {
	k.t.Helper()
	if err := k.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		k.t.Fatal(err)
	}
	line, err := k.r.ReadString('\n')
	if err != nil && strings.Contains(err.Error(), "timeout") {
		k.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func TestLinkHoldsCutsAndHeals(t *testing.T) {
	l := echo(t)
	k := talk(t, l)
	k.say("one")
	if got := k.hear(); got != "one" {
		t.Fatalf("heard %q, want one", got)
	}
	l.Set(Everybody, Fault{HoldDown: true})
	k.say("two")
	if err := k.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if b, err := k.r.ReadByte(); err == nil {
		t.Fatalf("heard %q through a link that holds", b)
	}
	l.Heal(Everybody)
	if got := k.hear(); got != "two" {
		t.Fatalf("heard %q when it was healed, want two", got)
	}
	if n := l.Cut(Everybody); n != 1 {
		t.Errorf("Cut() = %d, want 1", n)
	}
	if got := k.hear(); got != "" {
		t.Errorf("heard %q on a connection that was cut", got)
	}
	l.Set(Everybody, Fault{Refuse: true})
	if conn, err := net.Dial("tcp", l.Addr()); err == nil { // else it was reset already
		defer conn.Close()
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("heard %d bytes on a connection that was refused", n)
		}
	}
}

func TestTripwireStrikesAtItsMoment(t *testing.T) {
	f := func(at Moment, bytes int, goOn bool, want string) {
		t.Helper()
		l := echo(t)
		k := talk(t, l)
		struck := make(chan string, 1)
		w := &Tripwire{Match: Saying("INSERT"), At: at, Bytes: bytes, Strike: func(label string) bool {
			struck <- label
			return goOn
		}}
		l.Lay(w)
		k.say("hello")
		if got := k.hear(); got != "hello" {
			t.Fatalf("heard %q, want hello", got)
		}
		k.say("an INSERT of rows")
		if got := k.hear(); got != want {
			t.Errorf("%v: heard %q, want %q", at, got, want)
		}
		<-w.Done()
		if len(struck) != 1 {
			t.Errorf("%v: it has not struck", at)
		}
	}
	f(BeforeRequest, 0, false, "")
	f(BeforeRequest, 0, true, "an INSERT of rows")
	f(MidRequest, 3, true, "an INSERT of rows")
	f(BeforeAnswer, 0, false, "")
	f(AfterAnswer, 0, true, "an INSERT of rows")
}
