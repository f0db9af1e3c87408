package schema_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// maxSkew is how far record times may run back; DedupeRule rests on it.
const maxSkew = time.Minute

// verdict is what a reader makes of one record.
type verdict struct {
	first     schema.EventID
	duplicate bool
}

// naiveVerdicts follows the words of DedupeRule, record by record, over all earlier ones.
func naiveVerdicts(rule schema.DedupeRule, log []*schema.Event) []verdict {
	out := make([]verdict, len(log))
	for i, e := range log {
		if e.MessageID == "" {
			continue
		}
		out[i].first = e.ID
		for j := i - 1; j >= 0; j-- {
			p := log[j]
			if p.MessageID == e.MessageID && p.Session == e.Session && p.Workspace == e.Workspace &&
				e.ID.Offset-p.ID.Offset <= rule.Offsets && e.ID.TimeMs-p.ID.TimeMs <= rule.Age.Milliseconds() {
				out[i] = verdict{out[j].first, true}
				break
			}
		}
	}
	return out
}

func windowVerdicts(rule schema.DedupeRule, log []*schema.Event) []verdict {
	w := schema.NewWindow(rule)
	out := make([]verdict, len(log))
	for i, e := range log {
		if e.MessageID != "" {
			found, ok := w.Lookup(schema.MessageKey(e.Workspace, e.Session, e.MessageID), e.ID)
			out[i].first, out[i].duplicate = w.Observe(e)
			if ok != out[i].duplicate || ok && found != out[i].first {
				panic(fmt.Sprintf("record %d: Lookup says %v %v, Observe %+v", i, found, ok, out[i]))
			}
			continue
		}
		out[i].first, out[i].duplicate = w.Observe(e)
	}
	return out
}

// randomLog has n records of few message ids; offsets have gaps, times run back by up to
// maxSkew and now and then leap ahead.
func randomLog(r *rand.Rand, n, ids int, step time.Duration) []*schema.Event {
	log := make([]*schema.Event, n)
	offset, clock := int64(r.IntN(1000)), int64(1_790_000_000_000)
	for i := range log {
		offset += 1 + int64(r.IntN(3))
		clock += r.Int64N(step.Milliseconds() + 1)
		if r.IntN(100) == 0 {
			clock += r.Int64N(20 * time.Minute.Milliseconds())
		}
		ms := clock
		if r.IntN(3) == 0 {
			ms -= r.Int64N(maxSkew.Milliseconds() + 1)
		}
		e := &schema.Event{ID: eventID(5, offset, ms), Workspace: fmt.Sprint("w", r.IntN(2)), Session: fmt.Sprint("s", r.IntN(2))}
		if r.IntN(10) > 0 {
			e.MessageID = fmt.Sprint(r.IntN(ids))
		}
		log[i] = e
	}
	return log
}

func randomRule(r *rand.Rand) schema.DedupeRule {
	return schema.DedupeRule{
		Offsets: []int64{1, 5, 50, 1_000_000}[r.IntN(4)],
		Age:     []time.Duration{time.Millisecond, 2 * time.Second, time.Minute, 10 * time.Minute}[r.IntN(4)],
	}
}

func TestWindowAgreesWithTheRule(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	for range 150 {
		rule := randomRule(r)
		log := randomLog(r, 400, 1+r.IntN(60), []time.Duration{0, 100 * time.Millisecond, 20 * time.Second}[r.IntN(3)])
		want, got := naiveVerdicts(rule, log), windowVerdicts(rule, log)
		for i := range log {
			if got[i] != want[i] {
				t.Fatalf("%+v, record %d of %d: Observe = %+v, want %+v", rule, i, len(log), got[i], want[i])
			}
		}
	}
}

// 1. A message arrives by a node whose clock is ahead. 2. Its repeat arrives by a node
// whose clock is behind. 3. A third copy lies within Age of the first, but not of the
// second: the second must not hide the first.
func TestTimeRunningBackHidesNoEarlierRecord(t *testing.T) {
	w := schema.NewWindow(schema.DedupeRule{Offsets: 100, Age: 10 * time.Second})
	at := func(offset, ms int64) *schema.Event {
		return &schema.Event{ID: eventID(0, offset, ms), Workspace: "w", Session: "s", MessageID: "m"}
	}
	w.Observe(at(1, 60_000))
	w.Observe(at(2, 50_000))
	first, duplicate := w.Observe(at(3, 65_000))
	if !duplicate || first.Offset != 1 {
		t.Errorf("third copy: %v, duplicate %v; want a duplicate of the first", first, duplicate)
	}
}

func TestWarmedUpWindowJudgesAsOneFedFromTheStart(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 150 {
		rule := randomRule(r)
		log := randomLog(r, 400, 1+r.IntN(60), []time.Duration{0, 100 * time.Millisecond, 20 * time.Second}[r.IntN(3)])
		all := windowVerdicts(rule, log)
		start := r.IntN(len(log))
		// As a reader finds its beginning: the first record that is late enough, or the
		// first that is near enough, whichever comes later.
		from := 0
		for log[from].ID.TimeMs < log[start].ID.TimeMs-rule.WarmUpAge().Milliseconds() ||
			log[from].ID.Offset < log[start].ID.Offset-rule.Offsets {
			from++
		}
		warm := windowVerdicts(rule, log[from:])
		for i := start; i < len(log); i++ {
			got, want := warm[i-from], all[i]
			if got.duplicate != want.duplicate {
				t.Fatalf("%+v, begun at %d for %d: record %d duplicate %v, want %v", rule, from, start, i, got.duplicate, want.duplicate)
			}
			if want.first.Offset >= log[from].ID.Offset && got.first != want.first {
				t.Fatalf("%+v, begun at %d for %d: record %d first %v, want %v", rule, from, start, i, got.first, want.first)
			}
		}
	}
}

func TestWindowBoundsAreInclusive(t *testing.T) {
	rule := schema.DedupeRule{Offsets: 10, Age: time.Second}
	for _, c := range []struct {
		offset, ms int64
		want       bool
	}{{110, 5000, true}, {111, 5000, false}, {101, 6000, true}, {101, 6001, false}, {110, 6000, true}, {101, 1, true}} {
		w := schema.NewWindow(rule)
		w.Observe(&schema.Event{ID: eventID(0, 100, 5000), Workspace: "w", Session: "s", MessageID: "m"})
		key := schema.MessageKey("w", "s", "m")
		if _, got := w.Lookup(key, eventID(0, c.offset, c.ms)); got != c.want {
			t.Errorf("at offset +%d, time +%d ms: duplicate %v, want %v", c.offset-100, c.ms-5000, got, c.want)
		}
	}
}

func TestMessageKeysTellTheirPartsApart(t *testing.T) {
	seen := map[any]string{}
	for _, p := range [][3]string{{"a", "b", "c"}, {"ab", "", "c"}, {"a", "bc", ""}, {"", "ab", "c"}, {"a", "b", "d"}, {"a", "c", "b"}, {"b", "a", "c"}} {
		key := schema.MessageKey(p[0], p[1], p[2])
		if other, ok := seen[key]; ok {
			t.Errorf("%q and %s have one key", p, other)
		}
		seen[key] = fmt.Sprint(p)
	}
}

func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestWindowIsBoundedAndReleasesItsMemory(t *testing.T) {
	const n = 200_000
	rule := schema.DedupeRule{Offsets: n, Age: 10 * time.Minute}
	before := heapBytes()
	w := schema.NewWindow(rule)
	e := &schema.Event{Workspace: "w", Session: "s"}
	observe := func(i, ms int64) {
		e.ID, e.MessageID = eventID(0, i, ms), fmt.Sprint(i)
		w.Observe(e)
	}
	offset := int64(0)
	for range 2 * n {
		observe(offset, 1_790_000_000_000)
		offset++
	}
	if w.Len() > n+1 {
		t.Errorf("holds %d message ids, want at most %d", w.Len(), n+1)
	}
	full := heapBytes() - before
	t.Logf("%d bytes an offset", full/n)
	if full > 160*n {
		t.Errorf("a full window takes %d bytes an offset, want at most 160", full/n)
	}
	// Records without a message id push the others out too.
	w.Observe(&schema.Event{ID: eventID(0, offset, 1_790_000_000_000+time.Hour.Milliseconds())})
	if w.Len() != 0 {
		t.Errorf("an hour later it holds %d message ids, want 0", w.Len())
	}
	if kept := int64(heapBytes()) - int64(before); kept > int64(full/20) {
		t.Errorf("an hour later it holds %d of %d bytes", kept, full)
	}
	runtime.KeepAlive(w)
}

func BenchmarkWindowObserve(b *testing.B) {
	for _, c := range []struct {
		name string
		ids  bool
	}{{"new ids", true}, {"no ids", false}} {
		b.Run(c.name, func(b *testing.B) {
			w := schema.NewWindow(schema.DedupeRule{Offsets: 100_000, Age: schema.DefaultDedupeAge})
			messageIDs := make([]string, 1<<18)
			for i := range messageIDs {
				if c.ids {
					messageIDs[i] = fmt.Sprintf("01JB2Q0W3T9-%06d", i)
				}
			}
			e := benchEvent()
			offset := int64(0)
			observe := func() {
				offset++
				e.ID, e.MessageID = eventID(0, offset, 1_790_000_000_000+offset/100), messageIDs[offset%int64(len(messageIDs))]
				if _, duplicate := w.Observe(e); duplicate {
					b.Fatal("no record repeats another")
				}
			}
			for range 200_000 {
				observe() // so that the window is full
			}
			b.ReportAllocs()
			for b.Loop() {
				observe()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
