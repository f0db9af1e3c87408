package schema

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Bounds of the parts of an event id. The widths are fixed by the 128 bits of the
// id: 8 log epoch, 16 Kafka partition, 48 offset, 48 time, 8 zero.
const (
	MaxPartition = 1<<16 - 1
	MaxOffset    = 1<<48 - 1
	MaxTimeMs    = 1<<48 - 1
)

// MaxEventTimeMs is the last time an event may carry, 2299-12-31T23:59:59.999Z in Unix
// milliseconds: the end of the years that ClickHouse's DateTime64 holds. The id of a
// later time would not be the same again when computed from the row.
const MaxEventTimeMs = 10_413_791_999_999

// EventIDPrefix starts the text of every event id.
const EventIDPrefix = "evt_"

// eventIDLen is the length of an event id's text: prefix and 26 base32 characters.
const eventIDLen = len(EventIDPrefix) + 26

// ErrEventID reports text that is not an event id.
var ErrEventID = errors.New("not an event id: want evt_ and 26 characters of Crockford base32")

// Position is a place in the log: one record of one Kafka partition in one life of
// the topic. Epoch 0 does not occur, so the zero Position means "no position".
type Position struct {
	Epoch     uint8
	Partition uint16
	Offset    int64
}

// IsZero reports whether p names no record.
func (p Position) IsZero() bool { return p.Epoch == 0 }

// Compare orders positions of one partition: by epoch, then offset. Between
// partitions the order is arbitrary but total.
func (p Position) Compare(q Position) int {
	return cmp.Or(
		cmp.Compare(p.Epoch, q.Epoch),
		cmp.Compare(p.Partition, q.Partition),
		cmp.Compare(p.Offset, q.Offset),
	)
}

// EventID names one event. It is computed from the event's record, never stored:
// the offset seeks in Kafka, the time prunes in ClickHouse. TimeMs is the record's
// own timestamp in Unix milliseconds; it takes no part in the order. Parts beyond their
// bounds (MaxOffset, MaxTimeMs, below zero) are cut off by the text form.
type EventID struct {
	Position
	TimeMs int64
}

// Time returns the append time carried by the id, in UTC.
func (id EventID) Time() time.Time { return time.UnixMilli(id.TimeMs).UTC() }

// bytes lays the id out big-endian, so that the text sorts as the numbers do.
func (id EventID) bytes() (b [16]byte) {
	hi := uint64(id.Epoch)<<56 | uint64(id.Partition)<<40 | uint64(id.Offset)>>8&(1<<40-1)
	lo := uint64(id.Offset)<<56 | uint64(id.TimeMs)&MaxTimeMs<<8
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return b
}

// String returns the 30-character text of the id, such as
// evt_01003G00000096E0D0RH86R000. Within a session the texts sort in log order.
func (id EventID) String() string { return string(id.AppendText(make([]byte, 0, eventIDLen))) }

// AppendText appends the text of the id to dst without allocating.
func (id EventID) AppendText(dst []byte) []byte {
	dst = append(dst, EventIDPrefix...)
	return appendBase32(dst, id.bytes())
}

// ParseEventID reads the text form. It accepts upper and lower case, and rejects
// anything that String could not have written, with an error that wraps ErrEventID.
func ParseEventID(s string) (EventID, error) {
	if len(s) != eventIDLen || s[:len(EventIDPrefix)] != EventIDPrefix {
		return EventID{}, fmt.Errorf("%w, got %s", ErrEventID, Quote(s))
	}
	b, ok := parseBase32(s[len(EventIDPrefix):])
	if !ok {
		return EventID{}, fmt.Errorf("%w, got %s", ErrEventID, Quote(s))
	}
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	id := EventID{
		Position: Position{
			Epoch:     uint8(hi >> 56),
			Partition: uint16(hi >> 40),
			Offset:    int64(hi&(1<<40-1))<<8 | int64(lo>>56),
		},
		TimeMs: int64(lo >> 8 & MaxTimeMs),
	}
	if lo&0xff != 0 || id.Epoch == 0 {
		return EventID{}, fmt.Errorf("%w, got %s", ErrEventID, Quote(s))
	}
	return id, nil
}

// crockford is the alphabet of Crockford's base32 (no I, L, O, U).
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// appendBase32 writes 128 bits as 26 characters, the first holding only 3 bits
// (the layout ULIDs use).
func appendBase32(dst []byte, b [16]byte) []byte {
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	var out [26]byte
	for i := 25; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return append(dst, out[:]...)
}

func parseBase32(s string) (b [16]byte, ok bool) {
	if len(s) != 26 || base32Value(s[0]) > 7 {
		return b, false
	}
	var hi, lo uint64
	for i := range len(s) {
		v := base32Value(s[i])
		if v > 31 {
			return b, false
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return b, true
}

// base32Value returns the value of one character, 255 if it is none of the alphabet.
func base32Value(c byte) byte {
	if c >= 'a' && c <= 'z' {
		c -= 'a' - 'A'
	}
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'A' && c <= 'H':
		return c - 'A' + 10
	case c == 'J' || c == 'K':
		return c - 'J' + 18
	case c == 'M' || c == 'N':
		return c - 'M' + 20
	case c >= 'P' && c <= 'T':
		return c - 'P' + 22
	case c >= 'V' && c <= 'Z':
		return c - 'V' + 27
	default:
		return 255
	}
}
