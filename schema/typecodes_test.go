package schema

import "testing"

func TestTypeCodesAreUniqueNamedAndAscending(t *testing.T) {
	names := make(map[string]bool)
	last := uint8(0)
	for _, tc := range TypeCodes() {
		if tc.Code <= last {
			t.Errorf("code %d of %s does not follow %d", tc.Code, tc.Type, last)
		}
		last = tc.Code
		if names[tc.Type] || CheckType(tc.Type) != nil || IsReservedType(tc.Type) {
			t.Errorf("type %q is a repeat, reserved or no type", tc.Type)
		}
		names[tc.Type] = true
		if got := CodeOfType(tc.Type); got != tc.Code {
			t.Errorf("CodeOfType(%q) = %d, want %d", tc.Type, got, tc.Code)
		}
	}
	if CodeOfType("init") != 1 {
		t.Error("init must have code 1")
	}
	if CodeOfType("transcript.turn") != 0 {
		t.Error("a type without a code must answer 0")
	}
}

func TestResolveType(t *testing.T) {
	for in, want := range map[string]string{
		"init": "init", "memory.*": "memory.*", "*": "*", "": "",
		"1": "init", "01": "init", "0x01": "init", "0X1": "init", "16": "mouse_move", "0x10": "mouse_move", "48": "keypress",
	} {
		if got, err := ResolveType(in); err != nil || got != want {
			t.Errorf("ResolveType(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"0", "255", "256", "0x", "0xzz", "1e3", "1_0", "-1x"[1:], "99999999999999999999"} {
		if got, err := ResolveType(in); err == nil {
			t.Errorf("ResolveType(%q) = %q, want an error", in, got)
		}
	}
}
