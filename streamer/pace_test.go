package streamer

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

func TestPacer(t *testing.T) {
	t0 := time.Unix(1000, 0)
	after := func(d time.Duration) time.Time { return t0.Add(d) }
	p := &pacer{speed: 2}
	f := func(what string, ms int64, now time.Time, want time.Duration) {
		t.Helper()
		if got := p.due(ms, now).Sub(t0); got != want {
			t.Errorf("%s: ms %d is due at %v, want %v", what, ms, got, want)
		}
	}
	f("the first", 5000, t0, 0)
	f("a second later at twice the speed", 6000, t0, 500*time.Millisecond)
	f("a clock that runs back", 4000, t0, -500*time.Millisecond)
	p.setSpeed(10, after(time.Second)) // the clock stands at 7000
	f("after a change of speed", 8000, after(time.Second), 1100*time.Millisecond)
	p.restart()
	f("after a restart", 90_000, after(5*time.Second), 5*time.Second)
	f("and the next", 91_000, after(5*time.Second), 5100*time.Millisecond)
	p.setSpeed(0, after(6*time.Second))
	f("without a speed", 1<<40, after(6*time.Second), 6*time.Second)
	p = &pacer{speed: 1}
	p.setSpeed(4, t0) // before there was an event
	f("the first", 100, after(time.Second), time.Second)
	f("the second", 500, after(time.Second), 1100*time.Millisecond)
}

// bubble is one stream in a bubble of synctest: a hub without sockets, over a history and
// tapes that nobody feeds but the test.
type bubble struct {
	t       *testing.T
	hub     *Hub
	sub     *subscription
	history *fakeHistory
	tapes   []*tape.Tape
	began   time.Time

	mu     sync.Mutex // guards frames
	frames []stamped
	read   chan struct{} // closed when the client has read to the end
}

// stamped is a frame and when it came, from the beginning.
type stamped struct {
	at   time.Duration
	text string
}

// startBubble starts a stream of session "s", or of workspace "w" over several partitions.
// The first events of each partition are in history, the last onTape on the tape.
func startBubble(t *testing.T, speed float64, onTape int, partitions ...[]*schema.Event) *bubble {
	t.Helper()
	b := &bubble{t: t, history: newFakeHistory(), began: time.Now(), read: make(chan struct{})}
	cfg := testConfig()
	cfg.KeepAlive = 15 * time.Second
	cfg.Tape.MaxAge = time.Hour
	past := &Past{History: b.history, Epoch: 1, Rule: cfg.Tape.Rule()}
	b.history.failAfter.Store(1 << 60) // count what is read
	view := views()[0]
	scope := schema.Scope{Workspace: "w", Session: "s"}
	if len(partitions) > 1 {
		scope.Session, view = "", views()[2]
	}
	b.hub = &Hub{
		cfg: cfg, past: past, metrics: NewMetrics(prometheus.NewRegistry()), logger: slog.New(slog.DiscardHandler),
		queue: make(chan *subscription, 10), replays: newSlots(1), reads: newSlots(1), bursts: newSlots(1),
		subs: make(map[string]*subscription), wheel: newWheel(cfg.KeepAlive, maxHeartbeat),
		empty: make(chan struct{}), stop: make(chan struct{}), slots: 1,
	}
	stats := tape.NewMetrics(prometheus.NewRegistry())
	o := opening{
		id: "conn_test", release: func() {}, wire: sse{view},
		req: Request{Scope: scope, View: view, Speed: speed, Heartbeat: cfg.KeepAlive, Notices: true},
	}
	ends := make([]int64, len(partitions))
	for p, events := range partitions {
		for i, e := range events {
			e.ID.Position = schema.Position{Epoch: 1, Partition: uint16(p), Offset: int64(i)}
			b.history.add(e)
		}
		start := len(events) - onTape
		ends[p] = int64(start)
		tp := tape.Detached(cfg.Tape, 1, uint16(p), int64(start), past, stats)
		tp.Put(time.Now().UnixMilli(), events[start:]...)
		b.tapes = append(b.tapes, tp)
		o.legs = append(o.legs, place{tape: tp, from: schema.Position{Epoch: 1, Partition: uint16(p)}})
	}
	b.history.setWatermark(1 << 40)
	b.history.ended = func(p uint16) int64 { return ends[p] }
	server, client := net.Pipe()
	ctx, cancel := context.WithCancelCause(t.Context())
	s := &subscription{
		hub: b.hub, id: o.id, req: o.req, wire: o.wire, conn: newConn(server), ctx: ctx, cancel: cancel,
		release: o.release, finish: func() { _ = server.Close() }, filterKey: o.req.Filter.Key(),
	}
	s.legs = make([]leg, len(o.legs))
	for i, p := range o.legs {
		s.legs[i].sub, s.legs[i].tape, s.legs[i].pos = s, p.tape, p.from
	}
	if speed > 0 {
		s.pace = &pacer{speed: speed}
	}
	s.sched.Store(running)
	b.hub.subs[s.id] = s
	b.hub.wheel.add(s)
	b.sub = s
	go b.listen(client)
	b.hub.wg.Go(b.hub.work)
	b.hub.wg.Go(b.hub.turnWheel)
	b.hub.queue <- s
	return b
}

func (b *bubble) listen(nc net.Conn) {
	defer close(b.read)
	defer nc.Close()
	br := bufio.NewReader(nc)
	text := ""
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		text += line
		if line == "\n" || strings.HasPrefix(line, ":") {
			b.mu.Lock()
			b.frames = append(b.frames, stamped{time.Since(b.began), strings.TrimSpace(text)})
			b.mu.Unlock()
			text = ""
		}
	}
}

// stop ends the stream and waits for all.
func (b *bubble) stop() {
	b.sub.end(errHungUp)
	<-b.read
	close(b.hub.stop)
	b.hub.wg.Wait()
}

// events returns when the events came, by number, as "number@time".
func (b *bubble) events() string {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, f := range b.frames {
		if _, n, ok := strings.Cut(f.text, `{"n":`); ok {
			n, _, _ = strings.Cut(n, "}")
			out = append(out, fmt.Sprintf("%s@%v", n, f.at))
		}
	}
	return strings.Join(out, " ")
}

// comments counts the frames with a text that came in [from, to).
func (b *bubble) comments(text string, from, to time.Duration) int {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, f := range b.frames {
		if strings.Contains(f.text, text) && f.at >= from && f.at < to {
			n++
		}
	}
	return n
}

// timed returns numbered events of session s at the given times.
func timed(first int, tMs ...int64) []*schema.Event {
	out := numbered("s", first, len(tMs))
	for i, e := range out {
		e.TMs = tMs[i]
		e.ID.TimeMs = 1_700_000_000_000 + tMs[i]
	}
	return out
}

func (b *bubble) post(c command) {
	b.t.Helper()
	if err := b.sub.post(c); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// live reports whether the stream is at rest on its tapes.
func (b *bubble) live() bool {
	synctest.Wait()
	return b.sub.sched.Load() == stateResting
}

func (b *bubble) want(want string) {
	b.t.Helper()
	if got := b.events(); got != want {
		b.t.Errorf("events came %s\nwant %s", got, want)
	}
}

// The pauses are those of the session, divided by speed; heartbeats go on through them; at
// the end the stream is live.
func TestPacedReplayKeepsTheSessionsPauses(t *testing.T) {
	for _, onTape := range []int{0, 2, 5} {
		t.Run(fmt.Sprintf("%d on the tape", onTape), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBubble(t, 2, onTape, timed(0, 0, 1000, 1500, 121_500, 121_600))
				time.Sleep(30 * time.Second)
				b.want("0@0s 1@500ms 2@750ms")
				if b.live() {
					t.Error("the stream is live before its time")
				}
				time.Sleep(31 * time.Second)
				b.want("0@0s 1@500ms 2@750ms 3@1m0.75s 4@1m0.8s")
				if n := b.comments("keepalive", 0, time.Minute); n < 3 || n > 4 {
					t.Errorf("%d heartbeats in a minute, want one every 15 s", n)
				}
				if n := b.comments("playhead.caught_up", 0, time.Hour); n != 1 {
					t.Errorf("the client was told %d times that it has caught up", n)
				}
				live := timed(5, 999_999)
				live[0].ID.Offset, live[0].ID.Epoch = 5, 1
				b.tapes[0].Put(time.Now().UnixMilli(), live...)
				b.want("0@0s 1@500ms 2@750ms 3@1m0.75s 4@1m0.8s 5@1m1s")
				if b.hub.replays.idle() != 1 || b.hub.reads.idle() != 1 {
					t.Error("a stream that is live holds a slot")
				}
				b.stop()
			})
		})
	}
}

func TestPauseResumeSeekAndSpeedOfAPacedReplay(t *testing.T) {
	for _, onTape := range []int{0, 4, 10} {
		t.Run(fmt.Sprintf("%d on the tape", onTape), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBubble(t, 1, onTape, timed(0, 0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000))
				time.Sleep(1500 * time.Millisecond)
				b.post(command{op: opPause})
				time.Sleep(10 * time.Minute)
				b.want("0@0s 1@1s")
				if n := b.comments("keepalive", 0, time.Hour); n < 39 {
					t.Errorf("%d heartbeats in 10 minutes of pause, want one every 15 s", n)
				}
				b.post(command{op: opResume}) // at 10m1.5s
				time.Sleep(1500 * time.Millisecond)
				want := "0@0s 1@1s 2@10m1.5s 3@10m2.5s"
				b.want(want)
				to := b.sub.legs[0].pos
				to.Offset = 1
				b.post(command{op: opSeek, to: []schema.Position{to}}) // at 10m3s
				time.Sleep(1500 * time.Millisecond)
				want += " 1@10m3s 2@10m4s"
				b.want(want)
				b.post(command{op: opSpeed, speed: 10}) // at 10m4.5s, when the clock stands at 2.5 s
				time.Sleep(100 * time.Millisecond)
				want += " 3@10m4.55s"
				b.want(want)
				f := schema.Filter{Types: []string{"never"}}
				b.post(command{op: opSubscribe, filter: &f})
				time.Sleep(time.Minute) // it is at the edge, and live
				b.want(want)
				if !b.live() {
					t.Error("a stream that has nothing more to wait for is not live")
				}
				to.Offset = 8
				b.post(command{op: opSubscribe, filter: new(schema.Filter), to: []schema.Position{to}}) // at 11m4.6s
				time.Sleep(time.Second)
				want += " 8@11m4.6s 9@11m4.7s"
				b.want(want)
				to.Offset = 0
				b.post(command{op: opSeek, to: []schema.Position{to}}) // at 11m5.6s
				b.post(command{op: opSpeed})
				for i := range 10 {
					want += fmt.Sprintf(" %d@11m5.6s", i)
				}
				b.want(want)
				b.stop()
			})
		})
	}
}

// A stream over several partitions replays in the time of the log, merged.
func TestPacedReplayMergesPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBubble(t, 100, 1, timed(0, 0, 200_000, 210_000), timed(10, 100_000, 150_000, 205_000), timed(20, 99_000))
		time.Sleep(time.Minute)
		b.want("0@0s 20@990ms 10@1s 11@1.5s 1@2s 12@2.05s 2@2.1s")
		if !b.live() {
			t.Error("the stream is not live")
		}
		b.stop()
	})
}

// What a paced replay reads ahead is bounded, and it holds no slot while it waits.
func TestPacedReplayHoldsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, size = 5000, 1 << 10
		times := make([]int64, n)
		for i := range times {
			times[i] = int64(i) * 1000
		}
		events := timed(0, times...)
		for i, e := range events {
			e.Payload = fmt.Appendf(nil, `{"n":%d,"fill":%q}`, i, strings.Repeat("x", size))
		}
		b := startBubble(t, 1, 0, events)
		sent := int64(0)
		for range 20 {
			time.Sleep(100 * time.Second)
			sent += 100
			synctest.Wait()
			if ahead := b.history.emitted.Load() - sent; ahead > 2*unhurriedBytes/size+2 {
				t.Errorf("%d events of 1 KB are read ahead", ahead)
			}
			if b.hub.replays.idle() != 1 || b.hub.reads.idle() != 1 {
				t.Error("a replay that waits for the time of an event holds a slot")
			}
		}
		b.stop()
	})
}
