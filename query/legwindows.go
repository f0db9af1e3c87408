package query

import (
	"context"
	"errors"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// errPageLate ends a page that has taken its time; it does not leave the reading of pages.
var errPageLate = errors.New("page takes too long")

// Bounds of a page's windows, in offsets of each partition. The first is of about as many
// rows as the page wants, if nothing is known; one without rows makes the next one longer.
const (
	firstPageWindow  = 1024
	pageWindowGrowth = 16
)

// fillWindows reads rows of several partitions, window by window, until one of the legs has
// something or all have been read. A filter that takes little makes it look through much:
// once the page's time is over it returns errPageLate, and the legs are where it stopped.
func (r *pageReader) fillWindows(ctx context.Context, legs []*leg) error {
	h := r.api.deps.History
	key := newReadKey(r.scope, legs[0].partition, &r.req.filter)
	if r.window == 0 {
		if r.window = firstPageWindow; r.pace.offsetsPerRow == 0 {
			r.pace = h.paces.get(key)
		}
		if r.pace.offsetsPerRow > 0 {
			r.window = r.pace.window(r.wantedRows())
		}
	}
	for {
		if r.looked && time.Now().After(r.until) {
			return errPageLate
		}
		r.looked = true // so that every page comes a window further
		q, ends := r.windows(legs)
		if len(q.windows) == 0 {
			return nil
		}
		found := result{}
		err := h.readWindows(ctx, &q, func(e *schema.Event, size int) {
			l := legOf(legs, e.ID.Partition)
			if end := ends[l]; end.full {
				return
			}
			if r.take(l, e, size) != nil {
				ends[l].full = true
				return
			}
			ends[l].rows++
			found.events = append(found.events, e)
			found.bytes += e.Size()
		})
		switch {
		case errors.Is(err, ErrScanTooLarge) && r.window > minWindow:
			r.window = max(r.window/pageWindowGrowth, minWindow)
			continue
		case err != nil:
			return err
		}
		offsets := int64(0)
		for l, end := range ends {
			if !end.full && end.rows < q.limit {
				l.at = end.at
			}
			offsets += max(l.at.Offset-end.from, end.from-l.at.Offset)
		}
		r.window = r.nextWindow(key, found, offsets)
		if len(found.events) > 0 {
			return nil
		}
		if err := r.guardScan(ctx, &q, legs); err != nil {
			return err
		}
	}
}

// wantedRows is how many rows of a leg to ask for: its part of the page and a little more.
// All that the page could use would be read in vain from every leg but one.
func (r *pageReader) wantedRows() int {
	part := r.req.limit / len(r.legs)
	return min(part+part/4+8, r.req.limit+1)
}

// legWindow is a leg's window: where it ends, and what was found in it.
type legWindow struct {
	at   schema.Position // where the leg is, once it has been read
	from int64           // the offset where it was before
	rows int
	full bool
}

// windows returns the question for the next window of every leg that has rows left.
func (r *pageReader) windows(legs []*leg) (windowRows, map[*leg]*legWindow) {
	q := windowRows{
		scope: r.scope, epoch: legs[0].at.Epoch, filter: &r.req.filter, limit: r.wantedRows(),
		descending: r.req.descending, noPayloads: !r.req.payloads,
	}
	ends := make(map[*leg]*legWindow, len(legs))
	for _, l := range legs {
		if r.done(l) || !r.inRows(l) {
			continue
		}
		if l.enter != nil && before(*l.enter, l.at) {
			if l.at = *l.enter; r.done(l) {
				continue
			}
		}
		w := window{partition: l.partition}
		end := &legWindow{at: l.at, from: l.at.Offset}
		if r.req.descending {
			w.from, w.to = max(l.at.Offset-r.window, l.far.Offset), l.at.Offset
			end.at.Offset = w.from
		} else {
			w.from, w.to = l.at.Offset, min(l.at.Offset+r.window, l.rows.Offset)
			end.at.Offset = w.to
		}
		q.windows = append(q.windows, w)
		ends[l] = end
	}
	return q, ends
}

// nextWindow learns from what so many offsets held.
func (r *pageReader) nextWindow(key readKey, found result, offsets int64) int64 {
	if len(found.events) == 0 {
		return r.pace.bound(r.window * pageWindowGrowth)
	}
	r.pace.learn(&found, offsets, true)
	r.api.deps.History.paces.set(key, r.pace)
	return r.pace.window(r.wantedRows())
}

func legOf(legs []*leg, partition uint16) *leg {
	for _, l := range legs {
		if l.partition == partition {
			return l
		}
	}
	panic("query: a row of a partition that was not asked for")
}
