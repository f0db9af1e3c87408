package query

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/playhead-dev/playhead/schema"
)

// listKey is a place in the list of sessions. No two sessions have the same. An empty id
// stands before all sessions of that time.
type listKey struct {
	ms int64 // when the session was last active, or when it started
	id string
}

func (k listKey) isZero() bool { return k == listKey{} }

// compare orders keys by time, then by id, both upwards.
func (k listKey) compare(o listKey) int {
	return cmp.Or(cmp.Compare(k.ms, o.ms), cmp.Compare(k.id, o.id))
}

// cursor returns the text of a place, bound to what the tag stands for:
//
//	base64url(uvarint of ms, then the id) "." 8 hex digits of the tag
func (k listKey) cursor(tag uint32) string {
	packed := append(binary.AppendUvarint(nil, uint64(k.ms)), k.id...)
	return base64.RawURLEncoding.EncodeToString(packed) + "." + hex.EncodeToString(binary.BigEndian.AppendUint32(nil, tag))
}

// parseListCursor reads the text of a place; ok is false if it is none. A place has one
// spelling.
func parseListCursor(s string) (key listKey, tag uint32, ok bool) {
	place, bound, _ := strings.Cut(s, ".")
	packed, err := base64.RawURLEncoding.DecodeString(place)
	if err != nil {
		return listKey{}, 0, false
	}
	b, err := hex.DecodeString(bound)
	if err != nil || len(b) != 4 {
		return listKey{}, 0, false
	}
	ms, n := binary.Uvarint(packed)
	if n <= 0 || ms > schema.MaxTimeMs {
		return listKey{}, 0, false
	}
	key, tag = listKey{int64(ms), string(packed[n:])}, binary.BigEndian.Uint32(b)
	if key.id != "" && schema.CheckID(key.id) != nil || key.cursor(tag) != s {
		return listKey{}, 0, false
	}
	return key, tag, true
}
