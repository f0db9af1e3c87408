package query

import (
	"fmt"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// openBench fills a table with sessions of 100,000 events, 293 bytes of payload each
// with metadata in every tenth, as browsers send them.
func openBench(b *testing.B, sessions int) *History {
	b.Helper()
	conn, _ := openEngine(b)
	for s := range sessions {
		err := conn.Exec(b.Context(), fmt.Sprintf(`INSERT INTO events
			(workspace_id, session_id, log_epoch, kafka_partition, kafka_offset, ts, t_ms, type, message_id, metadata, content_type, payload)
			SELECT 'w', 's%d', 1, 3, number * %d + %d, toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(number), number,
				['mouse_move', 'mouse_down', 'mouse_up', 'keypress'][1 + number %% 4], concat('s%[1]d-', toString(number)),
				if(number %% 10 = 0, map('button', 'left', 'page', '/checkout'), map()), 'application/json',
				concat('{"x":', toString(number %% 1900), ',"y":', toString(number %% 1070), ',"state":"Move","pad":"', hex(randomString(120)), '"}')
			FROM numbers(100000)`, s, sessions, s))
		if err != nil {
			b.Fatal(err)
		}
	}
	return newHistory(b, conn)
}

func BenchmarkReadSessionReplay(b *testing.B) {
	h := openBench(b, 4)
	for _, limit := range []int{10_000, Unlimited} {
		b.Run(fmt.Sprintf("limit=%d", min(limit, 100_000)), func(b *testing.B) {
			b.ReportAllocs()
			total, bytes := 0, 0
			for i := 0; b.Loop(); i++ {
				ref := SessionRef{Workspace: "w", Session: fmt.Sprint("s", i%4)}
				var from schema.Position
				for {
					n, err := h.ReadSession(b.Context(), ref, from, everything, nil, limit, false, func(e *schema.Event) error {
						from = after(e.ID.Position)
						bytes += len(e.Payload)
						return nil
					})
					if err != nil {
						b.Fatal(err)
					}
					total += n
					if n < limit {
						break
					}
				}
			}
			b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
			b.SetBytes(int64(bytes / b.N))
		})
	}
}

func BenchmarkReadSessionPage(b *testing.B) {
	h := openBench(b, 4)
	for _, from := range []int64{0, 399_000} {
		b.Run(fmt.Sprintf("from=%d", from), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				ref := SessionRef{Workspace: "w", Session: fmt.Sprint("s", i%4)}
				n, err := h.ReadSession(b.Context(), ref, schema.Position{Epoch: 1, Offset: from}, everything, nil, 101, false, func(*schema.Event) error { return nil })
				if err != nil || n != 101 {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkSessionBase(b *testing.B) {
	h := openBench(b, 2)
	for b.Loop() {
		if s, err := h.SessionBase(b.Context(), SessionRef{Workspace: "w", Session: "s1"}, everything); err != nil || s.EventCount != 100_000 {
			b.Fatal(s.EventCount, err)
		}
	}
}
