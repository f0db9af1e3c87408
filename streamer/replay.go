package streamer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/playhead-dev/playhead/internal/sessionlog"
	"github.com/playhead-dev/playhead/schema"
)

// replay sends what lies between the position and the tape, stretch by stretch, and leaves
// the subscription to the workers at the tape's edge.
//
// Why no event is lost or sent twice at the seams: the position is the only state. A
// stretch is read from it, written, and moves it beyond what was written. ClickHouse is read below the watermark, where every row is final; Kafka from
// there; and Attach succeeds only while the tape still covers the position.
func (s *subscription) replay() {
	h := s.hub
	defer func() { h.queue <- s }()
	if err := s.awaitReplaySlot(); err != nil {
		s.end(err)
		return
	}
	defer func() { <-h.replays }()
	h.metrics.replaying.Inc()
	defer h.metrics.replaying.Dec()
	r := &replayer{sub: s, kafka: h.past.reader(s.req.Workspace, s.req.Session, s.tape.Partition(), s.tape)}
	for s.ctx.Err() == nil {
		if s.attach() {
			s.arrived()
			return
		}
		if err := s.betweenChunks(); err != nil {
			return
		}
		if err := r.stretch(); err != nil {
			s.replayFailed(err)
			return
		}
	}
}

// awaitReplaySlot waits for a turn, keeping the stream alive meanwhile.
func (s *subscription) awaitReplaySlot() error {
	select {
	case s.hub.replays <- struct{}{}:
		return nil
	default:
	}
	tick := time.NewTicker(s.hub.cfg.KeepAlive)
	defer tick.Stop()
	for {
		select {
		case s.hub.replays <- struct{}{}:
			return nil
		case <-tick.C:
			if err := s.write([]byte(s.req.View.KeepAlive)); err != nil {
				return err
			}
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// betweenChunks sends what is due beside events: that some were lost before the replay
// began, and a comment if the replay finds little to send.
func (s *subscription) betweenChunks() error {
	b := s.appendDropped(nil)
	if s.keepAlive.Swap(false) {
		b = append(b, s.req.View.KeepAlive...)
	}
	if err := s.write(b); err != nil {
		s.end(err)
		return err
	}
	return nil
}

// arrived does what is left to do at the seam between replay and live.
func (s *subscription) arrived() {
	if !s.req.CloseAtEnd {
		return
	}
	// The tape may have forgotten the session since the request: have it know whether it
	// has ended. It stays known as long as somebody is attached.
	if _, err := s.tape.Session(s.ctx, s.req.Workspace, s.req.Session); err != nil {
		s.replayFailed(fmt.Errorf("%w: %w", errHistoryAway, err))
	}
}

// replayFailed tells the client what it can do about an end that is not its own doing.
func (s *subscription) replayFailed(err error) {
	if s.ctx.Err() == nil && errors.Is(err, errHistoryAway) {
		s.hub.logger.Warn("replay needs history", "partition", s.tape.Partition(), "error", err)
		_ = s.write([]byte("event: error\ndata: {\"code\":\"CONNECTION_ERROR\"," +
			"\"message\":\"history is unavailable; resume later from the last id\",\"retry_after\":5000}\n\n"))
	}
	s.end(err)
}

// replayer reads the stretches of one replay and sends them.
type replayer struct {
	sub   *subscription
	kafka *sessionlog.Reader

	buf    []byte          // frames not yet sent
	events int             // in buf
	next   schema.Position // what to read after all that is in buf
	source string          // where buf was read: the metric's label
}

// stretch sends one stretch of the log from the position on: what is materialised, or
// else what lies in Kafka below the tape.
func (r *replayer) stretch() error {
	s, past := r.sub, r.sub.hub.past
	materialised := schema.Position{
		Epoch: past.Epoch, Partition: s.tape.Partition(),
		Offset: past.History.Watermark(s.tape.Partition()),
	}
	if comparePlace(s.pos, materialised) < 0 {
		err := r.readHistory(materialised)
		if err == nil || s.ctx.Err() != nil {
			return err
		}
		s.hub.logger.Warn("replay falls back to kafka", "partition", s.tape.Partition(), "error", err)
		if kerr := r.kafkaReaches(); kerr != nil {
			return fmt.Errorf("%w: %w: %w", errHistoryAway, kerr, err)
		}
	}
	return r.readKafka()
}

// begin empties the buffer for frames from source, to be read from pos on.
func (r *replayer) begin(source string, pos schema.Position) {
	r.buf, r.events, r.next, r.source = r.buf[:0], 0, pos, source
}

// add takes an event that was read and sends what has gathered if that is enough.
func (r *replayer) add(e *schema.Event) error {
	r.buf = r.sub.req.View.AppendEvent(r.buf, e)
	r.events++
	r.next = e.ID.Position
	r.next.Offset++
	if len(r.buf) < r.sub.hub.cfg.ReplayBytes {
		return nil
	}
	return r.flush()
}

// flush sends the buffer and moves the position behind it. An error has ended the
// subscription.
func (r *replayer) flush() error {
	s := r.sub
	if len(r.buf) > 0 {
		if err := s.write(r.buf); err != nil {
			s.end(err)
			return err
		}
	}
	s.hub.metrics.replayed.WithLabelValues(r.source).Add(float64(r.events))
	s.pos = r.next
	r.begin(r.source, r.next)
	return s.betweenChunks()
}

// comparePlace orders two positions of one session's log.
func comparePlace(a, b schema.Position) int {
	a.Partition, b.Partition = 0, 0 // an older epoch may have had the session elsewhere
	return a.Compare(b)
}

// readHistory sends what ClickHouse has from the position to to.
func (r *replayer) readHistory(to schema.Position) error {
	s := r.sub
	r.begin("clickhouse", s.pos)
	err := s.hub.past.History.ReadSession(s.ctx, s.req.Workspace, s.req.Session, s.tape.Partition(),
		s.pos, to, &s.req.Filter, r.add)
	if err != nil {
		return fmt.Errorf("replay from history: %w", err)
	}
	r.next = to // nothing else matches below the watermark
	return r.flush()
}

// kafkaReaches reports why Kafka cannot stand in for ClickHouse from the position on.
func (r *replayer) kafkaReaches() error {
	s := r.sub
	if s.pos.Epoch != s.hub.past.Epoch {
		return fmt.Errorf("epoch %d is only in history", s.pos.Epoch)
	}
	start, _, err := s.hub.past.Log.Bounds(s.ctx, s.tape.Partition())
	if err != nil {
		return fmt.Errorf("replay from kafka: %w", err)
	}
	if s.pos.Offset < start {
		return fmt.Errorf("offset %d is only in history; kafka begins at %d", s.pos.Offset, start)
	}
	return nil
}

// readKafka sends what Kafka has from the position up to the tape. What lies below the
// log start offset and is not materialised is gone; the client is told the gap.
func (r *replayer) readKafka() error {
	s := r.sub
	start, _, err := s.hub.past.Log.Bounds(s.ctx, s.tape.Partition())
	if err != nil {
		return fmt.Errorf("replay from kafka: %w", err)
	}
	from := s.pos
	if from.Epoch != s.hub.past.Epoch {
		from = schema.Position{Epoch: s.hub.past.Epoch, Partition: s.tape.Partition()}
	}
	r.begin("kafka", from)
	if from.Offset < start {
		gap := schema.EventID{Position: from}
		end := schema.EventID{Position: schema.Position{Epoch: from.Epoch, Partition: from.Partition, Offset: start}}
		r.buf = fmt.Appendf(r.buf, "event: playhead.gap\ndata: {\"from\":%q,\"to\":%q,\"reason\":\"expired\"}\n\n", gap, end)
		r.next.Offset = start
	}
	next, err := r.kafka.Read(s.ctx, r.next.Offset, s.tape.Start(), func(e *schema.Event) error {
		if !s.wants(e) {
			return nil
		}
		return r.add(e)
	})
	if err != nil {
		return fmt.Errorf("replay from kafka: %w", err)
	}
	r.next.Offset = next
	return r.flush()
}
