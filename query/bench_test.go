package query

import (
	"bytes"
	"fmt"
	"strings"
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

// BenchmarkReadChunk reads sessions of 100,000 events, or their first 10,000, in chunks,
// one after the other, as one replay does that neither sends nor reads ahead.
func BenchmarkReadChunk(b *testing.B) {
	h := openBench(b, 4)
	for _, events := range []int64{10_000, 100_000} {
		for _, maxBytes := range []int{4 << 20, 16 << 20} {
			b.Run(fmt.Sprintf("events=%d/MiB=%d", events, maxBytes>>20), func(b *testing.B) {
				b.ReportAllocs()
				total, bytes := 0, 0
				for i := 0; b.Loop(); i++ {
					scope := schema.Scope{Workspace: "w", Session: fmt.Sprint("s", i%4)}
					from, to := schema.Position{Epoch: 1, Partition: 3}, schema.Position{Epoch: 1, Partition: 3, Offset: 4 * events}
					for before(from, to) {
						chunk, next, err := h.ReadChunk(b.Context(), scope, 3, from, to, nil, maxBytes)
						if err != nil {
							b.Fatal(err)
						}
						for _, e := range chunk {
							bytes += len(e.Payload)
						}
						total, from = total+len(chunk), next
					}
				}
				if total != b.N*int(events) {
					b.Fatalf("%d events, want %d", total, b.N*int(events))
				}
				b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
				b.SetBytes(int64(bytes / b.N))
			})
		}
	}
}

// BenchmarkReadWorkspace reads a workspace of 400,000 events of 2,000 sessions with random
// ids, 100 of them active at a time, beside four other workspaces in the Kafka partition:
// all of it, and its last 3,000 offsets.
func BenchmarkReadWorkspace(b *testing.B) {
	conn, _ := openEngine(b)
	const offsets, batch = 2_000_000, 50_000
	for from := 0; from < offsets; from += batch { // as the materialiser inserts them
		err := conn.Exec(b.Context(), fmt.Sprintf(`INSERT INTO events
			(workspace_id, session_id, workflow_id, log_epoch, kafka_partition, kafka_offset, ts, t_ms, type, message_id, content_type, payload)
			SELECT 'w' || toString(number %% 5) AS w, lower(hex(sipHash128(w, intDiv(n, 20000), n %% 100))), 'wf' || toString(n %% 10), 1, 3, number,
				toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(number), number, 'mouse_move', 'm-' || toString(number), 'application/json',
				concat('{"x":', toString(number %% 1900), ',"y":', toString(number %% 1070), ',"state":"Move","pad":"', hex(randomString(120)), '"}')
			FROM (SELECT number, intDiv(number, 5) AS n FROM numbers(%d, %d))`, from, batch))
		if err != nil {
			b.Fatal(err)
		}
	}
	to := schema.Position{Epoch: 1, Partition: 3, Offset: offsets}
	for _, from := range []int64{0, offsets - 3_000} {
		b.Run(fmt.Sprintf("offsets=%d", offsets-from), func(b *testing.B) {
			h := newHistory(b, conn)
			total := 0
			for b.Loop() {
				for at := (schema.Position{Epoch: 1, Partition: 3, Offset: from}); before(at, to); {
					chunk, next, err := h.ReadChunk(b.Context(), schema.Scope{Workspace: "w1"}, 3, at, to, nil, 4<<20)
					if err != nil {
						b.Fatal(err)
					}
					total, at = total+len(chunk), next
				}
			}
			if want := b.N * int(offsets-from) / 5; total != want {
				b.Fatalf("%d events, want %d", total, want)
			}
			b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkDecode is our own part of reading: 10,000 rows of RowBinary from memory.
func BenchmarkDecode(b *testing.B) {
	const rows = 10_000
	stream := bytes.Repeat(aRow(strings.Repeat("p", 290)), rows)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		s, r := newRowScanner(schema.Scope{Workspace: "w", Session: "s"}), newRowBinary(bytes.NewReader(stream))
		for r.more() {
			if _, err := s.decode(r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/event")
}

func BenchmarkReadSessionPage(b *testing.B) {
	h := openBench(b, 4)
	for _, from := range []int64{0, 399_000} {
		b.Run(fmt.Sprintf("from=%d", from), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				ref := SessionRef{Workspace: "w", Session: fmt.Sprint("s", i%4)}
				n, err := h.readEvents(b.Context(), ref, schema.Position{Epoch: 1, Offset: from}, everything, nil, 101, false, func(*schema.Event) error { return nil })
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
