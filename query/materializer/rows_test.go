package materializer

import (
	"maps"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

func equalRows(a, b row) bool {
	samePointer := func(x, y *int64) bool { return x == nil && y == nil || x != nil && y != nil && *x == *y }
	sameFloat := func(x, y *float32) bool { return x == nil && y == nil || x != nil && y != nil && *x == *y }
	return a.workspace == b.workspace && a.session == b.session && a.workflow == b.workflow && a.offset == b.offset &&
		a.ms == b.ms && samePointer(a.clientMs, b.clientMs) && a.tMs == b.tMs && a.kind == b.kind &&
		sameFloat(a.confidence, b.confidence) && a.frame == b.frame && a.messageID == b.messageID &&
		maps.Equal(a.metadata, b.metadata) && a.contentType == b.contentType && a.payload == b.payload
}

func testJudge() judge {
	return judge{
		epoch: 1, window: schema.NewWindow(schema.DedupeRule{Offsets: 100, Age: time.Minute}),
		placement: func(string) schema.Placement { return schema.Placement{Partitions: 1, Shards: 1} },
	}
}

// FuzzRow feeds foreign records: each becomes one row that the table can hold.
func FuzzRow(f *testing.F) {
	c := &cluster{partitions: 1}
	good := c.record(0, 1_790_000_000_000, "m", "a")
	f.Add("ce_type", []byte("a"), []byte("{}"), good.Timestamp.UnixMilli())
	f.Add("ce_time", []byte("0000-01-01T00:00:00Z"), []byte("{"), int64(-1))
	f.Add(strings.Repeat("x", 4000), []byte{0xff}, []byte{0}, int64(1)<<62)
	f.Fuzz(func(t *testing.T, key string, header, value []byte, ms int64) {
		r := &kgo.Record{
			Offset: 7, Timestamp: time.UnixMilli(ms), Value: value,
			Headers: append(append([]kgo.RecordHeader(nil), good.Headers...), kgo.RecordHeader{Key: key, Value: header}),
		}
		first, second := testJudge(), testJudge()
		got, again := first.row(r), second.row(r)
		if !equalRows(got, again) {
			t.Errorf("one record makes two rows: %+v, %+v", got, again)
		}
		if got.offset != 7 || got.ms < 0 || got.ms > schema.MaxEventTimeMs || got.tMs < 0 ||
			got.clientMs != nil && (*got.clientMs < 0 || *got.clientMs > schema.MaxEventTimeMs) {
			t.Errorf("row = %+v, which the table cannot hold", got)
		}
		if reason := got.metadata["reason"]; got.kind == schema.TypeDeadLetter && (reason == "" || len(reason) > 512 || !utf8.ValidString(reason) || got.letter == nil || got.letter.Why != reason) {
			t.Errorf("reason = %q", reason)
		}
	})
}

func TestBatchWithoutHasTheOtherRows(t *testing.T) {
	b := newBatch(1, 0)
	for _, offset := range []int64{3, 4, 8, 9, 20} {
		b.add(&row{offset: offset, ms: 1000 + offset, kind: "a"})
	}
	got := b.without([]int64{3, 8, 20})
	if got.len() != 2 || got.offset[0] != 4 || got.offset[1] != 9 || got.minMs != 1004 || got.maxMs != 1009 {
		t.Errorf("without() = offsets %v, times %d to %d; want 4 and 9", got.offset, got.minMs, got.maxMs)
	}
}

func TestBatchBounds(t *testing.T) {
	b := newBatch(1, 0)
	l := limits{rows: 2, bytes: 1000}
	large := row{offset: 1, kind: "a", payload: strings.Repeat("x", 5000)}
	if !b.fits(&large, l) {
		t.Error("the first row of a batch does not fit")
	}
	b.add(&large)
	if small := (row{offset: 2, kind: "a"}); b.fits(&small, l) || !b.full(l) {
		t.Error("a row fits behind one that is over the bound")
	}
	b.reset()
	for offset := range int64(2) {
		b.add(&row{offset: offset, kind: "a"})
	}
	if third := (row{offset: 3, kind: "a"}); b.fits(&third, l) || !b.full(l) {
		t.Error("a third row fits in a batch of two")
	}
}
