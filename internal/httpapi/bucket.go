package httpapi

import (
	"math"
	"time"
)

// tokenSlack absorbs what rounding loses, so that a client that waits as long as it was
// told is served.
const tokenSlack = 1e-6

// bucket is a token bucket that remembers what is missing from it rather than what is
// in it: so it is full when nothing is missing, whatever its size is by now. The zero
// bucket is full.
type bucket struct {
	missing float64
	since   time.Duration // when missing held
	rate    float64       // tokens a second that flowed back since
}

// burst is the size of a bucket that refills at rate tokens a second: two seconds'
// worth, and at least one token, or nothing would ever pass.
func burst(rate float64) float64 { return max(1, 2*rate) }

// missingAt returns what is missing at a later time.
func (b bucket) missingAt(now time.Duration, rate float64) float64 {
	return max(0, b.missing-max(0, now-b.since).Seconds()*rate)
}

// full reports whether the bucket holds nothing worth remembering.
func (b bucket) full(now time.Duration) bool { return b.missingAt(now, b.rate) == 0 }

// at returns the bucket as it stands now at this rate. What is missing beyond a whole
// bucket is a debt, which a changed rate cancels: one that was run up at a higher rate
// might never be paid.
func (b bucket) at(now time.Duration, rate float64) bucket {
	missing := b.missingAt(now, rate)
	if b.rate != rate {
		missing = min(missing, burst(rate))
	}
	return bucket{missing: missing, since: now, rate: rate}
}

// take takes n tokens from a bucket of this rate, if there is at least one: what it lacks
// for the others it then owes. So one request may be larger than the bucket.
func (b bucket) take(now time.Duration, rate float64, n int) (after bucket, q Quota) {
	after = b.at(now, rate)
	if short := after.missing + 1 - burst(rate); short > tokenSlack {
		q = after.quota()
		q.RetryAfter = seconds(short / rate)
		return after, q
	}
	after.missing += float64(n)
	q = after.quota()
	q.OK = true
	return after, q
}

// quota describes the bucket as it stands.
func (b bucket) quota() Quota {
	return Quota{
		Limited:   true,
		Limit:     int(burst(b.rate)),
		Remaining: max(0, int(burst(b.rate)-b.missing+tokenSlack)),
		Reset:     seconds(b.missing / b.rate),
	}
}

// seconds turns seconds into a duration, as long as one can be at most: rates may be
// tiny.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}
