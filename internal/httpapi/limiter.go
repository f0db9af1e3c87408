package httpapi

import (
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/internal/control"
)

// Class is what a request counts as against the limits of its key.
type Class uint8

// The classes there are. A key has a bucket for each.
const (
	ClassNone     Class = iota // not counted
	ClassCreate                // POST /v1/sessions
	ClassAppend                // every other request that is not GET or HEAD
	ClassRead                  // GET and HEAD, streams when they open
	ClassBackfill              // appends with lane=backfill, counted in events
)

// String returns the name of the class in the API.
func (c Class) String() string {
	switch c {
	case ClassCreate:
		return "create"
	case ClassAppend:
		return "append"
	case ClassRead:
		return "read"
	case ClassBackfill:
		return "backfill"
	default:
		return "none"
	}
}

// unit is what the class counts, in the plural.
func (c Class) unit() string {
	if c == ClassBackfill {
		return "events"
	}
	return "requests"
}

// rate is the limit of the class, in its unit a second; 0 is without limit.
func (c Class) rate(l control.Limits) float64 {
	switch c {
	case ClassCreate:
		return l.SessionCreatesPerSecond
	case ClassAppend:
		return l.AppendsPerSecond
	case ClassRead:
		return l.ReadsPerSecond
	case ClassBackfill:
		return l.BackfillEventsPerSecond
	default:
		return 0
	}
}

// classOf returns what a request counts as. Looking at the limits and changing them is
// free: a key whose buckets are empty can still find out why.
func classOf(method, path, lane string) Class {
	path = strings.TrimRight(path, "/")
	switch {
	case method == fiber.MethodPost && lane == LaneBackfill && isAppend(path):
		return ClassBackfill
	case path == pathLimits, strings.HasPrefix(path, pathAdmin):
		return ClassNone
	case method == fiber.MethodGet, method == fiber.MethodHead:
		return ClassRead
	case method == fiber.MethodPost && path == "/v1/sessions":
		return ClassCreate
	default:
		return ClassAppend
	}
}

// isAppend reports whether a POST to the path appends events.
func isAppend(path string) bool {
	rest, ok := strings.CutPrefix(path, "/v1/sessions/")
	if ok {
		_, rest, ok = strings.Cut(rest, "/")
		return ok && rest == "events"
	}
	return path == "/v1/events"
}

// The values of ParamLane, which says how an append is counted and carried. None is
// LaneLive.
const (
	ParamLane    = "lane"
	LaneLive     = "live"
	LaneBackfill = "backfill"
)

// Bounds of a Limiter.
const (
	maxBuckets    = 1 << 16 // some 100 bytes each
	sweepInterval = time.Minute
	sweepAgain    = time.Second // at the bound
)

// Names of the headers that tell a client its quota.
const (
	rateHeaderPrefix    = "X-RateLimit-"
	headerRateLimit     = rateHeaderPrefix + "Limit"
	headerRateRemaining = rateHeaderPrefix + "Remaining"
	headerRateReset     = rateHeaderPrefix + "Reset"
)

// Quota is what a key may still do of one class.
type Quota struct {
	Limited    bool          // false: there is no limit, and the rest is zero but OK
	OK         bool          // of Take: the request may pass
	Limit      int           // tokens that a full bucket holds: requests, or events of a backfill
	Remaining  int           // tokens left
	Reset      time.Duration // until the bucket is full
	RetryAfter time.Duration // when not OK: until the next request passes
}

// Limiter counts requests by key and class in token buckets: the rate is the key's
// workspace's limit, the burst twice that. Each process counts on its own. Safe for
// concurrent use.
//
// It remembers only buckets that are not full, at most 65,536; with more keys than that
// active within a few seconds, those beyond push out others, which begin anew with a full
// bucket: the answer at the bound is to let too many pass, never to refuse too many.
type Limiter struct {
	limits  func(workspace string) control.Limits
	now     func() time.Time
	began   time.Time
	most    int
	refused *prometheus.CounterVec
	pushed  prometheus.Counter

	mu      sync.Mutex // guards what follows
	buckets map[bucketKey]bucket
	swept   time.Duration // since began
}

type bucketKey struct {
	keyID string
	class Class
}

// NewLimiter returns a limiter that asks limits at every request, so that a change takes
// effect at once; limits must not block. A nil now is time.Now, a nil reg takes no metrics.
func NewLimiter(limits func(workspace string) control.Limits, now func() time.Time, reg prometheus.Registerer) *Limiter {
	if now == nil {
		now = time.Now
	}
	l := &Limiter{
		limits: limits, now: now, began: now(), most: maxBuckets,
		buckets: make(map[bucketKey]bucket),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_http_rate_limited_total",
			Help: "Requests refused because their key had used up its rate, by class.",
		}, []string{"class"}),
		pushed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_http_rate_buckets_dropped_total",
			Help: "Token buckets forgotten before they were full, because there were too many.",
		}),
	}
	if reg != nil {
		reg.MustRegister(l.refused, l.pushed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "playhead_http_rate_buckets",
			Help: "Token buckets remembered; those that are full again are forgotten once a minute.",
		}, func() float64 { return float64(l.size()) }))
	}
	return l
}

// Handler counts every request behind Authenticate, and refuses those over the limit: 429
// rate_limited with Retry-After. Counted requests carry X-RateLimit-Limit, -Remaining and
// -Reset, whatever their answer is.
//
// An append of class backfill passes if there is a token, and costs nothing here: how many
// events it has is known once they are read, and Charge counts them.
func (l *Limiter) Handler(c *fiber.Ctx) error {
	c.Locals(limiterKey{}, l)
	class := classOf(c.Method(), c.Path(), c.Query(ParamLane))
	if class == ClassNone {
		return c.Next()
	}
	n := 1
	if class == ClassBackfill {
		n = 0
	}
	q := l.TakeN(From(c), class, n)
	if !q.Limited {
		return c.Next()
	}
	q.setHeaders(c)
	if !q.OK {
		return q.Refusal(class)
	}
	return c.Next()
}

type limiterKey struct{}

// Charge counts n events of a request's class against the limiter that the request has
// passed, and puts how the bucket then stands into the answer's headers. The error, an
// *Error, is 429 rate_limited: the bucket was empty, nothing was counted. Where no limiter
// stands before the path, nothing is counted.
func Charge(c *fiber.Ctx, class Class, n int) error {
	l, ok := c.Locals(limiterKey{}).(*Limiter)
	if !ok {
		return nil
	}
	q := l.TakeN(From(c), class, n)
	if !q.Limited {
		return nil
	}
	q.setHeaders(c)
	if !q.OK {
		return q.Refusal(class)
	}
	return nil
}

// Take counts one request of who.
func (l *Limiter) Take(who control.Principal, class Class) Quota { return l.TakeN(who, class, 1) }

// TakeN counts n requests or events of who at once. They pass if one would: what the
// bucket lacks for the others is owed, and the next wait longer.
func (l *Limiter) TakeN(who control.Principal, class Class, n int) Quota {
	rate := class.rate(l.limits(who.Workspace))
	if rate <= 0 {
		return Quota{OK: true}
	}
	now := l.now().Sub(l.began)
	id := bucketKey{who.KeyID, class}
	l.mu.Lock()
	if now-l.swept >= sweepInterval {
		l.sweep(now)
	}
	b, known := l.buckets[id]
	if !known {
		l.makeRoom(now)
	}
	b, q := b.take(now, rate, n)
	l.buckets[id] = b
	l.mu.Unlock()
	if !q.OK {
		l.refused.WithLabelValues(class.String()).Inc()
	}
	return q
}

// Peek returns what Take would find, and counts nothing; OK is not set.
func (l *Limiter) Peek(who control.Principal, class Class) Quota {
	rate := class.rate(l.limits(who.Workspace))
	if rate <= 0 {
		return Quota{}
	}
	now := l.now().Sub(l.began)
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[bucketKey{who.KeyID, class}]
	return b.at(now, rate).quota()
}

// makeRoom makes place for one more bucket, at the bound by forgetting any one at all. The
// caller holds mu.
func (l *Limiter) makeRoom(now time.Duration) {
	if len(l.buckets) >= l.most && now-l.swept >= sweepAgain {
		l.sweep(now)
	}
	for id := range l.buckets { // in no order: which one is chance
		if len(l.buckets) < l.most {
			return
		}
		delete(l.buckets, id)
		l.pushed.Inc()
	}
}

// sweep forgets the buckets that are full. The caller holds mu.
func (l *Limiter) sweep(now time.Duration) {
	l.swept = now
	for id, b := range l.buckets {
		if b.full(now) {
			delete(l.buckets, id)
		}
	}
}

func (l *Limiter) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.buckets)
}

// Refusal is the answer to a request that a quota does not let pass.
func (q Quota) Refusal(class Class) *Error {
	return Errorf(429, CodeRateLimited, "This key has used up its %s of class %s for now.", class.unit(), class).
		WithDetail("class", class.String()).WithDetail("limit", q.Limit).WithRetryAfter(q.RetryAfter)
}

func (q Quota) setHeaders(c *fiber.Ctx) {
	h := &c.Response().Header
	set := func(name string, value int64) {
		var buf [20]byte
		// Canonical: sent as spelled here.
		h.SetCanonical([]byte(name), strconv.AppendInt(buf[:0], value, 10))
	}
	set(headerRateLimit, int64(q.Limit))
	set(headerRateRemaining, int64(q.Remaining))
	set(headerRateReset, wholeSeconds(q.Reset))
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }
