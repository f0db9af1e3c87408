package kafka_test

import (
	"bytes"
	"testing"

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
