package streamer

import "time"

// throttle bounds the events a minute of one stream: a bucket that holds a minute's worth
// and refills steadily.
type throttle struct {
	perMinute float64
	tokens    float64
	at        time.Time
	told      bool // since the bucket was last empty
}

func newThrottle(perMinute int, now time.Time) *throttle {
	return &throttle{perMinute: float64(perMinute), tokens: float64(perMinute), at: now}
}

// throttleStep is how much of a minute's events a stream waits for once its bucket is
// empty: it goes on in steps, not event by event.
const throttleStep = 1.0 / 60

// take takes one event's place and returns 0, or how long to wait; tell says that the
// client has not been told of it yet.
func (t *throttle) take(now time.Time) (wait time.Duration, tell bool) {
	t.tokens = min(t.perMinute, t.tokens+now.Sub(t.at).Minutes()*t.perMinute)
	t.at = now
	if t.tokens >= 1 {
		t.tokens--
		if t.tokens > t.perMinute/2 {
			t.told = false
		}
		return 0, false
	}
	tell = !t.told
	t.told = true
	need := max(1, t.perMinute*throttleStep) - t.tokens
	wait = time.Duration(need / t.perMinute * float64(time.Minute))
	const ms = time.Millisecond // in which clients are told; rounded up
	return (wait + ms - 1).Truncate(ms), tell
}
