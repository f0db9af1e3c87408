package presence

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	refused   *prometheus.CounterVec
	published *prometheus.CounterVec
	folded    prometheus.Counter
	skipped   *prometheus.CounterVec
	dropped   prometheus.Counter
	forgotten prometheus.Counter
	failures  *prometheus.CounterVec
}

// newMetrics makes the metrics; the gauges read c.
func newMetrics(reg prometheus.Registerer, c *Counter) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		refused: vec("playhead_presence_refused_streams_total",
			"Streams refused because a limit was reached, by what it is a limit of: workspace, key or class.", "of"),
		published: vec("playhead_presence_published_records_total",
			"Records of own counts written to the presence topic, by kind: change or snapshot.", "kind"),
		folded: counter("playhead_presence_folded_records_total",
			"Records of other nodes' counts that were read."),
		skipped: vec("playhead_presence_skipped_records_total",
			"Records of the presence topic that could not be read, by reason.", "reason"),
		dropped: counter("playhead_presence_dropped_entries_total",
			"Counts of other nodes left out because there are too many."),
		forgotten: counter("playhead_presence_lost_nodes_total",
			"Nodes forgotten because they were not heard, goodbyes not included."),
		failures: vec("playhead_presence_failures_total",
			"Failed reads and writes of the presence topic, by operation: publish or read.", "operation"),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, labels prometheus.Labels, read func(*ledger) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			c.mu.Lock()
			defer c.mu.Unlock()
			return float64(read(c.ledger))
		})
	}
	const streams, streamsHelp = "playhead_presence_streams", "Open streams that count against limits, by where: here, or elsewhere on other nodes."
	reg.MustRegister(m.refused, m.published, m.folded, m.skipped, m.dropped, m.forgotten, m.failures,
		gauge(streams, streamsHelp, prometheus.Labels{"where": "here"}, func(l *ledger) int { return l.ownOpen }),
		gauge(streams, streamsHelp, prometheus.Labels{"where": "elsewhere"}, func(l *ledger) int { return l.peersOpen }),
		gauge("playhead_presence_nodes", "Other nodes with open streams.", nil, func(l *ledger) int { return len(l.peers) }))
	return m
}
