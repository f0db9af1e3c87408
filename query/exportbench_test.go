package query

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/playhead-dev/playhead/schema"
)

// BenchmarkExport exports a workspace of 2,000,000 events of about 200 B of payload in four
// Kafka partitions' worth of batches, over HTTP, and beside it has ClickHouse write the bare
// columns of the same rows in its own format, in whatever order it likes, with all cores:
// the engine's own speed. 80 % of that is the aim (JSONEachRow for ndjson).
func BenchmarkExport(b *testing.B) {
	conn, _ := openEngine(b)
	const batch = 50_000
	const total = 2_000_000
	partitions := exportPlacement.WorkspacePartitions("w1")
	for from := 0; from < total; from += batch { // as the materialiser inserts them
		p := partitions[from/batch%len(partitions)]
		first := from / batch / len(partitions) * batch
		err := conn.Exec(b.Context(), fmt.Sprintf(`INSERT INTO events
			(workspace_id, session_id, workflow_id, log_epoch, kafka_partition, kafka_offset, ts, t_ms, type, message_id, metadata, content_type, payload)
			SELECT 'w1', lower(hex(sipHash128(intDiv(number, 20000), number %% 100))), 'wf' || toString(number %% 10), %d, %d, number,
				toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(number), number, 'mouse_move', 'm-' || toString(number),
				if(number %% 10 = 0, map('button', 'left', 'page', '/checkout'), map()), 'application/json',
				concat('{"x":', toString(number %% 1900), ',"y":', toString(number %% 1070), ',"state":"Move","pad":"', hex(randomString(60)), '"}')
			FROM numbers(%d, %d)`, exportEpoch, p, first, batch))
		if err != nil {
			b.Fatal(err)
		}
	}
	s := serveExports(b, conn, nil)
	for _, p := range partitions {
		s.ends[p] = total
		s.committed.Set(p, total)
	}
	report := func(b *testing.B, bytes int64, cpu float64) {
		b.SetBytes(bytes / int64(b.N))
		if cpu > 0 {
			b.ReportMetric((cpuSeconds(b)-cpu)/float64(b.N)/total*1e6, "cpu-µs/row")
		}
		b.ReportMetric(total*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	}
	for _, f := range []struct{ name, engine string }{
		{"ndjson", "JSONEachRow"}, {"csv", "CSVWithNames"}, {"arrow", "ArrowStream"}, {"parquet", "Parquet"},
	} {
		b.Run(f.name+"/engine", func(b *testing.B) {
			bytes, cpu := int64(0), cpuSeconds(b)
			for b.Loop() {
				ctx := clickhouse.Context(b.Context(), clickhouse.WithSettings(clickhouse.Settings{"optimize_use_projections": 0}))
				stream, err := conn.QueryFormat(ctx, f.engine, `SELECT session_id, workflow_id, type, ts, client_ts, t_ms, confidence, frame_id, message_id,
					metadata, content_type, payload FROM `+schema.TableEvents+` WHERE workspace_id = 'w1'`)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, stream)
				if err != nil {
					b.Fatal(err)
				}
				_ = stream.Close()
				bytes += n
			}
			report(b, bytes, cpu)
		})
		for _, coding := range []string{"none", "gzip", "zstd"} {
			name, q := f.name, query("format", f.name)
			if coding != "none" {
				if f.name == "arrow" || f.name == "parquet" {
					continue
				}
				q.Set("compression", coding)
				name += "+" + coding
			}
			b.Run(name, func(b *testing.B) {
				bytes, cpu := int64(0), cpuSeconds(b)
				for b.Loop() {
					resp := s.get("w1", "/v1/export", q)
					n, err := io.Copy(io.Discard, resp.Body)
					if err != nil || resp.StatusCode != 200 {
						b.Fatal(resp.StatusCode, err)
					}
					resp.Body.Close()
					bytes += n
				}
				report(b, bytes, cpu)
			})
		}
	}
}

// cpuSeconds is the processor time of this process and the engine's, so that a run on a
// machine with other work says something too; 0 where there is no /proc.
func cpuSeconds(b *testing.B) float64 {
	b.Helper()
	pids := []string{"self"}
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		children, _ := os.ReadFile(list) // a thread may have ended
		pids = append(pids, strings.Fields(string(children))...)
	}
	ticks := 0.0
	for _, pid := range pids {
		stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // proc(5): utime and stime are fields 14 and 15
		for _, field := range strings.Fields(rest)[11:13] {
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	}
	return ticks / 100 // USER_HZ
}
