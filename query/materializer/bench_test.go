package materializer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// benchRecord is an event of about 300 bytes of payload, of one of 500 sessions.
func benchRecord(c *cluster, sessions []string, i int, payload []byte, ms int64) *kgo.Record {
	session := sessions[i%len(sessions)]
	confidence := float32(0.5)
	e := &schema.Event{
		Workspace: "ws", Session: session, Workflow: "wf", Type: fmt.Sprintf("demo.kind%d", i%12), TMs: int64(i),
		MessageID: fmt.Sprintf("m-%d", i), Confidence: &confidence, Metadata: map[string]string{"region": "eu", "device": "web"},
		ContentType: schema.DefaultContentType, Payload: payload,
	}
	return &kgo.Record{
		Partition: int32(c.placement("ws").Partition("ws", session)), Timestamp: time.UnixMilli(ms), Value: payload,
		Key: schema.RecordKey("ws", session), Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, "g"),
	}
}

func benchSessions(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("session-%d", i)
	}
	return out
}

func benchPayload() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 280)
	for i := range text {
		text[i] = "abcdefghijklmnopqrstuvwxyz      "[r.IntN(32)]
	}
	return fmt.Appendf(nil, `{"text":%q,"n":%d}`, text, r.IntN(1000))
}

// BenchmarkMaterialise copies b.N events of 300 B from Kafka (in the process) to the
// embedded engine: decoding, dedupe, commits, encoding and ClickHouse's work included.
func BenchmarkMaterialise(b *testing.B) {
	for _, target := range []string{"engine", "memory"} {
		b.Run(target, func(b *testing.B) {
			c := newCluster(b, 8)
			sessions := benchSessions(500)
			now := time.Now().UnixMilli()
			payload := benchPayload()
			for i := range b.N {
				c.producer.Produce(b.Context(), benchRecord(c, sessions, i, payload, now), nil)
			}
			if err := c.producer.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			var s store = discardStore{newMemoryStore()}
			if target == "engine" {
				s = newEngineStore(b)
			}
			b.ReportAllocs()
			own, engine := cpuTime(b, os.Getpid()), cpuTime(b, enginePid())
			b.ResetTimer()
			m := c.launch(DefaultConfig(), 1, s)
			for p := range uint16(8) {
				if err := m.marks.Wait(b.Context(), p, c.end(p)); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			perEvent := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(b.N) }
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(perEvent(cpuTime(b, os.Getpid())-own), "own-cpu-us/event")
			b.ReportMetric(perEvent(cpuTime(b, enginePid())-engine), "engine-cpu-us/event")
			b.ReportMetric(m.metric("inserts_total", ""), "inserts")
			m.stopped()
		})
	}
}

// enginePid is the engine's process, our own while there is none.
func enginePid() int {
	if shared.process == nil {
		return os.Getpid()
	}
	return shared.process.Pid()
}

// cpuTime is what a process has used so far (proc(5), stat, utime and stime). Unlike the
// time on the wall it does not mind what else the machine does.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skipf("no CPU times here: %v", err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// discardStore takes everything: what is left is our own work.
type discardStore struct{ *memoryStore }

func (discardStore) insert(context.Context, string, *batch) error { return nil }

// BenchmarkRow is the way from record to row.
func BenchmarkRow(b *testing.B) {
	c := &cluster{partitions: 1}
	r := benchRecord(c, benchSessions(500), 1, benchPayload(), time.Now().UnixMilli())
	j := judge{epoch: 1, placement: c.placement, window: schema.NewWindow(schema.DedupeRule{Offsets: 1000, Age: time.Minute})}
	out := newBatch(1, 0)
	b.ReportAllocs()
	for b.Loop() {
		r.Offset++
		made := j.row(r)
		if out.len() == 50_000 {
			out.reset()
		}
		out.add(&made)
	}
}

// BenchmarkInsert is one insert of 50,000 rows.
func BenchmarkInsert(b *testing.B) {
	s := newEngineStore(b)
	c := &cluster{partitions: 1}
	j := judge{epoch: 1, placement: c.placement, window: schema.NewWindow(schema.DedupeRule{Offsets: 1000, Age: time.Minute})}
	sessions, payload, offset := benchSessions(500), benchPayload(), int64(0)
	out := newBatch(1, 0)
	b.ReportAllocs()
	rows, own, engine := 0, time.Duration(0), cpuTime(b, enginePid())
	for b.Loop() {
		b.StopTimer()
		out.reset()
		for range 50_000 {
			r := benchRecord(c, sessions, int(offset), payload, time.Now().UnixMilli())
			r.Offset = offset
			offset++
			made := j.row(r)
			out.add(&made)
		}
		runtime.GC()
		before := cpuTime(b, os.Getpid())
		b.StartTimer()
		if err := s.insert(b.Context(), fmt.Sprint("bench-", offset), out); err != nil {
			b.Fatal(err)
		}
		rows += out.len()
		own += cpuTime(b, os.Getpid()) - before
	}
	b.ReportMetric(own.Seconds()*1e6/float64(rows), "own-cpu-us/row")
	b.ReportMetric((cpuTime(b, enginePid())-engine).Seconds()*1e6/float64(rows), "engine-cpu-us/row")
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkLostTable makes b.N rows of a lost table anew.
func BenchmarkLostTable(b *testing.B) {
	c := newCluster(b, 4)
	sessions := benchSessions(500)
	now := time.Now().UnixMilli()
	payload := benchPayload()
	for i := range b.N {
		c.producer.Produce(b.Context(), benchRecord(c, sessions, i, payload, now), nil)
	}
	if err := c.producer.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	c.launchDiscarding(b)
	s := newEngineStore(b)
	b.ResetTimer()
	c.launch(DefaultConfig(), 1, s)
	for p := range uint16(4) {
		for b.Context().Err() == nil {
			if h, err := s.count(b.Context(), p, offsetRange{end: c.end(p)}); err == nil && int64(h.rows) == c.end(p) {
				break
			}
			time.Sleep(20 * time.Millisecond) // between two looks
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// launchDiscarding commits the whole log, and keeps no row of it.
func (c *cluster) launchDiscarding(b *testing.B) {
	b.Helper()
	m := c.launch(DefaultConfig(), 1, discardStore{newMemoryStore()})
	for p := range uint16(c.partitions) {
		if err := m.marks.Wait(b.Context(), p, c.end(p)); err != nil {
			b.Fatal(err)
		}
	}
	m.stopped()
}
