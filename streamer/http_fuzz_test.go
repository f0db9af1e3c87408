package streamer

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/openapi/conform"
)

// Whatever bytes a client sends before it hangs up, it is answered as the document says, or
// hung up on, and nothing is left of its streams.
func FuzzHTTP(f *testing.F) {
	checkGoroutines(f)
	e := startEnv(f, testConfig(), 1)
	e.produce(numbered("s", 0, 5)...)
	e.serveWith(socketKeys, func(d *Deps) { d.Appender = noAppender{} })
	const head = " HTTP/1.1\r\nHost: x\r\nX-Api-Key: talker\r\n"
	for _, s := range []string{
		"", "GET " + socketPath + head + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
		"GET " + socketPath + head + "Upgrade: websocket\r\n\r\n", "GET " + socketPath + head + "Connection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: x\r\n\r\n",
		"GET /v1/sessions/s/events/stream?from=start&notices=1" + head + "Last-Event-ID: x\r\n\r\n", "GET /v1/sessions/s/events/stream?from=start&type=a&speed=2" + head + "\r\n",
		"HEAD /v1/sessions/s/events/stream" + head + "\r\n", "GET /v1/stream?heartbeat=30&envelope=1" + head + "\r\n", "GET /v1/workflows/w/events/stream?since=1" + head + "\r\n",
		"GET /v1/calls/s/stream?token=pk_tmp_x HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v1/calls/s/transcript/stream?close=never HTTP/1.0\r\nX-Api-Key: talker\r\n\r\n",
		"POST /v1/streams/conn_x/commands" + head + "Content-Length: 14\r\n\r\n{\"op\":\"pause\"}", "POST /v1/streams/conn_x/commands" + head + "Content-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
		"GET /v1/sessions/s/events/stream" + head + "Content-Length: 3\r\n\r\nabcGET /v1/stream" + head + "\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		nc, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(testDeadline))
		_, _ = nc.Write(sent) // it may be closed already
		_ = nc.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(nc)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%q: the connection ends with %v", sent, err)
		}
		if err == nil {
			if err := conform.CheckExchange(sent, got); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "the stream is gone", func() bool { return e.streams() == 0 })
	})
}
