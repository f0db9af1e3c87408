package query

import (
	"encoding/binary"
	"fmt"
)

// arrowJoiner makes one Arrow stream of several (Arrow's specification, "IPC Streaming
// Format"): the first one's schema, the record batches of all, one end. A stream is a row of
// messages, each
//
//	ffffffff · int32 length of the metadata · metadata (a flatbuffer) · body
//
// and ends with a metadata length of 0. Dictionaries would have to be renumbered; ours
// have none, as ClickHouse writes LowCardinality as plain text here.
type arrowJoiner struct {
	begun    bool   // the first schema was handed on
	messages int    // of the present stream
	head     []byte // of the message whose metadata is not complete
	body     int64  // bytes of the present message that are still to come
	ended    bool   // the present stream
}

const (
	arrowContinuation = 0xffffffff
	arrowPrefix       = 8
	maxArrowMetadata  = 16 << 20
)

func (j *arrowJoiner) next() { *j = arrowJoiner{begun: j.begun, head: j.head[:0]} }

func (j *arrowJoiner) write(b []byte, out func([]byte) error) error {
	for len(b) > 0 {
		if j.body > 0 {
			n := min(j.body, int64(len(b)))
			if err := out(b[:n]); err != nil {
				return err
			}
			b, j.body = b[n:], j.body-n
			continue
		}
		want := arrowPrefix
		if len(j.head) >= arrowPrefix {
			want += int(binary.LittleEndian.Uint32(j.head[4:]))
		}
		n := min(want-len(j.head), len(b))
		j.head, b = append(j.head, b[:n]...), b[n:]
		if len(j.head) < want {
			return nil
		}
		if err := j.complete(out); err != nil {
			return err
		}
	}
	return nil
}

// complete takes what has come of the head of a message: its prefix, or all of it.
func (j *arrowJoiner) complete(out func([]byte) error) error {
	size := binary.LittleEndian.Uint32(j.head[4:])
	switch {
	case j.ended, binary.LittleEndian.Uint32(j.head) != arrowContinuation, size > maxArrowMetadata:
		return fmt.Errorf("arrow stream of clickhouse: message %d begins with % x", j.messages, j.head[:arrowPrefix])
	case size == 0:
		j.ended, j.head = true, j.head[:0]
		return nil
	case len(j.head) == arrowPrefix:
		return nil // now the metadata
	}
	var err error
	if j.body, err = arrowBodyLength(j.head[arrowPrefix:]); err != nil {
		return err
	}
	isSchema := j.messages == 0
	j.messages++
	if !isSchema || !j.begun {
		j.begun = true
		err = out(j.head)
	}
	j.head = j.head[:0]
	return err
}

// arrowBodyLength reads the field bodyLength, the fourth of the flatbuffer table Message
// (Message.fbs of Arrow): a table begins with the distance back to its vtable, which holds
// two sizes and then the place of each field in the table, 0 for one at its default.
func arrowBodyLength(metadata []byte) (int64, error) {
	bad := fmt.Errorf("arrow stream of clickhouse: metadata of %d bytes is no message", len(metadata))
	if len(metadata) < 4 {
		return 0, bad
	}
	table := int64(binary.LittleEndian.Uint32(metadata))
	if table+4 > int64(len(metadata)) {
		return 0, bad
	}
	vtable := table - int64(int32(binary.LittleEndian.Uint32(metadata[table:])))
	const field = 4 + 2*3
	if vtable < 0 || vtable+2 > int64(len(metadata)) {
		return 0, bad
	}
	if int64(binary.LittleEndian.Uint16(metadata[vtable:])) < field+2 {
		return 0, nil
	}
	if vtable+field+2 > int64(len(metadata)) {
		return 0, bad
	}
	at := int64(binary.LittleEndian.Uint16(metadata[vtable+field:]))
	if at == 0 {
		return 0, nil
	}
	if table+at+8 > int64(len(metadata)) {
		return 0, bad
	}
	n := int64(binary.LittleEndian.Uint64(metadata[table+at:]))
	if n < 0 {
		return 0, bad
	}
	return n, nil
}

func (j *arrowJoiner) end(out func([]byte) error) error {
	return out([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
}
