package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// FloodConfig says what a Flood asks of one node.
type FloodConfig struct {
	Seed     uint64
	Sessions int // that events are spread over
	Batch    int // events of an append
	Bytes    int // of an event's payload, besides what identifies it
	Rate     int // events a second that are offered; 0: as many as Appenders can, one after the other
	Appends  int // under way at once, at most; what would be more is not offered
	Streams  int // listeners, each of one session
	Stuck    int // of them, that read nothing
	Pagers   int // that ask for pages without a pause
}

// FloodCounts are what a Flood was answered so far.
type FloodCounts struct {
	Offered      int64 `json:"offered"`      // events
	Acknowledged int64 `json:"acknowledged"` // events
	Refused      int64 `json:"refused"`      // appends: 429 and 503
	Unanswered   int64 `json:"unanswered"`   // appends
	NotOffered   int64 `json:"not_offered"`  // events that the flood itself had no room for
	Pages        int64 `json:"pages"`
	PagesRefused int64 `json:"pages_refused"`
	Streams      int64 `json:"streams"`     // that were opened
	StreamsCut   int64 `json:"streams_cut"` // that the node ended
	Delivered    int64 `json:"delivered"`   // events to streams
	Dropped      int64 `json:"dropped"`     // events that streams were told they have missed
}

// Flood asks more of a node than it can do. Its events have no message ids and are sent
// once; what was acknowledged is in the Journal, for Audit.
type Flood struct {
	Journal *Journal

	cfg    FloodConfig
	addr   string
	counts struct {
		offered, acknowledged, refused, unanswered, notOffered, pages, pagesRefused, streams, cut, delivered, dropped atomic.Int64
	}
	sessions []*session
	next     []atomic.Int64 // number of a session's next event
	client   *http.Client

	hearers []*hearer
	stop    context.CancelFunc
	leave   context.CancelFunc
	askers  sync.WaitGroup
	streams sync.WaitGroup
}

// streamsWithin is how long the streams may take to open before the flood.
const streamsWithin = 2 * time.Minute

// StartFlood makes the sessions, opens the streams, and then floods the node until Stop.
func StartFlood(ctx context.Context, n *Node, cfg FloodConfig) (*Flood, error) {
	f := &Flood{
		Journal: newJournal(), cfg: cfg, addr: n.addr, next: make([]atomic.Int64, cfg.Sessions),
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			MaxIdleConnsPerHost: cfg.Appends + cfg.Pagers, DisableCompression: true,
		}},
	}
	asking, stop := context.WithCancel(context.Background())
	listening, leave := context.WithCancel(context.Background())
	f.stop, f.leave = stop, leave
	for i := range cfg.Sessions {
		f.sessions = append(f.sessions, f.Journal.newSession(fmt.Sprintf("flood%d-%d", cfg.Seed, i), false))
		if err := await(ctx, 30*time.Second, "a session takes its first event", func(ctx context.Context) error {
			return f.append(ctx, i, 1)
		}); err != nil {
			stop()
			leave()
			return f, err
		}
	}
	for i := range cfg.Streams {
		h := &hearer{flood: f, session: f.sessions[i%cfg.Sessions], stuck: i < cfg.Stuck, last: -1}
		f.hearers = append(f.hearers, h)
		f.streams.Go(func() { h.run(listening) })
	}
	if err := await(ctx, streamsWithin, "the streams are open", func(context.Context) error {
		if n := f.counts.streams.Load(); int(n) < cfg.Streams {
			return fmt.Errorf("%d of %d", n, cfg.Streams)
		}
		return nil
	}); err != nil {
		f.Stop()
		return f, err
	}
	if cfg.Rate > 0 {
		f.askers.Go(func() { f.offer(asking) })
	} else {
		for i := range cfg.Appends {
			f.askers.Go(func() {
				for asking.Err() == nil {
					_ = f.append(asking, i%cfg.Sessions, cfg.Batch) // counted
				}
			})
		}
	}
	for i := range cfg.Pagers {
		f.askers.Go(func() { f.page(asking, rand.New(rand.NewPCG(cfg.Seed, uint64(i)))) })
	}
	return f, nil
}

// Counts are those so far.
func (f *Flood) Counts() FloodCounts {
	c := &f.counts
	return FloodCounts{
		Offered: c.offered.Load(), Acknowledged: c.acknowledged.Load(), Refused: c.refused.Load(), Unanswered: c.unanswered.Load(),
		NotOffered: c.notOffered.Load(), Pages: c.pages.Load(), PagesRefused: c.pagesRefused.Load(),
		Streams: c.streams.Load(), StreamsCut: c.cut.Load(), Delivered: c.delivered.Load(), Dropped: c.dropped.Load(),
	}
}

// Ease ends appends and pages; the streams stay.
func (f *Flood) Ease() {
	f.stop()
	f.askers.Wait()
}

// Stop ends everything.
func (f *Flood) Stop() {
	f.Ease()
	f.leave()
	f.streams.Wait()
	f.client.CloseIdleConnections()
}

// offer starts appends at the rate, whether those before have been answered or not.
func (f *Flood) offer(ctx context.Context) {
	room := make(chan struct{}, f.cfg.Appends)
	var under sync.WaitGroup
	defer under.Wait()
	began, offered := time.Now(), 0
	for i := 0; ctx.Err() == nil; {
		due := int(time.Since(began).Seconds() * float64(f.cfg.Rate))
		for ; offered+f.cfg.Batch <= due; offered += f.cfg.Batch {
			select {
			case room <- struct{}{}:
			default:
				f.counts.notOffered.Add(int64(f.cfg.Batch))
				continue
			}
			s := i % f.cfg.Sessions
			i++
			under.Go(func() {
				defer func() { <-room }()
				_ = f.append(context.WithoutCancel(ctx), s, f.cfg.Batch) // counted
			})
		}
		pause(ctx, time.Millisecond)
	}
}

// append sends n events to a session, once.
func (f *Flood) append(ctx context.Context, i, n int) error {
	s, j := f.sessions[i], f.Journal
	first := int(f.next[i].Add(int64(n))) - n
	s.begin(first, n, j.Now())
	f.counts.offered.Add(int64(n))
	var body strings.Builder
	pad := strings.Repeat("x", f.cfg.Bytes)
	for k := range n {
		fmt.Fprintf(&body, `{"type":"chaos.step","t_ms":%d,"payload":{"s":%q,"n":%d,"pad":%q}}`+"\n", first+k, s.name, first+k, pad)
	}
	a, err := f.ask(ctx, http.MethodPost, "/v1/sessions/"+s.name+"/events", "application/x-ndjson", body.String())
	j.tally(a, err)
	if err != nil {
		f.counts.unanswered.Add(1)
		return err
	}
	switch out, why := judge(a, nil); out {
	case outcomeWrong:
		j.complain("append to %s: %s", s.name, why)
		return errors.New(why)
	case outcomeAgain:
		f.counts.refused.Add(1)
		return fmt.Errorf("%d %.300s", a.status, a.body)
	}
	var results struct {
		Results []struct{ ID string }
	}
	if err := json.Unmarshal(a.body, &results); err != nil || len(results.Results) != n {
		j.complain("append to %s: answer of %d events is %.300s (%v)", s.name, n, a.body, err)
		return err
	}
	for k, r := range results.Results {
		if err := s.acknowledge(first+k, r.ID, j.Now()); err != nil {
			j.complain("append to %s: %v", s.name, err)
		}
	}
	f.counts.acknowledged.Add(int64(n))
	return nil
}

// ask asks the node itself: thousands of connections are not to be doubled by proxies.
func (f *Flood) ask(ctx context.Context, method, path, contentType, body string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+f.addr+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+Key)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := f.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode}
	if a.body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer)); err != nil {
		return answer{}, err
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		a.retryAfter = time.Duration(s) * time.Second
	}
	return a, nil
}

// page asks for pages of all kinds.
func (f *Flood) page(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		s := f.sessions[random.IntN(len(f.sessions))]
		path := "/v1/sessions/" + s.name + "/events?include=payload&pageSize=100"
		if random.IntN(2) == 0 {
			path += "&order=desc"
		}
		switch random.IntN(4) {
		case 0:
			path = "/v1/events?include=payload&pageSize=100"
		case 1:
			path = "/v1/events/count?session_id=" + url.QueryEscape(s.name)
		}
		a, err := f.ask(ctx, http.MethodGet, path, "", "")
		if ctx.Err() != nil {
			return
		}
		f.Journal.tally(a, err)
		switch out, why := judge(a, err); out {
		case outcomeDone:
			f.counts.pages.Add(1)
		case outcomeAgain:
			f.counts.pagesRefused.Add(1)
		case outcomeWrong:
			f.Journal.complain("GET %s: %s", path, why)
		}
	}
}

// hearer is one of thousands of listeners: it counts.
type hearer struct {
	flood   *Flood
	session *session
	stuck   bool

	mu        sync.Mutex // guards what follows
	received  int
	dropped   int
	last      int64 // offset
	reordered int
	cut       bool
}

// run opens the stream and reads it, or does not.
func (h *hearer) run(ctx context.Context) {
	f := h.flood
	conn, res, r := h.open(ctx)
	if conn == nil {
		return
	}
	defer conn.Close()
	defer res.Body.Close()
	f.counts.streams.Add(1)
	if h.stuck {
		<-ctx.Done()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var id string
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			if ctx.Err() == nil {
				f.counts.cut.Add(1)
				h.mu.Lock()
				h.cut = true
				h.mu.Unlock()
			}
			return
		}
		switch {
		case strings.HasPrefix(line, "id: "):
			id = strings.TrimSpace(line[len("id: "):])
		case strings.HasPrefix(line, "data: ") && id != "":
			h.heard(id)
			id = ""
		case strings.HasPrefix(line, ": dropped "):
			n, err := strconv.Atoi(strings.TrimSpace(line[len(": dropped "):]))
			if err != nil {
				f.Journal.complain("a stream was told %q", line)
			}
			h.mu.Lock()
			h.dropped += n
			h.mu.Unlock()
			f.counts.dropped.Add(int64(n))
		}
	}
}

// open tries until the stream is open.
func (h *hearer) open(ctx context.Context) (net.Conn, *http.Response, *bufio.Reader) {
	f := h.flood
	for ctx.Err() == nil {
		conn, err := (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, "tcp", f.addr)
		if err != nil {
			pause(ctx, time.Second)
			continue
		}
		if h.stuck {
			_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10) // the sooner it is full
		}
		r := bufio.NewReaderSize(conn, 2<<10)
		_, err = fmt.Fprintf(conn, "GET /v1/sessions/%s/events/stream?from=start HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", h.session.name, Key)
		var res *http.Response
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second)) // a failed read tells as well
			res, err = http.ReadResponse(r, nil)
			_ = conn.SetReadDeadline(time.Time{})
		}
		if err == nil && res.StatusCode == http.StatusOK {
			return conn, res, bufio.NewReaderSize(res.Body, 2<<10)
		}
		wait := time.Second
		if err == nil {
			a := answer{status: res.StatusCode}
			if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
				a.retryAfter = time.Duration(s) * time.Second
			}
			if out, why := judge(a, nil); out == outcomeWrong {
				f.Journal.complain("stream of %s: %s", h.session.name, why)
			}
			wait = a.retryAfter
		}
		_ = conn.Close()
		pause(ctx, wait)
	}
	return nil, nil, nil
}

func (h *hearer) heard(id string) {
	p, err := placeOf(id)
	if err != nil {
		h.flood.Journal.complain("a stream shows %q: %v", id, err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.offset <= h.last {
		h.reordered++
	}
	h.last = p.offset
	h.received++
	h.flood.counts.delivered.Add(1)
}

// AwaitHeard waits until every stream that reads has got, or was told that it has missed,
// all events of its session; and says what is wrong with those that have not.
func (f *Flood) AwaitHeard(ctx context.Context, c *Cluster, within time.Duration) error {
	log, err := c.readLog(ctx)
	if err != nil {
		return err
	}
	return await(ctx, within, "streams have got what there is", func(context.Context) error {
		for i, h := range f.hearers {
			if h.stuck {
				continue
			}
			h.mu.Lock()
			received, dropped, reordered, cut := h.received, h.dropped, h.reordered, h.cut
			h.mu.Unlock()
			want := len(log.sessions[h.session.name])
			if reordered > 0 || received+dropped > want || !cut && received+dropped < want {
				return fmt.Errorf("stream %d has got %d events and was told of %d that it missed, of %d; %d came out of order", i, received, dropped, want, reordered)
			}
		}
		return nil
	})
}

// AuditFlood is Audit for a Flood.
func (c *Cluster) AuditFlood(ctx context.Context, f *Flood) (*Verdict, error) {
	return c.Audit(ctx, &Load{Journal: f.Journal})
}

// ResidentBytes is the memory of the node's process that is in RAM, 0 while there is none.
func (n *Node) ResidentBytes() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", n.Pid()))
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

// Answers reports how long the node takes to take an event and show it on a page.
func (f *Flood) Answers(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	if err := f.append(ctx, 0, 1); err != nil {
		return 0, err
	}
	a, err := f.ask(ctx, http.MethodGet, "/v1/sessions/"+f.sessions[0].name+"/events?order=desc&pageSize=1", "", "")
	if err != nil {
		return 0, err
	}
	if a.status != http.StatusOK {
		return 0, fmt.Errorf("%d %.300s", a.status, a.body)
	}
	return time.Since(began), nil
}
