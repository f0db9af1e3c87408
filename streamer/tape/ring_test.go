package tape

import (
	"slices"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func TestRingIsReadFromAnOffsetUpToALimit(t *testing.T) {
	var r ring
	for offset := range int64(10) { // 0 to 18, the even ones; the first four leave again
		r.push(&Entry{Event: schema.Event{ID: schema.EventID{Position: schema.Position{Offset: 2 * offset}}}})
	}
	for range 4 {
		r.pop()
	}
	f := func(from int64, limit int, want []int64, wantMore bool) {
		t.Helper()
		before := &Entry{Event: schema.Event{ID: schema.EventID{Position: schema.Position{Offset: -1}}}}
		entries, more := r.appendFrom([]*Entry{before}, from, limit)
		var got []int64
		for _, e := range entries {
			got = append(got, e.ID.Offset)
		}
		if want := append([]int64{-1}, want...); !slices.Equal(got, want) || more != wantMore {
			t.Errorf("appendFrom(%d, %d) = %d, %v; want %d, %v", from, limit, got, more, want, wantMore)
		}
	}
	f(0, 3, []int64{8, 10, 12}, true)
	f(8, 6, []int64{8, 10, 12, 14, 16, 18}, false)
	f(8, 100, []int64{8, 10, 12, 14, 16, 18}, false)
	f(13, 1, []int64{14}, true)
	f(13, 0, nil, true)
	f(18, 1, []int64{18}, false)
	f(19, 5, nil, false)
	r = ring{}
	f(0, 5, nil, false)
}
