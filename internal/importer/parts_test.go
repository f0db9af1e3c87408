package importer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"
)

func TestJudge(t *testing.T) {
	status := func(code int, name string) error { return &StatusError{Status: code, Code: name} }
	f := func(err error, want verdict, wantUncertain bool) {
		t.Helper()
		if got, uncertain := judge(fmt.Errorf("wrapped: %w", err)); got != want || uncertain != wantUncertain {
			t.Errorf("judge(%v) = %v, %v; want %v, %v", err, got, uncertain, want, wantUncertain)
		}
	}
	f(status(400, "invalid_json"), tryHalf, false)
	f(status(400, "unknown_parameter"), giveUp, false)
	f(status(401, "invalid_key"), giveUp, false)
	f(status(403, ""), giveUp, false)
	f(status(404, ""), giveUp, false)
	f(status(405, ""), giveUp, false)
	f(status(408, ""), tryAgain, true)
	f(status(409, ""), tryHalf, false)
	f(status(413, "body_too_large"), tryHalf, false)
	f(status(415, ""), giveUp, false)
	f(status(422, ""), tryHalf, false)
	f(status(429, ""), tryAgain, false)
	f(status(500, ""), tryAgain, true)
	f(status(501, ""), giveUp, false)
	f(status(502, ""), tryAgain, true)
	f(status(503, ""), tryAgain, true)
	f(status(301, ""), giveUp, false)
	f(io.ErrUnexpectedEOF, tryAgain, true)
	f(context.DeadlineExceeded, tryAgain, true)
	f(&net.OpError{Op: "dial", Err: errors.New("refused")}, tryAgain, false)
	f(&net.OpError{Op: "read", Err: errors.New("reset")}, tryAgain, true)
	f(&net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}, giveUp, false)
	f(&net.OpError{Op: "dial", Err: &net.DNSError{IsTemporary: true}}, tryAgain, false)
}

func TestPacer(t *testing.T) {
	cfg := &Config{MinBackoff: 100 * time.Millisecond, MaxBackoff: time.Second, RetryFor: 10 * time.Second}
	var p pacer
	start := time.Unix(1000, 0)
	now := start
	for i, ms := range []int{100, 200, 400, 800, 1000, 1000} {
		want := time.Duration(ms) * time.Millisecond
		got, ok := p.next(cfg, now, 0)
		if !ok || got < want/2 || got > want {
			t.Errorf("pause %d = %v, %v; want %v to %v", i, got, ok, want/2, want)
		}
		now = now.Add(got)
	}
	if got, ok := p.next(cfg, now, 3*time.Second); !ok || got != 3*time.Second {
		t.Errorf("with Retry-After 3 s: %v, %v", got, ok)
	}
	if got, ok := p.next(cfg, start.Add(9900*time.Millisecond), time.Hour); !ok || got != 100*time.Millisecond {
		t.Errorf("just before the end: %v, %v; want one last attempt at the end", got, ok)
	}
	if got, ok := p.next(cfg, start.Add(10*time.Second), 0); ok {
		t.Errorf("at the end: %v, want to give up", got)
	}
	// The server says when it takes the request: until then nothing counts.
	p.promised(cfg, now.Add(time.Hour))
	if got, ok := p.next(cfg, now, time.Hour); !ok || got != time.Hour {
		t.Errorf("promised in an hour: %v, %v; want an hour", got, ok)
	}
	if got, ok := p.next(cfg, now.Add(time.Hour+9*time.Second), 0); !ok || got > time.Second {
		t.Errorf("9 s after the hour: %v, %v; want a short pause", got, ok)
	}
	if _, ok := p.next(cfg, now.Add(time.Hour+10*time.Second), 0); ok {
		t.Error("10 s after the hour: want to give up")
	}
	p = pacer{}
	if _, ok := p.next(&Config{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond}, now, 0); ok {
		t.Error("RetryFor 0 retries")
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := func(header string, want time.Duration) {
		t.Helper()
		if got := retryAfter(header, now); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", header, got, want)
		}
	}
	f("", 0)
	f("0", 0)
	f("7", 7*time.Second)
	f("-7", 0)
	f("soon", 0)
	f("99999999999", (1<<20)*time.Second) // as good as for ever
	f("Fri, 02 Jan 2026 03:04:15 GMT", 10*time.Second)
	f("Fri, 02 Jan 2026 03:04:00 GMT", 0)
}

func TestTracker(t *testing.T) {
	track := newTracker(3, 10)
	f := func(step string, want int64) {
		t.Helper()
		if got := track.acknowledged(); got != want {
			t.Errorf("%s: acknowledged = %d, want %d", step, got, want)
		}
	}
	f("resumed", 10)
	track.begin(0, 11)
	track.advance(11)
	f("one open", 10)
	track.begin(1, 12)
	track.advance(20)
	track.begin(0, 21)
	track.advance(30)
	f("three open", 10)
	track.done(1)
	f("the second done first", 10)
	track.done(0)
	f("the first done", 20)
	track.done(0)
	f("all done", 30)
	track.advance(40)
	f("blank lines", 40)
}

func TestBatchSplitsInOrder(t *testing.T) {
	b := &batch{}
	for i := range 5 {
		b.add(line{number: int64(i + 1), data: []byte(strings.Repeat("x", i))})
	}
	first, second := b.split()
	f := func(b *batch, wantLines []int64, wantBody string) {
		t.Helper()
		if fmt.Sprint(b.lines) != fmt.Sprint(wantLines) || string(b.body) != wantBody {
			t.Errorf("lines %v, body %q; want %v, %q", b.lines, b.body, wantLines, wantBody)
		}
	}
	f(first, []int64{1, 2}, "\nx\n")
	f(second, []int64{3, 4, 5}, "xx\nxxx\nxxxx\n")
	f(second.pick([]int{0, 2}), []int64{3, 5}, "xx\nxxxx\n")
}

// TestLanesBoundWhatWaits covers the three ways a batch becomes due.
func TestLanesBoundWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Lanes, cfg.BatchEvents, cfg.BatchBytes = 2, 10, 1<<10
		// Two sessions on different lanes.
		busy, rare := "", ""
		for i := 0; busy == "" || rare == ""; i++ {
			s := fmt.Sprintf("s-%d", i)
			if xxh3.HashString(s)%2 == 0 {
				busy = s
			} else {
				rare = s
			}
		}
		l := newLanes(cfg, newTracker(2, 0))
		in := make(chan line)
		done := make(chan error, 1)
		go func() { done <- l.dispatch(t.Context(), in) }()
		number := int64(0)
		send := func(session string, size int) {
			number++
			in <- line{number: number, session: session, data: make([]byte, size)}
		}
		receive := func(why string, lane, want int) {
			t.Helper()
			select {
			case b := <-l.queues[lane]:
				if b.len() != want {
					t.Errorf("%s: batch of %d, want %d", why, b.len(), want)
				}
			default:
				t.Errorf("%s: no batch", why)
			}
		}
		send(rare, 1)
		for range 10 {
			send(busy, 1)
		}
		synctest.Wait()
		receive("full", 0, 10)
		send(busy, 1000)
		send(busy, 1000)
		synctest.Wait()
		receive("bytes", 0, 1)
		began := time.Now()
		time.Sleep(2 * flushAfter)
		synctest.Wait()
		receive("age", 0, 1)
		receive("age", 1, 1)
		if waited := time.Since(began); waited > 3*flushAfter {
			t.Errorf("waited %v", waited)
		}
		send(rare, 1)
		for range maxLagBatches * cfg.BatchEvents {
			send(busy, 1)
			synctest.Wait()
			select {
			case <-l.queues[0]:
			default:
			}
		}
		receive("lag", 1, 1)
		close(in)
		if err := <-done; err != nil {
			t.Error(err)
		}
		for range l.queues[0] { // closed by dispatch
		}
	})
}

func TestRender(t *testing.T) {
	f := func(bar bool, s status, want string) {
		t.Helper()
		if got := render(bar, s); got != want {
			t.Errorf("render = %q, want %q", got, want)
		}
	}
	s := status{name: "coffee.ndjson.gz", size: 1000, read: 500, events: 12345, elapsed: 10 * time.Second}
	f(false, s, "coffee.ndjson.gz   50%  12,345 events  1,234/s  10 s left")
	f(true, s, "coffee.ndjson.gz  [============            ]  50%  12,345 events  1,234/s  10 s left")
	f(true, status{name: "standard input", read: 7, events: 3, elapsed: time.Second}, "standard input  3 events  3/s")
	f(false, status{name: strings.Repeat("x", 40), size: 10, read: 20}, strings.Repeat("x", 13)+"…"+strings.Repeat("x", 13)+"  100%  0 events")
}

func TestSummaryString(t *testing.T) {
	f := func(s Summary, want string) {
		t.Helper()
		if got := s.String(); got != want {
			t.Errorf("%+v = %q, want %q", s, got, want)
		}
	}
	f(Summary{Accepted: 176179, Elapsed: 3200 * time.Millisecond}, "176,179 events accepted, 0 duplicates, 0 failed in 3.2 s (55,055 events/s)")
	f(Summary{Duplicates: 2000, Failed: 1, Resumed: 1234567, Elapsed: 125 * time.Second},
		"0 events accepted, 2,000 duplicates, 1 failed in 2 min 5 s (16 events/s); 1,234,567 lines were acknowledged before")
	f(Summary{}, "0 events accepted, 0 duplicates, 0 failed in 0.0 s")
}

func TestProgressOnATerminalClearsItsBar(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, true)
	p.begin(new(counters))
	p.source("a", 10, func() int64 { return 5 })
	p.report(time.Now())
	p.note("a note")
	p.report(time.Now())
	p.end()
	got := out.String()
	if !strings.Contains(got, clearLine+"a note\n") || !strings.HasSuffix(got, clearLine) {
		t.Errorf("wrote %q; want the bar cleared before the note and at the end", got)
	}
}

func TestProgressTellsAnAbsenceOnce(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, false)
	p.begin(new(counters))
	cause := errors.New("connection refused")
	p.recovered()
	p.trouble(cause, time.Now(), time.Now()) // too short to tell
	since := time.Now().Add(-2 * troubleAfter)
	p.trouble(cause, since, time.Now())
	p.trouble(cause, since, time.Now())
	p.recovered()
	p.recovered()
	p.end()
	if got := out.String(); strings.Count(got, "connection refused; trying again until ") != 1 || strings.Count(got, "takes events again") != 1 {
		t.Errorf("wrote %q; want one absence and one return", got)
	}
}

func TestConfigValidateNamesEveryProblem(t *testing.T) {
	cfg := DefaultConfig()
	cfg.URL, cfg.Key = "https://example.test/prefix/", "k"
	if err := cfg.Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	cfg = Config{URL: "localhost:8080", MaxBackoff: -1, RetryFor: -1}
	err := cfg.Validate()
	for _, want := range []string{"url", "key", "lanes", "batch events", "batch bytes", "max line bytes", "request timeout", "retry for", "min backoff", "max backoff"} {
		if err == nil || !strings.Contains(err.Error(), want+" is ") {
			t.Errorf("Validate() = %v, want %q in it", err, want)
		}
	}
}

// FuzzParse checks that what is sent is the line itself, with a message id.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"session_id":"s","type":"t"}`,
		`{ "session_id" : "s", "type" : "t", "message_id" : null , "payload":null}`,
		`{"payload":{"message_id":null},"session_id":"s","type":"t"}`,
		`{"message_id":"m","session_id":"s","type":"t","payload":[1,2.50,"é",{"a":null}]}`,
		`{"session_id":"s","type":"t","message_id":null}`,
		`[1]`, `{}`, `null`, `{"session_id":"s","type":"t"} x`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = bytes.Trim(data, " \t\r\n")
		if len(data) == 0 || bytes.ContainsRune(data, '\n') {
			return
		}
		r := &lineReader{cfg: DefaultConfig(), name: "f"}
		l, err := r.parse(data, xxh3.Hash128(data))
		if err != nil {
			if _, ok := errors.AsType[*LineError](err); !ok {
				t.Fatalf("parse(%q) = %v, want a *LineError", data, err)
			}
			return
		}
		var before, after map[string]json.RawMessage
		if err := json.Unmarshal(data, &before); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(l.data, &after); err != nil {
			t.Fatalf("parse(%q) sends %q: %v", data, l.data, err)
		}
		for name, value := range before {
			if name == "message_id" && string(value) == "null" {
				continue
			}
			if !bytes.Equal(after[name], value) {
				t.Errorf("parse(%q) sends %s = %s, want %s", data, name, after[name], value)
			}
			delete(after, name)
		}
		delete(after, "message_id")
		if len(after) != 0 {
			t.Errorf("parse(%q) adds %v", data, after)
		}
	})
}
