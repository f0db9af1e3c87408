package query

import (
	"errors"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
)

// Defaults of Config.
const (
	DefaultQueryTimeout     = 3 * time.Second
	DefaultSyncTimeout      = 2 * time.Second
	DefaultMaxReadBytes     = 8 << 30
	DefaultReplayChunkBytes = 8 << 20
	DefaultMaxPageBytes     = 8 << 20
	DefaultMaxScanRows      = 20_000_000
	DefaultBreakerFailures  = 5
	DefaultBreakerOpen      = 5 * time.Second
	DefaultLogScanRecords   = 2_000_000
	DefaultLogScanBytes     = 1 << 30
	DefaultLogScanTimeout   = 5 * time.Second
)

// Config bounds what questions about history may cost.
type Config struct {
	// QueryTimeout bounds one statement to ClickHouse, from sending it to its last row.
	// Default 3 s, 10 ms to 10 min. Lower refuses wide pages with scan_too_large sooner;
	// higher lets a hung server hold a request, and a connection, that much longer.
	QueryTimeout time.Duration `yaml:"query_timeout"`

	// SyncTimeout bounds how long a request waits until the tape holds all that was in
	// the log when it came; then it is 503. Default 2 s, 10 ms to 1 min.
	SyncTimeout time.Duration `yaml:"sync_timeout"`

	// MaxReadBytes bounds what one statement may read, decompressed; beyond it a page is
	// scan_too_large. Default 8 GiB, at least 1 MiB. It is a net for what QueryTimeout
	// does not catch. (Rows would be the wrong measure: ClickHouse compares their number
	// with the whole session before it reads the few that a page wants.)
	MaxReadBytes int64 `yaml:"max_read_bytes"`

	// ReplayChunkBytes is how much of a session one statement of a page reads into memory,
	// decoded, before it is handed on. Default 8 MiB, 64 KiB to 256 MiB; one event may
	// exceed it. (What a replay reads at a time is streamer.replay_bytes, or up to 32 MiB
	// where ClickHouse has to read much for little; 256 MiB of that wait at most.)
	ReplayChunkBytes int `yaml:"replay_chunk_bytes"`

	// MaxPageBytes bounds the events of one page, their payloads included where asked
	// for. A page that reaches it is short, with hasMore; one event may exceed it.
	// Default 8 MiB, 64 KiB to 256 MiB.
	MaxPageBytes int `yaml:"max_page_bytes"`

	// MaxScanRows bounds how many rows one count or histogram may have to look at, by
	// ClickHouse's own estimate, and a page that finds nothing; beyond it they are refused with
	// scan_too_large before they run. Default 20,000,000, 10,000 to 1e12: one thread looks at
	// 8 M (metadata) to 120 M (types alone) rows a second, so that the dearest kind ends within
	// QueryTimeout, with which this moves. Hours that by_hour has sums of cost nothing here.
	MaxScanRows int64 `yaml:"max_scan_rows"`

	// Admission bounds how many requests ask at the same time.
	Admission AdmissionConfig `yaml:"admission"`

	// Breaker says when ClickHouse counts as unavailable.
	Breaker BreakerConfig `yaml:"breaker"`

	// LogScan bounds what one page may read from Kafka, where neither ClickHouse nor the
	// tape can answer.
	LogScan LogScanConfig `yaml:"log_scan"`

	// Export bounds exports.
	Export ExportConfig `yaml:"export"`
}

// BreakerConfig says when the breaker around ClickHouse opens and for how long.
type BreakerConfig struct {
	// Failures is how many failures in a row open it. Default 5, 1 to 1000.
	// Cancellations and mistakes of callers do not count.
	Failures int `yaml:"failures"`

	// Open is how long it stays open before one question is let through as a trial.
	// Default 5 s, 10 ms to 10 min. Clients are told to come back then.
	Open time.Duration `yaml:"open"`
}

// LogScanConfig bounds one page's reading from Kafka. At any of the bounds the page is
// 503 history_unavailable.
type LogScanConfig struct {
	MaxRecords int           `yaml:"max_records"` // default 2,000,000; 1000 to 1e9
	MaxBytes   int64         `yaml:"max_bytes"`   // of record values; default 1 GiB; 1 MiB to 1 TiB
	Timeout    time.Duration `yaml:"timeout"`     // default 5 s; 10 ms to 10 min
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		QueryTimeout:     DefaultQueryTimeout,
		SyncTimeout:      DefaultSyncTimeout,
		MaxReadBytes:     DefaultMaxReadBytes,
		ReplayChunkBytes: DefaultReplayChunkBytes,
		MaxPageBytes:     DefaultMaxPageBytes,
		MaxScanRows:      DefaultMaxScanRows,
		Admission:        DefaultAdmissionConfig(),
		Breaker:          BreakerConfig{Failures: DefaultBreakerFailures, Open: DefaultBreakerOpen},
		LogScan: LogScanConfig{
			MaxRecords: DefaultLogScanRecords, MaxBytes: DefaultLogScanBytes, Timeout: DefaultLogScanTimeout,
		},
		Export: DefaultExportConfig(),
	}
}

// Validate reports every problem of c, joined; nil if there is none.
func (c Config) Validate() error {
	return errors.Join(
		settings.InRange("query.query_timeout", c.QueryTimeout, 10*time.Millisecond, 10*time.Minute),
		settings.InRange("query.sync_timeout", c.SyncTimeout, 10*time.Millisecond, time.Minute),
		settings.InRange("query.max_read_bytes", c.MaxReadBytes, 1<<20, 1<<60),
		settings.InRange("query.replay_chunk_bytes", c.ReplayChunkBytes, 64<<10, 256<<20),
		settings.InRange("query.max_page_bytes", c.MaxPageBytes, 64<<10, 256<<20),
		settings.InRange("query.max_scan_rows", c.MaxScanRows, 10_000, 1_000_000_000_000),
		c.Admission.Validate(),
		settings.InRange("query.breaker.failures", c.Breaker.Failures, 1, 1000),
		settings.InRange("query.breaker.open", c.Breaker.Open, 10*time.Millisecond, 10*time.Minute),
		settings.InRange("query.log_scan.max_records", c.LogScan.MaxRecords, 1000, 1_000_000_000),
		settings.InRange("query.log_scan.max_bytes", c.LogScan.MaxBytes, 1<<20, 1<<40),
		settings.InRange("query.log_scan.timeout", c.LogScan.Timeout, 10*time.Millisecond, 10*time.Minute),
		c.Export.Validate(),
	)
}
