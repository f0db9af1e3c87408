package query

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// admission says how many requests may ask about history at the same time, so that no
// workspace slows another's. Pages and scans, which read much for one answer, have places
// of their own: however many scans there are, a page waits for none of them.
type admission struct {
	pages, scans *gate
}

func newAdmission(cfg AdmissionConfig, m *Metrics) *admission {
	return &admission{
		pages: newGate("pages", cfg.MaxPages, cfg, m),
		scans: newGate("scans", cfg.MaxScans, cfg, m),
	}
}

// admitPage is the handler before those of pages: it holds a place until they are done.
func (a *API) admitPage(c *fiber.Ctx) error {
	leave, err := a.admission.pages.enter(c.UserContext(), httpapi.From(c).Workspace)
	if err != nil {
		return err
	}
	defer leave()
	return c.Next()
}

// gate has a number of places. A workspace has half of them at most, one at least. Who finds
// none waits: first come, first served within a workspace, and the workspaces in turn. It is
// safe for concurrent use.
type gate struct {
	class   string // the label in metrics
	places  int
	share   int // of one workspace
	queue   int // how many may wait
	wait    time.Duration
	metrics *Metrics

	mu      sync.Mutex
	taken   int              // guarded by mu
	waiting int              // guarded by mu; in all lines
	lines   map[string]*line // guarded by mu; of workspaces that have a place or wait for one
	turn    []*line          // guarded by mu; those in which somebody waits, the next one first
}

// line is one workspace at a gate.
type line struct {
	workspace string
	taken     int
	waiters   []*waiter
}

type waiter struct {
	admitted chan struct{} // closed, under the gate's lock, when it has a place
}

func newGate(class string, places int, cfg AdmissionConfig, m *Metrics) *gate {
	return &gate{
		class: class, places: places, share: max(places/2, 1), queue: cfg.MaxWaiting, wait: cfg.QueueWait, metrics: m,
		lines: make(map[string]*line),
	}
}

// enter takes a place for the workspace, waiting for one if need be, and returns what gives
// it back. It refuses at once where as many wait as may, of which a workspace is half, and
// after the longest wait. The error is the client's.
func (g *gate) enter(ctx context.Context, workspace string) (leave func(), err error) {
	began := time.Now()
	g.mu.Lock()
	l := g.lines[workspace]
	if l == nil {
		l = &line{workspace: workspace}
		g.lines[workspace] = l
	}
	leave = sync.OnceFunc(func() { g.leave(l) })
	if g.taken < g.places && l.taken < g.share {
		// Nobody is passed over: who waits at a free place is of a workspace with its full share.
		g.take(l)
		g.mu.Unlock()
		return leave, nil
	}
	if g.waiting >= g.queue || len(l.waiters) >= max(g.queue/2, 1) {
		g.forget(l)
		g.mu.Unlock()
		return nil, g.refuse()
	}
	w := &waiter{admitted: make(chan struct{})}
	if l.waiters = append(l.waiters, w); len(l.waiters) == 1 {
		g.turn = append(g.turn, l)
	}
	g.waiting++
	g.mu.Unlock()

	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	var gone error
	select {
	case <-w.admitted:
	case <-timer.C:
	case <-ctx.Done():
		gone = context.Cause(ctx)
	}
	if g.abandon(l, w) {
		if gone != nil {
			return nil, gone
		}
		return nil, g.refuse()
	}
	g.metrics.admissionWait.WithLabelValues(g.class).Observe(time.Since(began).Seconds())
	return leave, nil
}

func (g *gate) refuse() error {
	g.metrics.admissionRefused.WithLabelValues(g.class).Inc()
	return httpapi.Errorf(503, "overloaded", "As many questions about history are under way as this node takes.").
		WithDetail("class", g.class).WithRetryAfter(spread(time.Second))
}

// take is called with mu held.
func (g *gate) take(l *line) {
	g.taken++
	l.taken++
	g.metrics.admissionTaken.WithLabelValues(g.class).Inc()
}

// leave gives a place back, to who is next if somebody waits.
func (g *gate) leave(l *line) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken--
	l.taken--
	g.metrics.admissionTaken.WithLabelValues(g.class).Dec()
	g.forget(l)
	for g.taken < g.places {
		i := slices.IndexFunc(g.turn, func(l *line) bool { return l.taken < g.share })
		if i < 0 {
			return
		}
		next := g.turn[i]
		w := next.waiters[0]
		next.waiters = next.waiters[1:]
		g.turn = slices.Delete(g.turn, i, i+1)
		if len(next.waiters) > 0 { // behind the others
			g.turn = append(g.turn, next)
		}
		g.waiting--
		g.take(next)
		close(w.admitted)
	}
}

// abandon takes w out of its line, and reports whether it stood there: it may have been
// admitted in the meantime.
func (g *gate) abandon(l *line, w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(l.waiters, w)
	if i < 0 {
		return false
	}
	l.waiters = slices.Delete(l.waiters, i, i+1)
	if len(l.waiters) == 0 {
		i := slices.Index(g.turn, l)
		g.turn = slices.Delete(g.turn, i, i+1)
	}
	g.waiting--
	g.forget(l)
	return true
}

// forget drops a line that nobody is in; mu is held.
func (g *gate) forget(l *line) {
	if l.taken == 0 && len(l.waiters) == 0 {
		delete(g.lines, l.workspace)
	}
}

// spread returns when to come back: at least after d, at random, so that those who were
// refused together do not come back together. Retry-After counts in seconds.
func spread(d time.Duration) time.Duration { return d + rand.N(4*time.Second) }
