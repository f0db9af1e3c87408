package schema_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/playhead-dev/playhead/schema"
)

var (
	typeGrammar = regexp.MustCompile(`\A[A-Za-z][A-Za-z0-9_.:-]{0,127}\z`)
	idGrammar   = regexp.MustCompile(`\A[A-Za-z0-9_.:-]{1,128}\z`)
)

func checkNames(t *testing.T, s string) {
	t.Helper()
	if err := schema.CheckType(s); (err == nil) != typeGrammar.MatchString(s) {
		t.Errorf("CheckType(%q) = %v", s, err)
	}
	if err := schema.CheckID(s); (err == nil) != idGrammar.MatchString(s) {
		t.Errorf("CheckID(%q) = %v", s, err)
	}
}

func TestNamesFollowTheGrammar(t *testing.T) {
	for c := range 256 {
		checkNames(t, string([]byte{byte(c)}))
		checkNames(t, string([]byte{'a', byte(c), 'b'}))
	}
	for _, n := range []int{0, 1, 127, 128, 129, 1 << 20} {
		checkNames(t, strings.Repeat("a", n))
	}
	for _, s := range []string{"é", "a é", "K", "a\n", "1a", "-", "..", "memory.created", "a:b-c_d.e"} {
		checkNames(t, s)
	}
}

func FuzzNames(f *testing.F) {
	f.Add("memory.created")
	f.Add("1")
	f.Add("a\n")
	f.Add("ſ")
	f.Fuzz(func(t *testing.T, s string) {
		checkNames(t, s)
		if q := schema.Quote(s); len(q) > 10*64+5 || strings.ContainsAny(q, "\r\n") || !utf8.ValidString(q) {
			t.Errorf("Quote(%q) = %q", s, q)
		}
	})
}

func TestReservedAndHiddenTypes(t *testing.T) {
	for s, want := range map[string][2]bool{ // reserved, hidden
		"error": {true, false}, "open": {true, false}, "heartbeat": {true, false},
		"playhead.session.created": {true, true}, "playhead.x": {true, true}, "playhead.": {true, true},
		"playhead": {false, false}, "Error": {false, false}, "playheads.x": {false, false}, "errors": {false, false},
	} {
		if got := [2]bool{schema.IsReservedType(s), schema.IsHiddenType(s)}; got != want {
			t.Errorf("%q: reserved, hidden = %v, want %v", s, got, want)
		}
	}
}

func TestCheckTextBounds(t *testing.T) {
	for s, ok := range map[string]bool{
		"": true, "frame é 7": true, strings.Repeat("x", 256): true, strings.Repeat("x", 257): false,
		strings.Repeat("é", 128): true, strings.Repeat("é", 128) + "x": false,
		"a\nb": false, "a\rb": false, "a\x00b": false, "a\x7fb": false, "a\tb": false, "\xff": false, "a\xc3": false,
	} {
		if err := schema.CheckText(s, 256); (err == nil) != ok {
			t.Errorf("CheckText(%.20q) of %d bytes = %v, want ok %v", s, len(s), err, ok)
		}
	}
}

func TestCheckMetadataBounds(t *testing.T) {
	keys := func(n int) map[string]string {
		m := make(map[string]string)
		for i := range n {
			m[fmt.Sprint("k", i)] = ""
		}
		return m
	}
	for _, c := range []struct {
		name string
		m    map[string]string
		ok   bool
	}{
		{"nil", nil, true},
		{"64 keys", keys(schema.MaxMetadataKeys), true},
		{"65 keys", keys(schema.MaxMetadataKeys + 1), false},
		{"16 KiB", map[string]string{"k": strings.Repeat("v", schema.MaxMetadataBytes-1)}, true},
		{"16 KiB + 1", map[string]string{"k": strings.Repeat("v", schema.MaxMetadataBytes)}, false},
		{"16 KiB + 1 over two keys", map[string]string{"k": strings.Repeat("v", schema.MaxMetadataBytes/2), "l": strings.Repeat("v", schema.MaxMetadataBytes/2-1)}, false},
		{"key of 256", map[string]string{strings.Repeat("k", schema.MaxMetadataKeyLen): ""}, true},
		{"key of 257", map[string]string{strings.Repeat("k", schema.MaxMetadataKeyLen+1): ""}, false},
		{"empty key", map[string]string{"": "v"}, false},
		{"control character in key", map[string]string{"a\nb": "v"}, false},
		{"line end in value", map[string]string{"k": "a\nb"}, true},
		{"key not UTF-8", map[string]string{"\xff": "v"}, false},
		{"value not UTF-8", map[string]string{"k": "\xff"}, false},
	} {
		if err := schema.CheckMetadata(c.m); (err == nil) != c.ok {
			t.Errorf("%s: CheckMetadata = %v, want ok %v", c.name, err, c.ok)
		}
	}
}
