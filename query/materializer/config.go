package materializer

import (
	"errors"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
)

// Defaults of Config.
const (
	DefaultMaxBatchRows      = 50_000
	DefaultMaxBatchBytes     = 16 << 20
	DefaultBufferBytes       = 64 << 20
	DefaultLinger            = 250 * time.Millisecond
	DefaultBatchInterval     = time.Second
	DefaultConcurrency       = 4
	DefaultSessionTimeout    = 10 * time.Second
	DefaultRevokeTimeout     = 15 * time.Second
	DefaultInsertTimeout     = time.Minute
	DefaultSelfCheckInterval = 15 * time.Second
)

// rebalanceTimeout is how long Kafka gives the members to rejoin; RevokeTimeout stays
// below it, or a slow member is thrown out in the middle of its last insert.
const rebalanceTimeout = time.Minute

// Config sets the materialiser's batches and patience. Memory in the worst case is
// about 4 times BufferBytes (fetched, decoded, columns, encoded) and the dedupe window
// of each partition (schema.DedupeRule).
type Config struct {
	// MaxBatchRows bounds the rows of one insert. Default 50,000, 1 to 1,000,000.
	// ClickHouse makes a part of every insert: small batches under load cost merges.
	MaxBatchRows int `yaml:"max_batch_rows"`

	// MaxBatchBytes bounds the bytes of one insert (payloads, ids, metadata). Default
	// 16 MiB, 64 KiB to 256 MiB. A single larger event is a batch of its own.
	MaxBatchBytes int `yaml:"max_batch_bytes"`

	// BufferBytes bounds the batches being gathered by all partitions of this process
	// together: each gets an equal share, at most MaxBatchBytes. Default 64 MiB, at
	// least MaxBatchBytes.
	BufferBytes int `yaml:"buffer_bytes"`

	// Linger is how long the first record of a batch waits for others. Default 250 ms,
	// 0 to 10 s. It is the delay of a lone event until history holds it.
	Linger time.Duration `yaml:"linger"`

	// BatchInterval is the least time between two inserts of a partition that are not
	// full. Default 1 s, Linger to 1 min. Lower shows a steady trickle sooner and makes
	// more parts: partitions / BatchInterval inserts a second, of which a server takes
	// some tens.
	BatchInterval time.Duration `yaml:"batch_interval"`

	// Concurrency bounds the inserts in flight. Default 4, 1 to 256; the connection
	// pool must hold as many and a few more.
	Concurrency int `yaml:"concurrency"`

	// SessionTimeout is how long after a crash Kafka gives this node's partitions to
	// another. Default 10 s, 1 s to 5 min; brokers have bounds of their own (6 s to
	// 30 min by default). Too low and a long pause of the process looks like a crash:
	// harmless, as a fenced member drops what it has, but work is done twice.
	SessionTimeout time.Duration `yaml:"session_timeout"`

	// RevokeTimeout is how long an insert in flight may take to finish when its
	// partition moves or the process stops. After it the insert is left in doubt, for
	// the next owner to settle. Default 15 s, 0 to 45 s.
	RevokeTimeout time.Duration `yaml:"revoke_timeout"`

	// InsertTimeout bounds one statement to ClickHouse; then its outcome counts as
	// unknown and is settled by counting. Default 1 min, 1 s to 10 min.
	InsertTimeout time.Duration `yaml:"insert_timeout"`

	// SelfCheckInterval is the least time between two comparisons of table and log.
	// Default 15 s, 1 s to 1 h. A comparison that took long is followed by a pause
	// a hundred times as long, so the check costs about 1 % of the server at most.
	SelfCheckInterval time.Duration `yaml:"self_check_interval"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		MaxBatchRows:      DefaultMaxBatchRows,
		MaxBatchBytes:     DefaultMaxBatchBytes,
		BufferBytes:       DefaultBufferBytes,
		Linger:            DefaultLinger,
		BatchInterval:     DefaultBatchInterval,
		Concurrency:       DefaultConcurrency,
		SessionTimeout:    DefaultSessionTimeout,
		RevokeTimeout:     DefaultRevokeTimeout,
		InsertTimeout:     DefaultInsertTimeout,
		SelfCheckInterval: DefaultSelfCheckInterval,
	}
}

// Validate reports every problem of c, joined; nil if there is none.
func (c Config) Validate() error {
	return errors.Join(
		settings.InRange("materializer.max_batch_rows", c.MaxBatchRows, 1, 1_000_000),
		settings.InRange("materializer.max_batch_bytes", c.MaxBatchBytes, 64<<10, 256<<20),
		settings.InRange("materializer.buffer_bytes", c.BufferBytes, c.MaxBatchBytes, 64<<30),
		settings.InRange("materializer.linger", c.Linger, 0, 10*time.Second),
		settings.InRange("materializer.batch_interval", c.BatchInterval, c.Linger, time.Minute),
		settings.InRange("materializer.concurrency", c.Concurrency, 1, 256),
		settings.InRange("materializer.session_timeout", c.SessionTimeout, time.Second, 5*time.Minute),
		settings.InRange("materializer.revoke_timeout", c.RevokeTimeout, 0, 45*time.Second),
		settings.InRange("materializer.insert_timeout", c.InsertTimeout, time.Second, 10*time.Minute),
		settings.InRange("materializer.self_check_interval", c.SelfCheckInterval, time.Second, time.Hour),
	)
}
