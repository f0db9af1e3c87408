package kafka_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// compressAs says of any batch that it compressed to these bytes, by zstd.
type compressAs []byte

func (c compressAs) Compress(*bytes.Buffer, []byte, ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	return c, kgo.CodecZstd
}

// large is longer than what compressAs makes of it, or the client would send it
// as it is.
var large = make([]byte, 64<<10)

// bomb decompresses to more than a batch may.
func bomb(t testing.TB) compressAs {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(make([]byte, kafka.MaxBatchDecompressedBytes+1), nil)
}

// TestBatchesThatCannotBeReadArePassed: a batch whose checksum is right and whose records
// nobody can have is a gap in the offsets, first, last and between others.
func TestBatchesThatCannotBeReadArePassed(t *testing.T) {
	broker := startForTest(t, 1)
	good := producer(t, broker.Config())
	produceBad := func(c compressAs) {
		t.Helper()
		bad := producer(t, broker.Config(), kgo.WithCompressor(c), kgo.ProducerLinger(100*time.Millisecond))
		var records []*kgo.Record
		for range 3 { // of one batch
			records = append(records, &kgo.Record{Topic: schema.TopicEvents, Value: large})
		}
		if err := bad.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produceBad(compressAs("this is not zstd"))
	produce(t, good, 0, "a", "b")
	produceBad(bomb(t))
	produce(t, good, 0, "c")
	produceBad(compressAs("\x28\xb5\x2f\xfd"))
	l := openLog(t, broker.Config())
	if got, next := readAll(t, l, 0, 0, 100); strings.Join(got, " ") != "3=a 4=b 8=c" || next != 12 {
		t.Errorf("Read = %v, %d; want 3=a 4=b 8=c, 12", got, next)
	}
	for from := range int64(12) {
		var want []string
		for offset, s := range map[int64]string{3: "3=a", 4: "4=b", 8: "8=c"} {
			if offset >= from {
				want = append(want, s)
			}
		}
		slices.Sort(want)
		if got, next := readAll(t, l, 0, from, 100); !slices.Equal(got, want) || next != 12 {
			t.Errorf("Read from %d = %v, %d; want %v, 12", from, got, next, want)
		}
	}
	if got, next := readAll(t, l, 0, 0, 6); len(got) != 2 || next != 6 {
		t.Errorf("Read to the middle of a bad batch = %v, %d; want a and b, 6", got, next)
	}
}

func TestOfTheControlTopicNothingIsPassedOver(t *testing.T) {
	broker := startForTest(t, 1)
	bad := producer(t, broker.Config(), kgo.WithCompressor(compressAs("this is not zstd")))
	if err := bad.ProduceSync(t.Context(), &kgo.Record{Topic: schema.TopicControl, Value: large}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	l, err := kafka.OpenTopic(t.Context(), broker.Config(), schema.TopicControl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	if next, err := l.Read(t.Context(), 0, 0, 1, func(*kgo.Record) error { return nil }); err == nil || next != 0 {
		t.Errorf("Read = %d, %v; want an error at 0", next, err)
	}
}
