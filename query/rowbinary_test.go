package query

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// aRow is one row of eventColumns in RowBinary.
func aRow(payload string) []byte {
	text := func(b []byte, s string) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	le := binary.LittleEndian
	b := []byte{2}                                   // log_epoch
	b = le.AppendUint16(b, 300)                      // kafka_partition
	b = le.AppendUint64(b, 1<<40)                    // kafka_offset
	b = le.AppendUint64(b, testStartMs)              // ts
	b = le.AppendUint64(append(b, 0), testStartMs-1) // client_ts
	b = le.AppendUint64(b, 77)                       // t_ms
	for _, s := range []string{"init", "wf", "m-1", "f-1"} {
		b = text(b, s)
	}
	b = append(b, 1)                       // confidence: NULL
	b = text(text(append(b, 1), "a"), "b") // metadata: one pair
	b = text(b, "")
	b = le.AppendUint64(b, uint64(len(payload)))
	return text(b, payload)
}

func TestRowBinaryReadsRows(t *testing.T) {
	clientMs := int64(testStartMs - 1)
	scope := schema.Scope{Workspace: "w", Session: "s"}
	var stream []byte
	var want []*schema.Event
	for _, n := range []int{0, 10, firstBlockBytes - 7, 3 * blockBytes, 5} { // around the buffers' sizes
		payload := strings.Repeat("p", n)
		stream = append(stream, aRow(payload)...)
		want = append(want, &schema.Event{
			ID:        schema.EventID{Position: schema.Position{Epoch: 2, Partition: 300, Offset: 1 << 40}, TimeMs: testStartMs},
			Workspace: "w", Session: "s", Workflow: "wf", Type: "init", MessageID: "m-1", FrameID: "f-1", TMs: 77, ClientTimeMs: &clientMs,
			Metadata: map[string]string{"a": "b"}, ContentType: schema.DefaultContentType, Payload: []byte(payload),
		})
	}
	want[0].Payload = nil
	s, r := newRowScanner(scope), newRowBinary(bytes.NewReader(stream))
	for _, w := range want {
		if !r.more() {
			t.Fatal("no more rows")
		}
		if got, err := s.decode(r); err != nil || !reflect.DeepEqual(got, w) {
			t.Fatalf("decode = %+v, %v, want %+v", got, err, w)
		}
	}
	if r.more() || r.err != nil {
		t.Errorf("after the last row: more, or %v", r.err)
	}
}

func TestRowBinaryTellsACutRow(t *testing.T) {
	row := aRow("payload")
	for n := 1; n < len(row); n++ {
		r := newRowBinary(bytes.NewReader(row[:n]))
		if _, err := newRowScanner(schema.Scope{Session: "s"}).decode(r); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("a row cut after %d of %d bytes: %v, want %v", n, len(row), err, io.ErrUnexpectedEOF)
		}
	}
}

func FuzzRowBinary(f *testing.F) {
	f.Add(aRow("payload"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if len(b) > 4096 {
			return
		}
		s, r := newRowScanner(schema.Scope{Session: "s"}), newRowBinary(bytes.NewReader(b))
		for r.more() {
			if _, err := s.decode(r); err != nil {
				return
			}
		}
	})
}
