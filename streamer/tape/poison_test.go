package tape

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// year2200 is a time to come that the client can write.
const year2200 = 7_258_118_400_000

// bomb is a compressor whose batches decompress to more than a batch may.
type bomb []byte

func (b bomb) Compress(*bytes.Buffer, []byte, ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	return b, kgo.CodecZstd
}

func newBomb(t *testing.T) bomb {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(make([]byte, kafka.MaxBatchDecompressedBytes+1), nil)
}

// TestBatchesThatCannotBeReadArePassed: at the start of the log, while the tape warms up, and
// live, beside a partition that is well.
func TestBatchesThatCannotBeReadArePassed(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 2)
	bad := l.client(kgo.WithCompressor(newBomb(t)))
	other := "s"
	for i := 0; l.placement.Partition("w", other) == l.placement.Partition("w", "s"); i++ {
		other = fmt.Sprint(i)
	}
	p, q := l.placement.Partition("w", "s"), l.placement.Partition("w", other)
	produceBad := func() {
		t.Helper()
		e := newEvent("s", "a", "", time.Now().UnixMilli())
		e.Payload = make([]byte, 64<<10)
		if err := bad.ProduceSync(context.Background(), l.record(e)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produceGood := func() {
		t.Helper()
		now := time.Now().UnixMilli()
		l.produce(l.record(newEvent("s", "a", "", now)), l.record(newEvent(other, "a", "", now)))
	}
	produceBad()
	produceGood()
	produceBad()
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape, well := openTape(t, tapes, p), openTape(t, tapes, q)
	if tape.Next() != 3 {
		t.Errorf("the tape has passed %d, want 3", tape.Next())
	}
	produceBad()
	produceGood()
	produceBad()
	produceGood()
	waitFor(t, tape, 7)
	waitFor(t, well, 3)
	if got := offsetsOf(tape, "s"); got != "1 4 6" {
		t.Errorf("events on the tape: %s; want 1 4 6", got)
	}
	if got := offsetsOf(well, other); got != "0 1 2" {
		t.Errorf("events on the other tape: %s; want 0 1 2", got)
	}
}

// TestATimeToComeDoesNotLengthenTheWarmUp: the first record with the time that the tape
// begins at, or a later one, is at the start of the log.
func TestATimeToComeDoesNotLengthenTheWarmUp(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	cfg := DefaultConfig()
	cfg.MaxBytes, cfg.DedupeOffsets = 1<<20, 100
	const n = 5000
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = l.record(newEvent("s", "a", "", 1_700_000_000_000))
	}
	records[0] = l.record(newEvent("s", "a", "", year2200))
	l.produce(records[0])
	l.produce(records[1:]...)
	tapes := l.startTapes(cfg, &recordedPast{}, nil)
	defer tapes.Close()
	plan, err := tapes.warmUp(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(n - cfg.MaxBytes/schema.MinEventSize); plan.start != want || plan.from != want-cfg.DedupeOffsets || plan.end != n {
		t.Errorf("warm-up is %+v, want the tape to begin at %d", plan, want)
	}
}

// TestEventsOfOldTimesStayForAWhile: a record that arrives now is kept as long as any other,
// whatever its producer says of its time.
func TestEventsOfOldTimesStayForAWhile(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape := openTape(t, tapes, 0)
	l.produce(l.record(newEvent("s", "a", "", 0)), l.record(newEvent("s", "a", "", 1_700_000_000_000)))
	waitFor(t, tape, 2)
	if got := offsetsOf(tape, "s"); got != "0 1" {
		t.Errorf("events on the tape: %q; want 0 1", got)
	}
}

// TestPoisonHasNoSayInTheWindow: a record that is no event, of a time to come, would make
// the tape believe that its window has forgotten what it holds.
func TestPoisonHasNoSayInTheWindow(t *testing.T) {
	checkGoroutines(t)
	l := startLog(t, 1)
	tapes := l.startTapes(DefaultConfig(), &recordedPast{}, nil)
	defer tapes.Close()
	tape := openTape(t, tapes, 0)
	poison := l.record(newEvent("s", "a", "", year2200))
	poison.Headers = nil
	now := time.Now().UnixMilli()
	l.produce(l.record(newEvent("s", "a", "m", now)), poison, l.record(newEvent("s", "a", "m", now)))
	waitFor(t, tape, 3)
	e := newEvent("s", "a", "m", now)
	e.ID.Epoch, e.ID.Offset = 1, 2
	if repeats, known := tape.Repeats(e); !repeats || !known {
		t.Errorf("Repeats = %v, %v; want true, true", repeats, known)
	}
}
