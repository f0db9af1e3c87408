package streamer

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/playhead-dev/playhead/schema"
)

// startWideEnv starts a node whose workspaces lie in all of the given partitions.
func startWideEnv(t testing.TB, cfg Config, partitions int) *env {
	t.Helper()
	e := startEnv(t, cfg, partitions)
	e.placement.Shards = partitions
	e.history.ended = func(p uint16) int64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.ends[p]
	}
	return e
}

// longest returns the end of the longest partition.
func (e *env) longest() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	longest := int64(0)
	for _, end := range e.ends {
		longest = max(longest, end)
	}
	return longest
}

// scattered returns events of many sessions, half of them of a workflow, with a few hidden
// ones and repeats among them. Those of one call are of the same few milliseconds.
func scattered(rng *rand.Rand, n int) []*schema.Event {
	out := make([]*schema.Event, n)
	for i := range out {
		session := rng.IntN(24)
		e := newEvent(fmt.Sprint("s", session), []string{"tick", "tock", "memory.updated"}[rng.IntN(3)], "")
		if session%2 == 0 {
			e.Workflow = "flow"
		}
		if rng.IntN(20) == 0 {
			e.Type = schema.TypeSessionCreated
		}
		if rng.IntN(3) == 0 {
			e.MessageID = fmt.Sprint("m", rng.IntN(2000))
		}
		out[i] = e
	}
	return out
}

// spread gives events times from ms on, several to each millisecond, and returns the next.
func spread(rng *rand.Rand, events []*schema.Event, ms int64) int64 {
	for _, e := range events {
		e.ID.TimeMs = ms
		ms += int64(rng.IntN(3)) / 2
	}
	return ms + 1
}

// listening is what a test listens to: a path, and what of the log its stream has to bring.
type listening struct {
	path   string
	scope  schema.Scope
	filter schema.Filter
	query  string // of the filter and more, without "?"
}

func listenTo(path string, scope schema.Scope, query string) listening {
	q, err := url.ParseQuery(query)
	if err != nil {
		panic(err)
	}
	f, err := schema.ParseFilter(q, schema.TypeTable{})
	if err != nil {
		panic(err)
	}
	return listening{path: path, scope: scope, filter: f, query: query}
}

func workspaceStream(query string) listening {
	return listenTo("/v1/stream", schema.Scope{Workspace: "w"}, query)
}

func workflowStream(query string) listening {
	return listenTo("/v1/workflows/flow/events/stream", schema.Scope{Workspace: "w", Workflow: "flow"}, query)
}

func sessionStream(session, query string) listening {
	return listenTo("/v1/sessions/"+session+"/events/stream", schema.Scope{Workspace: "w", Session: session}, query)
}

func (l *listening) takes(e *schema.Event) bool { return l.scope.Holds(e) && l.filter.Match(e) }

// at is the path and query of the stream behind the id last; "" is the beginning.
func (l *listening) at(last string) string {
	q := l.path + "?" + l.query
	if last == "" {
		return q + "&from=start"
	}
	return q + "&last_event_id=" + url.QueryEscape(last)
}

// rest is what has to come of the log from the given offsets on, by partition.
func (e *env) rest(l *listening, from func(partition uint16) int64) map[uint16][]schema.EventID {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[uint16][]schema.EventID)
	for p, all := range e.inOrder {
		for _, ev := range all {
			if ev.ID.Offset >= from(p) && l.takes(ev) {
				out[p] = append(out[p], ev.ID)
			}
		}
	}
	return out
}

func count[K comparable, V any](m map[K][]V) int {
	n := 0
	for _, v := range m {
		n += len(v)
	}
	return n
}

// eventOf returns the id of the event that a stream's id stands for.
func eventOf(id string) (schema.EventID, error) {
	c, err := schema.ParseCursor(id)
	return c.ID, err
}

// expectOf reads exactly the given events, those of each partition in order.
func (c *client) expectOf(rest map[uint16][]schema.EventID) error {
	for left := count(rest); left > 0; left-- {
		f, err := c.realEvent()
		if err != nil {
			return fmt.Errorf("with %d events to come: %w", left, err)
		}
		if err := take(rest, f.id); err != nil {
			return fmt.Errorf("with %d events to come: %w", left, err)
		}
	}
	return nil
}

// take takes the next event of its partition off rest: it has to be that of id.
func take(rest map[uint16][]schema.EventID, id string) error {
	got, err := eventOf(id)
	if err != nil {
		return err
	}
	want := rest[got.Partition]
	if len(want) == 0 || want[0] != got {
		return fmt.Errorf("%s of partition %d comes, want %v", offsetText(got.String()), got.Partition, want[:min(1, len(want))])
	}
	rest[got.Partition] = want[1:]
	return nil
}

// realEvent reads the next event of the log.
func (c *client) realEvent() (frame, error) {
	for {
		f, err := c.event()
		if err != nil || f.data != "" && f.event != "heartbeat" && f.event != "playhead.caught_up" {
			return f, err
		}
	}
}

// toTheSeam reads until all that there was has come.
func (c *client) toTheSeam() (ids []string, err error) {
	for {
		f, err := c.event()
		switch {
		case err != nil:
			return ids, err
		case f.event == "playhead.caught_up":
			return ids, nil
		case f.data != "" && f.event != "heartbeat":
			ids = append(ids, f.id)
		}
	}
}

// resumes checks that what comes behind the id is exactly rest, up to the seam.
func (e *env) resumes(l listening, last string, rest map[uint16][]schema.EventID) error {
	if !strings.Contains(l.query, "notices=1") {
		l.query += "&notices=1"
	}
	c, err := e.dial(l.at(last), "reader")
	if err != nil {
		return err
	}
	defer c.close()
	if c.status != 200 {
		return fmt.Errorf("%s is answered %d %s", l.at(last), c.status, c.body())
	}
	ids, err := c.toTheSeam()
	if err != nil {
		return fmt.Errorf("%s, after %d of %d events: %w", l.at(last), len(ids), count(rest), err)
	}
	for i, id := range ids {
		if err := take(rest, id); err != nil {
			return fmt.Errorf("%s: event %d: %w", l.at(last), i, err)
		}
	}
	if n := count(rest); n > 0 {
		return fmt.Errorf("%s: %d of %d events did not come", l.at(last), n, n+len(ids))
	}
	return nil
}

// nextOf says where a cursor has each partition go on.
func nextOf(c schema.Cursor) func(uint16) int64 {
	return func(p uint16) int64 {
		next, ok := c.Next(p)
		if !ok {
			return 1 << 60
		}
		return next
	}
}

// Every cursor that a stream over eight partitions has given resumes exactly behind it,
// wherever the seams between ClickHouse, Kafka and the tapes lie, and whichever fails.
func TestEveryCursorOfSeveralPartitions(t *testing.T) {
	checkGoroutines(t)
	events, step := 1600, 3
	if raceEnabled {
		events, step = 500, 4
	}
	for _, tapeBytes := range []int{64 << 20, events * 30, 10_000} {
		t.Run(fmt.Sprintf("tapes of %d bytes", tapeBytes), func(t *testing.T) {
			cfg := testConfig()
			cfg.Tape.MaxBytes = tapeBytes
			cfg.ReplayBytes = 100_000
			e := startWideEnv(t, cfg, 8)
			rng := rand.New(rand.NewPCG(2, uint64(tapeBytes)))
			for range 10 {
				e.produce(scattered(rng, events/10)...)
			}
			e.serve()
			streams := []listening{workspaceStream(""), workflowStream(""), workspaceStream("type=memory.*"), workflowStream("type=tock")}
			var resumed, delivered atomic.Int64
			for _, l := range streams {
				c := e.get(l.at("")+"&notices=1", "reader")
				cursors, err := c.toTheSeam()
				c.close()
				all := e.rest(&l, func(uint16) int64 { return 0 })
				if err != nil || len(cursors) != count(all) {
					t.Fatalf("%s: %d of %d events, %v", l.path, len(cursors), count(all), err)
				}
				work := make(chan string)
				var wg sync.WaitGroup
				for range 12 {
					wg.Go(func() {
						for id := range work {
							cursor, err := schema.ParseCursor(id)
							if err != nil {
								t.Error(err)
								continue
							}
							rest := e.rest(&l, nextOf(cursor))
							delivered.Add(int64(count(rest)))
							resumed.Add(1)
							if err := e.resumes(l, id, rest); err != nil {
								t.Error(err)
							}
						}
					})
				}
				for i := rng.IntN(step); i < len(cursors); i += step {
					// The cursor says what has come, in the order it came.
					for _, id := range cursors[max(0, i-step+1) : i+1] {
						if err := take(all, id); err != nil {
							t.Fatal(err)
						}
					}
					if i%7 == 0 {
						e.history.setWatermark(rng.Int64N(e.longest() + 1))
					}
					e.history.failing.Store(rng.IntN(4) == 0)
					e.history.emitted.Store(0)
					e.history.failAfter.Store(rng.Int64N(200))
					work <- cursors[i]
				}
				close(work)
				wg.Wait()
				e.history.failing.Store(false)
				e.history.failAfter.Store(0)
			}
			t.Logf("%d cursors, %d events delivered", resumed.Load(), delivered.Load())
		})
	}
}

// The id of one event says where its own partition goes on. Of the others it tells the
// time: all of that millisecond and later comes, and nothing earlier, also where Kafka no
// longer holds what came before.
func TestPlainIDsMissNothing(t *testing.T) {
	for _, retained := range []bool{true, false} {
		t.Run(fmt.Sprint("retained ", retained), func(t *testing.T) {
			checkGoroutines(t)
			cfg := testConfig()
			cfg.Tape.MaxBytes = 10_000
			e := startWideEnv(t, cfg, 4)
			rng := rand.New(rand.NewPCG(3, 3))
			ms := time.Now().Add(-time.Minute).UnixMilli()
			for range 5 {
				events := scattered(rng, 100)
				ms = spread(rng, events, ms)
				e.produce(events...)
			}
			e.history.setWatermark(e.longest() * 2 / 3)
			if !retained {
				for p := range int32(4) {
					e.deleteRecords(p, e.longest()/2)
				}
			}
			e.serve()
			for _, l := range []listening{workspaceStream(""), workflowStream("type=tick,tock"), workspaceStream(fmt.Sprint("since=", ms-60))} {
				for p := range uint16(4) {
					for i := 0; i < len(e.inOrder[p]); i += 1 + len(e.inOrder[p])/15 {
						id := e.inOrder[p][i].ID
						rest := e.rest(&l, func(q uint16) int64 {
							if q == id.Partition {
								return id.Offset + 1
							}
							for _, ev := range e.inOrder[q] { // times do not run back here
								if ev.ID.TimeMs >= id.TimeMs {
									return ev.ID.Offset
								}
							}
							return 1 << 60
						})
						if err := e.resumes(l, id.String(), rest); err != nil {
							t.Error(err)
						}
					}
				}
			}
			if c := e.get("/v1/stream?last_event_id="+schema.EventID{Position: schema.Position{Epoch: 1, Partition: 9}, TimeMs: ms}.String(), "reader"); c.status != 400 {
				t.Errorf("an id of a partition that the workspace does not use is answered %d", c.status)
			} else {
				c.close()
			}
		})
	}
}

// A client that is cut off again and again and resumes with the last id it was given, be
// it of an event, a heartbeat or a bare position, sees the log exactly once. It begins
// with an empty log; the sessions start later.
func TestLastIDOfAnyKindResumesExactly(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.KeepAlive = 32 * time.Millisecond
	cfg.Tape.MaxBytes = 30_000
	cfg.ReplayBytes = 50_000
	e := startWideEnv(t, cfg, 8)
	e.serve()
	streams := []listening{
		workspaceStream("notices=1"), workspaceStream("type=never"), workspaceStream("type=tock"), workflowStream("notices=1&type=memory.*"), workflowStream("notices=1"),
	}
	rounds := 40
	if raceEnabled {
		rounds = 20
	}
	var wg sync.WaitGroup
	start := make(chan struct{}) // closed when all have a position in the empty log
	var ready sync.WaitGroup
	over := make(chan struct{})
	ready.Add(len(streams))
	for i, l := range streams {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 5))
			kinds := map[string]int{}
			last, got := "", []string(nil)
			read := func(stop func(frame) bool) bool {
				path := l.path + "?" + l.query
				if last != "" {
					path = l.at(last)
				}
				c, err := e.dial(path, "reader")
				if err != nil || c.status != 200 {
					t.Errorf("%s: %v, %+v", path, err, c)
					return false
				}
				defer c.close()
				for {
					f, err := c.next()
					if err != nil {
						t.Errorf("%s, after %d events: %v", path, len(got), err)
						return false
					}
					if f.id != "" {
						last = f.id
					}
					if f.data != "" && f.event != "heartbeat" && f.event != "playhead.caught_up" {
						got = append(got, f.id)
					}
					if stop(f) {
						kind := "event"
						if f.event == "heartbeat" || f.data == "" {
							kind = "position"
						}
						kinds[kind]++
						return true
					}
				}
			}
			ok := read(func(f frame) bool { return f.id != "" })
			ready.Done()
			<-start
			for ok {
				n := rng.IntN(60)
				ok = read(func(frame) bool { n--; return n < 0 && last != "" })
				select {
				case <-over:
					rest := e.rest(&l, func(uint16) int64 { return 0 })
					for i, id := range got {
						if err := take(rest, id); err != nil {
							t.Errorf("%s: event %d: %v", l.at(""), i, err)
							return
						}
					}
					if err := e.resumes(l, last, rest); err != nil {
						t.Error(err)
					}
					t.Logf("%s?%s: %d events, %v", l.path, l.query, len(got), kinds)
					return
				default:
				}
			}
		})
	}
	ready.Wait()
	close(start)
	rng := rand.New(rand.NewPCG(5, 5))
	for range rounds {
		e.produce(scattered(rng, 1+rng.IntN(60))...)
		e.history.setWatermark(rng.Int64N(e.longest() + 1))
		e.history.failing.Store(rng.IntN(4) == 0)
		time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond) // so that heartbeats come in between
	}
	e.history.failing.Store(false)
	close(over)
	wg.Wait()
}

// Each partition has one reader, however many streams listen to it; partitions that
// nobody uses any more are given up, and opened again for those who come.
func TestPartitionsAreOpenedAndGivenUp(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.IdleAfter = 200 * time.Millisecond
	e := startWideEnv(t, cfg, 8)
	e.serve()
	e.tapeStats.MustRegister(e.tapes)
	stat := func(name string) float64 {
		families, err := e.tapeStats.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == name {
				return sum(f)
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
	if n := stat("playhead_tape_partitions"); n != 0 {
		t.Fatalf("%v partitions are followed before anybody listens", n)
	}
	rng := rand.New(rand.NewPCG(8, 8))
	e.produce(newEvent("s1", "tick", "")) // so that it exists
	for round := range 2 {
		before := stat("playhead_tape_records_total")
		one := e.get("/v1/sessions/s1/events/stream", "reader")
		if n := stat("playhead_tape_partitions"); n != 1 {
			t.Errorf("%v partitions are followed for one session", n)
		}
		clients := []*client{one}
		for i := range 40 {
			l := []listening{workspaceStream(""), workflowStream("")}[i%2]
			clients = append(clients, e.get(l.path, "reader"))
		}
		e.live(len(clients))
		if n := stat("playhead_tape_partitions"); n != 8 {
			t.Errorf("%v partitions are followed for the workspace", n)
		}
		from := make(map[uint16]int64)
		for p := range uint16(8) {
			from[p] = e.history.ended(p)
		}
		warm := stat("playhead_tape_records_total") - before
		events := scattered(rng, 200)
		e.produce(events...)
		for i, c := range clients {
			l := []listening{workspaceStream(""), workflowStream("")}[(i+1)%2]
			if i == 0 {
				l = sessionStream("s1", "")
			}
			if err := c.expectOf(e.rest(&l, func(p uint16) int64 { return from[p] })); err != nil {
				t.Errorf("round %d, client %d: %v", round, i, err)
			}
		}
		if n := stat("playhead_tape_records_total") - before - warm; n != float64(len(events)) {
			t.Errorf("the tapes have read %v records of %d", n, len(events))
		}
		for _, c := range clients[1:] {
			c.close()
		}
		eventually(t, "only the session's partition is followed", func() bool { return stat("playhead_tape_partitions") == 1 })
		one.quietOf(e, sessionStream("s1", ""))
		one.close()
		eventually(t, "no partition is followed", func() bool { return stat("playhead_tape_partitions") == 0 })
	}
}

// quietOf checks that nothing but the given live event comes, which the caller appends now.
func (c *client) quietOf(e *env, l listening) {
	c.t.Helper()
	probe := newEvent("s1", "tick", "")
	e.produce(probe)
	f, err := c.realEvent()
	if id, perr := eventOf(f.id); err != nil || perr != nil || id != probe.ID {
		c.t.Errorf("%s: %+v, %v; want only %s", l.path, f, err, probe.ID)
	}
}

func sum(f *dto.MetricFamily) float64 {
	total := 0.0
	for _, m := range f.GetMetric() {
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return total
}

// A cursor of an earlier epoch of the log goes on in history and comes out in the present.
func TestCursorsOfAnEarlierEpoch(t *testing.T) {
	checkGoroutines(t)
	e := startWideEnv(t, testConfig(), 4)
	e.epoch = 2
	rng := rand.New(rand.NewPCG(4, 4))
	old := make(map[uint16][]*schema.Event) // of epoch 1, which only history has
	ms := time.Now().Add(-time.Hour).UnixMilli()
	for _, ev := range scattered(rng, 200) {
		p := e.placement.Partition("w", ev.Session)
		ms += int64(rng.IntN(3))
		ev.MessageID = ""
		ev.ID = schema.EventID{Position: schema.Position{Epoch: 1, Partition: p, Offset: int64(len(old[p]))}, TimeMs: ms}
		e.history.add(ev)
		old[p] = append(old[p], ev)
	}
	e.produce(scattered(rng, 200)...)
	e.serve()
	e.history.setWatermark(e.longest() / 2)
	for _, l := range []listening{workspaceStream(""), workflowStream("")} {
		for range 20 {
			// A stream's cursor names every partition; an event's id its own.
			cursor := schema.Cursor{}
			next := make(map[uint16]int64)
			for p := range uint16(4) {
				next[p] = rng.Int64N(int64(len(old[p])))
				if p == 0 {
					cursor.ID = old[0][next[0]].ID
					next[0]++
				} else {
					cursor.Others = append(cursor.Others, schema.NextOffset{Partition: p, Offset: next[p]})
				}
			}
			plain := schema.Cursor{ID: cursor.ID}
			for _, c := range []schema.Cursor{cursor, plain} {
				rest := e.rest(&l, func(uint16) int64 { return 0 })
				for p, all := range old {
					var before []schema.EventID
					for _, ev := range all {
						behind := ev.ID.Offset >= next[p]
						if len(c.Others) == 0 && p != 0 {
							behind = ev.ID.TimeMs >= c.ID.TimeMs
						}
						if behind && l.takes(ev) && !ev.Hidden() {
							before = append(before, ev.ID)
						}
					}
					rest[p] = append(before, rest[p]...)
				}
				if err := e.resumes(l, c.String(), rest); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// Cursors of streams are long; none may be longer than what comes back in a header.
func TestCursorOfManyPartitionsFitsAHeader(t *testing.T) {
	next := make([]schema.NextOffset, 64)
	for i := range next {
		next[i] = schema.NextOffset{Partition: uint16(i * 3), Offset: 1 << 40}
	}
	text := schema.CursorAt(1, next, 1).String()
	if len(text) > 1024 || strings.ContainsAny(text, "\r\n &+") {
		t.Errorf("a cursor of %d partitions has %d bytes: %s", len(next), len(text), text)
	}
	if back, err := schema.ParseCursor(text); err != nil || back.String() != text {
		t.Errorf("ParseCursor(%s) = %v, %v", text, back, err)
	}
}
