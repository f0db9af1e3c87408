package httpapi

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Paths of operations, which need no key.
const (
	PathHealth  = "/healthz"
	PathReady   = "/readyz"
	PathMetrics = "/metrics"
)

// checkTimeout bounds each readiness check.
const checkTimeout = 2 * time.Second

// Health knows which parts of the process are ready. Safe for concurrent use.
type Health struct {
	log      *slog.Logger
	stopping atomic.Bool

	mu     sync.Mutex // guards checks, state and notes
	checks map[string]func(context.Context) error
	state  map[string]bool // last result, to log changes only
	notes  map[string]func(context.Context) string
}

// NewHealth returns a Health without checks, which is ready.
func NewHealth(log *slog.Logger) *Health {
	return &Health{log: log, checks: make(map[string]func(context.Context) error), state: make(map[string]bool), notes: make(map[string]func(context.Context) string)}
}

// Add names a part and how to ask whether it is ready: nil is yes. The check runs on
// every GET /readyz, from any goroutine, with a deadline of 2 s. A part of the same
// name is replaced.
func (h *Health) Add(name string, check func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks[name] = check
	delete(h.state, name)
}

// Note names something that whoever asks should know and that does not make the process
// less ready: note returns it, or "" while there is nothing to say. It runs as a check does.
func (h *Health) Note(name string, note func(context.Context) string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes[name] = note
}

// told returns the notes that say something.
func (h *Health) told(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	h.mu.Lock()
	notes := maps.Clone(h.notes)
	h.mu.Unlock()
	out := make(map[string]string)
	for name, note := range notes {
		if text := note(ctx); text != "" {
			out[name] = text
		}
	}
	return out
}

// Stop makes the process not ready from now on, and Stopping true.
func (h *Health) Stop() { h.stopping.Store(true) }

// Stopping reports whether Stop was called.
func (h *Health) Stopping() bool { return h.stopping.Load() }

// Ready runs every check and returns the names of those that failed, sorted, with
// their causes.
func (h *Health) Ready(ctx context.Context) (names []string, failed map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	h.mu.Lock()
	checks := make(map[string]func(context.Context) error, len(h.checks))
	for name, check := range h.checks {
		checks[name] = check
	}
	h.mu.Unlock()

	failed = make(map[string]error)
	var mu sync.Mutex // guards failed
	var wg sync.WaitGroup
	for name, check := range checks {
		names = append(names, name)
		wg.Go(func() {
			if err := check(ctx); err != nil {
				mu.Lock()
				failed[name] = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(names)
	h.logChanges(names, failed)
	return names, failed
}

func (h *Health) logChanges(names []string, failed map[string]error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		err := failed[name]
		was, known := h.state[name]
		h.state[name] = err == nil
		switch {
		case err != nil && (was || !known):
			h.log.Warn("part is not ready", "part", name, "error", err)
		case err == nil && known && !was:
			h.log.Info("part is ready again", "part", name)
		}
	}
}

// Routes adds /healthz (200 while the process lives), /readyz (200, with notes if there are
// any, or 503 with the state of each part in details.checks; causes are in the log) and
// /metrics.
func (h *Health) Routes(app fiber.Router, metrics prometheus.Gatherer) {
	app.Get(PathHealth, func(c *fiber.Ctx) error {
		return c.JSON(fiber.Map{"status": "alive"})
	})
	app.Get(PathReady, h.ready)
	app.Get(PathMetrics, adaptor.HTTPHandler(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})))
}

func (h *Health) ready(c *fiber.Ctx) error {
	if h.Stopping() {
		return ShuttingDown()
	}
	names, failed := h.Ready(c.UserContext())
	checks := make(map[string]string, len(names))
	for _, name := range names {
		checks[name] = "ready"
		if failed[name] != nil {
			checks[name] = "not ready"
		}
	}
	if len(failed) > 0 {
		return Errorf(503, CodeNotReady, "A part of this node is not ready.").
			WithDetail("checks", checks).WithRetryAfter(readyRetryAfter)
	}
	answer := fiber.Map{"status": "ready", "checks": checks}
	if notes := h.told(c.UserContext()); len(notes) > 0 {
		answer["notes"] = notes
	}
	return c.JSON(answer)
}
