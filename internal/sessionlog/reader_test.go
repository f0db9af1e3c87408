package sessionlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// memoryLog is one partition held in memory; offsets below start are gone.
type memoryLog struct {
	records []*kgo.Record // nil: none, as at the offset of a transaction marker
	start   int64
	read    int     // records handed out
	ends    []int64 // where the log ends for those who answer the first reads
}

func (l *memoryLog) Bounds(context.Context, uint16) (start, end int64, err error) {
	return l.start, int64(len(l.records)), nil
}

func (l *memoryLog) OffsetForTime(_ context.Context, _ uint16, ms int64) (int64, error) {
	for i := l.start; i < int64(len(l.records)); i++ {
		if r := l.records[i]; r != nil && r.Timestamp.UnixMilli() >= ms {
			return i, nil
		}
	}
	return int64(len(l.records)), nil
}

func (l *memoryLog) Read(_ context.Context, _ uint16, from, to int64, fn func(*kgo.Record) error) (int64, error) {
	if len(l.ends) > 0 {
		to = max(from, min(to, l.ends[0]))
		l.ends = l.ends[1:]
	}
	for i := from; i < to; i++ {
		if l.records[i] == nil {
			continue
		}
		l.read++
		if err := fn(l.records[i]); err != nil {
			return i, err
		}
	}
	return to, nil
}

func (l *memoryLog) append(e *schema.Event) {
	r := &kgo.Record{
		Offset: int64(len(l.records)), Value: e.Payload, Timestamp: time.UnixMilli(e.ID.TimeMs),
		Headers: schema.AppendHeaders[kgo.RecordHeader](nil, e, fmt.Sprint(len(l.records))),
	}
	l.records = append(l.records, r)
}

// randomLog has two workspaces, each of two sessions whose events name a workflow or none,
// repeats near and far, and records that are no events.
func randomLog(rng *rand.Rand, n int) *memoryLog {
	l := &memoryLog{}
	ms := int64(1_700_000_000_000)
	for i := range n {
		ms += rng.Int64N(50)
		if rng.IntN(20) == 0 {
			l.records = append(l.records, &kgo.Record{Offset: int64(i), Value: []byte("poison"), Timestamp: time.UnixMilli(ms)})
			continue
		}
		e := &schema.Event{
			ID: schema.EventID{TimeMs: ms}, Workspace: []string{"w", "w", "w2"}[rng.IntN(3)], Session: fmt.Sprint("s", rng.IntN(2)),
			Workflow: []string{"", "wf1", "wf2"}[rng.IntN(3)], Type: "t",
			Payload: []byte("{}"), ContentType: schema.DefaultContentType,
		}
		if rng.IntN(3) > 0 {
			e.MessageID = fmt.Sprint("m", rng.IntN(n/4+1))
		}
		l.append(e)
	}
	return l
}

var testRule = schema.DedupeRule{Offsets: 60, Age: time.Hour}

// judged returns the offsets of the scope's events that repeat nothing, told by one
// window that has seen the whole log.
func judged(t *testing.T, l *memoryLog, scope schema.Scope) []int64 {
	t.Helper()
	w := schema.NewWindow(testRule)
	var out []int64
	for _, r := range l.records {
		e, err := schema.DecodeRecord(schema.EventID{
			Position: schema.Position{Epoch: 1, Offset: r.Offset}, TimeMs: r.Timestamp.UnixMilli(),
		}, r.Headers, r.Value)
		if err != nil {
			continue
		}
		if _, repeats := w.Observe(e); !repeats && scope.Holds(e) {
			out = append(out, r.Offset)
		}
	}
	return out
}

func newReader(l *memoryLog) *Reader {
	return &Reader{Log: l, Rule: testRule, Scope: schema.Scope{Workspace: "w", Session: "s0"}, Epoch: 1, Placement: onePartition}
}

func TestAnyStretchIsJudgedAsTheWholeLogIs(t *testing.T) {
	stop := errors.New("enough")
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := randomLog(rng, 400)
		scope := []schema.Scope{
			{Workspace: "w", Session: "s0"}, {Workspace: "w", Workflow: "wf1"}, {Workspace: "w"}, {Workspace: "none"},
		}[seed%4]
		all := judged(t, l, scope)
		from := rng.Int64N(400)
		var want []int64
		for _, o := range all {
			if o >= from {
				want = append(want, o)
			}
		}
		// Read in pieces: to random ends, and stopped by emit.
		r := newReader(l)
		r.Scope = scope
		var got []int64
		for next := from; next < 400; {
			left := rng.IntN(20)
			to := min(400, next+1+rng.Int64N(100))
			var err error
			next, err = r.Read(t.Context(), next, to, func(e *schema.Event) error {
				got = append(got, e.ID.Offset)
				if left--; left < 0 {
					return stop
				}
				return nil
			})
			if err != nil && !errors.Is(err, stop) {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d, %+v from %d: events at %v, want %v", seed, scope, from, got, want)
		}
	}
}

// knowing is a judge that answers everything.
type knowing struct{ repeats bool }

func (k knowing) Repeats(*schema.Event) (repeats, known bool) { return k.repeats, true }

func TestTheJudgeSparesTheWarmUp(t *testing.T) {
	l := randomLog(rand.New(rand.NewPCG(7, 7)), 400)
	r := newReader(l)
	r.Judge = knowing{repeats: true}
	if _, err := r.Read(t.Context(), 300, 400, func(e *schema.Event) error {
		if e.MessageID != "" {
			t.Errorf("offset %d is emitted, which the judge calls a repeat", e.ID.Offset)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if l.read != 100 {
		t.Errorf("%d records read, want the 100 asked for", l.read)
	}
}

func TestForgottenPastIsAnErrorOnlyIfStrict(t *testing.T) {
	l := &memoryLog{}
	for i := range 100 {
		l.append(&schema.Event{
			ID: schema.EventID{TimeMs: 1_700_000_000_000}, Workspace: "w", Session: "s0", Type: "t",
			MessageID: fmt.Sprint("m", i), Payload: []byte("{}"), ContentType: schema.DefaultContentType,
		})
	}
	l.start = 50
	r := newReader(l)
	n := 0
	count := func(*schema.Event) error { n++; return nil }
	if _, err := r.Read(t.Context(), 60, 100, count); err != nil || n != 40 {
		t.Errorf("lenient: %d events, %v; want 40", n, err)
	}
	r = newReader(l)
	r.Strict = true
	if _, err := r.Read(t.Context(), 60, 100, count); !errors.Is(err, ErrForgotten) {
		t.Errorf("strict: %v, want ErrForgotten", err)
	}
	l.records[50] = nil // the first record lies above the log start offset, and is no older for it
	r = newReader(l)
	r.Strict = true
	if _, err := r.Read(t.Context(), 60, 100, count); !errors.Is(err, ErrForgotten) {
		t.Errorf("strict, and the log begins without a record: %v, want ErrForgotten", err)
	}
}

func TestSpendEndsTheReading(t *testing.T) {
	l := randomLog(rand.New(rand.NewPCG(3, 3)), 400)
	broke := errors.New("spent")
	left := 30
	r := newReader(l)
	r.Spend = func(int) error {
		if left--; left < 0 {
			return broke
		}
		return nil
	}
	if _, err := r.Read(t.Context(), 100, 400, func(*schema.Event) error { return nil }); !errors.Is(err, broke) {
		t.Errorf("Read = %v, want %v", err, broke)
	}
	if l.read != 31 {
		t.Errorf("%d records read, want 31: warming up counts", l.read)
	}
}

// sometimes is a judge that has seen the log from an offset on.
type sometimes struct {
	l     *memoryLog
	since int64
}

func (j sometimes) Repeats(e *schema.Event) (repeats, known bool) {
	if e.ID.Offset < j.since {
		return false, false
	}
	w := schema.NewWindow(testRule)
	for _, r := range j.l.records[:e.ID.Offset+1] {
		earlier, err := schema.DecodeRecord(schema.EventID{
			Position: schema.Position{Epoch: 1, Offset: r.Offset}, TimeMs: r.Timestamp.UnixMilli(),
		}, r.Headers, r.Value)
		if err == nil {
			_, repeats = w.Observe(earlier)
		}
	}
	return repeats, true
}

// 1. A reader of a workflow meets a record of another workflow before its own window is
// needed, and passes it over. 2. The judge does not know the next of its own, which repeats
// that record. 3. The window must be warmed up with what was passed over.
func TestRepeatsOfOtherWorkflowsAreTold(t *testing.T) {
	l := &memoryLog{}
	for i, workflow := range []string{"wf2", "", "wf1", "wf1"} {
		l.append(&schema.Event{
			ID: schema.EventID{TimeMs: 1_700_000_000_000 + int64(i)}, Workspace: "w", Session: "s0", Workflow: workflow, Type: "t",
			MessageID: fmt.Sprint("m", i/3), Payload: []byte("{}"), ContentType: schema.DefaultContentType,
		})
	}
	for since := range int64(5) {
		r := newReader(l)
		r.Scope = schema.Scope{Workspace: "w", Workflow: "wf1"}
		r.Judge = sometimes{l, since}
		var got []int64
		if _, err := r.Read(t.Context(), 0, 4, func(e *schema.Event) error {
			got = append(got, e.ID.Offset)
			return nil
		}); err != nil || !slices.Equal(got, []int64{3}) {
			t.Errorf("judge since %d: events at %v, %v, want [3]", since, got, err)
		}
	}
}

func TestForgottenPastOfOthersIsNoError(t *testing.T) {
	l := &memoryLog{}
	for i := range 100 {
		e := &schema.Event{
			ID: schema.EventID{TimeMs: 1_700_000_000_000}, Workspace: "w", Session: "s0", Workflow: "wf2", Type: "t",
			MessageID: fmt.Sprint("m", i), Payload: []byte("{}"), ContentType: schema.DefaultContentType,
		}
		if i == 70 {
			e.Workflow, e.MessageID = "wf1", ""
		}
		l.append(e)
	}
	l.start = 50
	r := newReader(l)
	r.Strict = true
	r.Scope = schema.Scope{Workspace: "w", Workflow: "wf1"}
	n := 0
	if _, err := r.Read(t.Context(), 60, 100, func(*schema.Event) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d events, %v, want the one, which repeats nothing for sure", n, err)
	}
}

// BenchmarkForeignRecords is what a record of another workspace costs its readers.
func BenchmarkForeignRecords(b *testing.B) {
	l := &memoryLog{}
	for i := range 1000 {
		l.append(&schema.Event{
			ID: schema.EventID{TimeMs: 1_700_000_000_000}, Workspace: "other", Session: "s0", Type: "t",
			MessageID: fmt.Sprint("m", i), Payload: []byte(`{"x":1}`), ContentType: schema.DefaultContentType,
		})
	}
	r := newReader(l)
	r.Scope = schema.Scope{Workspace: "w"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Read(b.Context(), 0, 1000, func(*schema.Event) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
}

func onePartition(string) schema.Placement { return schema.Placement{Partitions: 1, Shards: 1} }

// 1. A partition's leader hangs, and another takes over; 2. a tape reads on there, and trims
// what it gets; 3. the old one goes on, is asked what lies below the tape, and ends the log
// before that. What it does not know of is not skipped.
func TestAnOldLeaderHidesNothing(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 3))
		l := randomLog(rng, 200)
		r := newReader(l)
		var want []int64
		if _, err := r.Read(t.Context(), 0, 200, func(e *schema.Event) error { want = append(want, e.ID.Offset); return nil }); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			l.ends = append(l.ends, rng.Int64N(200))
		}
		var got []int64
		next, err := newReader(l).Read(t.Context(), 0, 200, func(e *schema.Event) error { got = append(got, e.ID.Offset); return nil })
		if err != nil || next != 200 || !slices.Equal(got, want) {
			t.Fatalf("seed %d: %d events up to %d, %v; want %d up to 200", seed, len(got), next, err, len(want))
		}
	}
}

func TestALogThatStaysBehindIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := randomLog(rand.New(rand.NewPCG(1, 4)), 100)
		for range 10_000 {
			l.ends = append(l.ends, 50)
		}
		next, err := newReader(l).Read(t.Context(), 0, 100, func(*schema.Event) error { return nil })
		if !errors.Is(err, ErrBehind) || next > 50 {
			t.Errorf("Read = %d, %v; want at most 50 and %v", next, err, ErrBehind)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		l.ends = l.ends[:100]
		if _, err := newReader(l).Read(ctx, 0, 100, func(*schema.Event) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Read = %v, want its context's end", err)
		}
	})
}
