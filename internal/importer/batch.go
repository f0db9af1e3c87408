package importer

import "time"

// batch is the events of one request, of one lane.
type batch struct {
	began time.Time
	body  []byte  // NDJSON, every line with its '\n'
	lines []int64 // number in the source of each event
	ends  []int   // where each event's line ends in body
}

func (b *batch) len() int { return len(b.lines) }

func (b *batch) add(l line) {
	b.body = append(b.body, l.data...)
	b.body = append(b.body, '\n')
	b.lines = append(b.lines, l.number)
	b.ends = append(b.ends, len(b.body))
}

// event returns the text of event i, with its line end.
func (b *batch) event(i int) []byte {
	start := 0
	if i > 0 {
		start = b.ends[i-1]
	}
	return b.body[start:b.ends[i]]
}

// pick returns a batch of the events at the given places, in that order.
func (b *batch) pick(places []int) *batch {
	out := &batch{began: b.began}
	for _, i := range places {
		out.body = append(out.body, b.event(i)...)
		out.lines = append(out.lines, b.lines[i])
		out.ends = append(out.ends, len(out.body))
	}
	return out
}

// split returns the two halves of a batch of at least two events, in order.
func (b *batch) split() (first, second *batch) {
	var places [2][]int
	for i := range b.lines {
		half := 0
		if i >= b.len()/2 {
			half = 1
		}
		places[half] = append(places[half], i)
	}
	return b.pick(places[0]), b.pick(places[1])
}
