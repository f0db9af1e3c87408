package streamer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// boundsLog counts the questions for the log's bounds.
type boundsLog struct {
	Log
	asked atomic.Int64
}

func (l *boundsLog) Bounds(ctx context.Context, partition uint16) (start, end int64, err error) {
	l.asked.Add(1)
	return l.Log.Bounds(ctx, partition)
}

// Where a chunk is read, and that the log's bounds, a question to a broker, are asked for
// once or not at all.
func TestWhereAChunkIsRead(t *testing.T) {
	const events, gone = 20, 5
	session := schema.Scope{Workspace: "w", Session: "s"}
	workspace := schema.Scope{Workspace: "w"}
	for _, tt := range []struct {
		name      string
		scope     schema.Scope
		watermark int64
		shortGap  int64
		away      bool  // ClickHouse
		ids       bool  // the events have message ids, and may repeat what is gone
		from      int64 // kafka has what lies at gone and above

		source string
		first  int64 // offset of the first event
		asked  int64
		err    error
	}{
		{name: "history", scope: session, watermark: events, source: "clickhouse"},
		{name: "not materialised", scope: session, from: gone, source: "kafka", first: gone, asked: 1},
		{name: "lost", scope: session, source: "kafka", first: gone, asked: 1},
		{name: "short gap", scope: workspace, watermark: events, shortGap: events, from: gone, source: "kafka", first: gone, asked: 1},
		{name: "short gap of one session", scope: session, watermark: events, shortGap: events, from: gone, source: "clickhouse", first: gone},
		{name: "short gap below kafka", scope: workspace, watermark: events, shortGap: events, source: "clickhouse", asked: 1},
		{name: "short gap behind what is gone", scope: workspace, watermark: events, shortGap: events, ids: true, from: gone, source: "clickhouse", first: gone, asked: 2},
		{name: "long gap", scope: workspace, watermark: events, shortGap: 3, from: gone, source: "clickhouse", first: gone},
		{name: "history away", scope: session, watermark: events, away: true, from: gone, source: "kafka", first: gone, asked: 1},
		{name: "history away below kafka", scope: session, watermark: events, away: true, asked: 1, err: errHistoryAway},
		{name: "history away behind what is gone", scope: session, watermark: events, away: true, ids: true, from: gone, asked: 2, err: errHistoryAway},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkGoroutines(t)
			e := startEnv(t, testConfig(), 1)
			all := numbered("s", 0, events)
			for i := range all {
				if tt.ids {
					all[i].MessageID = fmt.Sprint("m", i)
				}
			}
			e.produce(all...)
			e.deleteRecords(0, gone)
			e.history.setWatermark(tt.watermark)
			e.history.failing.Store(tt.away)
			log := &boundsLog{Log: e.log}
			past := &Past{History: e.history, Log: log, Epoch: 1, Placement: e.place, Rule: e.cfg.Tape.Rule(), ShortGap: tt.shortGap}
			h := &Hub{past: past, logger: slog.New(slog.DiscardHandler)}
			above := tape.Detached(e.cfg.Tape, 1, 0, events, past, tape.NewMetrics(prometheus.NewRegistry()))
			s := newSource(h, &Request{Scope: tt.scope}, above)
			c, err := s.read(t.Context(), above, schema.Position{Epoch: 1, Offset: tt.from}, 1<<20)
			if !errors.Is(err, tt.err) || log.asked.Load() != tt.asked {
				t.Fatalf("read = %v, having asked for the bounds %d times; want %v, %d times", err, log.asked.Load(), tt.err, tt.asked)
			}
			if tt.err != nil {
				return
			}
			if c.source != tt.source || int64(len(c.events)) != events-tt.first || c.events[0].ID.Offset != tt.first || c.next.Offset != events {
				t.Errorf("%d events of %s up to %d; want those from %d of %s", len(c.events), c.source, c.next.Offset, tt.first, tt.source)
			}
			if lost := c.lost != nil; lost != (tt.source == "kafka" && tt.from < gone) {
				t.Errorf("told a loss: %v", lost)
			}
		})
	}
}
