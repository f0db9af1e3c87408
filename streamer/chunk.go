package streamer

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/playhead-dev/playhead/internal/sessionlog"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// chunk is a stretch of a partition's log as it was read: the events that a subscription
// wants, in log order, and where to read on.
type chunk struct {
	events []*schema.Event
	next   schema.Position
	source string // the metric's label
	lost   *span  // what was found gone before the events; nil: nothing
	edge   bool   // the tape covers next; no more is there now
}

// span is a stretch of the log, [from, to).
type span struct{ from, to schema.EventID }

// errLogAway reports that Kafka did not answer.
var errLogAway = errors.New("the log cannot be read")

// source reads the chunks of one leg's replay. It is not safe for concurrent use.
type source struct {
	hub    *Hub
	scope  schema.Scope
	filter *schema.Filter
	kafka  *sessionlog.Reader
	// unhurried says that the replay waits between events: it reads the tape as well,
	// instead of stopping where that begins, and keeps little.
	unhurried bool

	left leftover
}

// newSource returns a source of what req wants of t's partition.
func newSource(h *Hub, req *Request, t *tape.Tape) source {
	return source{hub: h, scope: req.Scope, filter: &req.Filter, kafka: h.past.reader(req.Scope, t.Partition(), t)}
}

// leftover is what a read of Kafka found beyond its chunk.
type leftover struct {
	events   []*schema.Event
	at, next schema.Position // where it begins, and what comes behind it
}

// Bounds of one read of Kafka and of the tape.
const (
	scanRecords = 50_000
	tapeEvents  = 512

	// A fetch is decoded as a whole, so what is found beyond a small chunk is worth keeping:
	// up to so many times the chunk's bytes, and up to so many bytes.
	leftoverFactor   = 4
	maxLeftoverBytes = 1 << 20
)

// forget drops what was read ahead.
func (r *source) forget() { r.left = leftover{} }

// read reads the chunk at pos: what is materialised, or else what lies in Kafka below the
// tape, or else, if it is asked to, what the tape has.
func (r *source) read(ctx context.Context, t *tape.Tape, pos schema.Position, maxBytes int) (chunk, error) {
	past := r.hub.past
	if left := r.left; len(left.events) > 0 && left.at == pos {
		return r.cut(left.events, left.next, maxBytes), nil
	}
	r.forget()
	materialised := schema.Position{
		Epoch: past.Epoch, Partition: t.Partition(), Offset: past.History.Watermark(t.Partition()),
	}
	if pos.Epoch == past.Epoch && pos.Offset >= t.Start() {
		return r.readTape(t, pos, maxBytes)
	}
	if comparePlace(pos, materialised) >= 0 {
		start, _, err := past.Log.Bounds(ctx, t.Partition())
		if err != nil {
			return chunk{}, logAway(ctx, err)
		}
		return r.readKafka(ctx, t, pos, start, maxBytes)
	}
	if r.isShort(t, pos) {
		c, err := r.readInstead(ctx, t, pos, maxBytes)
		if !errors.Is(err, errOnlyHistory) {
			return c, err
		}
	}
	c, err := r.readHistory(ctx, t, pos, materialised, maxBytes)
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	r.hub.logger.Warn("replay falls back to kafka", "partition", t.Partition(), "error", err)
	c, kerr := r.readInstead(ctx, t, pos, maxBytes)
	if errors.Is(kerr, errOnlyHistory) {
		return chunk{}, fmt.Errorf("%w: %w: %w", errHistoryAway, kerr, err)
	}
	return c, kerr
}

// logAway makes an errLogAway of err, unless ctx has ended.
func logAway(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errLogAway, err)
}

// isShort reports whether what lies between pos and the tape is better read from Kafka,
// if that reaches there, though it is materialised: the log of several sessions lies there as
// it is wanted, while the table is in the order of sessions and every granule would be opened
// for a few rows.
func (r *source) isShort(t *tape.Tape, pos schema.Position) bool {
	return r.scope.Session == "" && pos.Epoch == r.hub.past.Epoch && t.Start()-pos.Offset <= r.hub.past.ShortGap
}

// errOnlyHistory reports that Kafka cannot stand in for ClickHouse.
var errOnlyHistory = errors.New("only history has it")

// readInstead reads from Kafka what ClickHouse has as well. It returns errOnlyHistory if
// Kafka does not hold all that this takes, what the events may repeat included.
func (r *source) readInstead(ctx context.Context, t *tape.Tape, pos schema.Position, maxBytes int) (chunk, error) {
	start, err := r.kafkaReaches(ctx, t, pos)
	if err != nil {
		return chunk{}, fmt.Errorf("%w: %w", errOnlyHistory, err)
	}
	r.kafka.Strict = true
	defer func() { r.kafka.Strict = false }()
	c, err := r.readKafka(ctx, t, pos, start, maxBytes)
	if errors.Is(err, sessionlog.ErrForgotten) {
		return chunk{}, fmt.Errorf("%w: %w", errOnlyHistory, err)
	}
	return c, err
}

// comparePlace orders two positions of one scope's log in a partition.
func comparePlace(a, b schema.Position) int {
	a.Partition, b.Partition = 0, 0 // an older epoch may have had the session elsewhere
	return a.Compare(b)
}

func (r *source) readHistory(ctx context.Context, t *tape.Tape, pos, to schema.Position, maxBytes int) (chunk, error) {
	events, next, err := r.hub.past.History.ReadChunk(ctx, r.scope, t.Partition(), pos, to, r.filter, maxBytes)
	if err != nil {
		return chunk{}, fmt.Errorf("replay from history: %w", err)
	}
	return chunk{events: events, next: next, source: "clickhouse"}, nil
}

// kafkaReaches returns the log start offset, or why Kafka cannot stand in for ClickHouse
// from the position on.
func (r *source) kafkaReaches(ctx context.Context, t *tape.Tape, pos schema.Position) (start int64, err error) {
	if pos.Epoch != r.hub.past.Epoch {
		return 0, fmt.Errorf("epoch %d is only in history", pos.Epoch)
	}
	start, _, err = r.hub.past.Log.Bounds(ctx, t.Partition())
	if err != nil {
		return 0, err
	}
	if pos.Offset < start {
		return 0, fmt.Errorf("offset %d is only in history; kafka begins at %d", pos.Offset, start)
	}
	return start, nil
}

// errChunkFull ends the reading of a chunk.
var errChunkFull = errors.New("chunk is full")

// readKafka reads what Kafka has from the position up to the tape. What lies below start,
// the log start offset, and is not materialised is gone; the client is told the gap.
func (r *source) readKafka(ctx context.Context, t *tape.Tape, pos schema.Position, start int64, maxBytes int) (chunk, error) {
	if epoch := r.hub.past.Epoch; pos.Epoch != epoch {
		pos = schema.Position{Epoch: epoch}
	}
	pos.Partition = t.Partition()
	c := chunk{next: pos, source: "kafka"}
	if pos.Offset < start {
		c.next.Offset = start
		c.lost = &span{from: schema.EventID{Position: pos}, to: schema.EventID{Position: c.next}}
	}
	enough := maxBytes
	if !r.unhurried {
		enough = max(maxBytes, min(leftoverFactor*maxBytes, maxLeftoverBytes))
	}
	size := 0
	end := min(t.Start(), c.next.Offset+scanRecords)
	next, err := r.kafka.Read(ctx, c.next.Offset, end, func(e *schema.Event) error {
		if e.Hidden() || !r.filter.Match(e) {
			return nil
		}
		e.Payload = bytes.Clone(e.Payload) // or it would keep all that came in its fetch
		c.events = append(c.events, e)
		if size += e.Size(); size >= enough {
			return errChunkFull
		}
		return nil
	})
	if err != nil && !errors.Is(err, errChunkFull) {
		return chunk{}, logAway(ctx, err)
	}
	c.next.Offset = next
	cut := r.cut(c.events, c.next, maxBytes)
	cut.lost = c.lost
	return cut, nil
}

// cut makes a chunk of what was read of Kafka, up to next, and keeps the rest.
func (r *source) cut(events []*schema.Event, next schema.Position, maxBytes int) chunk {
	r.forget()
	size := 0
	for i, e := range events {
		if size += e.Size(); size >= maxBytes && i+1 < len(events) {
			at := e.ID.Position
			at.Offset++
			r.left = leftover{events: events[i+1:], at: at, next: next}
			return chunk{events: events[:i+1], next: at, source: "kafka"}
		}
	}
	return chunk{events: events, next: next, source: "kafka"}
}

// readTape reads what the tape has from the position on, or says that this is the edge.
func (r *source) readTape(t *tape.Tape, pos schema.Position, maxBytes int) (chunk, error) {
	c := chunk{next: pos, source: "tape"}
	if !r.unhurried {
		c.edge = true
		return c, nil
	}
	entries, span := t.ReadScope(nil, r.scope, pos.Offset, tapeEvents)
	switch {
	case span.Failed != nil:
		return chunk{}, fmt.Errorf("%w: %w", errTapeFailed, span.Failed)
	case pos.Offset < span.Evicted:
		return c, nil // since Start was asked; read elsewhere
	}
	size := 0
	for _, e := range entries {
		c.next.Offset = e.ID.Offset + 1
		if !e.Hidden() && r.filter.Match(&e.Event) {
			c.events = append(c.events, &e.Event)
			if size += e.Size(); size >= maxBytes {
				return c, nil
			}
		}
	}
	if !span.More {
		c.next.Offset = max(c.next.Offset, span.Next)
		c.edge = len(c.events) == 0
	}
	return c, nil
}
