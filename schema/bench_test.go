package schema_test

import (
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func BenchmarkEventIDAppendText(b *testing.B) {
	id, buf := eventID(7, 4711, 1_790_000_000_000), make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		id.Offset++
		buf = id.AppendText(buf[:0])
	}
}

func BenchmarkParseEventID(b *testing.B) {
	text := eventID(7, 4711, 1_790_000_000_000).String()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := schema.ParseEventID(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFilterMatch(b *testing.B) {
	e := fullEvent()
	e.Type = "memory.created"
	for name, query := range map[string]string{
		"all": "", "types": "type=a,b,memory.created,x", "prefix": "type=memory.*", "metadata": "filters[lang]=en", "everything": "type=memory.*&confidence_gte=0.5&from_t_ms=1&filters[lang]=en&since=1",
	} {
		f := mustFilter(b, query)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !f.Match(e) {
					b.Fatal("no match")
				}
			}
		})
	}
}

func BenchmarkSessionApply(b *testing.B) {
	log := logOf("a b c memory.created a a b")
	s := schema.NewSession()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Apply(log[i%len(log)])
	}
}
