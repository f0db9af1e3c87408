package query

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what the query role does. Create it with NewMetrics.
type Metrics struct {
	queries *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	rows    prometheus.Counter
	breaker prometheus.Gauge

	pages     *prometheus.CounterVec
	logScans  *prometheus.CounterVec
	syncWaits prometheus.Histogram

	counts           *prometheus.CounterVec
	admissionTaken   *prometheus.GaugeVec
	admissionRefused *prometheus.CounterVec
	admissionWait    *prometheus.HistogramVec
}

// Outcomes of a question to ClickHouse, the label of playhead_history_queries_total.
const (
	outcomeOK        = "ok"
	outcomeFailed    = "failed"
	outcomeRefused   = "refused"   // the breaker is open
	outcomeTooLarge  = "too_large" // the question is, not ClickHouse's fault
	outcomeCancelled = "cancelled"
)

// Sources of a page, the label of playhead_history_pages_total.
const (
	sourceHistory  = "clickhouse" // ClickHouse below the committed offset, the tape above
	sourceDegraded = "kafka"      // ClickHouse was unavailable
)

// NewMetrics returns the role's metrics, registered with reg unless that is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_history_queries_total",
			Help: "Questions to ClickHouse, by kind and outcome.",
		}, []string{"kind", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "playhead_history_query_seconds",
			Help:    "Time of one question to ClickHouse, from sending to the last row, by kind.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"kind"}),
		rows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_history_rows_total",
			Help: "Event rows read from ClickHouse.",
		}),
		breaker: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_history_breaker_state",
			Help: "Breaker around ClickHouse: 0 closed, 1 half open, 2 open.",
		}),
		pages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_history_pages_total",
			Help: "Pages answered, by source; kafka means that ClickHouse was unavailable.",
		}, []string{"source"}),
		logScans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_history_log_scan_records_total",
			Help: "Kafka records read for pages, by reason: lag (the tape does not reach back to the committed offset) or degraded.",
		}, []string{"reason"}),
		syncWaits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "playhead_history_sync_seconds",
			Help:    "Time a request waited for the tape to hold all that was in the log when it came.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2},
		}),
		counts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_history_counts_total",
			Help: "Counts and histograms answered, by source: hours (sums), rows, or kafka while ClickHouse was unavailable.",
		}, []string{"source"}),
		admissionTaken: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "playhead_history_admitted",
			Help: "Requests that hold a place, by class: pages or scans.",
		}, []string{"class"}),
		admissionRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_history_refused_total",
			Help: "Requests refused because no place came free in time, by class: pages or scans.",
		}, []string{"class"}),
		admissionWait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "playhead_history_admission_seconds",
			Help:    "Time that requests waited for a place, of those that had to and got one, by class.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"class"}),
	}
	if reg != nil {
		reg.MustRegister(m.queries, m.seconds, m.rows, m.breaker, m.pages, m.logScans, m.syncWaits,
			m.counts, m.admissionTaken, m.admissionRefused, m.admissionWait)
	}
	return m
}

func (m *Metrics) observeQuery(kind, outcome string, took time.Duration) {
	m.queries.WithLabelValues(kind, outcome).Inc()
	if outcome != outcomeRefused {
		m.seconds.WithLabelValues(kind).Observe(took.Seconds())
	}
}
