package streamer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

const streamPath = "/v1/sessions/s/events/stream"

func TestStreamHeadAndFrames(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	events := goldenEvents()
	for i, ev := range events {
		ev.ID = schema.EventID{TimeMs: time.Now().UnixMilli() + int64(i)}
		ev.Workspace = "w"
	}
	e.produce(events[:3]...)
	e.serve()
	c := e.stream("?from=start", "X-Request-Id: my-request")
	defer c.close()
	want := map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-cache, no-transform",
		"X-Accel-Buffering": "no", "X-Request-Id": "my-request", "Connection": "close",
	}
	for name, v := range want {
		if got := c.header.Get(name); got != v {
			t.Errorf("%s: %q, want %q", name, got, v)
		}
	}
	if c.header.Get("Content-Length")+c.header.Get("Transfer-Encoding") != "" {
		t.Errorf("the body has an end: %v", c.header)
	}
	e.produce(events[3:]...)
	var frames []byte
	for _, ev := range events {
		frames, _ = appendEventFrame(frames, ev, false)
	}
	got := make([]byte, len(frames))
	if _, err := io.ReadFull(c.br, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(frames) {
		t.Errorf("stream is\n%s\nwant\n%s", got, frames)
	}
}

func TestKeepAliveIsACommentOfOneLine(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.KeepAlive = 320 * time.Millisecond
	e := startEnv(t, cfg, 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	c := e.stream("")
	defer c.close()
	const want = ": keepalive\n: keepalive\n: keepalive\n"
	got := make([]byte, len(want))
	began := time.Now()
	if _, err := io.ReadFull(c.br, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("idle stream says %q, want %q", got, want)
	}
	if took := time.Since(began); took < 2*cfg.KeepAlive {
		t.Errorf("three comments in %v; want them %v apart", took, cfg.KeepAlive)
	}
	c.quiet(e) // and events come whole after them
}

func TestFiltersHoldInReplayAndLive(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	low, high := float32(0.2), float32(0.9)
	base := time.Now().UnixMilli() - 10_000
	event := func(i int, typ, frame string, confidence *float32, metadata map[string]string) *schema.Event {
		ev := newEvent("s", typ, "")
		ev.ID.TimeMs, ev.TMs, ev.FrameID, ev.Confidence, ev.Metadata = base+int64(i), int64(i), frame, confidence, metadata
		return ev
	}
	history := []*schema.Event{
		event(0, "memory.created", "f1", &low, map[string]string{"k": "v"}),
		event(1, "memory.updated", "f2", &high, nil),
		event(2, "click", "f1", nil, map[string]string{"k": "w"}),
		event(3, "playhead.session.ended", "", nil, nil),
	}
	e.produce(history...)
	e.history.setWatermark(2)
	e.serve()
	live := []*schema.Event{
		event(10, "click", "f1", &high, map[string]string{"k": "v", "l": "x"}),
		event(11, "memory.created", "f3", nil, nil),
		event(12, schema.TypeSessionCreated, "", nil, nil),
		event(13, "done", "f1", &high, map[string]string{"k": "v"}), // every filter below takes it
	}
	all := append(append([]*schema.Event(nil), history...), live...)
	queries := []string{
		"", "type=click,done", "type=memory.*&events=done", "events=*", "confidence_gte=0.9",
		"confidence_gte=0.1&frame_id=f1", "frame_id=f1", "filters[k]=v", "filters[k]=v&filters[l]=x&type=done,click",
		"from_t_ms=2", "t_ms.gte=11", fmt.Sprintf("since=%d", base+2), "to_t_ms=13", fmt.Sprintf("until=%d", base+13),
		"since=" + time.UnixMilli(base+11).UTC().Format("2006-01-02T15:04:05.000Z"),
	}
	clients := make([]*client, len(queries))
	for i, q := range queries {
		clients[i] = e.stream("?from=start&" + q)
		defer clients[i].close()
	}
	e.live(len(queries))
	e.produce(live...)
	for i, q := range queries {
		f := mustFilter(t, q)
		var want []string
		for _, ev := range all {
			if !ev.Hidden() && f.Match(ev) {
				want = append(want, ev.ID.String())
			}
		}
		if err := clients[i].expect(want); err != nil {
			t.Errorf("%s: %v", q, err)
		}
	}
}

func mustFilter(t *testing.T, query string) schema.Filter {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := schema.ParseFilter(req.URL.Query(), schema.TypeTable{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Where a stream begins, by every form of position.
func TestWhereStreamsBegin(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 2)
	nowMs := time.Now().UnixMilli()
	events := numbered("s", 0, 20)
	for i, ev := range events {
		ev.ID.TimeMs = nowMs - int64(20-i)*1000
	}
	e.produce(events...)
	e.history.setWatermark(10)
	e.serve()
	p := e.placement.Partition("w", "s")
	id := events[6].ID
	other := id
	other.Partition = 1 - p
	other.Offset = 1_000_000
	several := schema.Cursor{ID: other, Others: []schema.NextOffset{{Partition: p, Offset: 7}}}
	page := schema.Cursor{ID: id, Filter: 0x9f3ac1d2}
	f := func(query, header string, wantFrom int64) {
		t.Helper()
		var headers []string
		if header != "" {
			headers = append(headers, "Last-Event-ID: "+header)
		}
		c := e.stream(query, headers...)
		defer c.close()
		if err := c.expect(e.want("s", wantFrom-1)); err != nil {
			t.Errorf("%s (%s): %v", query, header, err)
		}
		c.quiet(e)
	}
	text := id.String()
	f("?last_event_id="+text, "", 7)
	f("", text, 7)
	f("", strings.ToLower(text[4:])[:0]+text[:4]+strings.ToLower(text[4:]), 7)
	f("", "heartbeat_"+text, 7)
	f("", "error_"+text, 7)
	f("", page.String(), 7)
	f("", several.String(), 7)
	f("?last_event_id="+events[1].ID.String(), text, 7) // the header is newer
	f("?from=start", "", 0)
	f("?from=start", text, 7) // so it is against the URL of a browser that reconnects
	f(fmt.Sprintf("?since=%d", events[12].ID.TimeMs), "", 12)
	f("?from_t_ms=15", "", 15)
	f("", "", e.end("s"))
}

func TestBadPositionsAndParametersAreRefused(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 2)
	e.produce(numbered("s", 0, 3)...)
	e.serve()
	p := e.placement.Partition("w", "s")
	cursor := func(epoch uint8, partition uint16, offset int64) string {
		return schema.EventID{Position: schema.Position{Epoch: epoch, Partition: partition, Offset: offset}, TimeMs: 5}.String()
	}
	f := func(query, header, wantCode, wantParam string) {
		t.Helper()
		var headers []string
		if header != "" {
			headers = append(headers, "Last-Event-ID: "+header)
		}
		c := e.get(streamPath+query, "reader", headers...)
		defer c.close()
		var answer struct {
			Error struct{ Code, Param, Message string }
		}
		body := c.body()
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatalf("%s (%s): %d %q: %v", query, header, c.status, body, err)
		}
		if c.status != 400 || answer.Error.Code != wantCode || answer.Error.Param != wantParam {
			t.Errorf("%s (%s) = %d %s; want 400 %s of %s", query, header, c.status, body, wantCode, wantParam)
		}
	}
	f("?last_event_id=nonsense", "", "invalid_cursor", "last_event_id")
	f("", "evt_nonsense", "invalid_cursor", "Last-Event-ID")
	f("", "heartbeat_", "invalid_cursor", "Last-Event-ID")
	f("", cursor(1, p, 3), "invalid_cursor", "Last-Event-ID")     // the end itself was not written yet
	f("", cursor(1, p, 1<<40), "invalid_cursor", "Last-Event-ID") // beyond the end
	f("", cursor(1, 1-p, 1), "invalid_cursor", "Last-Event-ID")   // another partition
	f("", cursor(2, p, 1), "invalid_cursor", "Last-Event-ID")     // an epoch to come
	f("?last_event_id=a&last_event_id=b", "", "invalid_parameter", "last_event_id")
	f("?from=end", "", "invalid_parameter", "from")
	f("?from=", "", "invalid_parameter", "from")
	f("?on_slow=wait", "", "invalid_parameter", "on_slow")
	f("?on_slow=", "", "invalid_parameter", "on_slow")
	f("?close=now", "", "invalid_parameter", "close")
	f("?close=", "", "invalid_parameter", "close")
	f("?notices=2", "", "invalid_parameter", "notices")
	f("?type=1a", "", "invalid_parameter", "type")
	f("?since=yesterday", "", "invalid_parameter", "since")
	f("?colour=red", "", "unknown_parameter", "colour")
	if n := e.streams(); n != 0 {
		t.Errorf("%d streams are counted after refusals", n)
	}
	c := e.stream("?_cache=1")
	c.close()
}

// Unknown, foreign and forbidden are the same answer.
func TestWhoMayListen(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 2)
	flow := newEvent("inflow", "a", "")
	flow.Workflow = "flow"
	e.produce(newEvent("s", "a", ""), newEvent("t", "a", ""), flow)
	e.serve()
	var unknown string
	f := func(session, key string, want int) {
		t.Helper()
		c := e.get("/v1/sessions/"+session+"/events/stream", key, "X-Request-Id: same")
		defer c.close()
		if c.status != want {
			t.Errorf("session %s with key %s: %d, want %d", session, key, c.status, want)
		}
		if c.status == 404 {
			body := c.body()
			if unknown == "" {
				unknown = body
			}
			if body != unknown {
				t.Errorf("session %s with key %s: 404 differs: %s and %s", session, key, body, unknown)
			}
		}
	}
	f("nobody", "reader", 404)
	f("s", "stranger", 404)
	f("not%20a%20name", "reader", 404)
	f("s", "elsewhere", 404)
	f("nobody", "elsewhere", 404)
	f("s", "flow", 404)
	f("inflow", "flow", 200)
	f("t", "elsewhere", 200)
	f("s", "bound", 200)
	f("t", "bound", 404)
	f("s", "writer", 403)
	f("s", "nokey", 401)
	eventually(t, "the streams are gone", func() bool { return e.streams() == 0 })
}

func TestHeadOpensNoStream(t *testing.T) {
	checkGoroutines(t)
	e := startEnv(t, testConfig(), 1)
	e.produce(newEvent("s", "a", ""))
	e.serve()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+e.addr+streamPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer reader")
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || e.streams() != 0 {
		t.Errorf("HEAD = %d %s, %d streams", resp.StatusCode, resp.Header.Get("Content-Type"), e.streams())
	}
}

func TestCloseAtEnd(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.MaxBytes = 4_000
	cfg.Tape.MaxSessions = 100
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 30)...)
	e.history.setWatermark(20)
	e.serve()
	before := []*client{e.stream("?close=end"), e.stream("?close=end&from=start"), e.stream("?close=end&type=nothing")}
	stays := e.stream("?from=start")
	defer stays.close()
	e.live(4)
	e.produce(newEvent("s", "last", ""), newEvent("s", schema.TypeSessionEnded, ""), newEvent("s", "late", ""))
	f := func(what string, c *client, want []string) {
		t.Helper()
		defer c.close()
		if err := c.expect(want); err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if f, err := c.event(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: goes on with %+v, %v; want the end", what, f, err)
		}
	}
	f("live", before[0], e.want("s", 29))
	f("from the start", before[1], e.want("s", -1))
	f("that filters all out", before[2], nil)
	stays.mustExpect(e.want("s", -1))
	over, err := e.dial("/v1/sessions/s/events/stream?close=end", "reader")
	if err != nil || over.status != 204 {
		t.Errorf("of an ended session, from its end: %v, %v; want 204, which tells a browser to stay away", over, err)
	}
	over.close()
	f("of an ended session from the start", e.stream("?close=end&from=start"), e.want("s", -1))

	all := e.want("s", -1)
	for _, tt := range []struct {
		after string
		want  int
	}{
		{all[len(all)-2], 200}, // the late event is still to come
		{all[len(all)-1], 204},
	} {
		back, err := e.dial("/v1/sessions/s/events/stream?close=end&last_event_id="+tt.after, "reader")
		if err != nil || back.status != tt.want {
			t.Errorf("back after %s of an ended session: %v, %v; want %d", tt.after, back, err, tt.want)
		}
		back.close()
	}

	e.produce(newEvent("ended", "only", ""), newEvent("ended", schema.TypeSessionEnded, ""))
	only := e.want("ended", -1)
	back, err := e.dial("/v1/sessions/ended/events/stream?close=end&last_event_id="+only[0], "reader")
	if err != nil || back.status != 204 {
		t.Errorf("back after the last event of an ended session: %v, %v; want 204", back, err)
	}
	back.close()

	// The tape forgets the session: it must still be known to have ended.
	stays.close()
	eventually(t, "all streams are gone", func() bool { return e.streams() == 0 })
	e.produce(mixedSessions(200)...)
	e.warm("s")
	e.history.setWatermark(e.end("s"))
	f("of a forgotten session", e.stream("?close=end&last_event_id="+cursorAt(25)), e.want("s", 25))
}

// mixedSessions returns an event of each of n sessions.
func mixedSessions(n int) []*schema.Event {
	var out []*schema.Event
	for i := range n {
		out = append(out, newEvent(fmt.Sprint("other", i), "a", ""))
	}
	return out
}

func TestNotices(t *testing.T) {
	checkGoroutines(t)
	cfg := testConfig()
	cfg.Tape.MaxBytes = 4_000
	e := startEnv(t, cfg, 1)
	e.produce(numbered("s", 0, 30)...)
	e.history.setWatermark(20)
	e.serve()
	e.warm("s")
	c := e.stream("?from=start&notices=1")
	defer c.close()
	n := 0
	for {
		f, err := c.event()
		if err != nil {
			t.Fatal(err)
		}
		if f.event == "playhead.caught_up" {
			break
		}
		n++
	}
	rest := e.want("s", -1)[n:]
	c.mustExpect(rest)
	c.quiet(e)
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	err := Config{}.Validate()
	if err == nil {
		t.Fatal("the zero Config is valid")
	}
	for _, key := range []string{"max_streams", "write_timeout", "keep_alive", "max_replays", "replay_bytes", "dedupe_age"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("the zero Config's error does not name %s: %v", key, err)
		}
	}
}
