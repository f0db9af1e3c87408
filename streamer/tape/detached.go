package tape

import "github.com/playhead-dev/playhead/schema"

// Detached returns a tape that no reader follows: it begins at offset start, and holds
// what its owner puts on it. Tests of those who read tapes use it.
func Detached(cfg Config, epoch uint8, partition uint16, start int64, past Past, m *Metrics) *Tape {
	return newTape(cfg, epoch, partition, start, start, past, m)
}

// Put puts events on a detached tape, in the order of their offsets, which nobody else has
// given it. nowMs is the wall clock in Unix ms.
func (t *Tape) Put(nowMs int64, events ...*schema.Event) {
	records := make([]record, len(events))
	for i, e := range events {
		records[i] = record{offset: e.ID.Offset, timeMs: e.ID.TimeMs, event: &Entry{Event: *e}}
	}
	t.append(records, nowMs)
}
