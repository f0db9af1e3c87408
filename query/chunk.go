package query

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// ReadChunk returns the first visible events of a scope that f takes (nil: all) and whose
// position p in the partition has from <= p < to, in log order: about maxBytes of them
// (Event.Size), a quarter more at most, though one event may exceed it. next is where to
// read on: to itself when there are no more, else a position behind from. A call that finds
// little within its time returns it, maybe nothing, with next behind what it has looked
// through.
//
// For a session the partition, here and in from and to, is not looked at: an older epoch
// may have had the session elsewhere. The zero from is the log's beginning. The events
// are the caller's; their payloads share memory with each other, so keeping one of them
// for long keeps a quarter of a megabyte.
//
// A session is read in the order of sessions, a workflow or workspace in the log's; both are
// the key's, so what is read is little more than what is returned. A workflow or workspace is
// read window of offsets by window, so that a filter that takes little cannot hold a call up.
// Calls that go on from each other's next learn how much to ask for, and where a small
// question costs much, one statement reads up to 32 MiB ahead for them.
func (h *History) ReadChunk(
	ctx context.Context, scope schema.Scope, partition uint16, from, to schema.Position, f *schema.Filter, maxBytes int,
) (events []*schema.Event, next schema.Position, err error) {
	if !before(from, to) {
		return nil, from, nil
	}
	key := newReadKey(scope, partition, f)
	s, ok := h.ahead.take(key, from, to)
	if !ok {
		if s, err = h.readStretch(ctx, key, from, to, f, maxBytes); err != nil {
			return nil, from, err
		}
	}
	events, next = s.cut(key, maxBytes)
	if len(s.events) > 0 {
		h.ahead.keep(key, next, s)
	}
	return events, next, nil
}

// readKey says what calls of ReadChunk read that may go on from each other.
type readKey struct {
	scope     schema.Scope
	partition uint16 // 0 for a session
	filter    string // schema.Filter.Key
}

func newReadKey(scope schema.Scope, partition uint16, f *schema.Filter) readKey {
	k := readKey{scope: scope, partition: partition}
	if scope.Session != "" {
		k.partition = 0
	}
	if f != nil {
		k.filter = f.Key()
	}
	return k
}

// goOnAfter is where to read on after an event.
func (k *readKey) goOnAfter(e *schema.Event) schema.Position {
	p := after(e.ID.Position)
	if k.scope.Session == "" {
		p.Partition = k.partition
	}
	return p
}

// stretch is what a stretch of the log holds for a readKey.
type stretch struct {
	events []*schema.Event
	bytes  int             // what they hold
	end    schema.Position // where the stretch ends
}

// cut takes at most maxBytes of events off the front of s, one at least, and returns
// where to read on behind them. A rest not worth a chunk goes with them.
func (s *stretch) cut(k readKey, maxBytes int) ([]*schema.Event, schema.Position) {
	if s.bytes <= maxBytes+maxBytes/4 {
		events := s.events
		s.events, s.bytes = nil, 0
		return events, s.end
	}
	n, size := 0, 0
	for n < len(s.events) {
		next := s.events[n].Size()
		if n > 0 && size+next > maxBytes {
			break
		}
		size += next
		n++
	}
	if n == len(s.events) {
		return s.cut(k, s.bytes)
	}
	events := slices.Clone(s.events[:n])
	clear(s.events[:n]) // or the rest would keep them
	s.events, s.bytes = s.events[n:], s.bytes-size
	return events, k.goOnAfter(events[n-1])
}

// readStretch asks ClickHouse.
func (h *History) readStretch(ctx context.Context, key readKey, from, to schema.Position, f *schema.Filter, maxBytes int) (stretch, error) {
	r := stretchReader{
		history: h, key: key, to: to, pace: h.paces.get(key),
		rows: scopeRows{scope: key.scope, partition: key.partition, from: from, filter: f, replay: true},
	}
	r.target = maxBytes
	if r.pace.ahead > maxBytes && h.ahead.room(r.pace.ahead) {
		r.target = r.pace.ahead
	}
	began := time.Now()
	var err error
	if key.scope.Session != "" {
		_, err = r.readTo(ctx, to)
	} else {
		err = r.readWindows(ctx)
	}
	if err == nil {
		r.pace.learnCost(len(r.read.events), r.read.bytes, r.target, time.Since(began))
	}
	h.paces.set(key, r.pace) // what failed is worth knowing as well
	if err != nil {
		return stretch{}, err
	}
	r.read.end = r.rows.from
	if !before(r.read.end, to) {
		r.read.end = to
	}
	return r.read, nil
}

// stretchReader reads one stretch. rows.from moves on with what has been read.
type stretchReader struct {
	history *History
	key     readKey
	pace    pace
	rows    scopeRows
	to      schema.Position
	target  int // how many bytes to read
	read    stretch
}

// Bounds of the windows, in offsets. The first is small, as a partition may be one
// workspace's alone; a window without rows makes the next one longer.
const (
	firstWindow  = 16_384
	minWindow    = 256
	windowGrowth = 8

	guessedEventBytes = 640 // with a payload of 300

	// enoughPart is the part of the target that is worth returning without another window.
	enoughPart = 2
	// maxShrinks is how often one call tries again with a shorter window.
	maxShrinks = 3
)

// readWindows reads window by window until it has enough or takes long.
func (r *stretchReader) readWindows(ctx context.Context) error {
	if r.rows.from.IsZero() {
		r.rows.from = beginning
	}
	r.rows.from.Partition = r.rows.partition
	until := time.Now().Add(r.history.cfg.QueryTimeout / 2)
	window, shrinks := r.pace.window(r.wanted()), 0
	for {
		found, err := r.readTo(ctx, windowEnd(r.rows.from, r.to, window))
		switch {
		case errors.Is(err, ErrScanTooLarge) && window > minWindow && shrinks < maxShrinks:
			shrinks++
			window = r.pace.shrink(window)
		case err != nil && len(r.read.events) > 0 && ctx.Err() == nil:
			return nil // the next call will tell, if it is still so
		case err != nil:
			return err
		case !before(r.rows.from, r.to), r.read.bytes >= r.target/enoughPart, time.Now().After(until):
			return nil
		case found == 0:
			window = r.pace.bound(window * windowGrowth)
		default:
			window = r.pace.window(r.wanted())
		}
	}
}

// windowEnd returns where a window from from ends: within its epoch, or at the beginning
// of the next if the window reaches beyond all offsets there can be.
func windowEnd(from, to schema.Position, window int64) schema.Position {
	end := from
	end.Offset += window
	if end.Offset > schema.MaxOffset {
		end.Epoch, end.Offset = end.Epoch+1, 0
	}
	if before(to, end) {
		return to
	}
	return end
}

// wanted is how many rows are still wanted.
func (r *stretchReader) wanted() int {
	left := r.target - r.read.bytes
	if r.pace.eventBytes == 0 {
		return min(rowsFor(left, guessedEventBytes), firstChunkRows)
	}
	return rowsFor(left, r.pace.eventBytes)
}

// readTo reads on towards end with one statement, and returns how many rows it found. What
// is a little more than the target is welcome: to stop it would cost the connection.
func (r *stretchReader) readTo(ctx context.Context, end schema.Position) (int, error) {
	q := r.rows
	q.to, q.limit = end, r.wanted()
	got, err := r.history.read(ctx, &q, r.target+r.target/2-r.read.bytes)
	if err != nil {
		return 0, err
	}
	r.read.events = append(r.read.events, got.events...)
	r.read.bytes += got.bytes
	r.rows.from = end
	if !got.complete {
		r.rows.from = r.key.goOnAfter(got.events[len(got.events)-1])
	}
	r.pace.learn(&got, r.rows.from.Offset-q.from.Offset, q.from.Epoch == r.rows.from.Epoch)
	return len(got.events), nil
}
