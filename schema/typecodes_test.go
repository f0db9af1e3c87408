package schema

import (
	"slices"
	"testing"
)

func TestTypeCodesAreUniqueNamedAndAscending(t *testing.T) {
	names := make(map[string]bool)
	last := uint8(0)
	for _, tc := range TypeCodes() {
		if tc.Code <= last || tc.Code >= FirstOwnCode {
			t.Errorf("code %d of %s does not follow %d, or is not below %d", tc.Code, tc.Type, last, FirstOwnCode)
		}
		last = tc.Code
		if names[tc.Type] || CheckType(tc.Type) != nil || IsReservedType(tc.Type) {
			t.Errorf("type %q is a repeat, reserved or no type", tc.Type)
		}
		names[tc.Type] = true
	}
}

func TestTypeTable(t *testing.T) {
	var zero TypeTable
	own := NewTypeTable([]TypeCode{{255, "zoom"}, {128, "agent.said"}, {10, "a"}})
	f := func(table TypeTable, name string, code uint8, builtin bool) {
		t.Helper()
		if got := table.Code(name); got != code {
			t.Errorf("Code(%q) = %d, want %d", name, got, code)
		}
		if got := table.Builtin(name); got != builtin {
			t.Errorf("Builtin(%q) = %v, want %v", name, got, builtin)
		}
		if code == 0 {
			return
		}
		if got, ok := table.Type(code); got != name || !ok {
			t.Errorf("Type(%d) = %q, %v, want %q", code, got, ok, name)
		}
	}
	for _, table := range []TypeTable{zero, own, NewTypeTable(nil)} {
		for _, c := range TypeCodes() {
			f(table, c.Type, c.Code, true)
		}
		f(table, "transcript.turn", 0, false)
		f(table, "", 0, false)
	}
	f(zero, "zoom", 0, false)
	f(own, "zoom", 255, false)
	f(own, "agent.said", 128, false)
	f(own, "a", 10, false)
	if name, ok := own.Type(0); ok {
		t.Errorf("Type(0) = %q, want none", name)
	}
	if name, ok := zero.Type(128); ok {
		t.Errorf("Type(128) = %q, want none", name)
	}
	if got := len(own.All()); got != len(TypeCodes())+3 || !slices.IsSortedFunc(own.All(), func(a, b TypeCode) int { return int(a.Code) - int(b.Code) }) {
		t.Errorf("All() = %v, want %d in the order of the codes", own.All(), len(TypeCodes())+3)
	}
	if own.All()[0] = (TypeCode{}); own.Code("init") != 1 || own.All()[0].Type != "init" {
		t.Error("writing to All() changed the table")
	}
}

// 1. A workspace registers a code. 2. A later version builds in that code, or that name.
// 3. What was registered holds, and code and name still lead to each other.
func TestOwnCodesTakeThePlaceOfBuiltInOnes(t *testing.T) {
	table := NewTypeTable([]TypeCode{{2, "mine"}, {200, "scroll"}})
	for name, code := range map[string]uint8{"mine": 2, "snapshot": 0, "scroll": 200, "init": 1} {
		if got := table.Code(name); got != code {
			t.Errorf("Code(%q) = %d, want %d", name, got, code)
		}
		if got := table.Builtin(name); got != (name == "init") {
			t.Errorf("Builtin(%q) = %v", name, got)
		}
	}
	if name, ok := table.Type(5); ok {
		t.Errorf("Type(5) = %q, want none, as scroll is 200", name)
	}
	if name, _ := table.Type(2); name != "mine" {
		t.Errorf("Type(2) = %q, want mine", name)
	}
}

func TestResolveType(t *testing.T) {
	own := NewTypeTable([]TypeCode{{200, "agent.said"}})
	for in, want := range map[string]string{
		"init": "init", "memory.*": "memory.*", "*": "*", "": "", "agent.said": "agent.said",
		"1": "init", "01": "init", "0x01": "init", "0X1": "init", "16": "mouse_move", "0x10": "mouse_move", "48": "keypress",
		"200": "agent.said", "0xc8": "agent.said", "0xC8": "agent.said",
	} {
		if got, err := own.Resolve(in); err != nil || got != want {
			t.Errorf("Resolve(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"0", "255", "256", "0x", "0xzz", "1e3", "1_0", "-1x"[1:], "99999999999999999999"} {
		if got, err := own.Resolve(in); err == nil {
			t.Errorf("Resolve(%q) = %q, want an error", in, got)
		}
	}
	if got, err := (TypeTable{}).Resolve("200"); err == nil {
		t.Errorf("Resolve(200) without own types = %q, want an error", got)
	}
}

func BenchmarkTypeTableCode(b *testing.B) {
	own := make([]TypeCode, 0, 255-FirstOwnCode)
	for code := FirstOwnCode; code < 255; code++ {
		own = append(own, TypeCode{uint8(code), "agent.turn." + string(rune('a'+code%26)) + string(rune('a'+code/26))})
	}
	table, sum := NewTypeTable(own), 0
	b.ReportAllocs()
	for b.Loop() {
		sum += int(table.Code("mouse_move"))
	}
	if sum == 0 {
		b.Fatal("mouse_move has no code")
	}
}
