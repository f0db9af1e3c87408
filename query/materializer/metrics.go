package materializer

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the materialiser's counters. The label partition is a Kafka partition
// that this process owns at the moment.
type Metrics struct {
	rows          *prometheus.CounterVec // kind: event, duplicate, dead_letter
	bytes         prometheus.Counter
	inserts       prometheus.Counter
	insertErrors  prometheus.Counter
	insertSeconds prometheus.Histogram
	visible       prometheus.Histogram
	commits       prometheus.Counter
	retries       prometheus.Counter
	fenced        prometheus.Counter
	settled       *prometheus.CounterVec // action
	gapOffsets    prometheus.Counter
	checks        *prometheus.CounterVec // result: ok, gap, double, foreign, unknown
	repairedRows  prometheus.Counter

	committed *prometheus.GaugeVec // partition
	lag       *prometheus.GaugeVec // partition
	stopped   *prometheus.GaugeVec // partition
	gap       *prometheus.GaugeVec // partition

	incomplete *prometheus.GaugeVec // partition
}

// NewMetrics makes the metrics and registers them with reg; nil registers them nowhere.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "playhead_materializer_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "playhead_materializer_" + name, Help: help}, labels)
	}
	gauges := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "playhead_materializer_" + name, Help: help}, []string{"partition"})
	}
	seconds := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "playhead_materializer_" + name, Help: help, Buckets: buckets})
	}
	m := &Metrics{
		rows:          counters("rows_total", "Rows acknowledged by ClickHouse, by kind of record.", "kind"),
		bytes:         counter("rows_bytes_total", "Bytes of the rows before encoding."),
		inserts:       counter("inserts_total", "Inserts acknowledged by ClickHouse."),
		insertErrors:  counter("insert_errors_total", "Inserts that failed or whose outcome is unknown."),
		insertSeconds: seconds("insert_seconds", "Time of an acknowledged insert.", prometheus.ExponentialBuckets(0.005, 2, 14)),
		visible:       seconds("visible_seconds", "Time from the append of a batch's oldest record until the watermark passed it.", prometheus.ExponentialBuckets(0.05, 2, 16)),
		commits:       counter("commits_total", "Offset commits, with an intent or without."),
		retries:       counter("retries_total", "Steps tried again after a failure of Kafka or ClickHouse."),
		fenced:        counter("fenced_total", "Times a partition was dropped because it belongs to another member."),
		settled:       counters("settled_total", "Decisions about ranges whose insert was in doubt.", "action"),
		gapOffsets:    counter("gap_offsets_total", "Offsets lost because Kafka deleted them before they became rows. Alarm."),
		checks:        counters("self_checks_total", "Comparisons of the table with the log, by result. Anything but ok is an alarm.", "result"),
		repairedRows:  counter("repaired_rows_total", "Missing rows that were put back, after a self-check, a loss or a request."),
		committed:     gauges("committed_offset", "Committed offset: all records below it are rows."),
		lag:           gauges("lag_offsets", "High watermark minus committed offset. Offsets have gaps: not a count of records."),
		stopped:       gauges("stopped_partition", "1 while a partition is stopped for a reason that needs a human. Alarm."),
		gap:           gauges("gap_partition", "1 if the partition's history has a gap. Alarm."),
		incomplete:    gauges("incomplete_partition", "1 while rows that were lost, or are being replaced, are made anew from Kafka: pages may lack them."),
	}
	if reg != nil {
		reg.MustRegister(m.rows, m.bytes, m.inserts, m.insertErrors, m.insertSeconds, m.visible, m.commits, m.retries,
			m.fenced, m.settled, m.gapOffsets, m.checks, m.repairedRows, m.committed, m.lag, m.stopped, m.gap, m.incomplete)
	}
	return m
}

// partition returns the gauges of one partition.
func (m *Metrics) partition(p uint16) partitionMetrics {
	label := strconv.Itoa(int(p))
	return partitionMetrics{
		committed: m.committed.WithLabelValues(label),
		lag:       m.lag.WithLabelValues(label),
		stopped:   m.stopped.WithLabelValues(label),
		gap:       m.gap.WithLabelValues(label),

		incomplete: m.incomplete.WithLabelValues(label),
	}
}

// forget drops the gauges of a partition that is no longer ours.
func (m *Metrics) forget(p uint16) {
	label := strconv.Itoa(int(p))
	for _, g := range []*prometheus.GaugeVec{m.committed, m.lag, m.stopped, m.gap, m.incomplete} {
		g.DeleteLabelValues(label)
	}
}

// partitionMetrics are the gauges of one partition.
type partitionMetrics struct{ committed, lag, stopped, gap, incomplete prometheus.Gauge }

// addRows counts an acknowledged insert.
func (m *Metrics) addRows(b *batch) {
	m.inserts.Inc()
	m.bytes.Add(float64(b.bytes))
	m.rows.WithLabelValues("event").Add(float64(b.kinds.events))
	m.rows.WithLabelValues("duplicate").Add(float64(b.kinds.duplicates))
	m.rows.WithLabelValues("dead_letter").Add(float64(b.kinds.deadLetters))
}
