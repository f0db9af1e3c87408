package main

import (
	"math"
	"slices"
	"time"
)

// latencies are measured times. quantile needs them sorted.
type latencies []time.Duration

func (l latencies) sort() { slices.Sort(l) }

// quantile returns the value below or at which a share q of the times lie (nearest
// rank), in milliseconds; NaN of none.
func (l latencies) quantile(q float64) float64 {
	if len(l) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(q*float64(len(l)))) - 1
	return float64(l[max(rank, 0)]) / float64(time.Millisecond)
}
