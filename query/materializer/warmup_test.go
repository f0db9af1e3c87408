package materializer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
)

// 1. the materialiser is an hour behind; 2. the offset it goes on from has no record, as that
// of a transaction marker has none; 3. the record behind it repeats one of a minute before:
// the window reaches back from that record, not from now.
func TestWarmUpReachesBackFromTheNextRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := simulation.NewWorld(1, false)
		placement := schema.Placement{Partitions: 1, Shards: 1}
		rule := schema.DedupeRule{Offsets: 1000, Age: 10 * time.Minute}
		log := simulation.NewLog(placement, rule)
		hourAgo := time.Now().Add(-time.Hour)
		for _, ms := range []int64{hourAgo.UnixMilli(), hourAgo.Add(time.Minute).UnixMilli()} {
			e := &schema.Event{Workspace: "w", Session: "s", Type: "tick", MessageID: "m", Payload: []byte("1")}
			log.Append(&kgo.Record{Timestamp: time.UnixMilli(ms), Value: e.Payload, Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, "")})
			log.Skip(0, 100)
		}
		m := &Materializer{kafkaLog: simulation.NewView(w, log, simulation.NewNode("p"), "p", 0), rule: rule}
		worker := &worker{Materializer: m, hard: t.Context()}
		if got, err := worker.warmUpStart(1); err != nil || got != 0 {
			t.Errorf("warmUpStart(1) = %d, %v; want 0: the record at 101 may repeat that at 0", got, err)
		}
	})
}
