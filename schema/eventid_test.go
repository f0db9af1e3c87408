package schema_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func randomID(r *rand.Rand) schema.EventID {
	// Shifts give small and large numbers the same chance.
	return schema.EventID{
		Position: schema.Position{
			Epoch:     uint8(1 + r.IntN(255)),
			Partition: uint16(r.Uint32() >> (16 + r.IntN(17))),
			Offset:    int64(r.Uint64() >> (16 + r.IntN(49))),
		},
		TimeMs: int64(r.Uint64() >> (16 + r.IntN(49))),
	}
}

func TestEventIDValueToTextToValue(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 20_000 {
		id := randomID(r)
		for _, text := range []string{id.String(), strings.ToLower(id.String())} {
			got, err := schema.ParseEventID(text)
			if err != nil || got != id {
				t.Fatalf("ParseEventID(%q) = %+v, %v, want %+v", text, got.Position, err, id.Position)
			}
		}
	}
}

func TestEventIDsOfASessionSortAsTextInLogOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 200 {
		partition := map[uint8]uint16{} // a session lives in one partition an epoch
		ids := make([]schema.EventID, 100)
		for i := range ids {
			ids[i] = randomID(r)
			epoch := ids[i].Epoch
			if _, ok := partition[epoch]; !ok {
				partition[epoch] = ids[i].Partition
			}
			ids[i].Partition = partition[epoch]
		}
		byLog := slices.SortedFunc(slices.Values(ids), func(a, b schema.EventID) int { return a.Compare(b.Position) })
		byText := slices.SortedFunc(slices.Values(ids), func(a, b schema.EventID) int {
			return strings.Compare(a.String(), b.String())
		})
		for i := range ids {
			if byLog[i].Position != byText[i].Position {
				t.Fatalf("place %d: by log %v, by text %v", i, byLog[i], byText[i])
			}
		}
	}
}

func TestParseEventIDRejects(t *testing.T) {
	good := eventID(7, 4711, 1_790_000_000_000).String()
	zeroEpoch := schema.EventID{Position: schema.Position{Partition: 1, Offset: 1}, TimeMs: 1}.String()
	for _, s := range []string{
		"", "evt_", good[4:], good + "0", good[:29], "EVT_" + good[4:], " " + good, good[:29] + "\n",
		zeroEpoch,
		"evt_8" + good[5:], // beyond 128 bits
		good[:29] + "1",    // the last 8 bits are zero
		good[:27] + "801",  // likewise
		good[:10] + "I" + good[11:], good[:10] + "l" + good[11:], good[:10] + "O" + good[11:], good[:10] + "u" + good[11:],
		good[:10] + "\xe1" + good[11:], good[:10] + "@" + good[11:], good[:10] + "[" + good[11:], good[:10] + "`" + good[11:], good[:10] + "{" + good[11:],
	} {
		if id, err := schema.ParseEventID(s); !errors.Is(err, schema.ErrEventID) || id != (schema.EventID{}) {
			t.Errorf("ParseEventID(%q) = %v, %v, want ErrEventID", s, id, err)
		}
	}
}

func TestEventIDAppendTextDoesNotAllocate(t *testing.T) {
	id, buf := eventID(7, 4711, 1_790_000_000_000), make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() { buf = id.AppendText(buf[:0]) }); n != 0 {
		t.Errorf("AppendText allocates %v times, want 0", n)
	}
}

func FuzzParseEventID(f *testing.F) {
	f.Add(eventID(7, 4711, 1_790_000_000_000).String())
	f.Add("evt_7ZZZZZZZZZZZZZZZZZZZZZZZR0")
	f.Add("evt_01003g00000096e0d0rh86r000")
	f.Add("evt_0000000000000000000000000")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := schema.ParseEventID(s)
		if err != nil {
			if !errors.Is(err, schema.ErrEventID) {
				t.Fatalf("ParseEventID(%q) error %v is no ErrEventID", s, err)
			}
			return
		}
		if id.IsZero() || !strings.EqualFold(id.String(), s) {
			t.Fatalf("ParseEventID(%q).String() = %q", s, id.String())
		}
	})
}
