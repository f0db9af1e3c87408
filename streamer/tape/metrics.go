package tape

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts what the tapes of one node do.
type Metrics struct {
	records    prometheus.Counter
	duplicates prometheus.Counter
	poison     prometheus.Counter
	resets     prometheus.Counter
}

// NewMetrics registers the metrics with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_tape_records_total", Help: "Records read from Kafka onto tapes.",
		}),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_tape_duplicates_total", Help: "Records left off the tape because they repeat an earlier one.",
		}),
		poison: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_tape_poison_records_total", Help: "Records left off the tape because they are not events or lie in the wrong partition.",
		}),
		resets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_tape_resets_total", Help: "Tapes begun anew because the reader lost its place in the partition.",
		}),
	}
	reg.MustRegister(m.records, m.duplicates, m.poison, m.resets)
	return m
}

// usage describes the tapes' memory, collected when it is asked for.
var (
	descPartitions = prometheus.NewDesc("playhead_tape_partitions", "Kafka partitions followed.", nil, nil)
	descEvents     = prometheus.NewDesc("playhead_tape_events", "Events on all tapes.", nil, nil)
	descBytes      = prometheus.NewDesc("playhead_tape_bytes", "Estimated bytes of the events on all tapes.", nil, nil)
	descSessions   = prometheus.NewDesc("playhead_tape_sessions", "Session states held.", nil, nil)
	descWindow     = prometheus.NewDesc("playhead_tape_dedupe_ids", "Message ids held for dedupe.", nil, nil)
)

// Describe is part of prometheus.Collector.
func (t *Tapes) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPartitions, descEvents, descBytes, descSessions, descWindow} {
		ch <- d
	}
}

// Collect is part of prometheus.Collector.
func (t *Tapes) Collect(ch chan<- prometheus.Metric) {
	var events, bytes, sessions, ids int
	tapes := t.open()
	for _, tape := range tapes {
		tape.mu.RLock()
		events += tape.entries.len()
		bytes += tape.bytes
		sessions += len(tape.sessions)
		ids += tape.window.Len()
		tape.mu.RUnlock()
	}
	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	gauge(descPartitions, len(tapes))
	gauge(descEvents, events)
	gauge(descBytes, bytes)
	gauge(descSessions, sessions)
	gauge(descWindow, ids)
}
