package deadletters

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/schema"
)

// Metrics counts dead letters.
type Metrics struct {
	kept      *prometheus.CounterVec // reason
	refused   prometheus.Counter
	redrives  *prometheus.CounterVec // outcome: appended, duplicate, failed
	listed    prometheus.Gauge
	forgotten prometheus.Counter
}

// NewMetrics makes the metrics and registers them with reg; nil registers them nowhere.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		kept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_dead_letters_total", Help: "Dead letters written, by reason. A crash of the materialiser may write one again.",
		}, []string{"reason"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_dead_letters_refused_total", Help: "Dead letters that Kafka refused for good: only the row in ClickHouse tells of the record. Alarm.",
		}),
		redrives: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_dead_letters_redriven_total", Help: "Tries to append a dead letter again, by outcome.",
		}, []string{"outcome"}),
		listed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_dead_letters_listed", Help: "Dead letters that this node can list, as of the last question.",
		}),
		forgotten: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_dead_letters_unlisted_total", Help: "Dead letters that this node no longer lists, as there are more than dead_letters.max_listed.",
		}),
	}
	for _, r := range schema.Reasons() {
		m.kept.WithLabelValues(string(r))
	}
	if reg != nil {
		reg.MustRegister(m.kept, m.refused, m.redrives, m.listed, m.forgotten)
	}
	return m
}
