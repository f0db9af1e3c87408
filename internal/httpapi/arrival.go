package httpapi

import (
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/playhead-dev/playhead/internal/control"
)

// smallBody is what anybody may send, in bytes: as much as a head may have with large
// headers. What is larger is read only for a key that appends, and counted.
const smallBody = 64 << 10

// bodyRetryAfter is when to come back while bodies take as much memory as they may.
const bodyRetryAfter = time.Second

// arrivals decides, between the head of a request and its body, how much of a body is read:
// the server has the memory for all of it before the first byte has come, and handlers, who
// know whose request it is, are only called when the last one has. Safe for concurrent use.
//
// A body is counted from its head on until its handler has ended. The server does not say
// that a request broke off, but that is so at the latest when the time for its body is over.
type arrivals struct {
	cfg   Config
	bytes prometheus.Gauge

	mu    sync.Mutex // guards what follows
	total int        // bytes counted
	open  map[*fasthttp.RequestHeader]*arrival
	queue []*arrival // of those in open and some that are not, in the order of their deadlines
}

// arrival is a request whose body is being read.
type arrival struct {
	head     *fasthttp.RequestHeader // the connection's, for as long as it lasts
	bytes    int
	deadline time.Time
	refusal  *Error // the answer if the body turns out not to be small; nil: 413
}

func newArrivals(cfg Config) *arrivals {
	a := &arrivals{cfg: cfg, open: make(map[*fasthttp.RequestHeader]*arrival), bytes: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "playhead_http_body_bytes",
		Help: "Bytes of request bodies that are being read or handled, as announced.",
	})}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(a.bytes)
	}
	return a
}

// headReceived is the server's hook between head and body.
func (a *arrivals) headReceived(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	rc := fasthttp.RequestConfig{ReadTimeout: a.cfg.ReadTimeout}
	size := h.ContentLength()
	const chunked = -1
	if size == chunked {
		size = a.cfg.BodyLimit // as much as it may become
	}
	if size <= smallBody {
		return rc
	}
	a.abandon(h)
	if size > a.cfg.BodyLimit { // refused unread
		return rc
	}
	now := time.Now()
	in := &arrival{head: h, deadline: now.Add(a.cfg.ReadTimeout)}
	if large, refusal := a.mayBeLarge(h); !large {
		in.refusal = refusal
		rc.MaxRequestBodySize = smallBody
		size = 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire(now)
	if size > 0 && a.total+size > a.cfg.MaxBodyBytes {
		in.refusal = Errorf(503, CodeOverloaded, "Bodies of requests take as much memory on this node as they may.").WithRetryAfter(bodyRetryAfter)
		rc.MaxRequestBodySize = smallBody
		size = 0
	}
	in.bytes = size
	a.count(size)
	a.open[h] = in
	a.queue = append(a.queue, in)
	return rc
}

// mayBeLarge reports whether the request has a key that appends, as only these send large
// bodies, and otherwise what to answer to a large one.
func (a *arrivals) mayBeLarge(h *fasthttp.RequestHeader) (bool, *Error) {
	if a.cfg.Keys == nil {
		return true, nil
	}
	key := string(h.Peek(headerAPIKey))
	if key == "" {
		scheme, rest, _ := strings.Cut(string(h.Peek(fiber.HeaderAuthorization)), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return false, missingKey()
		}
		key = strings.TrimSpace(rest)
	}
	p, err := a.cfg.Keys.Authenticate(key)
	if err != nil {
		refusal, _ := errors.AsType[*Error](keyRefusal(err))
		return false, refusal
	}
	return p.Scopes.Has(control.ScopeIngest), nil
}

// arrived ends the reading of a request's body. done gives back what was counted for it.
func (a *arrivals) arrived(h *fasthttp.RequestHeader) (done func(), refusal *Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	in := a.open[h]
	if in == nil {
		return func() {}, nil
	}
	delete(a.open, h) // from now on done has it, not the deadline
	in.head = nil     // the queue may keep it for a while
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.count(-in.bytes)
	}, in.refusal
}

// abandon forgets the request whose head h was: the server uses it again for another
// connection when that of a request that broke off has ended.
func (a *arrivals) abandon(h *fasthttp.RequestHeader) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if before := a.open[h]; before != nil {
		a.drop(before)
	}
}

// expire forgets the requests that must have broken off. The caller holds mu.
func (a *arrivals) expire(now time.Time) {
	n := 0
	for n < len(a.queue) {
		in := a.queue[n]
		waits := a.open[in.head] == in
		if waits && in.deadline.After(now) {
			break
		}
		if waits {
			a.drop(in)
		}
		n++
	}
	clear(a.queue[:n]) // or the array would keep them
	if a.queue = a.queue[n:]; len(a.queue) == 0 {
		a.queue = nil
	}
}

// drop forgets a request that broke off. The caller holds mu.
func (a *arrivals) drop(in *arrival) {
	delete(a.open, in.head)
	a.count(-in.bytes)
}

// count adds to what is counted. The caller holds mu.
func (a *arrivals) count(bytes int) {
	a.total += bytes
	a.bytes.Set(float64(a.total))
}
