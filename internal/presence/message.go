package presence

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/playhead-dev/playhead/schema"
)

// recordVersion is the version of the format that this program writes and reads.
const recordVersion = 1

const (
	// partBytes is about how large a record gets, before the snapshot goes on in another.
	partBytes = 64 << 10
	// maxRecordBytes is the largest value that is decoded.
	maxRecordBytes = 2 * partBytes
	// entryBytes is about what an entry takes beside its names.
	entryBytes = 24
)

var (
	errUnknownVersion = errors.New("unknown version")
	errTooLarge       = errors.New("larger than any record of ours")
)

// message is one record of the topic; the package comment describes it.
type message struct {
	V        int    `json:"v"`
	Node     string `json:"node"`
	Seq      uint64 `json:"seq"`
	Snapshot uint64 `json:"snapshot,omitempty"` // 0: a change
	Last     bool   `json:"last,omitempty"`
	// Open is streams by workspace, key and class.
	Open map[string]map[string]map[string]int32 `json:"open,omitempty"`

	entries map[entry]int // Open, flat; set by decode
}

// encode cuts what is open into the values of records, of which the first has the number
// seq. A snapshot is one record at least, a change of nothing none.
func encode(node string, seq uint64, open map[entry]int, snapshot bool) ([][]byte, error) {
	var values [][]byte
	m := message{V: recordVersion, Node: node, Seq: seq}
	if snapshot {
		m.Snapshot = seq
	}
	cut := func() error {
		value, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("encode counts: %w", err)
		}
		values = append(values, value)
		m.Seq++
		m.Open = nil
		return nil
	}
	size := 0
	for e, n := range open {
		if size >= partBytes {
			if err := cut(); err != nil {
				return nil, err
			}
			size = 0
		}
		size += len(e.workspace) + len(e.key) + len(e.class) + entryBytes
		if m.Open == nil {
			m.Open = make(map[string]map[string]map[string]int32)
		}
		if m.Open[e.workspace] == nil {
			m.Open[e.workspace] = make(map[string]map[string]int32)
		}
		if m.Open[e.workspace][e.key] == nil {
			m.Open[e.workspace][e.key] = make(map[string]int32)
		}
		m.Open[e.workspace][e.key][e.class] = int32(min(n, math.MaxInt32))
	}
	m.Last = snapshot
	if m.Open != nil || snapshot {
		if err := cut(); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// decode reads the value of a record, which may be anything.
func decode(value []byte) (*message, error) {
	if len(value) > maxRecordBytes {
		return nil, fmt.Errorf("%d bytes: %w", len(value), errTooLarge)
	}
	var head struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return nil, fmt.Errorf("value is not a JSON object: %w", err)
	}
	if head.V != recordVersion {
		return nil, fmt.Errorf("%w %d", errUnknownVersion, head.V)
	}
	var m message
	if err := json.Unmarshal(value, &m); err != nil {
		return nil, err
	}
	return &m, m.check()
}

// check looks at every field and flattens Open.
func (m *message) check() error {
	if err := schema.CheckID(m.Node); err != nil {
		return fmt.Errorf("node %w", err)
	}
	switch {
	case m.Seq == 0:
		return errors.New("seq is 0; want 1 or more")
	case m.Snapshot > m.Seq:
		return fmt.Errorf("snapshot begins at %d, after its record %d", m.Snapshot, m.Seq)
	case m.Last && m.Snapshot == 0:
		return errors.New("last record of no snapshot")
	}
	m.entries = make(map[entry]int)
	for workspace, keys := range m.Open {
		for key, classes := range keys {
			for class, n := range classes {
				e := entry{workspace, key, class}
				if err := e.check(); err != nil {
					return err
				}
				if n < 0 {
					return fmt.Errorf("%d streams are open; want 0 or more", n)
				}
				m.entries[e] = int(n)
			}
		}
	}
	return nil
}

// check reports a name that is not an id; a class may be empty.
func (e entry) check() error {
	if err := schema.CheckID(e.workspace); err != nil {
		return fmt.Errorf("workspace %w", err)
	}
	if err := schema.CheckID(e.key); err != nil {
		return fmt.Errorf("key %w", err)
	}
	if e.class == "" {
		return nil
	}
	if err := schema.CheckID(e.class); err != nil {
		return fmt.Errorf("class %w", err)
	}
	return nil
}
