package control

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Option changes how Open works.
type Option func(*options)

type options struct {
	log *slog.Logger
	now func() time.Time
	reg prometheus.Registerer
}

// WithLogger sets where skipped records and lost connections are told. Default: nowhere.
func WithLogger(log *slog.Logger) Option { return func(o *options) { o.log = log } }

// WithClock sets the clock that keys expire by. Default: time.Now.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

// WithRegisterer registers the store's metrics. Default: they are not registered.
func WithRegisterer(reg prometheus.Registerer) Option { return func(o *options) { o.reg = reg } }

type metrics struct {
	skipped *prometheus.CounterVec
	changes *prometheus.CounterVec
	keys    prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_control_skipped_records_total",
			Help: "Records of the control topic that could not be read, by reason.",
		}, []string{"reason"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_control_records_total",
			Help: "Records of the control topic that were folded, by kind.",
		}, []string{"kind"}),
		keys: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_control_keys",
			Help: "API keys held in memory, revoked and expired ones of the last day included.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.skipped, m.changes, m.keys)
	}
	return m
}
