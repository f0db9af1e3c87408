package streamer

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what the streams of one node do.
type Metrics struct {
	streams   *prometheus.GaugeVec
	slow      prometheus.Gauge
	replaying prometheus.Gauge
	delivered prometheus.Counter
	replayed  *prometheus.CounterVec
	dropped   prometheus.Counter
	endings   *prometheus.CounterVec
}

// NewMetrics registers the metrics with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "playhead_streams", Help: "Open streams, by view."},
			[]string{"view"}),
		slow:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "playhead_streams_slow", Help: "Streams whose socket is full."}),
		replaying: prometheus.NewGauge(prometheus.GaugeOpts{Name: "playhead_streams_replaying", Help: "Streams that are being replayed to."}),
		delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_stream_events_total", Help: "Events delivered from the tape.",
		}),
		replayed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_stream_replayed_events_total", Help: "Events replayed, by where they were read (clickhouse, kafka, tape).",
		}, []string{"source"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_stream_dropped_events_total", Help: "Events that slow streams missed and were told of.",
		}),
		endings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_stream_ends_total", Help: "Streams ended, by reason.",
		}, []string{"reason"}),
	}
	reg.MustRegister(m.streams, m.slow, m.replaying, m.delivered, m.replayed, m.dropped, m.endings)
	return m
}

func (m *Metrics) opened(v *View) { m.streams.WithLabelValues(v.Name).Inc() }

func (m *Metrics) ended(v *View, reason error) {
	m.streams.WithLabelValues(v.Name).Dec()
	label := "write"
	var closed *closeError
	var cancelled *cancelledError
	switch {
	case errors.As(reason, &closed):
		label = "client"
	case errors.As(reason, &cancelled):
		label = "cancelled"
	case errors.Is(reason, errKeyEnded):
		label = "key"
	case errors.Is(reason, errLogAway):
		label = "log"
	case errors.Is(reason, errHungUp):
		label = "client"
	case errors.Is(reason, errShutdown):
		label = "shutdown"
	case errors.Is(reason, errSessionEnded):
		label = "session_ended"
	case errors.Is(reason, errSessionErased):
		label = "session_erased"
	case errors.Is(reason, errTapeFailed):
		label = "tape"
	case errors.Is(reason, errHistoryAway):
		label = "history"
	}
	m.endings.WithLabelValues(label).Inc()
}
