package sessionlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// memoryLog is one partition held in memory; offsets below start are gone.
type memoryLog struct {
	records []*kgo.Record
	start   int64
	read    int // records handed out
}

func (l *memoryLog) Bounds(context.Context, uint16) (start, end int64, err error) {
	return l.start, int64(len(l.records)), nil
}

func (l *memoryLog) OffsetForTime(_ context.Context, _ uint16, ms int64) (int64, error) {
	for i := l.start; i < int64(len(l.records)); i++ {
		if l.records[i].Timestamp.UnixMilli() >= ms {
			return i, nil
		}
	}
	return int64(len(l.records)), nil
}

func (l *memoryLog) Read(_ context.Context, _ uint16, from, to int64, fn func(*kgo.Record) error) (int64, error) {
	for i := from; i < to; i++ {
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

// randomLog has two sessions, repeats near and far, and records that are no events.
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
			ID: schema.EventID{TimeMs: ms}, Workspace: "w", Session: fmt.Sprint("s", rng.IntN(2)), Type: "t",
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

// judged returns the offsets of the session's events that repeat nothing, told by one
// window that has seen the whole log.
func judged(t *testing.T, l *memoryLog, session string) []int64 {
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
		if _, repeats := w.Observe(e); !repeats && e.Session == session {
			out = append(out, r.Offset)
		}
	}
	return out
}

func newReader(l *memoryLog) *Reader {
	return &Reader{Log: l, Rule: testRule, Workspace: "w", Session: "s0", Epoch: 1}
}

func TestAnyStretchIsJudgedAsTheWholeLogIs(t *testing.T) {
	stop := errors.New("enough")
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := randomLog(rng, 400)
		all := judged(t, l, "s0")
		from := rng.Int64N(400)
		var want []int64
		for _, o := range all {
			if o >= from {
				want = append(want, o)
			}
		}
		// Read in pieces: to random ends, and stopped by emit.
		r := newReader(l)
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
			t.Fatalf("seed %d from %d: events at %v, want %v", seed, from, got, want)
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
