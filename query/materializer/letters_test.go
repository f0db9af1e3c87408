package materializer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// letterBox is a DeadLetters in memory.
type letterBox struct {
	mu     sync.Mutex
	all    []*schema.DeadLetter
	before func(ctx context.Context) error // an error: nothing is kept
}

func (b *letterBox) Keep(ctx context.Context, letters []*schema.DeadLetter) error {
	b.mu.Lock()
	before := b.before
	b.mu.Unlock()
	if before != nil {
		if err := before(ctx); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, letters...)
	return nil
}

func (b *letterBox) set(before func(ctx context.Context) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = before
}

// kept returns what was kept, as "offset reason", each position once, and how many more.
func (b *letterBox) kept() (out []string, again int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := make(map[schema.Position]bool)
	for _, l := range b.all {
		if seen[l.At] {
			again++
			continue
		}
		seen[l.At] = true
		out = append(out, fmt.Sprint(l.At.Offset, " ", l.Reason))
	}
	slices.SortFunc(out, strings.Compare)
	return out, again
}

func (b *letterBox) want(t *testing.T, want ...string) {
	t.Helper()
	slices.SortFunc(want, strings.Compare)
	if got, _ := b.kept(); !slices.Equal(got, want) {
		t.Errorf("dead letters: %q, want %q", got, want)
	}
}

// poisons returns records that are no events, with the reasons.
func (c *cluster) poisons(ms int64) (records []*kgo.Record, reasons []schema.Reason) {
	add := func(reason schema.Reason, spoil func(r *kgo.Record)) {
		r := c.record(0, ms, "", "a")
		spoil(r)
		records, reasons = append(records, r), append(reasons, reason)
	}
	add(schema.ReasonVersion, func(r *kgo.Record) { r.Headers, r.Key = nil, nil })
	add(schema.ReasonJSON, func(r *kgo.Record) { r.Value = nil })
	add(schema.ReasonTimestamp, func(r *kgo.Record) { r.Timestamp = time.UnixMilli(-1) })
	add(schema.ReasonRepeated, func(r *kgo.Record) { r.Headers = append(r.Headers, r.Headers[0]) })
	add(schema.ReasonPartition, func(r *kgo.Record) { *r = *c.record(1, ms, "", "a"); r.Partition = 0 })
	return records, reasons
}

func TestDeadLettersAreKeptOnceAndCarryTheRecord(t *testing.T) {
	c := newCluster(t, 2)
	box := &letterBox{}
	c.letters = box
	now := time.Now().UnixMilli()
	records, reasons := c.poisons(now)
	var want []string
	for i, r := range records {
		c.produce(c.record(0, now, "", "good"), r)
		want = append(want, fmt.Sprint(2*i+1, " ", reasons[i]))
	}
	s := newMemoryStore()
	m := c.launch(testConfig(), 1, s)
	m.wait(0, 10)
	m.stopped()
	box.want(t, want...)
	m = c.launch(testConfig(), 1, s)
	c.produceEvents(0, 1)
	m.wait(0, 11)
	if _, again := box.kept(); again > 0 {
		t.Errorf("%d letters were written again by a restart in order", again)
	}
	for _, l := range box.all {
		r := records[l.At.Offset/2]
		if l.At.Epoch != 1 || l.At.Partition != 0 || l.TimeMs != r.Timestamp.UnixMilli() || !bytes.Equal(l.Key, r.Key) ||
			(l.Key == nil) != (r.Key == nil) || !bytes.Equal(l.Value, r.Value) || len(l.Headers) != len(r.Headers) || l.Why == "" || !l.Whole() {
			t.Errorf("letter %+v is not of record %+v", l, r)
		}
	}
}

// TestACrashLeavesEachLetter: at every step around the keeping of letters.
func TestACrashLeavesEachLetter(t *testing.T) {
	for _, step := range []string{"before the letters", "after the letters", "before the insert", "after the insert"} {
		t.Run(step, func(t *testing.T) {
			c := newCluster(t, 2)
			box := &letterBox{}
			c.letters = box
			now := time.Now().UnixMilli()
			records, reasons := c.poisons(now)
			var want []string
			for i := range records {
				want = append(want, fmt.Sprint(i, " ", reasons[i]))
			}
			c.produce(records...)
			s := newMemoryStore()
			f := &faults{testStore: s}
			reached := make(chan struct{}, 100)
			hang := func(ctx context.Context) error {
				reached <- struct{}{}
				<-ctx.Done()
				return errors.New("dead")
			}
			switch step {
			case "before the letters":
				box.set(hang)
			case "after the letters":
				box.set(func(ctx context.Context) error {
					box.set(nil)
					if err := box.Keep(ctx, c.lettersOf(records)); err != nil {
						return err
					}
					return hang(ctx)
				})
			case "before the insert":
				f.before = func(ctx context.Context, _ string, _ *batch) error { return hang(ctx) }
			case "after the insert":
				f.after = func(ctx context.Context, _ string, _ *batch) error { return hang(ctx) }
			}
			p := c.launch(testConfig(), 1, f)
			<-reached
			p.crash()
			box.set(nil)
			p = c.launch(testConfig(), 1, s)
			p.wait(0, int64(len(records)))
			wantExact(t, s, 0, int64(len(records)))
			box.want(t, want...)
			if _, again := box.kept(); (again > 0) != (step == "after the letters") {
				t.Errorf("%d letters were written again", again)
			}
		})
	}
}

// lettersOf makes the letters of records that lie at the start of partition 0.
func (c *cluster) lettersOf(records []*kgo.Record) (out []*schema.DeadLetter) {
	j := judge{epoch: 1, placement: c.placement, window: schema.NewWindow(schema.DedupeRule{Offsets: 1, Age: time.Minute})}
	for i, r := range records {
		made := *r
		made.Offset = int64(i)
		if r := j.row(&made); r.letter != nil {
			out = append(out, r.letter)
		}
	}
	return out
}

// TestLettersAreWaitedFor: while they cannot be kept nothing is announced, and what was
// copied before stays.
func TestLettersAreWaitedFor(t *testing.T) {
	c := newCluster(t, 2)
	box := &letterBox{}
	c.letters = box
	asked := make(chan struct{}, 100)
	box.set(func(context.Context) error {
		asked <- struct{}{}
		return errors.New("away")
	})
	c.produceEvents(0, 3)
	m := c.launch(testConfig(), 1, newMemoryStore())
	m.wait(0, 3)
	records, _ := c.poisons(time.Now().UnixMilli())
	c.produce(records...)
	<-asked
	<-asked
	if got := c.committed(0, 1); got.next > 3 || !got.intent.IsZero() && got.intent.Start >= 3 {
		t.Errorf("committed %+v before the letters are kept", got)
	}
	box.set(nil)
	m.wait(0, 3+int64(len(records)))
	if got, again := box.kept(); len(got) != len(records) || again != 0 {
		t.Errorf("letters %q and %d again", got, again)
	}
}

// bomb is a compressor whose batches decompress to more than a batch may.
type bomb []byte

func (b bomb) Compress(*bytes.Buffer, []byte, ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	return b, kgo.CodecZstd
}

func (c *cluster) produceBomb() {
	c.t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		c.t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(c.options[:len(c.options):len(c.options)],
		kgo.WithCompressor(bomb(w.EncodeAll(make([]byte, kafka.MaxBatchDecompressedBytes+1), nil))),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	r := &kgo.Record{Topic: schema.TopicEvents, Value: make([]byte, 64<<10)}
	if err := cl.ProduceSync(c.t.Context(), r).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
}

// TestBatchesThatCannotBeReadArePassed: they leave a gap in the offsets and a letter each.
func TestBatchesThatCannotBeReadArePassed(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		c := newCluster(t, 1)
		box := &letterBox{}
		c.letters = box
		c.produceBomb()       // 0
		c.produceEvents(0, 2) // 1, 2
		c.produceBomb()       // 3
		m := c.launch(testConfig(), 1, s)
		m.wait(0, 3)
		c.produceEvents(0, 1) // 4
		c.produceBomb()       // 5
		c.produceBomb()       // 6
		c.produceEvents(0, 1) // 7
		m.wait(0, 8)
		m.stopped()
		box.want(t, "0 unreadable_batch", "3 unreadable_batch", "5 unreadable_batch", "6 unreadable_batch")
		c.produceEvents(0, 1) // 8
		m = c.launch(testConfig(), 1, s)
		m.wait(0, 9)
		got := s.types(t, 0)
		for offset := range int64(9) {
			if _, there := got[offset]; there != slices.Contains([]int64{1, 2, 4, 7, 8}, offset) {
				t.Errorf("row at offset %d: %v", offset, there)
			}
		}
	})
}

// TestEventsOfNobodyGetALetterAndARow: once a workspace's name is known they get none.
func TestEventsOfNobodyGetALetterAndARow(t *testing.T) {
	c := newCluster(t, 1)
	box := &letterBox{}
	c.letters = box
	var mu sync.Mutex
	known := false
	c.known = func(string) bool { mu.Lock(); defer mu.Unlock(); return known }
	now := time.Now().UnixMilli()
	c.produce(c.record(0, now, "m", "a"), c.record(0, now, "m", "a"), c.record(0, now, "", schema.TypeSessionEnded))
	s := newMemoryStore()
	m := c.launch(testConfig(), 1, s)
	m.wait(0, 3)
	box.want(t, "0 unknown_workspace") // a repeat and bookkeeping are nobody's loss
	if got := s.types(t, 0)[0]; got != "a" {
		t.Errorf("row of type %q, want the event's", got)
	}
	mu.Lock()
	known = true
	mu.Unlock()
	c.produceEvents(0, 1)
	m.wait(0, 4)
	box.want(t, "0 unknown_workspace")
}

// TestWhatIsErasedLeavesNoLetter: a record that is no event, and says that it is of an
// erased session or workspace.
func TestWhatIsErasedLeavesNoLetter(t *testing.T) {
	c := &cluster{partitions: 1}
	r := c.record(0, 1_790_000_000_000, "m", "a")
	r.Offset, r.Value = 7, []byte("{")
	for name, e := range map[string]schema.Erasure{
		"workspace": {ID: "e", Workspace: "ws"},
		"session":   {ID: "e", Workspace: "ws", Session: c.sessionIn(0), Below: schema.Position{Epoch: 1, Offset: 8}},
	} {
		j := testJudge()
		if got := j.row(r); got.kind != schema.TypeDeadLetter || got.letter == nil {
			t.Fatalf("the record is %+v; the test is of no use", got)
		}
		set := &schema.Erasures{}
		set.Add(&e)
		j.erased = set.Below
		want := row{workspace: "ws", offset: 7, ms: 1_790_000_000_000, kind: schema.TypeErased}
		if got := j.row(r); !equalRows(got, want) || got.letter != nil {
			t.Errorf("erased %s: row = %+v, want %+v", name, got, want)
		}
	}
}
