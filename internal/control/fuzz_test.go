package control

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"testing"
)

// Whatever lies in the topic of control, a record of it changes what it says or nothing at
// all; the counts that go with the keys stay right, and what is made of a record reads back.
func FuzzApply(f *testing.F) {
	const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, r := range [][2]string{
		{"workspace/ws_a", `{"v":1,"name":"a","plan":"pro","shards":4,"limits":{"keys":5}}`}, {"workspace/ws_a", ""}, {"workspace/", `{}`},
		{"key/key_1", `{"v":1,"workspace":"ws_a","sha256":"` + hash + `","scopes":["read","admin"],"created_ms":1,"expires_ms":-5,"revoked_ms":9223372036854775807}`},
		{"key/key_2", `{"v":1,"workspace":"ws_b","sha256":"` + hash + `","scopes":["read"],"session":"s","browser":true}`}, {"key/key_1", ""},
		{"key/key_1", `{"v":1,"sha256":"00"}`}, {"key/key_1", `{"v":2}`}, {"key/key_1", `[]`}, {"nothing/x", `{}`}, {"epoch/1", `{"v":1,"partitions":8,"topic_id":"x"}`},
		{"epoch/0", `{"v":1}`}, {"epoch/256", `{"v":1}`}, {"epoch/1", ""}, {"erasure/era_1", `{"v":1,"workspace":"ws_a","session":"s","epoch":1,"partition":3,"below":9,"at_ms":1}`},
		{"erasure/era_2", `{"v":1,"workspace":"ws_a","at_ms":1,"done_ms":2}`}, {"erasure/era_1", `{"v":1,"workspace":"ws_a","session":"s","epoch":1,"below":-1}`},
		{"event_type/1", `{"v":1,"workspace":"ws_a","name":"a.b","code":200,"recode":true}`}, {"event_type/2", `{"v":1,"workspace":"ws_a","name":"c","code":200}`},
		{"event_type/1", ""}, {"event_type/3", `{"v":1,"workspace":"ws_a","name":"playhead.x","code":256}`}, {"\xff/\xff", "\xff"},
	} {
		f.Add([]byte(r[0]), []byte(r[1]), []byte("key/key_9"), []byte(`{"v":1,"workspace":"ws_a","sha256":"`+hash+`","scopes":["read"]}`))
	}
	f.Fuzz(func(t *testing.T, key, value, key2, value2 []byte) {
		s := newState()
		for _, r := range [][2][]byte{{key, value}, {key2, value2}, {key, value}, {key2, nil}, {key, nil}} {
			before := s.sizes()
			kind, changes, err := s.apply(r[0], r[1])
			if err != nil && (len(changes) > 0 || before != s.sizes()) {
				t.Errorf("%q: %q is an error, %v, and changes %v, from %v to %v", r[0], r[1], err, changes, before, s.sizes())
			}
			if err == nil && kind == "" {
				t.Errorf("%q: %q is of no kind", r[0], r[1])
			}
			s.check(t)
		}
		for _, k := range s.keys {
			b, err := encodeKey(k)
			if err != nil {
				t.Fatal(err)
			}
			back, err := decodeKey(k.ID, b)
			again, _ := encodeKey(back)
			if err != nil || !bytes.Equal(b, again) {
				t.Errorf("key %s reads back as %s, %v", b, again, err)
			}
		}
	})
}

// sizes are how much of everything there is.
func (s *state) sizes() [7]int {
	return [...]int{
		len(s.workspaces), len(s.keys), len(s.byHash), len(s.epochs), len(s.perOwner), s.erased.set.Len(), len(s.types.byID),
	}
}

// check compares what is kept beside the keys with them.
func (s *state) check(t *testing.T) {
	t.Helper()
	owners, hashes := map[string]int{}, map[keyHash]int{}
	for id, k := range s.keys {
		owners[k.Workspace]++
		hashes[k.hash]++
		if k.ID != id || !slices.Contains(s.byHash[k.hash], id) {
			t.Errorf("key %s is kept as %s, and by its text as %v", k.ID, id, s.byHash[k.hash])
		}
	}
	kept := maps.Clone(s.perOwner)
	maps.DeleteFunc(kept, func(_ string, n int) bool { return n == 0 })
	if !maps.Equal(owners, kept) {
		t.Errorf("workspaces have %v keys, counted are %v", owners, kept)
	}
	for hash, ids := range s.byHash {
		if len(ids) != hashes[hash] {
			t.Errorf("%d keys have one text, listed are %v", hashes[hash], ids)
		}
	}
	for n := range s.epochs {
		if n > s.latest {
			t.Errorf("epoch %d is there, the latest is %d", n, s.latest)
		}
	}
}

func TestErrorsOfRecordsSayWhatIsWrong(t *testing.T) {
	s := newState()
	for key, want := range map[string]error{"nothing/x": errUnknownKind, "key": errUnknownKind, "key/": errUnknownKind} {
		if _, _, err := s.apply([]byte(key), []byte(`{}`)); !errors.Is(err, want) {
			t.Errorf("%s is %v, want %v", key, err, want)
		}
	}
	if _, _, err := s.apply([]byte("key/x"), []byte(`{"v":2}`)); !errors.Is(err, errUnknownVersion) {
		t.Errorf("a record of another version is %v", err)
	}
}
