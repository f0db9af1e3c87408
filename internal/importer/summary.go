package importer

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

// counters are added to by all goroutines of a run.
type counters struct {
	accepted, duplicates, failed atomic.Int64 // events
	resumed                      atomic.Int64 // lines
}

func (c *counters) events() int64 { return c.accepted.Load() + c.duplicates.Load() + c.failed.Load() }

func (c *counters) summary(elapsed time.Duration) Summary {
	return Summary{
		Accepted: c.accepted.Load(), Duplicates: c.duplicates.Load(), Failed: c.failed.Load(),
		Resumed: c.resumed.Load(), Elapsed: elapsed,
	}
}

// Summary is what became of the events of a run.
type Summary struct {
	// Accepted were appended by this run, be it by an attempt whose answer was lost.
	Accepted int64
	// Duplicates were there already.
	Duplicates int64
	// Failed were refused, by the importer or the server.
	Failed int64
	// Resumed counts the lines that an earlier, interrupted run got acknowledged and this
	// one did not send again.
	Resumed int64
	Elapsed time.Duration
}

// String is the closing line for people.
func (s Summary) String() string {
	total := s.Accepted + s.Duplicates + s.Failed
	text := fmt.Sprintf("%s events accepted, %s duplicates, %s failed in %s",
		thousands(s.Accepted), thousands(s.Duplicates), thousands(s.Failed), seconds(s.Elapsed))
	if total > 0 && s.Elapsed > 0 {
		text += fmt.Sprintf(" (%s events/s)", thousands(int64(float64(total)/s.Elapsed.Seconds())))
	}
	if s.Resumed > 0 {
		text += fmt.Sprintf("; %s lines were acknowledged before", thousands(s.Resumed))
	}
	return text
}

// thousands writes n with commas between groups of three digits.
func thousands(n int64) string {
	text := strconv.FormatInt(n, 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(text) - 3; i > start; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// seconds writes a duration as people say it: 3.2 s, 2 min 5 s.
func seconds(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
}
