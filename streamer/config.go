package streamer

import (
	"errors"
	"fmt"
	"time"

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

	// KeepAlive is the time between comments on a stream, so that proxies do not take it
	// for dead. Default 15s, from 1s to 5m.
	KeepAlive time.Duration `yaml:"keep_alive"`

	// MaxReplays bounds the replays that run at once; further ones wait their turn.
	// Default 64, from 1 to 10,000. Each holds up to ReplayBytes.
	MaxReplays int `yaml:"max_replays"`

	// ReplayBytes is how much a replay gathers before it sends. Default 256 KiB, from
	// 64 KiB to 64 MiB.
	ReplayBytes int `yaml:"replay_bytes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Tape:         tape.DefaultConfig(),
		MaxStreams:   10_000,
		WriteTimeout: 30 * time.Second,
		KeepAlive:    15 * time.Second,
		MaxReplays:   64,
		ReplayBytes:  256 << 10,
	}
}

// Validate reports every setting that is out of range.
func (c Config) Validate() error {
	return errors.Join(
		c.Tape.Validate(),
		within("max_streams", c.MaxStreams, 1, 1_000_000),
		within("workers", c.Workers, 0, 256),
		within("write_timeout", c.WriteTimeout, time.Second, 10*time.Minute),
		within("keep_alive", c.KeepAlive, time.Second, 5*time.Minute),
		within("max_replays", c.MaxReplays, 1, 10_000),
		within("replay_bytes", c.ReplayBytes, 64<<10, 64<<20),
	)
}

func within[T int | time.Duration](key string, v, low, high T) error {
	if v < low || v > high {
		return fmt.Errorf("%s is %v; want %v to %v", key, v, low, high)
	}
	return nil
}
