package schema

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of names and metadata, from the public API (docs/api.md, "Names").
const (
	MaxTypeLen         = 128
	MaxIDLen           = 128
	MaxFrameIDLen      = 256
	MaxContentTypeLen  = 256
	MaxMetadataKeys    = 64
	MaxMetadataBytes   = 16 << 10
	MaxMetadataKeyLen  = 256
	maxQuotedErrorText = 64
)

// Types that Playhead writes into a session's log itself. They carry the session's
// life; they are not delivered as events and cannot be appended by clients.
const (
	ReservedTypePrefix = "playhead."
	TypeSessionCreated = "playhead.session.created"
	TypeSessionEnded   = "playhead.session.ended"
	TypeDuplicate      = "playhead.duplicate"
	TypeDeadLetter     = "playhead.dead_letter"
)

// CheckType reports why s cannot name an event type, or nil. The grammar is
// [A-Za-z][A-Za-z0-9_.:-]{0,127}: a first letter, so that a number is always a code.
// Reserved types pass; see IsReservedType.
func CheckType(s string) error {
	if s == "" {
		return fmt.Errorf("is empty; want a letter, then up to %d of A-Z a-z 0-9 _ . : -", MaxTypeLen-1)
	}
	if len(s) > MaxTypeLen {
		return fmt.Errorf("has %d bytes; at most %d are allowed", len(s), MaxTypeLen)
	}
	if !isLetter(s[0]) || !allNameBytes(s) {
		return fmt.Errorf("is %s; want a letter, then up to %d of A-Z a-z 0-9 _ . : -", Quote(s), MaxTypeLen-1)
	}
	return nil
}

// IsReservedType reports whether clients may not append events of type s: the names
// that SSE clients and Playhead's own notices use.
func IsReservedType(s string) bool {
	switch s {
	case "error", "open", "heartbeat":
		return true
	}
	return strings.HasPrefix(s, ReservedTypePrefix)
}

// IsHiddenType reports whether a record of type s is Playhead's own bookkeeping: it
// counts in the offset arithmetic, but no stream and no page shows it.
func IsHiddenType(s string) bool { return strings.HasPrefix(s, ReservedTypePrefix) }

// CheckID reports why s cannot be a session, workflow or message id, or nil.
// The grammar is [A-Za-z0-9_.:-]{1,128}.
func CheckID(s string) error {
	if s == "" {
		return fmt.Errorf("is empty; want 1 to %d of A-Z a-z 0-9 _ . : -", MaxIDLen)
	}
	if len(s) > MaxIDLen {
		return fmt.Errorf("has %d bytes; at most %d are allowed", len(s), MaxIDLen)
	}
	if !allNameBytes(s) {
		return fmt.Errorf("is %s; want 1 to %d of A-Z a-z 0-9 _ . : -", Quote(s), MaxIDLen)
	}
	return nil
}

// CheckText reports why s cannot be a free-text attribute (frame id, content type)
// of at most limit bytes, or nil: it must be UTF-8 without control characters, as it
// travels in Kafka headers and HTTP frames.
func CheckText(s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("has %d bytes; at most %d are allowed", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("is not valid UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("holds a control character")
	}
	return nil
}

// CheckMetadata reports why m cannot be an event's or a session's metadata, or nil.
// Keys and values are UTF-8 text; both together count against MaxMetadataBytes.
func CheckMetadata(m map[string]string) error {
	if len(m) > MaxMetadataKeys {
		return fmt.Errorf("has %d keys; at most %d are allowed", len(m), MaxMetadataKeys)
	}
	size := 0
	for k, v := range m {
		size += len(k) + len(v)
		if k == "" {
			return fmt.Errorf("has an empty key")
		}
		if err := CheckText(k, MaxMetadataKeyLen); err != nil {
			return fmt.Errorf("key %s %w", Quote(k), err)
		}
		if !utf8.ValidString(v) {
			return fmt.Errorf("value of key %s is not valid UTF-8", Quote(k))
		}
	}
	if size > MaxMetadataBytes {
		return fmt.Errorf("has %d bytes of keys and values; at most %d are allowed", size, MaxMetadataBytes)
	}
	return nil
}

// Quote quotes s for an error message, cut to a length that is safe to echo.
func Quote(s string) string {
	if len(s) <= maxQuotedErrorText {
		return strconv.QuoteToASCII(s)
	}
	return strconv.QuoteToASCII(s[:maxQuotedErrorText]) + "…"
}

// parseUnit reads a number from 0 to 1, as confidences are. Minus zero gives zero.
func parseUnit(s string) (float32, bool) {
	f, err := strconv.ParseFloat(s, 32)
	if err != nil || !(f >= 0 && f <= 1) {
		return 0, false
	}
	if f == 0 {
		f = 0
	}
	return float32(f), true
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

func allNameBytes(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isLetter(c) && (c < '0' || c > '9') && c != '_' && c != '.' && c != ':' && c != '-' {
			return false
		}
	}
	return true
}
