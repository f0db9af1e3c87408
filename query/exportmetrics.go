package query

import "github.com/prometheus/client_golang/prometheus"

// exportMetrics counts what exports do.
type exportMetrics struct {
	exports *prometheus.CounterVec
	running prometheus.Gauge
	bytes   prometheus.Counter
	rows    prometheus.Counter
	retries prometheus.Counter
}

func newExportMetrics(reg prometheus.Registerer) *exportMetrics {
	m := &exportMetrics{
		exports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_exports_total",
			Help: "Exports that ended, by format and outcome.",
		}, []string{"format", "outcome"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_exports_running",
			Help: "Exports that run.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_export_bytes_total",
			Help: "Bytes of exports that were sent, as compressed.",
		}),
		rows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_export_rows_total",
			Help: "Events of exports that were sent, Parquet left out.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_export_retries_total",
			Help: "Statements of exports that failed and were asked again.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.exports, m.running, m.bytes, m.rows, m.retries)
	}
	return m
}
