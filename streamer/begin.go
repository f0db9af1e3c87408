package streamer

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// begin is where a client wants a stream to begin.
type begin struct {
	param  string // where the cursor was given
	cursor schema.Cursor
	start  bool
}

// parseBegin reads the place to begin. A browser that reconnects sends both the URL's
// parameters and the header: the header is newer, and wins.
func parseBegin(q url.Values, header string) (begin, error) {
	from, err := httpapi.One(q, "from")
	if err != nil {
		return begin{}, err
	}
	if q.Has("from") && from != "start" {
		return begin{}, httpapi.InvalidParameter("from", "Parameter from is %s; want start.", schema.Quote(from))
	}
	b := begin{start: from == "start"}
	text := header
	b.param = "Last-Event-ID"
	if text == "" {
		if text, err = httpapi.One(q, "last_event_id"); err != nil {
			return begin{}, err
		}
		b.param = "last_event_id"
	}
	if text == "" {
		return b, nil
	}
	if b.cursor, err = schema.ParseCursor(text); err != nil {
		return begin{}, httpapi.Errorf(http.StatusBadRequest, "invalid_cursor", "%s is %v", b.param, err).WithParam(b.param)
	}
	return b, nil
}

// clockSkew is how far back record times may run in a partition, as between the clocks of
// two nodes.
const clockSkew = time.Minute

// positions returns the first record to deliver of each partition. What has not been
// written yet is refused, never taken for "now".
func (h *Hub) positions(ctx context.Context, scope schema.Scope, b begin, f *schema.Filter, ends []end) ([]place, error) {
	legs := make([]place, len(ends))
	known := 0
	for i, e := range ends {
		legs[i] = place{tape: e.tape, from: schema.Position{Epoch: e.tape.Epoch(), Partition: e.tape.Partition(), Offset: e.next}}
		if _, ok := b.cursor.Next(e.tape.Partition()); ok {
			known++
		}
	}
	if !b.cursor.IsZero() {
		return legs, h.goOn(ctx, scope, b, f, ends, legs, known)
	}
	if !b.start && f.SinceMs == nil && f.FromTMs == nil {
		return legs, nil
	}
	for i := range legs {
		if err := h.goBack(ctx, f, &legs[i]); err != nil {
			return nil, err
		}
	}
	return legs, nil
}

// goBack has a leg begin at the first record, or at the first that since can mean.
func (h *Hub) goBack(ctx context.Context, f *schema.Filter, leg *place) error {
	partition := leg.tape.Partition()
	beginning := schema.Position{Epoch: 1, Partition: partition}
	if f.SinceMs == nil {
		leg.from = beginning
		return nil
	}
	// Kafka knows where a time is, if it still holds what came before.
	start, _, err := h.past.Log.Bounds(ctx, partition)
	if err != nil {
		return httpapi.LogUnavailable(err)
	}
	offset, err := h.past.Log.OffsetForTime(ctx, partition, max(*f.SinceMs-clockSkew.Milliseconds(), 0))
	if err != nil {
		return httpapi.LogUnavailable(err)
	}
	if offset > start {
		leg.from.Offset = min(offset, leg.from.Offset)
	} else {
		leg.from = beginning
	}
	return nil
}

// goOn has the legs begin behind the cursor. A cursor says all of the partitions that it
// names. Of those that it does not, as the id of one event does not, only its time can be
// told: they begin with the first record of that time, so that nothing is missed.
func (h *Hub) goOn(ctx context.Context, scope schema.Scope, b begin, f *schema.Filter, ends []end, legs []place, known int) error {
	invalid := func(why string) error {
		return httpapi.Errorf(http.StatusBadRequest, "invalid_cursor", "%s %s.", b.param, why).WithParam(b.param)
	}
	epoch := b.cursor.ID.Epoch
	for i, e := range ends {
		now := e.tape.Epoch()
		next, ok := b.cursor.Next(e.tape.Partition())
		switch {
		case epoch > now:
			return invalid("is a position that the log has not reached")
		case epoch < now && scope.Session != "":
			next, ok = lowest(b.cursor), true // the session lay where the id says then
		}
		switch {
		case ok && epoch == now && next > e.next:
			return invalid("is a position that the log has not reached")
		case ok:
			legs[i].from.Epoch, legs[i].from.Offset = epoch, next
		case epoch == now && (scope.Session != "" || known == 0):
			return invalid("is a position of another " + map[bool]string{true: "session", false: "workspace"}[scope.Session != ""])
		default:
			from, err := h.firstSince(ctx, scope, b.cursor.ID, f, e)
			if err != nil {
				return err
			}
			legs[i].from = from
		}
	}
	return nil
}

// lowest is the lowest offset that a cursor gives: of one partition's cursor, its own.
func lowest(c schema.Cursor) int64 {
	next := c.ID.Offset + 1
	for _, o := range c.Others {
		next = min(next, o.Offset)
	}
	return next
}

// firstSince returns where a partition's first record lies that was appended at the time
// of id or later, not before id's epoch. Kafka knows, if it still holds what came before;
// otherwise history does.
func (h *Hub) firstSince(ctx context.Context, scope schema.Scope, id schema.EventID, f *schema.Filter, e end) (schema.Position, error) {
	at := schema.Position{Epoch: e.tape.Epoch(), Partition: e.tape.Partition()}
	start, _, err := h.past.Log.Bounds(ctx, at.Partition)
	if err != nil {
		return at, httpapi.LogUnavailable(err)
	}
	offset, err := h.past.Log.OffsetForTime(ctx, at.Partition, id.TimeMs)
	if err != nil {
		return at, httpapi.LogUnavailable(err)
	}
	at.Offset = min(offset, e.next)
	if id.Epoch == at.Epoch && (offset > start || start == 0) {
		return at, nil
	}
	from := schema.Position{Epoch: id.Epoch, Partition: at.Partition}
	to := at
	to.Offset = min(at.Offset, h.past.History.Watermark(at.Partition))
	later := *f
	later.SinceMs = &id.TimeMs
	if f.SinceMs != nil {
		later.SinceMs = new(max(*f.SinceMs, id.TimeMs))
	}
	for from.Compare(to) < 0 {
		events, next, err := h.past.History.ReadChunk(ctx, scope, at.Partition, from, to, &later, 1)
		switch {
		case err != nil:
			return at, httpapi.HistoryUnavailable(historyRetryAfter).WithCause(err)
		case len(events) > 0:
			from = events[0].ID.Position
			from.Partition = at.Partition
			return from, nil
		}
		from = next
	}
	if to.Offset < start {
		return to, nil // and the client is told of what is gone before Kafka's first record
	}
	return at, nil
}
