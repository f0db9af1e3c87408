package ingest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/valyala/fasthttp"

	"github.com/playhead-dev/playhead/schema"
)

// benchEvents writes n events of about 300 bytes.
func benchEvents(n, from int, session string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(`{"session_id":"%s","workflow_id":"user12","type":"mouse_move","t_ms":%d,"message_id":"%s-%d","payload":{"button":"NoButton","state":"Move","x":%d,"y":410,"text":"%s"}}`,
			session, from+i, session, from+i, i%1920, strings.Repeat("a word ", 20))
	}
	return out
}

func perEvent(b *testing.B, events int) {
	b.Helper()
	b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkDecode(b *testing.B) {
	events := benchEvents(100, 0, "session_2144641057")
	for _, c := range []struct {
		name   string
		format Format
		body   string
	}{
		{"list", FormatJSON, list(events...)},
		{"ndjson", FormatNDJSON, strings.Join(events, "\n")},
	} {
		b.Run(c.name, func(b *testing.B) {
			d := NewDecoder(Limits{EventBytes: DefaultMaxEventBytes, BatchEvents: DefaultMaxBatchEvents, JSONDepth: DefaultMaxJSONDepth})
			b.ReportAllocs()
			b.SetBytes(int64(len(c.body)))
			for b.Loop() {
				batch, err := d.Decode(c.format, bytes.Clone([]byte(c.body)), "")
				if err != nil || len(batch.Items) != 100 || batch.FirstError() != nil {
					b.Fatal(err)
				}
			}
			perEvent(b, 100)
		})
	}
}

// BenchmarkProduce produces the same records to the same broker, from 8 goroutines in
// batches of 100: by hand, through the Appender, and through the HTTP handler.
func BenchmarkProduce(b *testing.B) {
	const writers, size = 8, 100
	cluster := newCluster(b)
	r := newRigOn(b, cluster)
	cfg := DefaultConfig()
	raw, err := newProducer(cfg, []kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = raw.close(context.Background()) })
	decoder := NewDecoder(Limits{EventBytes: DefaultMaxEventBytes, BatchEvents: DefaultMaxBatchEvents, JSONDepth: DefaultMaxJSONDepth})
	placement, _ := testLayout{}.Placement("ws1")

	runs := 0 // message ids must differ from run to run
	run := func(b *testing.B, write func(writer, i int)) {
		runs++
		for p := range testPartitions { // the tails have caught up with the run before
			if _, err := r.tails.Open(b.Context(), uint16(p)); err != nil {
				b.Fatal(err)
			}
		}
		r.tails.forget()
		b.ReportAllocs()
		var wg sync.WaitGroup
		next := make(chan int)
		for w := range writers {
			wg.Go(func() {
				for i := range next {
					write(w, i)
				}
			})
		}
		for i := 0; b.Loop(); i++ {
			next <- i
		}
		close(next)
		wg.Wait()
		perEvent(b, size)
	}
	bodies := func(name string, w, i int) string {
		return list(benchEvents(size, i*size, fmt.Sprintf("%s-%d-%d", name, b.N, w))...)
	}
	decode := func(body string) []Item {
		batch, err := decoder.Decode(FormatJSON, []byte(body), "")
		if err != nil {
			b.Error(err)
			return nil
		}
		return batch.Items
	}
	// Bodies are written once a run; only message ids differ, so they are patched in.
	b.Run("raw", func(b *testing.B) {
		items := decode(bodies("raw", 0, 0))
		key := schema.RecordKey("ws1", items[0].Event.Session)
		partition := placement.Partition("ws1", items[0].Event.Session)
		run(b, func(w, i int) {
			var wg sync.WaitGroup
			wg.Add(size)
			records := make([]kgo.Record, size)
			headers := make([]kgo.RecordHeader, size*headersPerRecord)
			now := time.Now().UnixMilli()
			for j := range items {
				e := items[j].Event
				e.Workspace, e.ID.TimeMs = "ws1", now
				raw.fill(&records[j], headers[j*headersPerRecord:j*headersPerRecord:(j+1)*headersPerRecord], &e, key, (partition+uint16(w))%testPartitions)
				raw.produce(&records[j], func(_ *kgo.Record, err error) {
					if err != nil {
						b.Error(err)
					}
					wg.Done()
				})
			}
			wg.Wait()
		})
	})
	b.Run("appender", func(b *testing.B) {
		templates := make([][]Item, writers)
		for w := range templates {
			templates[w] = decode(bodies("appender", w, 0))
		}
		run(b, func(w, i int) {
			items := make([]Item, size)
			copy(items, templates[w])
			for j := range items {
				items[j].Event.MessageID = fmt.Sprintf("m-%d-%d-%d", runs, i, j)
			}
			results, err := r.appender.Append(context.Background(), Caller{Workspace: "ws1"}, items, Options{})
			if err != nil || worstError(results) != nil || results[size-1].Duplicate {
				b.Error(err, worstError(results))
			}
		})
	})
	b.Run("handler", func(b *testing.B) {
		handler := r.app.Handler()
		templates := make([]string, writers)
		for w := range templates {
			templates[w] = strings.ReplaceAll(bodies("handler", w, 0), fmt.Sprintf("-%d-%d-", b.N, w), "-@@@@@@@@@-")
		}
		run(b, func(w, i int) {
			var ctx fasthttp.RequestCtx
			var req fasthttp.Request
			req.Header.SetMethod("POST")
			req.SetRequestURI("/v1/events")
			req.Header.SetContentType("application/json")
			req.Header.Set("Authorization", "Bearer full")
			req.SetBodyString(strings.ReplaceAll(templates[w], "@@@@@@@@@", fmt.Sprintf("%03d-%09d", runs, i)))
			ctx.Init(&req, nil, nil)
			handler(&ctx)
			if ctx.Response.StatusCode() != 200 || !bytes.Contains(ctx.Response.Body(), []byte(`"accepted":100`)) {
				b.Errorf("%d %s", ctx.Response.StatusCode(), ctx.Response.Body())
			}
		})
	})
}
