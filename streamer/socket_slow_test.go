package streamer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// nextMessage reads the next text message of a raw socket.
func (c *client) nextMessage() (message, error) {
	for {
		f, err := readFrame(c.br)
		if err != nil {
			return message{}, err
		}
		if f.opcode != opcodeText {
			continue
		}
		m := message{text: string(f.payload)}
		return m, json.Unmarshal(f.payload, &m)
	}
}

// slowSocket reads events up to the last of want, and checks that what is missing was told.
func (c *client) slowSocket(want []string) (got, told int, err error) {
	at := 0
	for at < len(want) {
		m, err := c.nextMessage()
		if err != nil {
			return got, told, err
		}
		if m.Type == "playhead.dropped" {
			var data struct{ Count int }
			if err := json.Unmarshal(m.Data, &data); err != nil || data.Count <= 0 || m.text != fmt.Sprintf(`{"type":"playhead.dropped","data":{"count":%d}}`, data.Count) {
				return got, told, fmt.Errorf("notice %s", m.text)
			}
			told += data.Count
			at += data.Count
			continue
		}
		if at >= len(want) || m.ID != want[at] {
			return got, told, fmt.Errorf("after %d events and %d told lost comes %.80s", got, told, m.text)
		}
		at++
		got++
	}
	return got, told, nil
}

func TestSlowSocketsLoseWhatTheyAreToldOrNothing(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, slowConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serveSockets()
	reader := e.stream("")
	defer reader.close()
	drop, replay := e.stuckSocket(""), e.stuckSocket("?on_slow=replay")
	e.live(3)
	e.fillUp(reader)
	e.history.setWatermark(e.end("s") / 2)
	eventually(t, "two sockets are slow", func() bool { return value(t, e.hub.metrics.slow) == 2 })
	last := newEvent("s", "last", "")
	e.produce(last)
	reader.mustExpect([]string{last.ID.String()})
	all := e.want("s", 0)
	got, told, err := drop.slowSocket(all)
	if err != nil || told == 0 || got+told != len(all) {
		t.Errorf("a stuck socket got %d and was told of %d of %d: %v", got, told, len(all), err)
	}
	got, told, err = replay.slowSocket(all)
	if err != nil || told != 0 || got != len(all) {
		t.Errorf("a stuck socket with on_slow=replay got %d and was told of %d of %d: %v", got, told, len(all), err)
	}
}

// A client that reads slowly answers pings late: they lie behind what it has not read yet.
// It is not gone as long as it reads.
func TestSlowReadersAreNotGone(t *testing.T) {
	checkGoroutines(t)
	cfg := slowConfig()
	cfg.KeepAlive = 500 * time.Millisecond // it may be silent for three of them
	e := startEnv(t, cfg, 1)
	e.produce(bigEvents(0, 60)...)
	e.serveSockets()
	c := e.rawSocket(socketPath+"?on_slow=replay", "reader")
	if err := c.nc.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	c.write(text(`{"op":"seek","from":"start"}`))
	began := time.Now()
	var read atomic.Int64
	go func() { // ends with the connection
		buf := make([]byte, 16<<10)
		for {
			n, err := c.nc.Read(buf)
			if err != nil {
				return
			}
			read.Add(int64(n))
			if time.Since(began) < 3*time.Second {
				time.Sleep(40 * time.Millisecond) // it is slow: the test's subject, not a wait
			}
		}
	}()
	total := int64(60 * 40 << 10)
	eventually(t, "everything is read", func() bool { return read.Load() >= total || e.streams() == 0 })
	if n := read.Load(); n < total {
		t.Errorf("a slow reader was cut after %d of %d bytes", n, total)
	}
	// It never answers a ping, and now there is nothing to read: it is gone.
	eventually(t, "it is gone", func() bool { return e.streams() == 0 })
}

// The library's reader would answer a protocol error with a frame of its own, in the middle
// of one of ours: whatever the client reads up to the end are whole frames, the last perhaps
// cut.
func TestProtocolErrorsAreNotWrittenIntoFrames(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, slowConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serveSockets()
	reader := e.stream("")
	defer reader.close()
	var stuck []*client
	bad := [][]byte{
		appendFrame(nil, opcodeText, nil), // no mask
		appendClientFrame(nil, rawFrame{true, 3, nil}),
		appendClientFrame(nil, rawFrame{true, opcodeClose, []byte{0, 1}}),
		text("\xff"),
		appendClientFrame(nil, rawFrame{true, opcodeText, make([]byte, 100)})[:50],
	}
	for range bad {
		stuck = append(stuck, e.stuckSocket("?on_slow=replay"))
	}
	e.live(1 + len(bad))
	e.fillUp(reader)
	eventually(t, "the sockets are full", func() bool { return value(t, e.hub.metrics.slow) == float64(len(bad)) })
	for i, c := range stuck {
		c.write(bad[i])
	}
	eventually(t, "those that break the protocol are ended", func() bool { return e.streams() == 2 })
	stuck[4].write(nil)
	_ = stuck[4].nc.(*net.TCPConn).CloseWrite() // half a frame, then the end
	eventually(t, "all of them are", func() bool { return e.streams() == 1 })
	for i, c := range stuck {
		for {
			f, err := readFrame(c.br)
			if err == nil && f.opcode == opcodeText && !json.Valid(f.payload) {
				t.Errorf("client %d reads %.100q", i, f.payload)
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
				break
			}
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				break
			}
		}
	}
}

// Of sockets beside: commands, bad frames, cancellation.
func TestSocketsUnderStress(t *testing.T) {
	checkGoroutines(t)
	var appender *fakeAppender
	var read, acked atomic.Int64
	stress{
		rounds: 3, clients: 16, lasts: 1500 * time.Millisecond,
		serve: func(e *env, _ *rand.Rand) {
			e.produce(numbered("s", 0, 300)...)
			e.history.setWatermark(100)
			appender = &fakeAppender{e: e}
			e.serveWith(socketKeys, func(d *Deps) { d.Appender = appender })
		},
		client: func(e *env, rng *rand.Rand) {
			query := []string{"", "?from=start", "?from=start&on_slow=replay", "?type=a", "?notices=1&from=start&speed=50"}[rng.IntN(5)]
			c, err := e.dial(socketPath+query, "talker", upgradeHeaders)
			if err != nil {
				return
			}
			defer c.close()
			if rng.IntN(2) == 0 {
				_ = c.nc.(*net.TCPConn).SetReadBuffer(4096)
				_ = c.nc.(*net.TCPConn).SetLinger(0)
			}
			_ = c.nc.SetDeadline(time.Now().Add(time.Duration(50+rng.IntN(400)) * time.Millisecond))
			for range rng.IntN(60) {
				e.talkAtRandom(c, rng)
				for range rng.IntN(6) {
					f, err := readFrame(c.br)
					if err != nil {
						break
					}
					read.Add(1)
					if f.opcode == opcodeText && len(f.payload) > 6 && string(f.payload[:6]) == `{"ack"` {
						acked.Add(1)
					}
				}
			}
			if rng.IntN(3) == 0 {
				_, _ = c.nc.Write(appendClientFrame(nil, rawFrame{true, opcodeClose, []byte{3, 232}}))
			}
		},
		produce: func(e *env, _ *rand.Rand, _ int) {
			appender.mu.Lock()
			defer appender.mu.Unlock()
			e.produce(bigEvents(0, 1)...)
			e.produce(numbered("s", 0, 10)...)
		},
	}.run(t)
	t.Logf("%d frames read, %d acks", read.Load(), acked.Load())
}

// talkAtRandom sends one thing of all that a client may send, or ends its stream.
func (e *env) talkAtRandom(c *client, rng *rand.Rand) {
	switch rng.IntN(12) {
	case 0:
		_, _ = c.nc.Write([]byte{byte(rng.Uint32()), byte(rng.Uint32()), 0, 0})
	case 1:
		_, _ = c.nc.Write(appendClientFrame(nil, rawFrame{true, opcodePing, []byte("x")}))
	case 2:
		_, _ = c.nc.Write(appendClientFrame(nil, rawFrame{true, opcodePong, nil}))
	case 3:
		if s := e.hub.find(c.header.Get("X-Connection-Id")); s != nil && rng.IntN(4) == 0 {
			s.end(&cancelledError{byServer: true, reason: "stress"})
		}
	case 4:
		_, _ = c.nc.Write(text(`{"op":"append","event":{"type":"a","payload":1}}`))
	default:
		_, _ = c.nc.Write(text([]string{
			`{"op":"seek","from":"start"}`, `{"op":"seek","from":"now"}`, `{"op":"pause"}`, `{"op":"resume"}`,
			`{"op":"subscribe","type":"b","notices":1,"binary":1}`, `{"op":"speed","speed":100}`, `{"op":"speed","speed":null}`,
			`{"op":"seek","from_t_ms":100}`, `{"op":"subscribe"}`, `{"op":"nonsense"}`,
		}[rng.IntN(10)]))
	}
}

// A message has to arrive in time, however much else the client says: what has come of it
// takes memory.
func TestMessagesThatTakeTooLongEndTheStream(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.MessageTimeout = time.Second
	e := startEnv(t, cfg, 1)
	e.produce(newEvent("s", "first", ""))
	e.serveSockets()
	whole := text(`{"op":"pause"}`)
	pong := appendClientFrame(nil, rawFrame{true, opcodePong, nil})
	for _, test := range []struct {
		name         string
		first, again []byte
	}{
		{"a frame comes a byte at a time", whole[:len(whole)-9], nil},
		{"a fragment does not come, signs of life do", appendClientFrame(nil, rawFrame{false, opcodeText, []byte(`{"op":`)}), pong},
		{"fragments without end", appendClientFrame(nil, rawFrame{false, opcodeText, []byte(`{"op":"`)}), appendClientFrame(nil, rawFrame{false, 0, []byte("x")})},
	} {
		c := e.rawSocket(socketPath, "talker")
		c.write(test.first)
		ended := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				case <-time.After(20 * time.Millisecond): // as slow as the client is
				}
				if _, err := c.nc.Write(test.again); err != nil {
					return
				}
			}
		})
		for {
			f, err := readFrame(c.br)
			if err != nil {
				t.Errorf("%s: the socket ends with %v", test.name, err)
				break
			}
			if f.opcode == opcodeClose {
				if code := int(f.payload[0])<<8 | int(f.payload[1]); code != closeLate {
					t.Errorf("%s: closed with %d, want %d", test.name, code, closeLate)
				}
				break
			}
		}
		close(ended)
		wg.Wait()
		c.close()
	}
}

// A message that comes in as many pieces, in time, is one.
func TestMessagesMayComeInPieces(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serveSockets()
	whole := text(`{"op":"pause"}`)
	c := e.rawSocket(socketPath, "talker")
	defer c.close()
	for _, b := range whole {
		c.write([]byte{b})
	}
	if m, err := c.nextMessage(); err != nil || m.Ack == nil {
		t.Errorf("a command in pieces is answered %+v, %v", m, err)
	}
}
