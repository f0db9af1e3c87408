package query

import (
	"errors"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
)

// Defaults of AdmissionConfig.
const (
	DefaultMaxPages   = 16
	DefaultMaxScans   = 2
	DefaultMaxWaiting = 256
	DefaultQueueWait  = time.Second
)

// AdmissionConfig bounds how many requests ask about history at the same time on this node.
// A workspace has half of each at most (one at least). Beyond that requests wait; those that
// may not wait, or waited for too long, are answered 503 overloaded.
type AdmissionConfig struct {
	// MaxPages is how many pages and the like are answered at once. Default 16, 1 to 1024.
	// More than clickhouse.max_open_conns makes them wait there, in no fair order; with few,
	// a slow page holds up its neighbours.
	MaxPages int `yaml:"max_pages"`

	// MaxScans is how many counts and histograms that look at rows run at once. Default 2,
	// 1 to 1024. Each keeps one thread of ClickHouse and one connection busy; it gives way to
	// pages. Keep it well below clickhouse.max_open_conns, and below what the embedded engine
	// runs at a time (8).
	MaxScans int `yaml:"max_scans"`

	// MaxWaiting is how many requests may wait for each of the two, a few KB each. Default
	// 256, 0 to 100,000; with 0 none waits.
	MaxWaiting int `yaml:"max_waiting"`

	// QueueWait is the longest wait. Default 1 s, 1 ms to 1 min.
	QueueWait time.Duration `yaml:"queue_wait"`
}

// DefaultAdmissionConfig returns the defaults.
func DefaultAdmissionConfig() AdmissionConfig {
	return AdmissionConfig{
		MaxPages: DefaultMaxPages, MaxScans: DefaultMaxScans, MaxWaiting: DefaultMaxWaiting, QueueWait: DefaultQueueWait,
	}
}

// Validate reports every problem of c, joined; nil if there is none.
func (c AdmissionConfig) Validate() error {
	return errors.Join(
		settings.InRange("query.admission.max_pages", c.MaxPages, 1, 1024),
		settings.InRange("query.admission.max_scans", c.MaxScans, 1, 1024),
		settings.InRange("query.admission.max_waiting", c.MaxWaiting, 0, 100_000),
		settings.InRange("query.admission.queue_wait", c.QueueWait, time.Millisecond, time.Minute),
	)
}
