package query

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// LagInterval is how often API.ReportLag looks.
const LagInterval = 5 * time.Second

// LagMetrics say how far each partition of the log is in ClickHouse. They go on while the
// materialiser stands still, or runs nowhere. Create them with NewLagMetrics.
type LagMetrics struct {
	end, materialised, lag, seconds *prometheus.GaugeVec
}

// NewLagMetrics returns the metrics, registered with reg unless that is nil.
func NewLagMetrics(reg prometheus.Registerer) *LagMetrics {
	gauges := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "playhead_history_" + name, Help: help}, []string{"partition"})
	}
	m := &LagMetrics{
		end:          gauges("log_end_offset", "High watermark, as of the last look, every 5 s."),
		materialised: gauges("materialised_offset", "Committed offset of the materialiser: all records below it are rows."),
		lag:          gauges("lag_offsets", "High watermark minus committed offset. Offsets have gaps: not a count of records."),
		seconds:      gauges("lag_seconds", "Age of the oldest record that is no row yet, 0 if there is none."),
	}
	if reg != nil {
		reg.MustRegister(m.end, m.materialised, m.lag, m.seconds)
	}
	return m
}

// ReportLag sets m for partitions 0 to partitions-1 of the log, at once and then every
// LagInterval, until ctx ends; then it returns nil. A failure of Kafka leaves the metrics as
// they are, and is logged when it begins and when it ends.
func (a *API) ReportLag(ctx context.Context, partitions int, m *LagMetrics) error {
	ticker := time.NewTicker(LagInterval)
	defer ticker.Stop()
	failing := false
	for {
		err := a.reportLag(ctx, partitions, m)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			a.deps.Logger.Warn("lag of the materialiser is unknown", "error", err)
		case err == nil && failing:
			a.deps.Logger.Info("lag of the materialiser is known again")
		}
		failing = err != nil
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *API) reportLag(ctx context.Context, partitions int, m *LagMetrics) error {
	ctx, cancel := context.WithTimeout(ctx, LagInterval)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lagReaders)
	for p := range partitions {
		group.Go(func() error {
			lag, err := a.lagOf(ctx, uint16(p))
			if err != nil {
				return err
			}
			label := strconv.Itoa(p)
			m.end.WithLabelValues(label).Set(float64(lag.LogEnd))
			m.materialised.WithLabelValues(label).Set(float64(lag.Materialised))
			m.lag.WithLabelValues(label).Set(float64(lag.LagEvents))
			m.seconds.WithLabelValues(label).Set(float64(lag.LagMs) / 1000)
			return nil
		})
	}
	return group.Wait()
}
