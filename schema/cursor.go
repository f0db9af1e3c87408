package schema

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxCursorPartitions bounds the partitions one cursor may span.
const MaxCursorPartitions = 1024

// maxCursorLen bounds the text of a cursor before it is decoded.
const maxCursorLen = 16 << 10

// ErrCursor reports text that is not a cursor.
var ErrCursor = errors.New("not a cursor: want an event id, optionally with the ~ and . parts a page or stream gave")

// ErrCursorFilter reports a page's cursor used with other filters than it was made with.
var ErrCursorFilter = errors.New("cursor belongs to a page with other filters or another order")

// NextOffset is the next offset to read of one further partition.
type NextOffset struct {
	Partition uint16
	Offset    int64
}

// Cursor is the one position a client holds. It is what an append returns, what a
// stream sends as id:, what a page gives as nextCursor.
//
//	evt_01003G00000096E0D0RH86R000                    one partition
//	evt_01003G00000096E0D0RH86R000~A7AJBQAEqYwG       several partitions
//	evt_01003G00000096E0D0RH86R000.9f3ac1d2           a page bound to its filters
//
// The event id is that of the last event seen: reading goes on after it. Others holds
// the next offsets of the other partitions, sorted by partition, without ID's own.
// Filter is 0 for a position that is bound to no filters.
type Cursor struct {
	ID     EventID
	Others []NextOffset
	Filter uint32
}

// IsZero reports whether c is no position at all.
func (c Cursor) IsZero() bool { return c.ID.IsZero() }

// String returns the text form; the zero Cursor gives "".
func (c Cursor) String() string {
	if c.IsZero() {
		return ""
	}
	b := AppendOthers(c.ID.AppendText(make([]byte, 0, eventIDLen+16+len(c.Others)*8)), c.Others)
	if c.Filter != 0 {
		b = fmt.Appendf(b, ".%08x", c.Filter)
	}
	return string(b)
}

// AppendOthers appends the part of a cursor's text that stands for Others, which are sorted
// by partition: what has to follow the event id. It appends nothing if there are none.
func AppendOthers(dst []byte, others []NextOffset) []byte {
	if len(others) == 0 {
		return dst
	}
	dst = append(dst, '~')
	return base64.RawURLEncoding.AppendEncode(dst, packOffsets(others))
}

// CursorAt returns the cursor from which reading goes on at the given next offsets, sorted
// by partition, of one epoch. Its id is that of a record just read, at timeMs; if no
// partition has one, that of no record, in a partition that is none of them.
func CursorAt(epoch uint8, next []NextOffset, timeMs int64) Cursor {
	for i, n := range next {
		if n.Offset > 0 {
			id := EventID{Position: Position{Epoch: epoch, Partition: n.Partition, Offset: n.Offset - 1}, TimeMs: timeMs}
			return Cursor{ID: id, Others: slices.Concat(next[:i], next[i+1:])}
		}
	}
	free := uint16(MaxPartition)
	for slices.ContainsFunc(next, func(n NextOffset) bool { return n.Partition == free }) {
		free--
	}
	return Cursor{ID: EventID{Position: Position{Epoch: epoch, Partition: free}, TimeMs: timeMs}, Others: slices.Clone(next)}
}

// packOffsets writes (partition delta, offset) pairs as uvarints.
func packOffsets(others []NextOffset) []byte {
	var b []byte
	last := uint64(0)
	for _, o := range others {
		b = binary.AppendUvarint(b, uint64(o.Partition)-last)
		b = binary.AppendUvarint(b, uint64(o.Offset))
		last = uint64(o.Partition)
	}
	return b
}

// heartbeatPrefixes are the id prefixes that workspace streams put before a cursor on
// events of their own. A browser sends them back as Last-Event-ID, so they must resume.
var heartbeatPrefixes = [...]string{"heartbeat_", "error_"}

// ParseCursor reads the text form, also behind the prefixes heartbeat_ and error_ that
// workspace streams give their own events. A position has one spelling, but for the
// case of the event id's letters. Errors wrap ErrCursor.
func ParseCursor(s string) (Cursor, error) {
	for _, p := range heartbeatPrefixes {
		if rest, ok := strings.CutPrefix(s, p); ok {
			s = rest
			break
		}
	}
	bad := func(why string) (Cursor, error) {
		return Cursor{}, fmt.Errorf("%w, got %s (%s)", ErrCursor, Quote(s), why)
	}
	if len(s) > maxCursorLen {
		return bad("too long")
	}
	text, filter, bound := strings.Cut(s, ".")
	idText, packed, several := strings.Cut(text, "~")
	id, err := ParseEventID(idText)
	if err != nil {
		return bad("event id")
	}
	c := Cursor{ID: id}
	if several {
		if c.Others, err = unpackOffsets(packed, id.Partition); err != nil {
			return bad(err.Error())
		}
	}
	if bound {
		if c.Filter, err = parseFilterTag(filter); err != nil {
			return bad(err.Error())
		}
	}
	return c, nil
}

func parseFilterTag(s string) (uint32, error) {
	var v uint32
	if len(s) != 8 {
		return 0, errors.New("filter tag")
	}
	for i := range len(s) {
		d := strings.IndexByte("0123456789abcdef", s[i])
		if d < 0 {
			return 0, errors.New("filter tag")
		}
		v = v<<4 | uint32(d)
	}
	if v == 0 {
		return 0, errors.New("filter tag")
	}
	return v, nil
}

func unpackOffsets(s string, own uint16) ([]NextOffset, error) {
	// DecodeString skips line ends, which no cursor holds.
	packed, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(packed) == 0 || strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("partition offsets")
	}
	var out []NextOffset
	next := uint64(0)
	b := packed
	for len(b) > 0 {
		delta, n := binary.Uvarint(b)
		if n <= 0 || delta > MaxPartition {
			return nil, errors.New("partition number")
		}
		b = b[n:]
		off, n := binary.Uvarint(b)
		if n <= 0 || off > MaxOffset {
			return nil, errors.New("partition offset")
		}
		b = b[n:]
		p := next + delta
		switch {
		case p > MaxPartition, len(out) > 0 && delta == 0, p == uint64(own), len(out) == MaxCursorPartitions:
			return nil, errors.New("partition number")
		}
		out = append(out, NextOffset{Partition: uint16(p), Offset: int64(off)})
		next = p
	}
	// Uvarints have more than one spelling; a cursor has one.
	if !bytes.Equal(packOffsets(out), packed) {
		return nil, errors.New("partition offsets")
	}
	return out, nil
}

// Next returns the next offset to read of partition p, and whether c says anything
// about p at all.
func (c Cursor) Next(p uint16) (int64, bool) {
	if c.IsZero() {
		return 0, false
	}
	if p == c.ID.Partition {
		return c.ID.Offset + 1, true
	}
	i, ok := slices.BinarySearchFunc(c.Others, p, func(o NextOffset, p uint16) int {
		return int(o.Partition) - int(p)
	})
	if !ok {
		return 0, false
	}
	return c.Others[i].Offset, true
}
