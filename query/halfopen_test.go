package query

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// engineProxy stands before the engine and decides what becomes of statements about events.
type engineProxy struct {
	next http.Handler

	mu      sync.Mutex
	fail    bool
	hold    chan struct{} // not nil: statements wait for its end
	arrived int
}

func (p *engineProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if strings.Contains(string(body), "FROM events") || strings.Contains(r.URL.RawQuery, "FROM+events") {
		p.mu.Lock()
		p.arrived++
		fail, hold := p.fail, p.hold
		p.mu.Unlock()
		if fail {
			http.Error(w, "Code: 999. DB::Exception: broken on purpose", http.StatusInternalServerError)
			return
		}
		if hold != nil {
			<-hold
		}
	}
	p.next.ServeHTTP(w, r)
}

func (p *engineProxy) set(fail bool, hold chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail, p.hold, p.arrived = fail, hold, 0
}

func (p *engineProxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.arrived
}

// proxiedHistory is a History that asks the engine through a proxy.
func proxiedHistory(t *testing.T, cfg Config) (*History, *engineProxy, func([]*schema.Event)) {
	t.Helper()
	conn, process := openEngine(t)
	target, err := url.Parse(process.DSN())
	if err != nil {
		t.Fatal(err)
	}
	p := &engineProxy{next: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: target.Scheme, Host: target.Host})}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	dsn := *target
	dsn.Host = strings.TrimPrefix(server.URL, "http://")
	clickhouse := DefaultClickHouseConfig()
	clickhouse.DSN = dsn.String()
	proxied, err := Open(t.Context(), clickhouse)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxied.Close() })
	return NewHistory(proxied, cfg, newTestLog(t), NewMetrics(nil)), p, func(events []*schema.Event) { insert(t, conn, events) }
}

// TestHalfOpenBreakerAdmitsOneStatement has 200 requests come at the moment when the breaker
// is half open:
//
//  1. ClickHouse fails until the breaker opens; then it gets well, but answers nothing.
//  2. The time of the breaker is over. 200 pages are asked for: one becomes a statement, which
//     waits for its answer; the others are answered without ClickHouse.
//  3. ClickHouse answers: the breaker closes.
func TestHalfOpenBreakerAdmitsOneStatement(t *testing.T) {
	for name, forgotten := range map[string]int64{"Kafka holds the log": 0, "Kafka has forgotten its beginning": 3} {
		t.Run(name, func(t *testing.T) { halfOpen(t, forgotten) })
	}
}

func halfOpen(t *testing.T, forgotten int64) {
	cfg := DefaultConfig()
	cfg.Breaker = BreakerConfig{Failures: 2, Open: 20 * time.Millisecond}
	cfg.QueryTimeout = time.Minute
	cfg.Admission.MaxPages, cfg.Admission.MaxWaiting = 1000, 1000
	history, proxy, insertRows := proxiedHistory(t, cfg)
	w := newWorldOf(t, rand.New(rand.NewPCG(1, 1)), history, insertRows, "w1", 1, 0, 1)
	ws := worlds{w}
	ws.growHours("w1", 50)
	w.materialise(w.end)
	w.committed, w.tapeStart, w.start = w.end-5, w.end-5, forgotten
	app := httpapi.NewApp(httpapi.DefaultConfig(), newTestLog(t))
	app.Use(httpapi.Authenticate(keys{}))
	ws.api(cfg).Routes(app)

	proxy.set(true, nil)
	state := history.breaker.cb.State
	for deadline := time.Now().Add(20 * time.Second); state() != gobreaker.StateOpen && time.Now().Before(deadline); {
		get(t, app, "w1", "/v1/events")
	}
	hold := make(chan struct{})
	proxy.set(false, hold)
	for deadline := time.Now().Add(20 * time.Second); state() != gobreaker.StateHalfOpen; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("breaker is %v, want it half open", state())
		}
	}
	const requests = 200
	type answer struct {
		status            int
		body, retry, from string
	}
	answers := make(chan answer, requests)
	for range requests {
		go func() {
			status, body, header := get(t, app, "w1", "/v1/events")
			answers <- answer{status, body[:min(len(body), 200)], header.Get("Retry-After"), header.Get(headerDegraded)}
		}()
	}
	retries := make(map[string]bool)
	collect := func() {
		a := <-answers
		switch {
		case forgotten == 0 && a.status == 200 && a.from == "kafka":
		case forgotten > 0 && a.status == 503 && a.retry != "":
			retries[a.retry] = true
		default:
			t.Errorf("%+v, want a page without ClickHouse, or 503 with when to come back", a)
		}
	}
	for range requests - 1 {
		collect()
	}
	for deadline := time.Now().Add(20 * time.Second); proxy.count() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // the trial is on its way
	}
	if n := proxy.count(); n != 1 {
		t.Errorf("%d statements reached ClickHouse, want 1", n)
	}
	if forgotten > 0 && len(retries) < 3 {
		t.Errorf("all come back after %v s, want them spread", retries)
	}
	close(hold)
	if a := <-answers; a.status != 200 || a.from != "" {
		t.Errorf("the trial: %+v, want a page from ClickHouse", a)
	}
	if got := state(); got != gobreaker.StateClosed {
		t.Errorf("after the trial: %v, want it closed", got)
	}
}
