package materializer

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of the pause between two tries.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// quietAfter is the number of tries in a row that are worth a warning each; one in as
// many is, after them.
const quietAfter = 5

// backoff grows the pauses of one run of failures. The zero value begins one.
type backoff struct {
	last   time.Duration
	tries  int
	random func(below time.Duration) time.Duration // nil: rand.N
}

// quiet counts a failure, and reports whether to say little about it.
func (b *backoff) quiet() bool {
	b.tries++
	return b.tries > quietAfter && b.tries%quietAfter != 0
}

// wait pauses, twice as long as before and up to a half less at random, so that several
// do not come back at once. It reports false if ctx ended first.
func (b *backoff) wait(ctx context.Context) bool {
	b.last = min(max(2*b.last, minBackoff), maxBackoff)
	random := b.random
	if random == nil {
		random = rand.N[time.Duration]
	}
	timer := time.NewTimer(b.last - random(b.last/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
