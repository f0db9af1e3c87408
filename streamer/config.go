package streamer

import (
	"errors"
	"runtime"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// Config bounds the streams of one node.
type Config struct {
	Tape tape.Config `yaml:"tape"`

	// MaxStreams bounds the streams of the node; further ones are refused with 503
	// overloaded. Default 10,000, from 1 to 1,000,000. Each needs a file descriptor.
	MaxStreams int `yaml:"max_streams"`

	// Workers is the number of goroutines that write to live streams. Default 0: one a
	// processor. At most 256.
	Workers int `yaml:"workers"`

	// WriteTimeout is how long a stream's socket may take none of what it is sent before
	// the stream is cut; the client resumes from where it was. Default 30s, from 1s to 10m.
	WriteTimeout time.Duration `yaml:"write_timeout"`

	// KeepAlive is the time between heartbeats on the streams of sessions and workflows, so
	// that proxies do not take them for dead; twice that on the others, unless the client
	// says. Default 15s, from 1s to 5m.
	KeepAlive time.Duration `yaml:"keep_alive"`

	// MessageTimeout is how long a message that a client sends on a WebSocket may take to
	// arrive, all its fragments included; one that takes longer ends the stream (1008). Default
	// 1m, from 1s to 10m. Until then it takes up to 2 MiB of memory.
	MessageTimeout time.Duration `yaml:"message_timeout"`

	// MaxReplays bounds the replays that run at once; further ones wait their turn, and
	// one that waits for its client gives up its turn. Default 64, from 1 to 10,000. Each
	// holds up to twice ReplayBytes, and 1 MiB a Kafka partition while Kafka stands in for
	// ClickHouse.
	MaxReplays int `yaml:"max_replays"`

	// ReplayReads bounds the reads of ClickHouse and Kafka for replays that run at once, and
	// the replays that encode and send at once.
	// Default 0: one for every two processors. At most 1,000. More may serve replays sooner,
	// and take the processors away from live streams.
	ReplayReads int `yaml:"replay_reads"`

	// ReplayBytes is how much a replay reads at a time, while it sends as much. Default
	// 4 MiB, from 64 KiB to 64 MiB.
	ReplayBytes int `yaml:"replay_bytes"`

	// MaxOpenings bounds the streams that are being opened at once; further ones wait, and
	// those that wait for more than 2 s are refused with 503 overloaded. Default 16, from 1
	// to 10,000. It keeps a storm of listeners that come back from delaying the others.
	MaxOpenings int `yaml:"max_openings"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Tape:         tape.DefaultConfig(),
		MaxStreams:   10_000,
		WriteTimeout: 30 * time.Second,
		KeepAlive:    15 * time.Second,
		MaxReplays:   64,

		MessageTimeout: time.Minute,
		ReplayBytes:    4 << 20,
		MaxOpenings:    16,
	}
}

// Validate reports every setting that is out of range.
func (c Config) Validate() error {
	return errors.Join(
		c.Tape.Validate(),
		settings.InRange("max_streams", c.MaxStreams, 1, 1_000_000),
		settings.InRange("workers", c.Workers, 0, 256),
		settings.InRange("write_timeout", c.WriteTimeout, time.Second, 10*time.Minute),
		settings.InRange("keep_alive", c.KeepAlive, time.Second, 5*time.Minute),
		settings.InRange("message_timeout", c.MessageTimeout, time.Second, 10*time.Minute),
		settings.InRange("max_replays", c.MaxReplays, 1, 10_000),
		settings.InRange("replay_reads", c.ReplayReads, 0, 1000),
		settings.InRange("max_openings", c.MaxOpenings, 1, 10_000),
		settings.InRange("replay_bytes", c.ReplayBytes, 64<<10, 64<<20),
	)
}

// replayReads resolves ReplayReads.
func (c Config) replayReads() int {
	if c.ReplayReads > 0 {
		return c.ReplayReads
	}
	return max(1, runtime.GOMAXPROCS(0)/2)
}
