package httpapi_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

// hardDeadline bounds what must come to an end by itself, in seconds at most.
const hardDeadline = 60 * time.Second

// ingestKeys knows a key that appends and one that does not.
type ingestKeys struct{}

func (ingestKeys) Authenticate(key string) (control.Principal, error) {
	switch key {
	case "writer":
		return control.Principal{Workspace: "ws_1", KeyID: "key_w", Scopes: control.ScopeIngest}, nil
	case "reader":
		return control.Principal{Workspace: "ws_1", KeyID: "key_r", Scopes: control.ScopeRead}, nil
	case "expired":
		return control.Principal{}, control.ErrExpiredKey
	default:
		return control.Principal{}, control.ErrUnknownKey
	}
}

// serveHard serves a server with room for two large bodies, and with one time for everything
// to arrive in.
func serveHard(t *testing.T, patience time.Duration) server {
	t.Helper()
	cfg := httpapi.DefaultConfig()
	cfg.HeaderTimeout, cfg.ReadTimeout, cfg.IdleTimeout = patience, patience, patience
	cfg.BodyLimit, cfg.MaxBodyBytes = 1<<20, 2<<20
	cfg.Keys = ingestKeys{}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return serve(t, cfg, func(app *fiber.App) {
		app.Get("/ok", func(c *fiber.Ctx) error { return c.SendString("ok") })
		app.Post("/body", httpapi.Authenticate(ingestKeys{}), func(c *fiber.Ctx) error { return c.SendString(fmt.Sprint(len(c.BodyRaw()))) })
	})
}

// dial opens a connection that ends with the test.
func (s server) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(hardDeadline)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// rest reads what the server says until it ends the connection.
func rest(t *testing.T, conn net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(conn)
	if nerr := net.Error(nil); errors.As(err, &nerr) && nerr.Timeout() {
		t.Fatalf("the connection is still open after %v; it said %q", hardDeadline, b)
	}
	return string(b)
}

// TestWhoTakesLongIsEnded has clients do each of the things that hold a connection, all at
// once, and others be served meanwhile.
func TestWhoTakesLongIsEnded(t *testing.T) {
	s := serveHard(t, time.Second)
	const head = "POST /body HTTP/1.1\r\nHost: x\r\nX-Api-Key: writer\r\n"
	const handshake = "GET /v1/stream/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-Web"
	for _, tt := range []struct {
		name    string
		sent    string // at once
		dribble string // then a byte at a time, again and again
		want    string // in the last answer; "" is none at all
	}{
		{"nothing is sent", "", "", " 408 "},
		{"the head comes a byte at a time", "GET /ok HTTP/1.1\r\nX-A: ", "a", " 408 "},
		{"heads that do not end", "GET /ok HTTP/1.1\r\nHost: x\r\n", "X: y\r\n", " 408 "},
		{"a handshake is half sent", handshake, "", " 408 "},
		{"a handshake comes a byte at a time", handshake, "x", " 408 "},
		{"the body does not come", head + "Content-Length: 100000\r\n\r\n", "", " 408 "},
		{"a small body does not come", head + "Content-Length: 10\r\n\r\nabc", "", " 408 "},
		{"the body comes a byte at a time", head + "Content-Length: 100000\r\n\r\n", "x", " 408 "},
		{"chunks come a byte at a time", head + "Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", " 408 "},
		{"a chunk does not come", head + "Transfer-Encoding: chunked\r\n\r\nfffff\r\n", "", " 408 "},
		{"the size of a chunk does not end", head + "Transfer-Encoding: chunked\r\n\r\n1;", "x", "HTTP/1.1 4"},
		{"a client that was told to go on does not", head + "Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n", "", " 408 "},
		{"the next request does not come", "GET /ok HTTP/1.1\r\nHost: x\r\n\r\n", "", "ok"},
		{"the next request comes a byte at a time", "GET /ok HTTP/1.1\r\nHost: x\r\n\r\nGET /ok?", "x", " 408 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn := s.dial(t)
			if _, err := io.WriteString(conn, tt.sent); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			ended := make(chan struct{})
			if tt.dribble != "" {
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-ended:
							return
						case <-time.After(5 * time.Millisecond): // as slow as the client is
						}
						if _, err := conn.Write([]byte{tt.dribble[i%len(tt.dribble)]}); err != nil {
							return
						}
					}
				})
			}
			got := rest(t, conn)
			close(ended)
			wg.Wait()
			if !strings.Contains(got, tt.want) {
				t.Errorf("the connection ends with %q, want %q", got, tt.want)
			}
			if tt.want == " 408 " && !strings.Contains(got, `"code":"request_timeout"`) {
				t.Errorf("the connection ends with %q, want the envelope", got)
			}
		})
	}
	t.Run("others are served meanwhile", func(t *testing.T) {
		t.Parallel()
		for range 50 { // who is slow for once, as a busy machine may be, is told and comes again
			eventually(t, "GET /ok is answered", func() bool { return s.do(t, "GET", "/ok", "").status == 200 })
			eventually(t, "POST /body is answered", func() bool {
				return string(s.do(t, "POST", "/body", strings.Repeat("x", 1000), "X-Api-Key", "writer").body) == "1000"
			})
		}
	})
}

// TestBodiesThatEndEarlyAreNoBodies: what a handler sees is whole.
func TestBodiesThatEndEarlyAreNoBodies(t *testing.T) {
	s := serveHard(t, 2*hardDeadline)
	for _, body := range []string{
		"Content-Length: 100000\r\n\r\nabc", "Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
		"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", "Transfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nabcdefg\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
		"Content-Length: -1\r\n\r\nabc", "Content-Length: +3\r\n\r\nabc", "Content-Length: 3, 3\r\n\r\nabc", "Content-Length: 99999999999999999999\r\n\r\nabc",
		"Content-Length: 0x3\r\n\r\nabc", "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	} {
		conn := s.dial(t)
		if _, err := io.WriteString(conn, "POST /body HTTP/1.1\r\nHost: x\r\nX-Api-Key: writer\r\n"+body); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := rest(t, conn); got != "" && !strings.HasPrefix(got, "HTTP/1.1 4") {
			t.Errorf("%q is answered %q, want an error or the end", body, got)
		}
	}
}

// TestHeadsThatCanBeReadTwoWaysAreRefused sends what request smuggling begins with, and a
// second request behind it that must not be answered.
func TestHeadsThatCanBeReadTwoWaysAreRefused(t *testing.T) {
	s := serveHard(t, 2*hardDeadline)
	const smuggled = "GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, head := range []string{
		"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH: 4\r\n\r\n0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /body HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nX-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\nContent-Length: 0\r\n\r\n",
		"GET /ok HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"GET /ok HTTP/1.1\r\n\r\n",
		"GET /ok HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
		"GET /ok HTTP/1.1\r\nHost: x\r\nX-A: a\rX-B: c\r\n\r\n",
		"GET /ok HTTP/1.1\r\nHost: x\r\nX-A: a\x7f\r\n\r\n",
	} {
		conn := s.dial(t)
		if _, err := io.WriteString(conn, head+smuggled); err != nil {
			t.Fatal(err)
		}
		got := rest(t, conn)
		if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, `"code":"bad_request"`) || strings.Count(got, "HTTP/1.1") != 1 {
			t.Errorf("%q is answered %q, want 400 and the end", head, got)
		}
	}
	// What is not to be taken for one of them.
	for _, head := range []string{
		"GET /ok HTTP/1.1\r\nHost: x\r\nX-A: a\tb \xc3\xa9\r\nConnection: close\r\n\r\n",
		"GET /ok HTTP/1.0\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: x\r\nX-Api-Key: writer\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
	} {
		if got := s.raw(t, head); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%q is answered %q, want 200", head, got)
		}
	}
}

// TestHeadsThatAreTooLargeAreToldSo, though their senders go on sending.
func TestHeadsThatAreTooLargeAreToldSo(t *testing.T) {
	s := serveHard(t, 2*hardDeadline)
	many := new(strings.Builder)
	for i := range 10_000 {
		fmt.Fprintf(many, "X-%d: y\r\n", i)
	}
	for name, head := range map[string]string{
		"a line of 100 kB": "GET /ok HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("x", 100_000) + "\r\n\r\n",
		"a line of 900 kB": "GET /ok HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("x", 900_000) + "\r\n\r\n",
		"10,000 headers":   "GET /ok HTTP/1.1\r\nHost: x\r\n" + many.String() + "\r\n",
		"a path of 100 kB": "GET /" + strings.Repeat("x", 100_000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		conn := s.dial(t)
		if err := conn.SetWriteBuffer(4 << 10); err != nil { // so that most is sent after the answer
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, head); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := rest(t, conn); !strings.HasPrefix(got, "HTTP/1.1 431 ") || !strings.Contains(got, `"code":"headers_too_large"`) {
			t.Errorf("%s: answered %.300q, want 431", name, got)
		}
	}
}

// TestLargeBodiesOfStrangersAreNotRead: only a key that appends has more than a small one
// read, and who has none is told so, though the body was on its way.
func TestLargeBodiesOfStrangersAreNotRead(t *testing.T) {
	s := serveHard(t, 2*hardDeadline)
	large := strings.Repeat("x", 1_000_000)
	f := func(key, body string, status int, code string) {
		t.Helper()
		a := s.do(t, "POST", "/body", body, "X-Api-Key", key)
		if a.status != status || a.Error.Code != code {
			t.Errorf("%d bytes with the key %q are answered %d %s, want %d %s", len(body), key, a.status, a.body, status, code)
		}
	}
	f("writer", large, 200, "")
	f("writer", large+large, 413, "body_too_large")
	f("reader", large, 413, "body_too_large")
	f("reader", large[:60_000], 200, "")
	f("nobody", large, 401, "invalid_key")
	f("nobody", large[:60_000], 401, "invalid_key")
	f("expired", large, 401, "expired_key")
	f("", large, 401, "missing_key")

	// It is told before the body is sent, whatever says how long that is.
	for _, length := range []string{"Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nfffff\r\n"} {
		conn := s.dial(t)
		if _, err := io.WriteString(conn, "POST /body HTTP/1.1\r\nHost: x\r\n"+length); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Error struct{ Code string } }
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != 401 || answer.Error.Code != "missing_key" {
			t.Errorf("%q is answered %d %+v, %v", length, res.StatusCode, answer, err)
		}
	}
}

// TestBodiesTakeBoundedMemory announces more than may be, and never sends it.
func TestBodiesTakeBoundedMemory(t *testing.T) {
	s := serveHard(t, 2*hardDeadline)
	const announced = "POST /body HTTP/1.1\r\nHost: x\r\nX-Api-Key: writer\r\n"
	var held []net.Conn
	for _, length := range []string{"Content-Length: 1048576\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nfffff\r\n"} {
		conn := s.dial(t)
		if _, err := io.WriteString(conn, announced+length); err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	large := strings.Repeat("x", 100_000)
	eventually(t, "there is no room for a third", func() bool {
		a := s.do(t, "POST", "/body", large, "X-Api-Key", "writer")
		if a.status == 503 && (a.Error.Code != "overloaded" || a.header.Get("Retry-After") == "") {
			t.Errorf("the answer is %s, %v", a.body, a.header)
		}
		return a.status == 503
	})
	if a := s.do(t, "POST", "/body", large[:60_000], "X-Api-Key", "writer"); a.status != 200 {
		t.Errorf("a small body is answered %d %s", a.status, a.body)
	}
	for _, conn := range held {
		conn.Close()
	}
	eventually(t, "there is room when they have gone", func() bool {
		return s.do(t, "POST", "/body", large, "X-Api-Key", "writer").status == 200
	})
}

// TestIdleConnectionsCostLittleAndEnd opens a thousand connections that say nothing, or
// nothing more.
func TestIdleConnectionsCostLittleAndEnd(t *testing.T) {
	s := serveHard(t, time.Second)
	const idle = 1000
	before := memory()
	conns := make([]net.Conn, idle)
	for i := range conns {
		conns[i] = s.dial(t)
		if i%2 == 0 {
			continue
		}
		_, _ = io.WriteString(conns[i], "GET /ok HTTP/1.1\r\nHost: x\r\n\r\n") // its time may be over
	}
	eventually(t, "GET /ok is answered", func() bool { return s.do(t, "GET", "/ok", "").status == 200 })
	// Both ends are in this process.
	if each := (memory() - before) / idle; each > 100<<10 {
		t.Errorf("an idle connection takes %d bytes", each)
	}
	for _, conn := range conns {
		_ = rest(t, conn)
	}
}

// memory is what the process uses.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(hardDeadline); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", hardDeadline, what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}
