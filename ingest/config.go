package ingest

import (
	"errors"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
	"github.com/playhead-dev/playhead/schema"
)

// Defaults of Config.
const (
	DefaultMaxEventBytes       = 1 << 20
	DefaultMaxBatchBytes       = 16 << 20
	DefaultMaxBatchEvents      = 10_000
	DefaultMaxJSONDepth        = 64
	DefaultMaxCompressionRatio = 200
	DefaultMaxDecompressions   = 16
	DefaultMaxInFlightBytes    = 256 << 20
	DefaultMaxInFlightEvents   = 200_000
	DefaultLinger              = time.Millisecond
	DefaultProduceTimeout      = 10 * time.Second
	DefaultMaterialisedTimeout = 30 * time.Second
	DefaultMaxBackfillRequests = 16
	DefaultMaxBackfillBytes    = 64 << 20
	DefaultBackfillShare       = 25
	DefaultBackfillYield       = 50 * time.Millisecond
	DefaultBackfillTimeout     = 30 * time.Second
)

// Config is the ingest role's settings. Start from DefaultConfig.
type Config struct {
	// MaxEventBytes bounds one event as it stands in the body, in bytes. Default 1 MiB,
	// 1 KiB to 16 MiB (schema.MaxPayloadBytes: no reader takes more).
	// The events topic's max.message.bytes must be at least MaxRecordBytes; below it
	// Kafka refuses the largest events and the append answers event_too_large.
	MaxEventBytes int `yaml:"max_event_bytes"`

	// MaxBatchBytes bounds a body after decompression, in bytes. Default 16 MiB. The
	// HTTP server's body limit must be at least as large for uncompressed bodies.
	// Memory: a request holds up to twice this while it runs.
	MaxBatchBytes int `yaml:"max_batch_bytes"`

	// MaxBatchEvents bounds the events of one request. Default 10,000.
	MaxBatchEvents int `yaml:"max_batch_events"`

	// MaxJSONDepth bounds how deep a payload's objects and arrays nest. Default 64.
	MaxJSONDepth int `yaml:"max_json_depth"`

	// MaxCompressionRatio bounds how many times larger than its compressed form a body
	// may be. The first MiB is free of it, so small and very regular bodies pass.
	// Default 200; 1032 is what gzip can reach, so above it only MaxBatchBytes bounds.
	MaxCompressionRatio int `yaml:"max_compression_ratio"`

	// MaxDecompressions bounds the bodies being decompressed at once; further ones
	// wait. Default 16. Memory: each may hold an 8 MiB window and MaxBatchBytes.
	MaxDecompressions int `yaml:"max_decompressions"`

	// MaxInFlightBytes and MaxInFlightEvents bound what has been handed to Kafka and is
	// not yet acknowledged. Defaults 256 MiB and 200,000. Beyond either an append is
	// refused with 503 overloaded, whole, before any of it is produced. Both must hold
	// at least one full batch.
	MaxInFlightBytes  int `yaml:"max_in_flight_bytes"`
	MaxInFlightEvents int `yaml:"max_in_flight_events"`

	// Linger is how long a partition waits for more records before it sends, while other
	// appends are in flight; an append that is alone is sent at once. Default 1 ms, 0 to
	// 1 min. Under load it adds to the latency of every append. 0 makes many small
	// requests then: a broker that syncs each to disk takes a third of the events.
	Linger time.Duration `yaml:"linger"`

	// ProduceTimeout is how long Kafka may take to acknowledge an append. Default 10 s.
	// After it the answer is 503; a record that was already sent may still be written,
	// and a retry with its message_id is answered with its id. A broker that has not answered
	// for 8 s (3 s more than ProduceTimeout, if that is less) is left, and the batch goes to
	// whoever leads the partition then.
	ProduceTimeout time.Duration `yaml:"produce_timeout"`

	// MaterialisedTimeout is how long ack=materialised waits for ClickHouse before it
	// answers 202. Default 30 s.
	MaterialisedTimeout time.Duration `yaml:"materialised_timeout"`

	// MaxBackfillRequests bounds the appends with lane=backfill that are under way, those
	// that wait their turn included. Default 16, 1 to 4096. Beyond it they are refused with
	// 503 overloaded, whole. Memory: each holds its body as sent while it waits.
	MaxBackfillRequests int `yaml:"max_backfill_requests"`

	// MaxBackfillBytes bounds the decoded bodies of backfills under way; further ones wait.
	// Default 64 MiB, at least MaxBatchBytes. What of them has been handed to Kafka is
	// bounded besides, by a few hundred events.
	MaxBackfillBytes int `yaml:"max_backfill_bytes"`

	// BackfillShare is how much of the time, in percent, the lane of backfills works while
	// there are live appends, in turns of 250 events or 128 KiB, or a body to decode, with
	// rests between. Default 25, 1 to 100. 100 never rests; less is gentler on live appends
	// and slower. Without live appends for a second it never rests.
	BackfillShare int `yaml:"backfill_share"`

	// BackfillYield is how long at most the lane of backfills makes way for live appends
	// before a turn, resting included. Default 50 ms, 0 to 10 s. 0 makes no way at all. It
	// sets the pace while live appends never cease: a turn in this time.
	BackfillYield time.Duration `yaml:"backfill_yield"`

	// BackfillTimeout is how long a backfill may wait and take in all. Default 30 s. After
	// it the answer is 503, and what had not been handed to Kafka by then is not appended.
	BackfillTimeout time.Duration `yaml:"backfill_timeout"`
}

// DefaultConfig returns the settings that suit a small machine.
func DefaultConfig() Config {
	return Config{
		MaxEventBytes:       DefaultMaxEventBytes,
		MaxBatchBytes:       DefaultMaxBatchBytes,
		MaxBatchEvents:      DefaultMaxBatchEvents,
		MaxJSONDepth:        DefaultMaxJSONDepth,
		MaxCompressionRatio: DefaultMaxCompressionRatio,
		MaxDecompressions:   DefaultMaxDecompressions,
		MaxInFlightBytes:    DefaultMaxInFlightBytes,
		MaxInFlightEvents:   DefaultMaxInFlightEvents,
		Linger:              DefaultLinger,
		ProduceTimeout:      DefaultProduceTimeout,
		MaterialisedTimeout: DefaultMaterialisedTimeout,
		MaxBackfillRequests: DefaultMaxBackfillRequests,
		MaxBackfillBytes:    DefaultMaxBackfillBytes,
		BackfillShare:       DefaultBackfillShare,
		BackfillYield:       DefaultBackfillYield,
		BackfillTimeout:     DefaultBackfillTimeout,
	}
}

// Validate reports every setting that is out of its range, joined.
func (c Config) Validate() error {
	return errors.Join(
		settings.InRange("ingest.max_event_bytes", c.MaxEventBytes, 1<<10, schema.MaxPayloadBytes),
		settings.InRange("ingest.max_batch_bytes", c.MaxBatchBytes, max(c.MaxEventBytes, 1<<10), 1<<30),
		settings.InRange("ingest.max_batch_events", c.MaxBatchEvents, 1, 1_000_000),
		settings.InRange("ingest.max_json_depth", c.MaxJSONDepth, 1, 5000),
		settings.InRange("ingest.max_compression_ratio", c.MaxCompressionRatio, 1, 1_000_000),
		settings.InRange("ingest.max_decompressions", c.MaxDecompressions, 1, 4096),
		settings.InRange("ingest.max_in_flight_bytes", c.MaxInFlightBytes, 2*max(c.MaxBatchBytes, 1<<10), 1<<40),
		settings.InRange("ingest.max_in_flight_events", c.MaxInFlightEvents, max(c.MaxBatchEvents, 1), 100_000_000),
		settings.InRange("ingest.linger", c.Linger, 0, time.Minute),
		settings.InRange("ingest.produce_timeout", c.ProduceTimeout, time.Second, 10*time.Minute),
		settings.InRange("ingest.materialised_timeout", c.MaterialisedTimeout, time.Millisecond, 10*time.Minute),
		settings.InRange("ingest.max_backfill_requests", c.MaxBackfillRequests, 1, 4096),
		settings.InRange("ingest.max_backfill_bytes", c.MaxBackfillBytes, max(c.MaxBatchBytes, 1<<10), 1<<40),
		settings.InRange("ingest.backfill_share", c.BackfillShare, 1, 100),
		settings.InRange("ingest.backfill_yield", c.BackfillYield, 0, 10*time.Second),
		settings.InRange("ingest.backfill_timeout", c.BackfillTimeout, time.Second, 10*time.Minute),
	)
}

// recordHeadersBytes bounds what a record holds beside the payload: metadata of 16 KiB
// that JSON may write six times as long, and the other headers.
const recordHeadersBytes = 128 << 10

// MaxRecordBytes is the largest record batch ingest produces, in bytes before
// compression: what the topic's max.message.bytes must allow.
func (c Config) MaxRecordBytes() int { return c.MaxEventBytes + recordHeadersBytes }
