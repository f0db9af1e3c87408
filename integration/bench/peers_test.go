package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// event is what feed makes, with an id as Playhead and Nchan write it.
func event(number int) string {
	return fmt.Sprintf("event: x\nid: e%d\ndata: {\"at\":%d,\"seq\":%d,\"text\":\"a\"}\n\n", number, 1790000000000000000+number, firstNumber+number)
}

func TestScannerFindsEventsHoweverReadsCutThem(t *testing.T) {
	text := ": hi\n" + event(1) + ": keepalive\n" + event(2) + event(3) + "event: control\ndata: {}\n\n" + event(3) + event(6) + "event: x\nid: e7\n"
	cuts(text, func(reads ...string) {
		s := scanner{ids: mark{before: "\nid: ", until: '\n'}}
		var stamps []int64
		for _, r := range reads {
			if err := s.feed([]byte(r), func(at int64) { stamps = append(stamps, at-1790000000000000000) }); err != nil {
				t.Fatal(err)
			}
		}
		if want := []int64{1, 2, 3, 3, 6}; !slices.Equal(stamps, want) {
			t.Fatalf("stamps in %q = %d, want %d", reads, stamps, want)
		}
		if s.events != 5 || s.last != firstNumber+6 || s.missing != 2 || s.repeated != 1 || string(s.position) != "e6" {
			t.Fatalf("%q: %d events, last %d, %d missing, %d repeated, position %q; want 5, %d, 2, 1, e6",
				reads, s.events, s.last, s.missing, s.repeated, s.position, firstNumber+6)
		}
	})
}

func TestScannerCountsManyEventsInOneFrame(t *testing.T) {
	var s scanner
	if err := s.feed([]byte("data:["+strings.TrimSpace(event(1))+","+strings.TrimSpace(event(2))+"]\n\n"), nil); err != nil || s.events != 2 {
		t.Errorf("events = %d, %v, want 2", s.events, err)
	}
}

func TestDechunkerTakesTheFramingOut(t *testing.T) {
	const text = "5\r\nhello\r\n1;x=y\r\n,\r\nA \r\n 0123\r\n789\r\n0\r\n\r\n"
	const want = "hello, 0123\r\n789"
	cuts(text, func(reads ...string) {
		var d dechunker
		got := ""
		for _, r := range reads {
			b, err := d.feed([]byte(r))
			if err != nil {
				t.Fatalf("feed(%q): %v", r, err)
			}
			got += string(b)
		}
		if got != want {
			t.Fatalf("%q without chunks = %q, want %q", reads, got, want)
		}
	})
	var d dechunker
	if _, err := d.feed([]byte("data: x\n\n")); err == nil {
		t.Error("a body without chunks passes for one with")
	}
}

// fakeTarget streams what is published to those who listen, and keeps it. It refuses the
// first streams.
type fakeTarget struct {
	*httptest.Server
	refusals atomic.Int32

	mu     sync.Mutex // guards what is below
	events []string
	more   chan struct{} // closed at the next event
}

func newFakeTarget(t *testing.T) *fakeTarget {
	f := &fakeTarget{more: make(chan struct{})}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeTarget) serve(w http.ResponseWriter, r *http.Request) {
	if f.refusals.Add(-1) >= 0 {
		w.Header().Set("Retry-After", "0")
		http.Error(w, "later", http.StatusServiceUnavailable)
		return
	}
	next := 0
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		if _, err := fmt.Sscanf(id, "e%d", &next); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	w.WriteHeader(http.StatusOK)
	for {
		f.mu.Lock()
		events, more := f.events[next:], f.more
		f.mu.Unlock()
		for _, e := range events {
			_, _ = io.WriteString(w, e) // the listener is gone: so is the request's context
		}
		next += len(events)
		w.(http.Flusher).Flush()
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

func (f *fakeTarget) start(context.Context) error         { return nil }
func (f *fakeTarget) stop() error                         { return nil }
func (f *fakeTarget) addr() string                        { return f.Listener.Addr().String() }
func (f *fakeTarget) processes() []int                    { return []int{os.Getpid()} }
func (f *fakeTarget) create(string) error                 { return nil }
func (f *fakeTarget) publisher(string) (publisher, error) { return f, nil }
func (f *fakeTarget) close()                              {}
func (f *fakeTarget) ids() mark                           { return mark{before: "id: ", until: '\n'} }

func (f *fakeTarget) stream(channel string, from position) streamRequest {
	req := streamRequest{path: "/" + channel}
	if from != fromNow && from != fromStart {
		req.header = "Last-Event-ID: " + string(from) + "\r\n"
	}
	return req
}

func (f *fakeTarget) publish(_ context.Context, events [][]byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		f.events = append(f.events, fmt.Sprintf("id: e%d\ndata: %s\n\n", len(f.events)+1, e))
	}
	close(f.more)
	f.more = make(chan struct{})
	return nil
}

func TestCrowdReceivesIsCutAndResumes(t *testing.T) {
	f := newFakeTarget(t)
	z := quickPeerSize()
	z.stormStreams, z.missedEvents = 20, 7
	m := &match{target: f, name: "fake", size: z, table: (&report{}).comparison("", nil, "")}
	s, err := m.newStorm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.refusals.Store(5)
	came, err := s.strike(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	faults, err := s.crowd.faults()
	if err != nil || faults.missing != 0 || faults.repeated != 0 || came.refused != 5 {
		t.Errorf("after the storm: %+v, %v, %d refusals; want no faults and 5", faults, err, came.refused)
	}
	// 1 event before, 7 missed and 1 behind them, each to 20 streams.
	if got := s.crowd.received.Load(); got != 9*20 {
		t.Errorf("received = %d, want %d", got, 9*20)
	}
	s.close(&err)
	if err != nil {
		t.Error(err)
	}
}

func TestPacedDeliveryReachesEverybody(t *testing.T) {
	m := &match{target: newFakeTarget(t), name: "fake", size: quickPeerSize(), table: (&report{}).comparison("", nil, "")}
	p, err := m.paced(t.Context(), "x", 10, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if p.published == 0 || len(p.delays) != 10*p.published || len(p.acks) != p.published || m.lost != 0 {
		t.Errorf("published %d, %d acks, %d delays, %d lost; want an ack for each, 10 delays and no loss", p.published, len(p.acks), len(p.delays), m.lost)
	}
	for _, d := range p.delays {
		if d <= 0 || d > time.Minute {
			t.Fatalf("a delivery took %v", d)
		}
	}
}

func TestReplaysAreChecked(t *testing.T) {
	f := newFakeTarget(t)
	feed, err := newFeed(f, "x", shortPayload)
	if err != nil {
		t.Fatal(err)
	}
	if err := feed.fill(t.Context(), 250); err != nil {
		t.Fatal(err)
	}
	if n := len(f.events[249]) - len("id: e250\ndata: \n\n"); n != shortPayload {
		t.Errorf("an event has %d B, want %d", n, shortPayload)
	}
	if err := readEvents(f, "x", 250); err != nil {
		t.Error(err)
	}
	f.events = slices.Delete(f.events, 100, 101)
	if err := readEvents(f, "x", 249); err == nil {
		t.Error("a replay that lacks an event passes")
	}
}

func TestRefusedStreamSaysWhen(t *testing.T) {
	f := newFakeTarget(t)
	f.refusals.Store(1)
	_, err := subscribe(f, "x", fromNow)
	if err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("subscribe = %v, want a 503", err)
	}
}

func TestProcessTreeHoldsThisProcess(t *testing.T) {
	pids, err := processTree([]int{os.Getppid()})
	if err != nil || !slices.Contains(pids, os.Getpid()) {
		t.Errorf("tree of the parent = %v, %v; want %d in it", pids, err, os.Getpid())
	}
	m, err := treeMemory(newFakeTarget(t))
	if err != nil || m.proportional <= 0 || m.proportional > m.resident*2 {
		t.Errorf("memory = %+v, %v", m, err)
	}
}

func TestComparisonIsSideBySide(t *testing.T) {
	var r report
	c := r.comparison("Things", []string{"a", "b", "c"}, "Of %d kinds.", 3)
	for _, v := range []float64{3, 1, 2} {
		c.add("a", "thing", "ms", v).goal("below b")
	}
	c.add("b", "thing", "ms", 5000)
	c.note("c, run 1: broke")
	c.note("c, run 1: broke")
	var b strings.Builder
	if err := r.writeMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	want := "| thing | ms | 2.00 (1.00 – 3.00) | 5,000 | – | below b |\n\n- c, run 1: broke\n"
	if got := b.String(); !strings.HasSuffix(got, want) {
		t.Errorf("report = %s\nwant it to end with\n%s", got, want)
	}
}
