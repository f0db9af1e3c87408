package tape

import (
	"errors"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
	"github.com/playhead-dev/playhead/schema"
)

// Config bounds the tapes of one node.
type Config struct {
	// MaxAge is how long an event stays on the tape, unless MaxBytes is reached first.
	// Default 30s, from 1s to 1h. Longer tapes let slow readers fall further behind
	// before they lose events or move to replay.
	MaxAge time.Duration `yaml:"max_age"`

	// MaxBytes bounds the events of one Kafka partition's tape. Default 32 MiB, from
	// 1 MiB to 4 GiB. The node's worst case is this times the partitions in use, and as
	// much again for each wire format that listeners of all events have asked for.
	MaxBytes int `yaml:"max_bytes"`

	// MaxSessions bounds the session states a tape remembers beside those of events it
	// still holds. Default 50,000, from 100 to 10 million; about 1 KB each. A session
	// that was forgotten costs a question to ClickHouse when it is asked for again.
	MaxSessions int `yaml:"max_sessions"`

	// DedupeOffsets and DedupeAge are the dedupe rule. They must be equal on all nodes:
	// every reader drops the same repeats. Defaults 1,000,000 offsets (at most 100 MB of
	// memory a partition in use) and 10m.
	DedupeOffsets int64         `yaml:"dedupe_offsets"`
	DedupeAge     time.Duration `yaml:"dedupe_age"`

	// IdleAfter is how long a partition that nobody asks for is followed on: then its tape is
	// given up, with its memory, until the next use warms one up again. Default 10m, from 1s
	// to 24h. Shorter saves the memory of partitions in passing use, and costs who comes
	// back the warm-up.
	IdleAfter time.Duration `yaml:"idle_after"`

	// FetchMaxBytes bounds what the reader buffers from the brokers. Default 16 MiB,
	// from 1 MiB to 256 MiB.
	FetchMaxBytes int `yaml:"fetch_max_bytes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		MaxAge:        30 * time.Second,
		MaxBytes:      32 << 20,
		MaxSessions:   50_000,
		DedupeOffsets: schema.DefaultDedupeOffsets,
		DedupeAge:     schema.DefaultDedupeAge,
		IdleAfter:     10 * time.Minute,
		FetchMaxBytes: 16 << 20,
	}
}

// Validate reports every setting that is out of range.
func (c Config) Validate() error {
	return errors.Join(
		settings.InRange("max_age", c.MaxAge, time.Second, time.Hour),
		settings.InRange("max_bytes", c.MaxBytes, 1<<20, 4<<30),
		settings.InRange("max_sessions", c.MaxSessions, 100, 10_000_000),
		settings.InRange("dedupe_offsets", c.DedupeOffsets, 1, 100_000_000),
		settings.InRange("dedupe_age", c.DedupeAge, time.Millisecond, 24*time.Hour),
		settings.InRange("idle_after", c.IdleAfter, time.Second, 24*time.Hour),
		settings.InRange("fetch_max_bytes", c.FetchMaxBytes, 1<<20, 256<<20),
	)
}

// Rule returns the dedupe rule.
func (c Config) Rule() schema.DedupeRule {
	return schema.DedupeRule{Offsets: c.DedupeOffsets, Age: c.DedupeAge}
}
