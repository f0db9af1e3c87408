package query

import (
	"errors"
	"maps"
	"slices"
	"strconv"
)

// Bounds of one answer.
const (
	maxBuckets    = 10_000
	maxTallyCells = 50_000 // counts by type, of all buckets together
)

// errTallyFull reports that an answer would have more buckets or counts than one may.
var errTallyFull = errors.New("answer has too many counts")

// tally counts events by bucket and type. Its answers do not depend on the order of add.
type tally struct {
	width   int64 // of a bucket, in ms; 0: there is one, 0, for all
	untyped bool  // all types count as ""
	buckets map[int64]map[string]uint64
	cells   int
}

func newTally(width int64, untyped bool) *tally {
	return &tally{width: width, untyped: untyped, buckets: make(map[int64]map[string]uint64)}
}

// bucketOf returns the number of the bucket that a time lies in: they are counted from the
// Unix epoch.
func (t *tally) bucketOf(ms int64) int64 {
	if t.width == 0 {
		return 0
	}
	return ms / t.width
}

// add counts n more. It returns errTallyFull at the bounds.
func (t *tally) add(bucket int64, typ string, n uint64) error {
	if n == 0 {
		return nil
	}
	if t.untyped {
		typ = ""
	}
	types := t.buckets[bucket]
	if types == nil {
		if len(t.buckets) == maxBuckets {
			return errTallyFull
		}
		types = make(map[string]uint64)
		t.buckets[bucket] = types
	}
	if types[typ] == 0 {
		if t.cells == maxTallyCells {
			return errTallyFull
		}
		t.cells++
	}
	types[typ] += n
	return nil
}

// reset empties the tally.
func (t *tally) reset() {
	clear(t.buckets)
	t.cells = 0
}

// numbers lists the buckets that hold anything, in order.
func (t *tally) numbers() []int64 {
	out := make([]int64, 0, len(t.buckets))
	for b := range t.buckets {
		out = append(out, b)
	}
	slices.Sort(out)
	return out
}

// total returns how many events a bucket holds.
func (t *tally) total(bucket int64) uint64 {
	var n uint64
	for _, of := range t.buckets[bucket] {
		n += of
	}
	return n
}

// appendTypes appends the counts of a bucket as a JSON object, sorted by type.
func (t *tally) appendTypes(b []byte, bucket int64) []byte {
	types := t.buckets[bucket]
	b = append(b, '{')
	for i, typ := range slices.Sorted(maps.Keys(types)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, typ), ':')
		b = strconv.AppendUint(b, types[typ], 10)
	}
	return append(b, '}')
}
