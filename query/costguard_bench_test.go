package query

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// BenchmarkPagesBesideCounts asks for pages of workspace w1, one after the other: alone, while
// workspace w2 has 16 clients that ask for histograms of 2 million rows without a pause, and
// the same where admission and priorities let all of these run.
func BenchmarkPagesBesideCounts(b *testing.B) {
	const rows = 2_000_000
	conn, _ := openEngine(b)
	fillHours(b, conn, "w1", rows/4)
	fillHours(b, conn, "w2", rows)
	for _, load := range []struct {
		name    string
		clients int
		scans   int
	}{{"alone", 0, DefaultMaxScans}, {"beside=16", 16, DefaultMaxScans}, {"beside=16/admission=none", 16, 1024}} {
		b.Run(load.name, func(b *testing.B) {
			cfg := DefaultConfig()
			cfg.QueryTimeout = time.Minute
			cfg.Admission.MaxScans = load.scans
			h := NewHistory(conn, cfg, newTestLog(b), NewMetrics(nil))
			var ws worlds
			for p := range uint16(2) {
				end := int64(rows / 2)
				ws = append(ws, &world{t: b, epoch: 1, at: p, history: h, end: end, committed: end, tapeStart: end, windows: schema.NewWindow(schema.DedupeRule{})})
			}
			app := httpapi.NewApp(httpapi.DefaultConfig(), newTestLog(b))
			app.Use(httpapi.Authenticate(keys{}))
			ws.api(cfg).Routes(app)

			ctx, stop := context.WithCancel(b.Context())
			var clients sync.WaitGroup
			var counted, refused atomic.Int64
			for range load.clients {
				clients.Go(func() {
					for ctx.Err() == nil {
						switch benchGet(app, "w2", "/v1/events/histogram?interval=minute&confidence_gte=0.5") {
						case http.StatusOK:
							counted.Add(1)
						case http.StatusServiceUnavailable: // as told, in a second at the soonest
							refused.Add(1)
							select {
							case <-time.After(time.Second):
							case <-ctx.Done():
							}
						}
					}
				})
			}
			var times []time.Duration
			for i := 0; b.Loop(); i++ {
				// Somewhere in the log, so that no cache has it.
				at := schema.EventID{Position: schema.Position{Epoch: 1, Offset: int64(i*7919) % (rows/8 - 200)}}
				cursor := schema.CursorAt(1, []schema.NextOffset{{Partition: 0, Offset: at.Offset}, {Partition: 1, Offset: at.Offset}}, testStartMs)
				began := time.Now()
				if status := benchGet(app, "w1", "/v1/events?cursor="+cursor.String()); status != http.StatusOK {
					b.Fatal(fmt.Sprint("page: ", status))
				}
				times = append(times, time.Since(began))
			}
			stop()
			clients.Wait()
			slices.Sort(times)
			ms := func(q float64) float64 { return times[int(q*float64(len(times)-1))].Seconds() * 1000 }
			b.ReportMetric(ms(.5), "p50-ms")
			b.ReportMetric(ms(.99), "p99-ms")
			b.ReportMetric(float64(counted.Load())/b.Elapsed().Seconds(), "counts/s")
			b.ReportMetric(float64(refused.Load())/b.Elapsed().Seconds(), "refused/s")
		})
	}
}

// benchGet returns the status of an answer, 0 if there is none.
func benchGet(app *fiber.App, key, target string) int {
	req := httptest.NewRequest(http.MethodGet, target, nil)
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := app.Test(req, -1)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
