package schema

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// TypeCode is the number by which some clients know an event type: one byte, 1 to 255.
type TypeCode struct {
	Code uint8
	Type string
}

// FirstOwnCode begins the codes that the built-in table will never take.
const FirstOwnCode = 128

// typeCodes is the table of browser events that every workspace starts with, in the
// order of the codes. Codes are published (docs/api.md, "Type codes"): they are added
// to, never changed, and stay below FirstOwnCode. Beyond init, whose code is given,
// groups begin at round numbers so that each has room to grow.
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

// TypeTable tells the codes of a workspace's event types: the built-in ones and its own.
// It is a value that never changes, safe for concurrent use. The zero TypeTable holds the
// built-in ones alone.
type TypeTable struct {
	index *typeIndex // nil: builtins
}

// typeIndex is a table in two orders. Codes and names are unique in it.
type typeIndex struct {
	byCode, byName []TypeCode
}

// builtins is the index of typeCodes. Nothing writes to it.
var builtins = indexTypes(typeCodes[:])

func indexTypes(types []TypeCode) *typeIndex {
	x := &typeIndex{byCode: slices.Clone(types), byName: slices.Clone(types)}
	slices.SortFunc(x.byCode, func(a, b TypeCode) int { return cmp.Compare(a.Code, b.Code) })
	slices.SortFunc(x.byName, func(a, b TypeCode) int { return strings.Compare(a.Type, b.Type) })
	return x
}

// NewTypeTable returns the built-in table and own, whose codes and names must be unique.
// Where one of own has the code or the name of a built-in one, it takes its place: a
// code that a workspace registered stays what it was when a later version of Playhead
// builds it in. Who registers codes refuses those that are built in (see Builtin).
func NewTypeTable(own []TypeCode) TypeTable {
	if len(own) == 0 {
		return TypeTable{}
	}
	types := slices.Clone(own)
	for _, b := range typeCodes {
		if !slices.ContainsFunc(own, func(t TypeCode) bool { return t.Code == b.Code || t.Type == b.Type }) {
			types = append(types, b)
		}
	}
	return TypeTable{index: indexTypes(types)}
}

func (t TypeTable) indexed() *typeIndex {
	if t.index == nil {
		return builtins
	}
	return t.index
}

// All returns the table in the order of the codes; the slice is the caller's.
func (t TypeTable) All() []TypeCode { return slices.Clone(t.indexed().byCode) }

// Code returns the code of an event type, 0 if it has none.
func (t TypeTable) Code(name string) uint8 {
	x := t.indexed().byName
	i, ok := slices.BinarySearchFunc(x, name, func(c TypeCode, name string) int { return strings.Compare(c.Type, name) })
	if !ok {
		return 0
	}
	return x[i].Code
}

// Type returns the event type of a code.
func (t TypeTable) Type(code uint8) (name string, ok bool) {
	x := t.indexed().byCode
	i, ok := slices.BinarySearchFunc(x, code, func(c TypeCode, code uint8) int { return cmp.Compare(c.Code, code) })
	if !ok {
		return "", false
	}
	return x[i].Type, true
}

// Builtin reports whether the table has name from the built-in table.
func (t TypeTable) Builtin(name string) bool {
	code := t.Code(name)
	return code != 0 && code == (TypeTable{}).Code(name)
}

// Resolve returns the name that s stands for: s itself, unless it begins with a digit
// and so is a code, decimal (16) or hex (0x10). A type's name begins with a letter, so
// the two cannot be confused.
func (t TypeTable) Resolve(s string) (string, error) {
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
	name, ok := t.Type(uint8(code))
	if !ok {
		return "", fmt.Errorf("is %s; no event type has that code", Quote(s))
	}
	return name, nil
}
