package streamer

import (
	"time"

	"golang.org/x/time/rate"
)

// throttle bounds the events a minute of one stream: a bucket that holds a minute's worth
// and refills steadily.
type throttle struct {
	bucket *rate.Limiter
	told   bool // since the bucket was last empty
}

func newThrottle(perMinute int) *throttle {
	return &throttle{bucket: rate.NewLimiter(rate.Limit(perMinute)/60, perMinute)}
}

// take takes one event's place and returns 0, or how long to wait; tell says that the
// client has not been told of it yet.
func (t *throttle) take(now time.Time) (wait time.Duration, tell bool) {
	if t.bucket.AllowN(now, 1) {
		if t.bucket.TokensAt(now) > float64(t.bucket.Burst())/2 {
			t.told = false
		}
		return 0, false
	}
	tell = !t.told
	t.told = true
	// Once its bucket is empty a stream goes on in steps of a second's events, not event by
	// event.
	perSecond := float64(t.bucket.Limit())
	need := max(1, perSecond) - t.bucket.TokensAt(now)
	wait = time.Duration(need / perSecond * float64(time.Second))
	const ms = time.Millisecond // in which clients are told; rounded up
	return (wait + ms - 1).Truncate(ms), tell
}
