package streamer

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/presence"
	"github.com/playhead-dev/playhead/schema"
)

// eraser erases sessions of an env as control and cmd do.
type eraser struct {
	*env
	mu  sync.Mutex
	set schema.Erasures
}

func serveWithEraser(t *testing.T, cfg Config, before func(e *env)) *eraser {
	t.Helper()
	x := &eraser{env: startEnv(t, cfg, 1)}
	x.erased = func(workspace, session string) schema.Position {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.set.Below(workspace, session)
	}
	if before != nil {
		before(x.env)
	}
	x.serve()
	return x
}

// learn makes the erasure known that ends with what the log holds now, and no more.
func (x *eraser) learn(session string) {
	x.t.Helper()
	x.produce(newEvent(session, schema.TypeErased, ""))
	x.mu.Lock()
	defer x.mu.Unlock()
	x.set.Add(&schema.Erasure{
		ID: fmt.Sprint(x.end(session)), Workspace: "w", Session: session,
		Below: schema.Position{Epoch: 1, Partition: x.placement.Partition("w", session), Offset: x.end(session)},
	})
}

func (x *eraser) erase(session string) {
	x.t.Helper()
	x.learn(session)
	x.tapes.Erase("w", session)
	x.hub.EndErased("w", session)
}

func (x *eraser) mustBeGone(path string, headers ...string) {
	x.t.Helper()
	c := x.get(path, "reader", headers...)
	defer c.close()
	if c.status != http.StatusNotFound {
		x.t.Errorf("%s %v is answered %d", path, headers, c.status)
	}
}

func TestAnErasedSessionsStreamsEndAndAreNotFoundAgain(t *testing.T) {
	checkGoroutines(t)
	x := serveWithEraser(t, testConfig(), nil)
	x.produce(numbered("s", 0, 5)...)
	x.produce(newEvent("other", "a", ""))
	const path = "/v1/sessions/s/events/stream"
	live := x.get(path+"?from=start", "reader")
	defer live.close()
	live.mustExpect(x.want("s", -1))
	socket := x.socket("/v1/sessions/s/events/ws", "reader")
	all := x.get("/v1/stream", "reader")
	defer all.close()
	other := x.get("/v1/sessions/other/events/stream", "reader")
	defer other.close()
	x.live(4)
	last := x.want("s", -1)[2]
	x.erase("s")
	erased := x.end("s") - 1
	raw, err := io.ReadAll(live.br)
	if blocks := mustParseSSE(t, raw); err != nil || len(blocks) != 1 || !strings.Contains(blocks[0].data, `"SESSION_ERASED"`) {
		t.Errorf("the erased session's stream ends with %q, %v", raw, err)
	}
	socket.mustClose(closeErased, "the session was erased")
	x.live(2)
	for _, query := range []string{"", "?from=start", "?from_t_ms=0", "?speed=2"} {
		x.mustBeGone(path + query)
	}
	x.mustBeGone(path, "Last-Event-ID: "+last)

	// The next session of that id.
	x.produce(numbered("s", 100, 3)...)
	for _, headers := range [][]string{nil, {"Last-Event-ID: " + last}} {
		again := x.get(path+"?from=start", "reader", headers...)
		again.mustExpect(x.want("s", erased))
		again.quiet(x.env)
		again.close()
	}
	x.produce(newEvent("other", "b", ""))
	other.mustExpect(x.want("other", 5))
}

// TestNobodyIsSentWhatWasErased replays from history, from Kafka and from the tape; the
// history here knows nothing of erasures.
func TestNobodyIsSentWhatWasErased(t *testing.T) {
	for _, source := range []string{"clickhouse", "kafka", "tape"} {
		t.Run(source, func(t *testing.T) {
			checkGoroutines(t)
			var below int64
			produce := func(e *env) {
				for i := range 50 {
					a, b := numbered("gone", i, 1)[0], numbered("kept", i, 1)[0]
					a.Workflow, b.Workflow = "flow", "flow"
					if source != "tape" {
						old := time.Now().Add(-time.Hour).UnixMilli()
						a.ID.TimeMs, b.ID.TimeMs = old, old
					}
					e.produce(a, b)
				}
				below = e.end("kept")
			}
			x := serveWithEraser(t, testConfig(), produce)
			if source == "clickhouse" {
				x.history.setWatermark(below)
			}
			x.warm("kept")
			x.erase("gone")
			for _, path := range []string{"/v1/stream?from=start", "/v1/workflows/flow/events/stream?from=start", "/v1/sessions/kept/events/stream?from=start"} {
				c := x.get(path, "reader")
				c.mustExpect(x.want("kept", -1))
				probe := newEvent("kept", "probe", "") // nothing came before it
				probe.Workflow = "flow"
				after := x.end("kept") - 1
				x.produce(probe)
				c.mustExpect(x.want("kept", after))
				c.close()
			}
			x.mustBeGone("/v1/sessions/gone/events/stream?from=start")
		})
	}
}

// TestAReplayForgetsWhatIsErasedWhileItWaits:
//  1. a replay in the session's own time reads ahead, and waits for the next event to be due
//  2. the session is erased
//  3. the event is due
func TestAReplayForgetsWhatIsErasedWhileItWaits(t *testing.T) {
	checkGoroutines(t)
	old := time.Now().Add(-time.Hour).UnixMilli()
	x := serveWithEraser(t, testConfig(), func(e *env) {
		for i := range 40 {
			ev := numbered([]string{"gone", "kept"}[i%2], i, 1)[0]
			ev.ID.TimeMs = old + int64(i)*100
			e.produce(ev)
		}
	})
	c := x.get("/v1/stream?from=start&speed=1", "reader")
	defer c.close()
	first, err := c.event()
	if err != nil {
		t.Fatal(err)
	}
	x.erase("gone")
	seen, kept := 0, x.want("kept", -1)
	for got := 0; got < len(kept); {
		f, err := c.event()
		if err != nil {
			t.Fatal(err)
		}
		if f.id[:len(kept[0])] == kept[got] {
			got++
			continue
		}
		seen++ // one may have been on its way
	}
	if first.id == "" || seen > 1 {
		t.Errorf("%d events were sent after they were erased", seen)
	}
}

// countsFunc is a Counts that admits everybody, after a call.
type countsFunc func()

func (f countsFunc) Acquire(string, string, string, presence.Limits) (func(), error) {
	f()
	return func() {}, nil
}

// TestAStreamThatOpensWhileItsSessionIsErasedEnds: 1. a request finds the session. 2. It is
// erased, and EndErased finds no stream. 3. The stream begins: nobody would end it.
func TestAStreamThatOpensWhileItsSessionIsErasedEnds(t *testing.T) {
	checkGoroutines(t)
	x := &eraser{env: startEnv(t, testConfig(), 1)}
	var asked sync.Once
	x.erased = func(workspace, session string) schema.Position {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.set.Below(workspace, session)
	}
	x.serveWith(limitKeys, func(d *Deps) {
		d.Counts = countsFunc(func() { asked.Do(func() { x.erase("s") }) }) // between lookup and begin
	})
	x.produce(numbered("s", 0, 5)...)
	c := x.get("/v1/sessions/s/events/stream?from=start", "one")
	defer c.close()
	raw, err := io.ReadAll(c.br)
	if blocks := mustParseSSE(t, raw); err != nil || len(blocks) != 1 || !strings.Contains(blocks[0].data, `"SESSION_ERASED"`) {
		t.Errorf("the stream says %q, %v", raw, err)
	}
	x.live(0)
}

// TestColdStatesLeaveOutWhatWasErased folds a session of which ClickHouse, which is away,
// would know the beginning.
func TestColdStatesLeaveOutWhatWasErased(t *testing.T) {
	x := &eraser{env: startEnv(t, testConfig(), 1)}
	x.produce(numbered("s", 0, 5)...)
	x.learn("s")
	below := x.end("s")
	x.produce(numbered("s", 100, 3)...)
	x.history.failing.Store(true)
	past := &Past{History: x.history, Log: x.log, Epoch: 1, Placement: x.place, Rule: x.cfg.Tape.Rule(), Erased: x.set.Below}
	for _, c := range []struct {
		name          string
		watermark, to int64
		want          int64
	}{
		{"nothing but what is erased", 3, below, 0},
		{"the end of it is not materialised", 3, below + 3, 3},
		{"materialised up to the erasure", below, below + 2, 2},
		{"all of it is materialised", below + 2, below + 3, 3}, // all from Kafka
	} {
		t.Run(c.name, func(t *testing.T) {
			x.history.setWatermark(c.watermark)
			s, err := past.SessionBase(t.Context(), "w", "s", schema.Position{Epoch: 1, Offset: c.to})
			if err != nil {
				t.Fatal(err)
			}
			if s.EventCount != c.want || s.Exists() != (c.want > 0) || c.want > 0 && s.First.Offset != below {
				t.Errorf("%d events, the first at %d; want %d from %d", s.EventCount, s.First.Offset, c.want, below)
			}
		})
	}
	// In an epoch of which Kafka does not hold the beginning nothing stands in for
	// ClickHouse; what is erased does not need it.
	past.Epoch = 2
	x.history.setWatermark(3)
	if s, err := past.SessionBase(t.Context(), "w", "s", schema.Position{Epoch: 1, Offset: below}); err != nil || s.Exists() {
		t.Errorf("SessionBase = %+v, %v, want nothing", s, err)
	}
	x.history.setWatermark(below)
	if _, err := past.SessionBase(t.Context(), "w", "s", schema.Position{Epoch: 1, Offset: below + 1}); err != nil {
		t.Errorf("SessionBase behind the erasure: %v", err)
	}
}
