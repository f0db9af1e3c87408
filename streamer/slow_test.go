package streamer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// stuckAt sends a request on a connection with a small buffer, and reads no more than the
// head of the answer.
func (e *env) stuckAt(path string, headers ...string) *client {
	e.t.Helper()
	d := net.Dialer{Timeout: testDeadline, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
		}), err)
	}}
	nc, err := d.DialContext(context.Background(), "tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = nc.Close() })
	c, err := e.ask(nc, path, "reader", headers...)
	if err != nil {
		e.t.Fatal(err)
	}
	return c
}

// stuck opens a stream of session s at which nobody reads yet.
func (e *env) stuck(query string) *client {
	e.t.Helper()
	c := e.stuckAt(streamPath + query)
	if c.status != 200 {
		e.t.Fatalf("stream %s is answered %d %s", query, c.status, c.body())
	}
	return c
}

// bigEvents returns n events of 40 KB, every third of type b, the others a.
func bigEvents(first, n int) []*schema.Event {
	out := numbered("s", first, n)
	for i, ev := range out {
		ev.Type = "a"
		if (first+i)%3 == 0 {
			ev.Type = "b"
		}
		ev.Payload = fmt.Appendf(nil, `{"n":%d,"fill":%q}`, first+i, strings.Repeat("x", 40<<10))
	}
	return out
}

func (c *client) slowIDs(want []string) (got []string, told int, err error) {
	at := 0
	pending := 0 // told since the last event
	for {
		f, err := c.next()
		if err != nil {
			return got, told, err
		}
		if n, ok := strings.CutPrefix(f.comment, "dropped "); ok {
			lost, err := strconv.Atoi(n)
			if err != nil || lost <= 0 {
				return got, told, fmt.Errorf("notice %q", f.comment)
			}
			told += lost
			pending += lost
			continue
		}
		at += pending
		if at >= len(want) || f.id != want[at] {
			return got, told, fmt.Errorf("after %d events and %d told lost just now comes %s", len(got), pending, offsetText(f.id))
		}
		at, pending = at+1, 0
		got = append(got, f.id)
		if at == len(want) {
			return got, told, nil
		}
	}
}

// fillUp appends big events, in step with a listener that reads, until the others'
// sockets must be full and the tape has shed what they have not had.
func (e *env) fillUp(reader *client) {
	e.t.Helper()
	for i := 0; i < 400; i += 4 {
		after := e.end("s") - 1
		e.produce(bigEvents(i, 4)...)
		reader.mustExpect(e.want("s", after))
	}
}

func slowConfig() Config {
	cfg := testConfig()
	cfg.Tape.MaxBytes = 400 << 10 // ten big events
	return cfg
}

func TestSlowListenersLoseWhatTheyAreToldOrNothing(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, slowConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serve()
	reader := e.stream("")
	defer reader.close()
	drop, dropSome, replay := e.stuck(""), e.stuck("?type=a,last"), e.stuck("?on_slow=replay")
	e.live(4)
	e.fillUp(reader)
	e.history.setWatermark(e.end("s") / 2)
	eventually(t, "three streams are slow", func() bool { return value(t, e.hub.metrics.slow) == 3 })
	last := newEvent("s", "last", "")
	e.produce(last)
	reader.mustExpect([]string{last.ID.String()})

	all := e.want("s", 0)
	f := mustFilter(t, "type=a,last")
	var some []string
	for _, ev := range e.visible["s"][1:] {
		if f.Match(ev) {
			some = append(some, ev.ID.String())
		}
	}
	got, told, err := drop.slowIDs(all)
	if err != nil || told == 0 || len(got)+told != len(all) {
		t.Errorf("a stuck listener got %d and was told of %d of %d: %v", len(got), told, len(all), err)
	}
	got, told, err = dropSome.slowIDs(some)
	if err != nil || told == 0 || len(got)+told != len(some) {
		t.Errorf("a stuck listener with a filter got %d and was told of %d of %d: %v", len(got), told, len(some), err)
	}
	got, told, err = replay.slowIDs(all)
	if err != nil || told != 0 || len(got) != len(all) {
		t.Errorf("a stuck listener with on_slow=replay got %d and was told of %d of %d: %v", len(got), told, len(all), err)
	}
	eventually(t, "nobody is slow", func() bool { return value(t, e.hub.metrics.slow) == 0 })
	drop.quiet(e)
	replay.mustExpect(e.want("s", last.ID.Offset))
}

func TestWriteTimeoutCutsAStuckListener(t *testing.T) {
	checkGoroutines(t)
	cfg := slowConfig()
	cfg.WriteTimeout = 700 * time.Millisecond
	e := startEnv(t, cfg, 1)
	e.produce(newEvent("s", "first", ""))
	e.serve()
	reader := e.stream("")
	defer reader.close()
	stuck := e.stuck("")
	replaying := e.stuck("?from=start&on_slow=replay")
	e.live(3)
	e.fillUp(reader)
	eventually(t, "the stuck streams are cut", func() bool { return e.streams() == 1 })
	for _, c := range []*client{stuck, replaying} {
		for {
			if _, err := c.next(); err != nil {
				if errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the cut stream still hangs: %v", err)
				}
				break
			}
		}
	}
	reader.quiet(e)
}

// A write that had to wait leaves a deadline behind, and it passes while the stream is
// quiet: the next event must go out all the same.
func TestOldWriteDeadlineCutsNobody(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.WriteTimeout = 100 * time.Millisecond
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 50)...)
	e.history.setWatermark(50)
	e.serve()
	e.warm("s")
	c := e.stream("?from=start")
	defer c.close()
	c.mustExpect(e.want("s", -1))
	began := time.Now()
	eventually(t, "the deadline is over", func() bool { return time.Since(began) > 2*cfg.WriteTimeout })
	c.quiet(e)
}

// A frame that was cut must stay cut: a goodbye behind it would make a client take the
// two for one event.
func TestGoodbyeNeverFollowsATornFrame(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, slowConfig(), 1)
	e.produce(newEvent("s", "first", ""))
	e.serve()
	reader := e.stream("")
	defer reader.close()
	stuck := e.stuck("")
	replaying := e.stuck("?from=start&on_slow=replay")
	e.live(3)
	e.fillUp(reader)
	eventually(t, "two streams are slow", func() bool { return value(t, e.hub.metrics.slow) == 2 })
	e.closeHub()
	for _, c := range []*client{stuck, replaying} {
		b, err := io.ReadAll(c.br)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if i := bytes.LastIndex(b, []byte("retry:")); i >= 0 && !bytes.HasSuffix(b[:i], []byte("\n\n")) {
			t.Errorf("a goodbye follows %q", b[max(0, i-40):i])
		}
	}
	f, err := reader.next()
	if ms, _ := strconv.Atoi(f.retry); err != nil || ms < 500 || ms > 3000 {
		t.Errorf("goodbye = %+v, %v; want a retry of 500 to 3000 ms", f, err)
	}
	if _, err := reader.next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the goodbye: %v, want the end", err)
	}
}
