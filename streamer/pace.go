package streamer

import "time"

// pacer times a replay in the session's own time: the pauses between events as they were,
// divided by speed. Its clock is the events' milliseconds. The zero pacer has no speed and
// never waits.
type pacer struct {
	speed float64
	begun bool
	wall  time.Time // when the clock stood at ms
	ms    int64
}

// due returns when an event of the session's millisecond ms is due, given the time now.
// The first one is due at once; one whose clock runs back as well.
func (p *pacer) due(ms int64, now time.Time) time.Time {
	if p.speed == 0 {
		return now
	}
	if !p.begun {
		p.begun, p.wall, p.ms = true, now, ms
	}
	return p.wall.Add(time.Duration(float64(ms-p.ms) / p.speed * float64(time.Millisecond)))
}

// setSpeed changes the speed from now on; 0 takes it away.
func (p *pacer) setSpeed(speed float64, now time.Time) {
	if p.begun {
		// Where the clock stands now, by the old speed.
		p.ms += int64(float64(now.Sub(p.wall).Milliseconds()) * p.speed)
		p.wall = now
	}
	p.speed = speed
}

// restart has the next event be due at once: after a pause or a jump.
func (p *pacer) restart() { p.begun = false }
