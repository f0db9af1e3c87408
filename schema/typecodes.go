package schema

import (
	"fmt"
	"strconv"
)

// TypeCode is the number by which some clients know an event type: one byte, 1 to 255.
type TypeCode struct {
	Code uint8
	Type string
}

// typeCodes is the table of browser events that every workspace starts with, in the
// order of the codes. Codes are published (docs/api.md, "Type codes"): they are added
// to, never changed. Beyond init, whose code is given, groups begin at round numbers so
// that each has room to grow.
var typeCodes = [...]TypeCode{
	// The recording itself.
	{1, "init"}, {2, "snapshot"}, {3, "dom_mutation"}, {4, "resize"}, {5, "scroll"},
	{6, "navigation"}, {7, "page_load"}, {8, "page_unload"}, {9, "visibility_change"},
	// Pointer.
	{16, "mouse_move"}, {17, "mouse_down"}, {18, "mouse_up"}, {19, "click"}, {20, "double_click"},
	{21, "context_menu"}, {22, "mouse_drag"}, {23, "mouse_scroll"}, {24, "mouse_enter"}, {25, "mouse_leave"},
	// Touch.
	{32, "touch_start"}, {33, "touch_move"}, {34, "touch_end"}, {35, "touch_cancel"},
	// Keyboard and clipboard.
	{48, "keypress"}, {49, "key_down"}, {50, "key_up"}, {51, "copy"}, {52, "cut"}, {53, "paste"},
	// Forms.
	{64, "input"}, {65, "change"}, {66, "focus"}, {67, "blur"}, {68, "submit"}, {69, "selection"},
	// Media and network.
	{80, "media_play"}, {81, "media_pause"}, {82, "media_seek"}, {83, "media_volume"},
	{96, "network_request"}, {97, "network_response"}, {98, "console"}, {99, "exception"}, {100, "performance"},
	// What an application says itself.
	{112, "custom"}, {113, "identify"},
}

// TypeCodes returns the built-in table in the order of the codes.
func TypeCodes() []TypeCode {
	out := typeCodes
	return out[:]
}

// CodeOfType returns the code of an event type, 0 if it has none.
func CodeOfType(name string) uint8 {
	for i := range typeCodes {
		if typeCodes[i].Type == name {
			return typeCodes[i].Code
		}
	}
	return 0
}

// TypeOfCode returns the event type of a code.
func TypeOfCode(code uint8) (name string, ok bool) {
	for i := range typeCodes {
		if typeCodes[i].Code == code {
			return typeCodes[i].Type, true
		}
	}
	return "", false
}

// ResolveType returns the name that s stands for: s itself, unless it begins with a
// digit and so is a code, decimal (16) or hex (0x10). A type's name begins with a
// letter, so the two cannot be confused.
func ResolveType(s string) (string, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return s, nil
	}
	base, digits := 10, s
	if len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x' {
		base, digits = 16, s[2:]
	}
	code, err := strconv.ParseUint(digits, base, 8)
	if err != nil {
		return "", fmt.Errorf("is %s; want a type's name, or its code from 1 to 255, decimal or hex", Quote(s))
	}
	name, ok := TypeOfCode(uint8(code))
	if !ok {
		return "", fmt.Errorf("is %s; no event type has that code", Quote(s))
	}
	return name, nil
}
