package query

import (
	"errors"
	"strings"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
)

// Defaults of ExportConfig.
const (
	DefaultExportMaxRunning       = 4
	DefaultExportMaxPerWorkspace  = 2
	DefaultExportReadAhead        = 2
	DefaultExportThreads          = 2
	DefaultExportBufferBytes      = 32 << 20
	DefaultExportSyncTimeout      = 10 * time.Second
	DefaultExportStatementTimeout = time.Minute
	DefaultExportWriteTimeout     = 30 * time.Second
	DefaultExportMaxDuration      = time.Hour
)

// ExportConfig bounds what exports may cost this node.
type ExportConfig struct {
	// DSN is where exports ask ClickHouse, http:// or https://: only there does the server
	// write the formats itself. Default "": clickhouse.dsn. With that at clickhouse:// and
	// none here, exports are 501 export_unsupported. clickhouse.tls holds for it too. It may
	// hold a password: it is never logged.
	DSN string `yaml:"dsn"`

	// MaxRunning is how many exports run at once. Default 4, 1 to 64. Beyond it they are
	// 429. Each has a connection to ClickHouse of its own and takes 2 * BufferBytes.
	MaxRunning int `yaml:"max_running"`

	// MaxPerWorkspace is how many of them one workspace may have. Default 2, 1 to MaxRunning.
	MaxPerWorkspace int `yaml:"max_per_workspace"`

	// ReadAhead is how many statements, of all exports together, may read what is to be sent
	// next while their export still sends something else. Default 2, 0 to 64. Each takes
	// a connection and a core of ClickHouse; with 0 an export uses one core at a time. (The
	// embedded engine runs 8 statements at once, pages included.)
	ReadAhead int `yaml:"read_ahead"`

	// Threads is how many cores of ClickHouse a Parquet file takes. Default 2, 1 to 64. The
	// other formats take one a statement.
	Threads int `yaml:"threads"`

	// BufferBytes is how much a statement may be ahead of the client. Default 32 MiB, 1 MiB
	// to 256 MiB. Then the statement waits, and holds its place in ClickHouse.
	BufferBytes int `yaml:"buffer_bytes"`

	// SyncTimeout bounds the wait until ClickHouse has everything that was acknowledged when
	// the request came; then the export ends where ClickHouse does, and says so. Default
	// 10 s, 0 (no wait) to 5 min.
	SyncTimeout time.Duration `yaml:"sync_timeout"`

	// StatementTimeout bounds the wait for the next bytes from ClickHouse. Default 1 min,
	// 1 s to 1 h. Then the statement is ended and tried again.
	StatementTimeout time.Duration `yaml:"statement_timeout"`

	// WriteTimeout is how long a client may take over 256 KiB before its export is cut off.
	// Default 30 s, 100 ms to 10 min.
	WriteTimeout time.Duration `yaml:"write_timeout"`

	// MaxDuration is how long one export may take before it is cut off; the client goes on
	// with another request. Default 1 h, 1 s to 24 h.
	MaxDuration time.Duration `yaml:"max_duration"`
}

// DefaultExportConfig returns the defaults.
func DefaultExportConfig() ExportConfig {
	return ExportConfig{
		MaxRunning: DefaultExportMaxRunning, MaxPerWorkspace: DefaultExportMaxPerWorkspace,
		ReadAhead: DefaultExportReadAhead, Threads: DefaultExportThreads, BufferBytes: DefaultExportBufferBytes,
		SyncTimeout: DefaultExportSyncTimeout, StatementTimeout: DefaultExportStatementTimeout,
		WriteTimeout: DefaultExportWriteTimeout, MaxDuration: DefaultExportMaxDuration,
	}
}

// Validate reports every problem of c, joined; nil if there is none.
func (c ExportConfig) Validate() error {
	var errs []error
	if c.DSN != "" && !strings.HasPrefix(c.DSN, "http://") && !strings.HasPrefix(c.DSN, "https://") {
		// The value may hold a password, so it is not repeated.
		errs = append(errs, errors.New("query.export.dsn must begin with http:// or https://"))
	}
	return errors.Join(append(errs,
		settings.InRange("query.export.max_running", c.MaxRunning, 1, 64),
		settings.InRange("query.export.max_per_workspace", c.MaxPerWorkspace, 1, max(c.MaxRunning, 1)),
		settings.InRange("query.export.read_ahead", c.ReadAhead, 0, 64),
		settings.InRange("query.export.threads", c.Threads, 1, 64),
		settings.InRange("query.export.buffer_bytes", c.BufferBytes, 1<<20, 256<<20),
		settings.InRange("query.export.sync_timeout", c.SyncTimeout, 0, 5*time.Minute),
		settings.InRange("query.export.statement_timeout", c.StatementTimeout, time.Second, time.Hour),
		settings.InRange("query.export.write_timeout", c.WriteTimeout, 100*time.Millisecond, 10*time.Minute),
		settings.InRange("query.export.max_duration", c.MaxDuration, time.Second, 24*time.Hour),
	)...)
}

// ClickHouse returns the configuration of the pool that exports have to themselves, so that
// they never take a connection from a page. ok is false if main speaks the native protocol
// and c has no DSN.
func (c ExportConfig) ClickHouse(main ClickHouseConfig) (pool ClickHouseConfig, ok bool) {
	pool = main
	if c.DSN != "" {
		pool.DSN = c.DSN
		pool.TLS.Enabled = false // https:// says it
	}
	pool.MaxOpenConns = c.MaxRunning + c.ReadAhead
	pool.MaxIdleConns = pool.MaxOpenConns
	pool.ReadTimeout = c.StatementTimeout
	return pool, pool.scheme() != "clickhouse"
}
