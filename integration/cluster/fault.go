package cluster

import "time"

// Direction is one way through a Link.
type Direction int

// The two ways.
const (
	Up   Direction = iota // from who connected to who was connected to
	Down                  // back
)

// Fault is what a Link does to the bytes that pass it. The zero Fault does nothing.
type Fault struct {
	// HoldUp and HoldDown let no byte through that way: it waits here, and whoever sends
	// notices nothing. Both together are a black hole; one alone leaves connections half
	// open.
	HoldUp, HoldDown bool
	// Refuse resets new connections. Those that are there stay.
	Refuse bool
	// Delay is added to each piece of up to 32 KiB, either way.
	Delay time.Duration
	// BytesPerSecond bounds each connection, each way; 0 does not.
	BytesPerSecond int
}

// holds reports whether the fault lets nothing through that way.
func (f Fault) holds(d Direction) bool {
	if d == Up {
		return f.HoldUp
	}
	return f.HoldDown
}

// with is both faults at once.
func (f Fault) with(g Fault) Fault {
	f.HoldUp = f.HoldUp || g.HoldUp
	f.HoldDown = f.HoldDown || g.HoldDown
	f.Refuse = f.Refuse || g.Refuse
	f.Delay += g.Delay
	if f.BytesPerSecond == 0 || g.BytesPerSecond > 0 && g.BytesPerSecond < f.BytesPerSecond {
		f.BytesPerSecond = g.BytesPerSecond
	}
	return f
}

// wait is what n bytes cost.
func (f Fault) wait(n int) time.Duration {
	d := f.Delay
	if f.BytesPerSecond > 0 {
		d += time.Duration(n) * time.Second / time.Duration(f.BytesPerSecond)
	}
	return d
}
