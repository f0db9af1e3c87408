package kafka

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func testPipe(t *testing.T) (a, b net.Conn) {
	t.Helper()
	a, b = newPipe(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9092})
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func TestPipeCarriesEverythingInOrder(t *testing.T) {
	a, b := testPipe(t)
	random := rand.New(rand.NewPCG(1, 2))
	sent := make([]byte, 5*pipeBytes)
	for i := range sent {
		sent[i] = byte(random.Uint32())
	}
	sizes := rand.New(rand.NewPCG(3, 4))
	wrote := make(chan error, 1)
	go func() {
		var err error
		for rest := sent; len(rest) > 0 && err == nil; {
			n := min(len(rest), 1+random.IntN(2*pipeBytes))
			_, err = a.Write(rest[:n])
			rest = rest[n:]
		}
		wrote <- errors.Join(err, a.Close())
	}()
	var got []byte
	buf := make([]byte, pipeBytes)
	var err error
	for err == nil {
		var n int
		n, err = b.Read(buf[:1+sizes.IntN(len(buf))])
		got = append(got, buf[:n]...)
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("read ended with %v, want EOF", err)
	}
	if err := <-wrote; err != nil {
		t.Errorf("write: %v", err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("read %d bytes that differ from the %d written", len(got), len(sent))
	}
}

func TestPipeWriterWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testPipe(t)
		if _, err := a.Write(make([]byte, pipeBytes)); err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := a.Write([]byte("more"))
			wrote <- err
		}()
		synctest.Wait()
		select {
		case err := <-wrote:
			t.Fatalf("a write into a full pipe returned %v", err)
		default:
		}
		if _, err := io.ReadFull(b, make([]byte, pipeBytes)); err != nil {
			t.Fatal(err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
	})
}

func TestPipeDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testPipe(t)
		begun := time.Now()
		took := func(what string, want time.Duration, n int, err error) {
			t.Helper()
			if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != want {
				t.Errorf("%s = %d, %v after %v; want a timeout after %v", what, n, err, time.Since(begun), want)
			}
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("%s: %v is no timeout", what, err)
			}
		}
		_ = b.SetReadDeadline(begun.Add(time.Second))
		n, err := b.Read(make([]byte, 1))
		took("read", time.Second, n, err)

		// A client that gives up moves the deadline of a read under way.
		_ = b.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { _ = b.SetReadDeadline(time.Now()) })
		n, err = b.Read(make([]byte, 1))
		took("read with a deadline set meanwhile", 2*time.Second, n, err)

		// And one that is put off does not end at the old time.
		_ = b.SetDeadline(begun.Add(3 * time.Second))
		time.AfterFunc(500*time.Millisecond, func() { _ = b.SetReadDeadline(begun.Add(4 * time.Second)) })
		n, err = b.Read(make([]byte, 1))
		took("read with a deadline put off", 4*time.Second, n, err)

		if _, err := a.Write(make([]byte, pipeBytes)); err != nil {
			t.Fatal(err)
		}
		_ = a.SetWriteDeadline(begun.Add(5 * time.Second))
		n, err = a.Write(make([]byte, 1))
		took("write", 5*time.Second, n, err)

		_ = b.SetDeadline(time.Time{})
		if n, err := io.ReadFull(b, make([]byte, pipeBytes)); n != pipeBytes || err != nil {
			t.Errorf("after the timeouts: read %d, %v", n, err)
		}
	})
}

func TestPipeCloseIsLikeTCPs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testPipe(t)
		if _, err := a.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		_, _ = a.Close(), a.Close()
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write on the closed end: %v", err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read on the closed end: %v", err)
		}
		if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
			t.Errorf("the other end read %q, %v", got, err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to the closed end: %v", err)
		}

		// Closing wakes who waits, on both ends.
		c, d := testPipe(t)
		results := make(chan error, 2)
		for _, end := range []net.Conn{c, d} {
			go func() {
				_, err := end.Read(make([]byte, 1))
				results <- err
			}()
		}
		synctest.Wait()
		_ = c.Close()
		if err := errors.Join(<-results, <-results); !errors.Is(err, net.ErrClosed) || !errors.Is(err, io.EOF) {
			t.Errorf("reads under way ended with %v, want one ErrClosed and one EOF", err)
		}
	})
}

// BenchmarkPipe sends a message of 300 bytes there and back.
func BenchmarkPipe(b *testing.B) {
	bench := func(name string, client, server net.Conn) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, 300)
				for {
					if _, err := io.ReadFull(server, buf); err != nil {
						return
					}
					_, _ = server.Write(buf)
				}
			}()
			buf := make([]byte, 300)
			for b.Loop() {
				_, _ = client.Write(buf)
				if _, err := io.ReadFull(client, buf); err != nil {
					b.Fatal(err)
				}
			}
			_ = client.Close()
			<-done
			_ = server.Close()
		})
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	client, server := newPipe(listener.Addr())
	bench("pipe", client, server)
	if client, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if server, err = listener.Accept(); err != nil {
		b.Fatal(err)
	}
	bench("loopback", client, server)
}
