package ingest

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what ingest takes in and refuses.
type Metrics struct {
	appends    *prometheus.CounterVec // by endpoint
	refused    *prometheus.CounterVec // by code: of requests and of items
	events     prometheus.Counter
	duplicates prometheus.Counter
	bytes      prometheus.Counter
	unknown    prometheus.Counter
	produce    prometheus.Histogram
	inFlight   prometheus.Gauge
	inBytes    prometheus.Gauge
	unpassed   prometheus.Gauge
	backfills  prometheus.Gauge
	backfilled prometheus.Counter
	forced     prometheus.Counter
}

// NewMetrics registers ingest's metrics with reg, which may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		appends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_ingest_appends_total", Help: "Append requests, by endpoint."}, []string{"endpoint"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "playhead_ingest_refused_total", Help: "Refused requests, and refused items of accepted requests, by error code."}, []string{"code"}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_ingest_events_total", Help: "Events that Kafka has acknowledged, bookkeeping included."}),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_ingest_duplicates_total", Help: "Events answered with the id of an earlier one."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_ingest_payload_bytes_total", Help: "Payload bytes that Kafka has acknowledged."}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_ingest_session_unknown_total", Help: "Appends made without knowing the session's past, because history was away."}),
		produce: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "playhead_ingest_produce_seconds", Help: "Time from producing a request's records to the last acknowledgement.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_ingest_in_flight_events", Help: "Events handed to Kafka and not yet acknowledged."}),
		inBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_ingest_in_flight_bytes", Help: "Estimated memory of the events in flight."}),
		unpassed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_ingest_unpassed", Help: "Acknowledged message ids and session starts remembered until the partition's tail is seen to pass them."}),
		backfills: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_ingest_backfill_requests", Help: "Appends with lane=backfill under way, waiting ones included."}),
		backfilled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_ingest_backfill_events_total", Help: "Events of the lane of backfills that Kafka has acknowledged."}),
		forced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_ingest_backfill_forced_total", Help: "Turns that the lane of backfills took beside live appends, as there was no moment without."}),
	}
	if reg != nil {
		reg.MustRegister(m.appends, m.refused, m.events, m.duplicates, m.bytes, m.unknown, m.produce, m.inFlight, m.inBytes, m.unpassed,
			m.backfills, m.backfilled, m.forced)
	}
	return m
}

func (m *Metrics) acknowledged(events, payloadBytes int, took time.Duration) {
	m.events.Add(float64(events))
	m.bytes.Add(float64(payloadBytes))
	m.produce.Observe(took.Seconds())
}
