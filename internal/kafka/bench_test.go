package kafka_test

import (
	"bytes"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

func BenchmarkHighWatermark(b *testing.B) {
	broker := startForTest(b, 8)
	l := openLog(b, broker.Config())
	b.Run("one caller", func(b *testing.B) {
		for b.Loop() {
			if _, err := l.HighWatermark(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("64 callers", func(b *testing.B) {
		b.SetParallelism(32)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for p := uint16(0); pb.Next(); p = (p + 1) % 8 {
				if _, err := l.HighWatermark(b.Context(), p); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// BenchmarkEmbeddedProduce is what an acknowledged append costs the embedded broker and
// one client of it: a record at a time, paced as a quiet session is, and batches from
// eight goroutines. cpu-us/record is of the whole process.
func BenchmarkEmbeddedProduce(b *testing.B) {
	value := bytes.Repeat([]byte{'v'}, 300)
	run := func(name string, producers, batch int, pause time.Duration) {
		b.Run(name, func(b *testing.B) {
			broker := startForTest(b, 4)
			cl := producer(b, broker.Config(), kgo.ProducerLinger(time.Millisecond))
			var wg sync.WaitGroup
			var left atomic.Int64
			left.Store(int64(b.N))
			before, begun := processorTime(b), time.Now()
			b.ResetTimer()
			for p := range producers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						records := make([]*kgo.Record, batch)
						for i := range records {
							records[i] = &kgo.Record{Topic: schema.TopicEvents, Partition: int32(p % 4), Value: value}
						}
						if err := cl.ProduceSync(b.Context(), records...).FirstErr(); err != nil {
							b.Error(err)
							return
						}
						time.Sleep(pause)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			n := float64(b.N * batch)
			b.ReportMetric(n/time.Since(begun).Seconds(), "records/s")
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/n, "cpu-us/record")
		})
	}
	run("1 record, 1 producer", 1, 1, 0)
	run("1 record, 1 producer, 5 ms apart", 1, 1, 5*time.Millisecond)
	run("1 record, 8 producers", 8, 1, 0)
	run("100 records, 8 producers", 8, 100, 0)
}

// processorTime is the processor time this process has used, user and system.
func processorTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRead(b *testing.B) {
	const records = 100_000
	broker := startForTest(b, 1)
	cl := producer(b, broker.Config())
	for range 10 {
		var batch []*kgo.Record
		for i := range records / 10 {
			value := bytes.Repeat([]byte{byte('a' + i%26)}, 300)
			batch = append(batch, &kgo.Record{Topic: schema.TopicEvents, Value: value})
		}
		if err := cl.ProduceSync(b.Context(), batch...).FirstErr(); err != nil {
			b.Fatal(err)
		}
	}
	l := openLog(b, broker.Config())
	read := func(b *testing.B, from, to int64) {
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			if _, err := l.Read(b.Context(), 0, from, to, func(*kgo.Record) error { n++; return nil }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
	}
	b.Run("all 100000", func(b *testing.B) { read(b, 0, records) })
	b.Run("10 in the middle", func(b *testing.B) { read(b, records/2, records/2+10) })
}
