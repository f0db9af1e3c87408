package presence

import (
	"context"
	"time"
)

// WithTiming shortens the times that nodes share.
func WithTiming(publish, heartbeat, timeout, poll time.Duration) Option {
	return func(o *options) {
		o.timing = timing{publish: publish, heartbeat: heartbeat, timeout: timeout, poll: poll}
	}
}

// Kill stops without a goodbye, as a process that dies.
func (c *Counter) Kill() { c.stop(func(context.Context) {}) }
