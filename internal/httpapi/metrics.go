package httpapi

import (
	"slices"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	errors   *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// newMetrics makes the metrics of the edge. Routes are templates, not paths, so every
// label is bounded by what the program registers.
func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_http_requests_total",
			Help: "Requests answered, by method, route and status. A stream counts when it opens.",
		}, []string{"method", "route", "status"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_http_errors_total",
			Help: "Error envelopes sent, by code.",
		}, []string{"code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "playhead_http_request_seconds",
			Help:    "Time in the handler, request body already read, by route.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 30},
		}, []string{"route"}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.errors, m.seconds)
	}
	return m
}

func (m *metrics) observe(c *fiber.Ctx, took time.Duration) {
	route := c.Route().Path
	m.requests.WithLabelValues(methodLabel(c), route, strconv.Itoa(c.Response().StatusCode())).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) countError(code string) { m.errors.WithLabelValues(code).Inc() }

// methodLabel returns the method as a string of its own: fiber's dies with the request,
// and a label is kept.
func methodLabel(c *fiber.Ctx) string {
	if i := slices.Index(fiber.DefaultMethods, c.Method()); i >= 0 {
		return fiber.DefaultMethods[i]
	}
	return "other"
}
