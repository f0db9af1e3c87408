package schema_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func decodeLetter(t *testing.T, r schema.LetterRecord) schema.LetterRecord {
	t.Helper()
	key, headers, value, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := schema.DecodeLetterRecord(key, headers, value)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDeadLettersRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	random := func(most int) []byte {
		b := make([]byte, r.IntN(most))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for range 2000 {
		var headers []header
		for range r.IntN(20) {
			key := []string{"ce_type", "ce_subject", "dl_version", "dl_headers", string(random(10))}[r.IntN(5)]
			headers = append(headers, header{Key: key, Value: random(30)})
		}
		at := schema.Position{Epoch: uint8(1 + r.IntN(255)), Partition: uint16(r.Uint32()), Offset: r.Int64N(schema.MaxOffset)}
		key, value := random(40), random(100)
		if r.IntN(5) == 0 {
			key = nil
		}
		if r.IntN(5) == 0 {
			value = nil
		}
		want := schema.NewDeadLetter(at, errors.New("some \xff reason"), int64(r.Uint64()), key, headers, value)
		got := decodeLetter(t, schema.LetterRecord{Letter: want}).Letter
		if len(want.Headers) == 0 {
			got.Headers = want.Headers // nil or empty is all the same
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		if at, err := schema.ParseDeadLetterID(got.ID()); err != nil || at != want.At {
			t.Fatalf("ParseDeadLetterID(%q) = %+v, %v", got.ID(), at, err)
		}
	}
}

func TestNotesOfDeadLettersRoundTrip(t *testing.T) {
	at := schema.Position{Epoch: 1, Partition: 2, Offset: 3}
	for _, want := range []schema.LetterRecord{
		{Redrive: &schema.Redrive{At: at, EventID: eventID(1, 2, 3).String(), WorkspaceID: "w", SessionID: "s", Type: "t", AtMs: 5, By: "key_1"}},
		{Erasure: &schema.LetterErasure{WorkspaceID: "w", SessionID: "s", AtMs: 7}},
		{Erasure: &schema.LetterErasure{WorkspaceID: "w", AtMs: 7}},
	} {
		if got := decodeLetter(t, want); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestDeadLettersAreBounded(t *testing.T) {
	var headers []header
	for range 1000 {
		headers = append(headers, header{Key: "k", Value: bytes.Repeat([]byte("v"), 100)})
	}
	l := schema.NewDeadLetter(schema.Position{Epoch: 1}, errors.New(strings.Repeat("x", 5000)), 1,
		make([]byte, 1<<20), headers, make([]byte, 3<<20))
	if l.Whole() || l.HeaderCount != 1000 || l.ValueBytes != 3<<20 || l.KeyBytes != 1<<20 || len(l.Value) != schema.MaxLetterValueBytes {
		t.Errorf("letter of %d headers and %d bytes, said to be of %d and %d", len(l.Headers), len(l.Value), l.HeaderCount, l.ValueBytes)
	}
	_, encoded, value, err := schema.LetterRecord{Letter: l}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	size := len(value)
	for _, h := range encoded {
		size += len(h.Key) + len(h.Value) + 10
	}
	if most := schema.MaxLetterValueBytes + 64<<10; size > most || l.Size() > most {
		t.Errorf("record of %d bytes, estimated %d, want at most %d", size, l.Size(), most)
	}
}

func TestClaimsAreTakenOnlyIfTheyAreClear(t *testing.T) {
	h := func(kv ...string) (out []header) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, header{Key: kv[i], Value: []byte(kv[i+1])})
		}
		return out
	}
	f := func(headers []header, want schema.Claim) {
		t.Helper()
		if got := schema.ClaimOf(headers); got != want {
			t.Errorf("ClaimOf(%v) = %+v, want %+v", headers, got, want)
		}
	}
	f(nil, schema.Claim{})
	f(h("ce_workspace", "w", "CE_SUBJECT", "s", "ce_type", "t"), schema.Claim{Workspace: "w", Session: "s", Type: "t"})
	f(h("ce_workspace", "a/b", "ce_subject", "s"), schema.Claim{Session: "s"})
	f(h("ce_workspace", "w", "ce_workspace", "w2"), schema.Claim{})
	f(h("ce_workspace", "w", "Ce_Workspace", "\xff"), schema.Claim{})
}

func TestForeignRecordsAreNoDeadLetters(t *testing.T) {
	good, headers, value, err := schema.LetterRecord{Letter: schema.NewDeadLetter(
		schema.Position{Epoch: 1}, errors.New("x"), 1, nil, []header{}, nil)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	f := func(key []byte, headers []header) {
		t.Helper()
		if r, err := schema.DecodeLetterRecord(key, headers, value); !errors.Is(err, schema.ErrLetterRecord) {
			t.Errorf("DecodeLetterRecord(%q, %v) = %+v, %v", key, headers, r, err)
		}
	}
	f(good, nil)
	f(good, headers[1:])
	f(good, headers[:len(headers)-1])
	f([]byte("evt_"), headers)
	f(nil, headers)
	for _, id := range []string{"", "dl_", eventID(1, 2, 0).String(), "dl_" + eventID(1, 2, 3).String()[4:], "dl_!!!!!!!!!!!!!!!!!!!!!!!!!!"} {
		if at, err := schema.ParseDeadLetterID(id); !errors.Is(err, schema.ErrDeadLetterID) {
			t.Errorf("ParseDeadLetterID(%q) = %+v, %v", id, at, err)
		}
	}
}

func FuzzDecodeLetterRecord(f *testing.F) {
	f.Add([]byte("dl_"), "dl_reason", []byte("x"), []byte("{}"))
	f.Fuzz(func(t *testing.T, key []byte, name string, header0, value []byte) {
		headers := []header{{Key: "dl_version", Value: []byte("1")}, {Key: name, Value: header0}, {Key: "dl_headers", Value: []byte("0")}}
		if r, err := schema.DecodeLetterRecord(key, headers, value); err != nil && (!errors.Is(err, schema.ErrLetterRecord) || r != schema.LetterRecord{}) {
			t.Fatalf("%+v, %v", r, err)
		}
	})
}
