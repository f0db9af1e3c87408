package streamer

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/textproto"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

const testDeadline = 30 * time.Second

// checkGoroutines fails the test if, when everything else is cleaned up, goroutines of
// this package or descriptors are left. Call it first.
func checkGoroutines(t testing.TB) {
	t.Helper()
	before := openDescriptors(t)
	t.Cleanup(func() {
		var left []string
		after := 0
		for deadline := time.Now().Add(testDeadline); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			left = left[:0]
			buf := make([]byte, 16<<20)
			for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "playhead/streamer") && !strings.Contains(g, "testing.tRunner(") &&
					!strings.Contains(g, "testing.(*B).run") && !strings.Contains(g, "testing.fRunner(") {
					left = append(left, g)
				}
			}
			if after = openDescriptors(t); len(left) == 0 && after <= before {
				return
			}
		}
		t.Errorf("%d goroutines and %d descriptors left:\n%s", len(left), after-before, strings.Join(left, "\n\n"))
	})
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0 // no such thing here
	}
	return len(names)
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testDeadline); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// fakeHistory is a History in memory: every event below a watermark that tests set.
type fakeHistory struct {
	watermark atomic.Int64 // of every partition; see setWatermark
	highest   atomic.Int64 // the highest watermark so far
	failing   atomic.Bool
	failAfter atomic.Int64 // if positive, ReadChunk fails when it has emitted so many
	emitted   atomic.Int64 // since failAfter was set
	reads     atomic.Int64
	delay     atomic.Int64 // nanoseconds that ReadChunk takes

	// ended, if set, is where a partition ends; no watermark is beyond it.
	ended func(partition uint16) int64

	mu     sync.RWMutex
	events map[string][]*schema.Event // by workspace/session, in log order, no repeats
	log    map[uint16][]*schema.Event // by partition, in log order, no repeats
}

func newFakeHistory() *fakeHistory {
	return &fakeHistory{events: make(map[string][]*schema.Event), log: make(map[uint16][]*schema.Event)}
}

// setWatermark moves the watermark, back as well: to a replay it makes no difference.
func (h *fakeHistory) setWatermark(offset int64) {
	h.highest.Store(max(h.highest.Load(), offset))
	h.watermark.Store(offset)
}

func (h *fakeHistory) add(e *schema.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := e.Workspace + "/" + e.Session
	h.events[key] = append(h.events[key], e)
	h.log[e.ID.Partition] = append(h.log[e.ID.Partition], e)
}

func (h *fakeHistory) of(workspace, session string, partition uint16, from, to schema.Position) []*schema.Event {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return between(h.events[workspace+"/"+session], partition, from, to)
}

// between returns the events of [from, to) of a partition.
func between(all []*schema.Event, partition uint16, from, to schema.Position) []*schema.Event {
	at := func(p schema.Position) int {
		p.Partition = partition
		i, _ := slices.BinarySearchFunc(all, p, func(e *schema.Event, p schema.Position) int { return e.ID.Compare(p) })
		return i
	}
	return all[at(from):max(at(from), at(to))]
}

func (h *fakeHistory) ReadChunk(ctx context.Context, scope schema.Scope, partition uint16, from, to schema.Position,
	f *schema.Filter, maxBytes int,
) (events []*schema.Event, next schema.Position, err error) {
	h.reads.Add(1)
	if d := h.delay.Load(); d > 0 {
		select {
		case <-time.After(time.Duration(d)):
		case <-ctx.Done():
			return nil, from, context.Cause(ctx)
		}
	}
	if to.Offset > h.highest.Load() {
		return nil, from, fmt.Errorf("asked up to %d, where no watermark ever was", to.Offset)
	}
	if h.failing.Load() {
		return nil, from, errFakeHistory
	}
	failAfter := h.failAfter.Load()
	size := 0
	for _, e := range h.ofScope(scope, partition, from, to) {
		if err := ctx.Err(); err != nil {
			return nil, from, err
		}
		if e.Hidden() || !scope.Holds(e) || !f.Match(e) {
			continue
		}
		if failAfter > 0 && h.emitted.Add(1) > failAfter {
			return nil, from, errFakeHistory
		}
		events = append(events, e)
		if size += e.Size(); size >= maxBytes {
			next = e.ID.Position
			next.Offset++
			return events, next, nil
		}
	}
	return events, to, nil
}

// ofScope is what lies in [from, to) of a partition, in log order; of a session, only that.
func (h *fakeHistory) ofScope(scope schema.Scope, partition uint16, from, to schema.Position) []*schema.Event {
	if scope.Session != "" {
		return h.of(scope.Workspace, scope.Session, partition, from, to)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return between(h.log[partition], partition, from, to)
}

func (h *fakeHistory) SessionBase(_ context.Context, workspace, session string, to schema.Position) (schema.Session, error) {
	s := schema.NewSession()
	if h.failing.Load() {
		return s, errFakeHistory
	}
	for _, e := range h.of(workspace, session, to.Partition, schema.Position{}, to) {
		s.Apply(e)
	}
	return s, nil
}

func (h *fakeHistory) Watermark(partition uint16) int64 {
	if h.ended != nil {
		return min(h.watermark.Load(), h.ended(partition))
	}
	return h.watermark.Load()
}

var errFakeHistory = fmt.Errorf("fake history is away")

// fakeKeys knows the keys of the tests.
type fakeKeys map[string]control.Principal

func (k fakeKeys) Authenticate(key string) (control.Principal, error) {
	p, ok := k[key]
	if !ok {
		return control.Principal{}, control.ErrUnknownKey
	}
	return p, nil
}

// env is a streaming node over an embedded broker and a fake history.
type env struct {
	t         testing.TB
	cfg       Config
	placement schema.Placement
	epoch     uint8 // of the log
	erased    schema.ErasedBelow
	kafkaCfg  kafka.Config
	broker    *kafka.Embedded
	log       *kafka.Log
	producer  *kgo.Client
	history   *fakeHistory
	tapes     *tape.Tapes
	tapeStats *prometheus.Registry
	hub       *Hub
	app       *fiber.App
	addr      string

	mu      sync.Mutex // guards what follows, which produce fills
	windows map[uint16]*schema.Window
	visible map[string][]*schema.Event // by session: what a stream must deliver, in order
	inOrder map[uint16][]*schema.Event // the same by partition
	ends    map[uint16]int64
	unread  atomic.Int64 // numbers generated ids
}

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.Workers = 2
	cfg.WriteTimeout = testDeadline
	cfg.KeepAlive = 5 * time.Minute
	return cfg
}

// startEnv starts a node whose log has the given number of partitions.
func startEnv(t testing.TB, cfg Config, partitions int) *env {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", partitions, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	e := &env{
		t: t, cfg: cfg, broker: broker, kafkaCfg: broker.Config(),
		placement: schema.Placement{Partitions: partitions, Shards: schema.DefaultShards},
		epoch:     1,
		history:   newFakeHistory(),
		windows:   make(map[uint16]*schema.Window),
		visible:   make(map[string][]*schema.Event),
		inOrder:   make(map[uint16][]*schema.Event),
		ends:      make(map[uint16]int64),
	}
	if err := kafka.EnsureTopics(ctx, e.kafkaCfg); err != nil {
		t.Fatal(err)
	}
	if e.log, err = kafka.OpenLog(ctx, e.kafkaCfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.log.Close)
	opts, err := e.kafkaCfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	e.producer, err = kgo.NewClient(append(opts,
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(schema.TopicEvents))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.producer.Close)
	return e
}

// serve starts tapes, hub and HTTP server. Events produced before lie below the tape as
// far as the tape's bounds say.
func (e *env) serve() *env {
	e.t.Helper()
	return e.serveWith(fakeKeys{
		"reader":    {Workspace: "w", Scopes: control.ScopeRead},
		"stranger":  {Workspace: "other", Scopes: control.ScopeRead},
		"writer":    {Workspace: "w", Scopes: control.ScopeIngest},
		"bound":     {Workspace: "w", Scopes: control.ScopeRead, Session: "s"},
		"elsewhere": {Workspace: "w", Scopes: control.ScopeRead, Session: "t"},
		"flow":      {Workspace: "w", Scopes: control.ScopeRead, Workflow: "flow"},
	}, nil)
}

// serveWith is serve for tests with keys and parts of their own; change may be nil. Several
// nodes may be made over one broker by beside.
func (e *env) serveWith(keys httpapi.Authenticator, change func(*Deps)) *env {
	e.t.Helper()
	opts, err := e.kafkaCfg.Options()
	if err != nil {
		e.t.Fatal(err)
	}
	past := &Past{History: e.history, Log: e.log, Epoch: e.epoch, Placement: e.place, Rule: e.cfg.Tape.Rule(), Erased: e.erased}
	e.tapeStats = prometheus.NewRegistry()
	e.tapes, err = tape.Start(e.cfg.Tape, tape.Deps{
		Kafka: opts, Log: e.log, Past: past, Epoch: e.epoch, Partitions: e.placement.Partitions, Placement: e.place, Erased: e.erased,
		Metrics: tape.NewMetrics(e.tapeStats), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(e.tapes.Close)
	deps := Deps{Tapes: e.tapes, Past: past, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&deps)
	}
	if e.hub, err = StartHub(e.cfg, deps); err != nil {
		e.t.Fatal(err)
	}
	e.app = httpapi.NewApp(httpapi.DefaultConfig(), slog.New(slog.DiscardHandler))
	e.app.Use(httpapi.Authenticate(keys, TokenRule()))
	e.hub.Routes(e.app)
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	e.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- e.app.Listener(ln) }()
	e.t.Cleanup(func() {
		e.closeHub()
		if err := e.app.ShutdownWithTimeout(testDeadline); err != nil {
			e.t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			e.t.Errorf("serve: %v", err)
		}
	})
	return e
}

// beside returns an environment of a further node over the same log, not yet served.
func (e *env) beside() *env {
	return &env{
		t: e.t, cfg: e.cfg, broker: e.broker, kafkaCfg: e.kafkaCfg, placement: e.placement, epoch: e.epoch, log: e.log,
		producer: e.producer, history: e.history,
	}
}

// closeHub ends the hub; a second call does nothing.
func (e *env) closeHub() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	if err := e.hub.Close(ctx); err != nil {
		e.t.Errorf("Close: %v\n%s", err, e.dump())
	}
}

// produce appends events as ingest would, waits for the acknowledgements, and tells the
// history and the list of what streams must deliver. Not to be called by two at once.
func (e *env) produce(events ...*schema.Event) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	records := make([]*kgo.Record, len(events))
	for i, ev := range events {
		if ev.ID.TimeMs == 0 {
			ev.ID.TimeMs = time.Now().UnixMilli()
		}
		records[i] = &kgo.Record{
			Partition: int32(e.placement.Partition(ev.Workspace, ev.Session)),
			Key:       schema.RecordKey(ev.Workspace, ev.Session),
			Headers:   schema.AppendHeaders[kgo.RecordHeader](nil, ev, strconv.FormatInt(e.unread.Add(1), 36)),
			Value:     ev.Payload,
			Timestamp: time.UnixMilli(ev.ID.TimeMs),
		}
	}
	if err := e.producer.ProduceSync(ctx, records...).FirstErr(); err != nil {
		e.t.Error(err)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, ev := range events {
		p := uint16(records[i].Partition)
		ev.ID.Position = schema.Position{Epoch: e.epoch, Partition: p, Offset: records[i].Offset}
		e.ends[p] = records[i].Offset + 1
		w := e.windows[p]
		if w == nil {
			w = schema.NewWindow(e.cfg.Tape.Rule())
			e.windows[p] = w
		}
		if _, repeats := w.Observe(ev); repeats {
			continue
		}
		e.history.add(ev)
		if !ev.Hidden() {
			e.visible[ev.Session] = append(e.visible[ev.Session], ev)
			e.inOrder[p] = append(e.inOrder[p], ev)
		}
	}
}

// newEvent returns an event with the parts tests care about.
func newEvent(session, typ, messageID string) *schema.Event {
	return &schema.Event{
		Workspace: "w", Session: session, Type: typ, MessageID: messageID,
		ContentType: schema.DefaultContentType, Payload: []byte(`{"k":1}`),
	}
}

// numbered returns n events of a session with numbers from first on.
func numbered(session string, first, n int) []*schema.Event {
	out := make([]*schema.Event, n)
	for i := range out {
		out[i] = newEvent(session, "tick", "")
		out[i].Payload = fmt.Appendf(nil, `{"n":%d}`, first+i)
		out[i].TMs = int64(first + i)
	}
	return out
}

// want returns the ids that a stream of the session must deliver after offset.
func (e *env) want(session string, after int64) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, ev := range e.visible[session] {
		if ev.ID.Offset > after {
			out = append(out, ev.ID.String())
		}
	}
	return out
}

// end returns the first offset not yet written of a session's partition.
func (e *env) end(session string) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ends[e.placement.Partition("w", session)]
}

// streams returns the number of open streams.
func (e *env) streams() int {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	return e.hub.slots
}

// warm opens the session's tape and waits until it has passed the log's end.
func (e *env) warm(session string) *tape.Tape {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	t, err := e.tapes.Open(ctx, e.placement.Partition("w", session))
	if err == nil {
		err = t.WaitFor(ctx, e.end(session))
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return t
}

// live waits until n subscriptions are attached and at rest: what is appended from now
// on reaches them live.
func (e *env) live(n int) {
	e.t.Helper()
	eventually(e.t, fmt.Sprintf("%d streams at rest", n), func() bool {
		e.hub.mu.Lock()
		defer e.hub.mu.Unlock()
		resting := 0
		for _, s := range e.hub.subs {
			if s.sched.Load() == stateResting {
				resting++
			}
		}
		return resting == n
	})
}

const stateResting = int32(resting)

// client is one listener: a raw connection.
type client struct {
	t      testing.TB
	nc     net.Conn
	br     *bufio.Reader
	status int
	header textproto.MIMEHeader
	last   string // id of the last event
}

// get sends a request and reads the response's head.
func (e *env) get(path, key string, headers ...string) *client {
	e.t.Helper()
	c, err := e.dial(path, key, headers...)
	if err != nil {
		e.t.Fatalf("GET %s: %v", path, err)
	}
	return c
}

func (e *env) dial(path, key string, headers ...string) (*client, error) {
	nc, err := (&net.Dialer{Timeout: testDeadline}).Dial("tcp", e.addr)
	if err != nil {
		return nil, err
	}
	c, err := e.ask(nc, path, key, headers...)
	if err != nil {
		_ = nc.Close()
	}
	return c, err
}

// ask sends a request on a connection and reads the head of the answer.
func (e *env) ask(nc net.Conn, path, key string, headers ...string) (*client, error) {
	c := &client{t: e.t, nc: nc, br: bufio.NewReaderSize(nc, 128<<10)}
	_ = nc.SetDeadline(time.Now().Add(2 * testDeadline))
	request := "GET " + path + " HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer " + key + "\r\n"
	for _, h := range headers {
		request += h + "\r\n"
	}
	if _, err := nc.Write([]byte(request + "\r\n")); err != nil {
		return nil, err
	}
	tp := textproto.NewReader(c.br)
	line, err := tp.ReadLine()
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscanf(line, "HTTP/1.1 %d", &c.status); err != nil {
		return nil, fmt.Errorf("status line %q: %w", line, err)
	}
	if c.header, err = tp.ReadMIMEHeader(); err != nil {
		return nil, err
	}
	return c, nil
}

// stream opens a stream of session s and fails the test if it is refused.
func (e *env) stream(query string, headers ...string) *client {
	e.t.Helper()
	c := e.get("/v1/sessions/s/events/stream"+query, "reader", headers...)
	if c.status != 200 {
		e.t.Fatalf("stream %s is answered %d %s", query, c.status, c.body())
	}
	return c
}

// body returns the rest of a response that has a length.
func (c *client) body() string {
	n, _ := strconv.Atoi(c.header.Get("Content-Length"))
	b := make([]byte, n)
	_, _ = io.ReadFull(c.br, b)
	return string(b)
}

func (c *client) close() { _ = c.nc.Close() }

// frame is one thing a stream says: a comment, or an event.
type frame struct {
	comment         string
	event, id, data string
	retry           string
}

// next reads the next frame.
func (c *client) next() (frame, error) {
	var f frame
	for {
		line, err := c.br.ReadSlice('\n')
		if err != nil {
			if len(line) > 0 {
				return f, io.ErrUnexpectedEOF
			}
			return f, err
		}
		line = line[:len(line)-1]
		name, value, _ := strings.Cut(string(line), ": ")
		switch {
		case len(line) == 0:
			if f.id != "" {
				c.last = f.id
			}
			return f, nil
		case name == "":
			return frame{comment: value}, nil
		case name == "event":
			f.event = value
		case name == "id":
			f.id = value
		case name == "data":
			f.data = value
		case name == "retry":
			return frame{retry: value}, nil
		default:
			return f, fmt.Errorf("line %q is not of an event stream", line)
		}
	}
}

// event reads the next event, passing comments.
func (c *client) event() (frame, error) {
	for {
		f, err := c.next()
		if err != nil || f.comment == "" {
			return f, err
		}
	}
}

// expect reads exactly the events of these ids.
func (c *client) expect(ids []string) error {
	for i, id := range ids {
		f, err := c.event()
		if err != nil {
			return fmt.Errorf("event %d of %d: %w", i, len(ids), err)
		}
		if f.id != id {
			return fmt.Errorf("event %d of %d is %s (%+v), want %s", i, len(ids), offsetText(f.id), f, offsetText(id))
		}
	}
	return nil
}

// mustExpect is expect for tests that go on only if it holds.
func (c *client) mustExpect(ids []string) {
	c.t.Helper()
	if err := c.expect(ids); err != nil {
		c.t.Fatal(err)
	}
}

func offsetText(id string) string {
	e, err := schema.ParseEventID(id)
	if err != nil {
		return id
	}
	return fmt.Sprintf("%s (offset %d)", id, e.Offset)
}

// quiet checks that nothing but the given live event comes, which the caller appends
// now: so nothing else was on its way.
func (c *client) quiet(e *env) {
	c.t.Helper()
	after := e.end("s") - 1
	probe := newEvent("s", "probe", "")
	probe.TMs = 1 << 40 // whatever part of the session is listened to
	e.produce(probe)
	c.mustExpect(e.want("s", after))
}

// value returns a counter's or a gauge's value.
func value(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

// deleteRecords moves the log start offset of a partition, as retention does.
func (e *env) deleteRecords(partition int32, before int64) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	var offsets kadm.Offsets
	offsets.AddOffset(schema.TopicEvents, partition, before, -1)
	deleted, err := kadm.NewClient(e.producer).DeleteRecords(ctx, offsets)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

// dump describes what a hub that does not stop is doing.
func (e *env) dump() string {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	out := fmt.Sprintf("%d slots, %d subscriptions, %d queued, %d replays\n",
		e.hub.slots, len(e.hub.subs), len(e.hub.queue), e.hub.cfg.MaxReplays-e.hub.replays.idle())
	for _, s := range e.hub.subs {
		out += fmt.Sprintf("sched %d, ending %v, cause %v\n", s.sched.Load(), s.ending.Load(), context.Cause(s.ctx))
	}
	buf := make([]byte, 4<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "playhead/streamer") {
			out += g + "\n\n"
		}
	}
	return out
}

func (e *env) place(string) schema.Placement { return e.placement }
