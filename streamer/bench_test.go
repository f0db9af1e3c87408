package streamer

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// benchEvents returns n events of 200 B of payload.
func benchEvents(n int) []*schema.Event {
	out := numbered("s", 0, n)
	for _, ev := range out {
		ev.Payload = fmt.Appendf(nil, `{"fill":%q}`, strings.Repeat("x", 189))
	}
	return out
}

// counts reads a stream until it has had n events.
func (c *client) counts(n int, buf []byte) error {
	end := []byte("\n\n")
	torn := false // the last read ended in the middle of an end
	for n > 0 {
		k, err := c.br.Read(buf)
		if err != nil {
			return err
		}
		b := buf[:k]
		if torn && b[0] == '\n' {
			n--
		}
		n -= bytes.Count(b, end)
		torn = b[k-1] == '\n' && !bytes.HasSuffix(b, end)
	}
	return nil
}

// Fan-out of one session, flat out, to listeners in the same process over loopback.
func BenchmarkFanOut(b *testing.B) {
	const listeners = 200
	cfg := testConfig()
	cfg.Tape.MaxBytes = 256 << 20
	e := startEnv(b, cfg, 1)
	e.produce(newEvent("s", "first", ""))
	e.serve()
	clients := make([]*client, listeners)
	for i := range clients {
		clients[i] = e.stream("")
		defer clients[i].close()
	}
	e.live(listeners)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			if err := c.counts(b.N, make([]byte, 64<<10)); err != nil {
				b.Error(err)
			}
		})
	}
	for left := b.N; left > 0; left -= min(left, 500) {
		e.produce(benchEvents(min(left, 500))...)
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)*listeners/b.Elapsed().Seconds(), "deliveries/s")
	b.ReportMetric(0, "ns/op")
}

// Replay of 10,000 stored events, by where they are read.
func BenchmarkReplay(b *testing.B) {
	const stored = 10_000
	for _, source := range []string{"tape", "kafka", "history"} {
		cfg := testConfig()
		cfg.Tape.MaxBytes, cfg.Tape.MaxAge = 256<<20, time.Hour
		if source != "tape" {
			cfg.Tape.MaxBytes = 2_000
		}
		for _, listeners := range []int{1, 20} {
			b.Run(fmt.Sprintf("%s/clients=%d", source, listeners), func(b *testing.B) {
				e := startEnv(b, cfg, 1)
				for range 10 {
					e.produce(benchEvents(stored / 10)...)
				}
				if source == "history" {
					e.history.setWatermark(stored)
				}
				e.serve()
				e.warm("s")
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					var wg sync.WaitGroup
					for range listeners {
						wg.Go(func() {
							c, err := e.dial(streamPath+"?from=start", "reader")
							if err == nil {
								err = c.counts(stored, make([]byte, 64<<10))
								c.close()
							}
							if err != nil {
								b.Error(err)
							}
						})
					}
					wg.Wait()
				}
				b.ReportMetric(float64(b.N)*stored*float64(listeners)/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
}

// Replay of the 10,000 stored events of a workspace that lie in eight partitions.
func BenchmarkReplayOfSeveralPartitions(b *testing.B) {
	const stored = 10_000
	for _, source := range []string{"kafka", "history"} {
		b.Run(source, func(b *testing.B) {
			cfg := testConfig()
			cfg.Tape.MaxBytes = 2_000
			e := startWideEnv(b, cfg, 8)
			events := benchEvents(stored)
			for i, ev := range events {
				ev.Session = fmt.Sprint("s", i%100)
			}
			e.produce(events...)
			if source == "history" {
				e.history.setWatermark(stored)
			}
			e.serve()
			l := workspaceStream("")
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				c, err := e.dial(l.at(""), "reader")
				if err == nil {
					err = c.counts(stored, make([]byte, 64<<10))
					c.close()
				}
				if err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(b.N)*stored/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// Latency of live events, 100 a second to 50 listeners, beside clients that replay 20,000
// stored events again and again as fast as they can.
func BenchmarkLiveBesideReplays(b *testing.B) {
	const stored, listeners = 20_000, 50
	for _, replays := range []int{0, 1, 20} {
		b.Run(fmt.Sprintf("replays=%d", replays), func(b *testing.B) {
			cfg := testConfig()
			cfg.Tape.MaxBytes = 100_000
			e := startEnv(b, cfg, 1)
			for range 10 {
				e.produce(benchEvents(stored / 10)...)
			}
			e.produce(newEvent("live", "first", ""))
			e.history.setWatermark(stored)
			e.serve()
			var replaying, listening sync.WaitGroup
			var replayed atomic.Int64
			stop := make(chan struct{})
			for range replays {
				replaying.Go(func() {
					buf := make([]byte, 64<<10)
					for {
						select {
						case <-stop:
							return
						default:
						}
						c, err := e.dial(streamPath+"?from=start", "reader")
						if err == nil {
							err = c.counts(stored, buf)
							c.close()
						}
						if err != nil {
							b.Error(err)
							return
						}
						replayed.Add(stored)
					}
				})
			}
			n := max(b.N, 500)
			latencies := make([][]time.Duration, listeners)
			for i := range listeners {
				c := e.get("/v1/sessions/live/events/stream", "reader")
				listening.Go(func() {
					defer c.close()
					for range n {
						f, err := c.event()
						sent, _ := strconv.ParseInt(strings.TrimSuffix(f.data[strings.LastIndexByte(f.data, ':')+1:], "}}"), 10, 64)
						if err != nil || sent == 0 {
							b.Errorf("%+v, %v", f, err)
							return
						}
						latencies[i] = append(latencies[i], time.Duration(time.Now().UnixNano()-sent))
					}
				})
			}
			b.ResetTimer()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for range n {
				<-tick.C
				ev := newEvent("live", "tick", "")
				ev.Payload = fmt.Appendf(nil, `{"at":%d}`, time.Now().UnixNano())
				e.produce(ev)
			}
			listening.Wait()
			b.StopTimer()
			close(stop)
			replaying.Wait()
			all := slices.Sorted(slices.Values(slices.Concat(latencies...)))
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
			b.ReportMetric(float64(replayed.Load())/b.Elapsed().Seconds(), "replayed/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// Memory of idle streams: the server's side only. The clients' sockets are in this
// process too; what one costs is measured apart and taken off.
func BenchmarkIdleStreams(b *testing.B) {
	const listeners = 3000
	e := startEnv(b, testConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serve()
	e.warm("s")
	c := e.stream("") // what is made once is made
	c.close()
	eventually(b, "the first stream is gone", func() bool { return e.streams() == 0 })
	request := "GET " + streamPath + " HTTP/1.1\r\nHost: t\r\nx-api-key: reader\r\n\r\n"
	for range b.N {
		socket := socketBytes(b, listeners)
		conns := make([]net.Conn, listeners)
		buf := make([]byte, 4096)
		before, goroutines := used(), runtime.NumGoroutine()
		for i := range conns { // one after the other: the server needs few goroutines then
			conns[i] = dialTCP(b, e.addr)
			if _, err := io.WriteString(conns[i], request); err != nil {
				b.Fatal(err)
			}
			if _, err := conns[i].Read(buf); err != nil {
				b.Fatal(err)
			}
		}
		e.live(listeners)
		b.ReportMetric(float64(used()-before)/listeners-socket, "B/stream")
		b.ReportMetric(socket, "B/socket")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines), "more-goroutines")
		for _, nc := range conns {
			_ = nc.Close()
		}
		eventually(b, "all streams are gone", func() bool { return e.streams() == 0 })
	}
	b.ReportMetric(0, "ns/op")
}

func dialTCP(b *testing.B, addr string) net.Conn {
	b.Helper()
	nc, err := new(net.Dialer).DialContext(b.Context(), "tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	return nc
}

// socketBytes returns what one open socket costs in this process.
func socketBytes(b *testing.B, n int) float64 {
	b.Helper()
	ln, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	conns := make([]net.Conn, 2*n)
	defer func() {
		for _, nc := range conns {
			_ = nc.Close()
		}
	}()
	before := used()
	for i := range n {
		conns[2*i] = dialTCP(b, ln.Addr().String())
		if conns[2*i+1], err = ln.Accept(); err != nil {
			b.Fatal(err)
		}
	}
	return float64(used()-before) / float64(2*n)
}

// used returns the bytes of heap and stacks in use.
func used() int64 {
	debug.FreeOSMemory()
	debug.FreeOSMemory() // pools empty at the second collection
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
