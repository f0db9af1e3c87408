package schema_test

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func randomCursor(r *rand.Rand) schema.Cursor {
	c := schema.Cursor{ID: randomID(r)}
	seen := map[uint16]bool{c.ID.Partition: true}
	for range r.IntN(8) {
		o := randomID(r)
		if !seen[o.Partition] {
			seen[o.Partition] = true
			c.Others = append(c.Others, schema.NextOffset{Partition: o.Partition, Offset: o.Offset})
		}
	}
	slices.SortFunc(c.Others, func(a, b schema.NextOffset) int { return int(a.Partition) - int(b.Partition) })
	if r.IntN(2) == 0 {
		c.Filter = r.Uint32()
	}
	return c
}

func TestCursorValueToTextToValue(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 20_000 {
		want := randomCursor(r)
		for _, prefix := range []string{"", "heartbeat_", "error_"} {
			got, err := schema.ParseCursor(prefix + want.String())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("ParseCursor(%q) = %+v, %v, want %+v", prefix+want.String(), got, err, want)
			}
		}
	}
}

func TestZeroCursor(t *testing.T) {
	var c schema.Cursor
	if c.String() != "" || !c.IsZero() {
		t.Errorf("zero cursor: String %q, IsZero %v", c.String(), c.IsZero())
	}
	if _, ok := c.Next(0); ok {
		t.Error("the zero cursor says something about partition 0")
	}
}

func TestCursorNext(t *testing.T) {
	c := schema.Cursor{ID: eventID(7, 41, 1), Others: []schema.NextOffset{{0, 5}, {3, 0}, {9, 12}}}
	for p, want := range map[uint16]int64{7: 42, 0: 5, 3: 0, 9: 12} {
		if got, ok := c.Next(p); !ok || got != want {
			t.Errorf("Next(%d) = %d, %v, want %d", p, got, ok, want)
		}
	}
	for _, p := range []uint16{1, 8, 10, schema.MaxPartition} {
		if got, ok := c.Next(p); ok {
			t.Errorf("Next(%d) = %d, want nothing", p, got)
		}
	}
}

func TestWidestCursorIsRead(t *testing.T) {
	c := schema.Cursor{ID: eventID(schema.MaxPartition, schema.MaxOffset, schema.MaxTimeMs), Filter: 1}
	for i := range schema.MaxCursorPartitions {
		c.Others = append(c.Others, schema.NextOffset{Partition: uint16(i * 63), Offset: schema.MaxOffset})
	}
	got, err := schema.ParseCursor(c.String())
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Fatalf("a cursor of %d partitions, %d bytes: %v", len(c.Others), len(c.String()), err)
	}
	c.Others = append(c.Others, schema.NextOffset{Partition: schema.MaxPartition - 1, Offset: 0})
	if _, err := schema.ParseCursor(c.String()); !errors.Is(err, schema.ErrCursor) {
		t.Errorf("a cursor of %d partitions: %v, want ErrCursor", len(c.Others), err)
	}
}

func TestParseCursorRejects(t *testing.T) {
	id := eventID(7, 4711, 1_790_000_000_000).String()
	pack := func(numbers ...uint64) string {
		var b []byte
		for _, n := range numbers {
			b = binary.AppendUvarint(b, n)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	for name, s := range map[string]string{
		"empty":                    "",
		"only a prefix":            "heartbeat_",
		"two prefixes":             "heartbeat_error_" + id,
		"another prefix":           "cursor_" + id,
		"no offsets":               id + "~",
		"not base64":               id + "~A!A",
		"padded base64":            id + "~AAEC==",
		"line end in base64":       id + "~A7AJ\nBQAEqYwG",
		"spare bits in base64":     id + "~AAF",
		"partition without offset": id + "~" + pack(3),
		"partition twice":          id + "~" + pack(3, 1, 0, 1),
		"the id's partition":       id + "~" + pack(7, 1),
		"the id's partition later": id + "~" + pack(3, 1, 4, 1),
		"partition too large":      id + "~" + pack(schema.MaxPartition+1, 1),
		"partitions add up":        id + "~" + pack(schema.MaxPartition, 1, 1, 1),
		"delta overflows":          id + "~" + pack(1, 1, 1<<64-1, 1),
		"offset too large":         id + "~" + pack(3, schema.MaxOffset+1),
		"long uvarint":             id + "~" + base64.RawURLEncoding.EncodeToString([]byte{0x83, 0x00, 0x01}),
		"endless uvarint":          id + "~" + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("\xff", 11))),
		"empty tag":                id + ".",
		"short tag":                id + ".9f3ac1d",
		"long tag":                 id + ".9f3ac1d20",
		"upper case tag":           id + ".9F3AC1D2",
		"zero tag":                 id + ".00000000",
		"two tags":                 id + ".9f3ac1d2.9f3ac1d2",
		"tag before offsets":       id + ".9f3ac1d2~" + pack(3, 1),
		"too long":                 id + "~" + strings.Repeat("A", 20_000),
	} {
		if c, err := schema.ParseCursor(s); !errors.Is(err, schema.ErrCursor) || !c.IsZero() {
			t.Errorf("%s: ParseCursor(%.80q) = %v, %v, want ErrCursor", name, s, c, err)
		}
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add("evt_01003G00000096E0D0RH86R000")
	f.Add("evt_01003G00000096E0D0RH86R000~A7AJBQAEqYwG.9f3ac1d2")
	f.Add("heartbeat_evt_01003g00000096e0d0rh86r000.00000001")
	f.Add("error_evt_01003G00000096E0D0RH86R000~A7AJ\nBQAEqYwG")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := schema.ParseCursor(s)
		if err != nil {
			if !errors.Is(err, schema.ErrCursor) {
				t.Fatalf("ParseCursor(%q) error %v is no ErrCursor", s, err)
			}
			return
		}
		text := strings.TrimPrefix(strings.TrimPrefix(s, "heartbeat_"), "error_")
		// Only the id may be spelled in either case.
		if want := strings.ToUpper(text[4:30]); c.String() != "evt_"+want+text[30:] {
			t.Fatalf("ParseCursor(%q).String() = %q", s, c.String())
		}
		for i, o := range c.Others {
			if o.Partition == c.ID.Partition || i > 0 && o.Partition <= c.Others[i-1].Partition {
				t.Fatalf("ParseCursor(%q).Others = %v", s, c.Others)
			}
		}
	})
}
