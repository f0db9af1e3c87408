package materializer

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/playhead-dev/playhead/schema"
)

// maxMetadataBytes is what Kafka takes as metadata of one committed offset
// (offset.metadata.max.bytes, default 4096).
const maxMetadataBytes = 4096

// intentVersion is written into every commit. A reader refuses a higher one: it was
// written by a newer node, in the middle of a rolling upgrade, by rules we do not know.
// replaceVersion is that of a commit whose intent says Replace: nodes that know version 1
// alone would count rows that are about to be deleted.
const (
	intentVersion  = 1
	replaceVersion = 2
)

// ErrIntent reports commit metadata that cannot be acted on.
var ErrIntent = errors.New("commit metadata of the materialiser's group is not understood")

// Intent is a range of offsets, [Start, End), that is about to be inserted, and may or
// may not be in the table when somebody reads the intent back. The zero Intent is none.
type Intent struct {
	Start   int64 // inclusive
	End     int64 // exclusive: the offset after the last record of the range
	Records int   // records in the range; fewer than End-Start where offsets have gaps
	Attempt int   // part of the token; raised when the one before is used up
	MinMs   int64 // the records' append times in Unix ms, both inclusive: they let a
	MaxMs   int64 // count of the range skip the parts of other times

	// Rebuild is the id of the rebuild that the range is part of; empty for a range that
	// is copied for the first time. Replace says that its rows are deleted before they are
	// inserted, so that what a count finds may be about to go.
	Rebuild string
	Replace bool
}

// IsZero reports whether in announces nothing.
func (in Intent) IsZero() bool { return in.End == 0 }

// Gap is a stretch of offsets, [Start, End), that is lost: Kafka had deleted its
// records before they became rows. The zero Gap is none.
type Gap struct{ Start, End int64 }

// committed is the whole state of a partition: the committed offset and, in the
// commit's metadata, the rest.
type committed struct {
	next   int64  // all records below it are rows
	intent Intent // in doubt; usually Intent.Start == next, below it if it is a repair
	gap    Gap    // the last gap, kept so that the alarm outlives a restart

	rebuild Rebuild // under way; zero if none is
	rebuilt Rebuild // the last one that was asked for and has ended, for whoever asked
}

// commitMetadata is the JSON form of a commit's metadata. Epoch stands in every
// commit: an offset of another life of the topic means nothing in this one.
type commitMetadata struct {
	Version int         `json:"version"`
	Epoch   uint8       `json:"epoch"`
	Intent  *intentJSON `json:"intent,omitempty"`
	Gap     *[2]int64   `json:"gap,omitempty"`
	Rebuild *Rebuild    `json:"rebuild,omitempty"`
	Rebuilt *Rebuild    `json:"rebuilt,omitempty"`
}

type intentJSON struct {
	Start   int64 `json:"start"`
	End     int64 `json:"end"`
	Records int   `json:"n"`
	Attempt int   `json:"attempt"`
	MinMs   int64 `json:"min_ms"`
	MaxMs   int64 `json:"max_ms"`

	Rebuild string `json:"rebuild,omitempty"`
	Replace bool   `json:"replace,omitempty"`
}

// encode returns the metadata of a commit of c.
func (c committed) encode(epoch uint8) (string, error) {
	m := commitMetadata{Version: intentVersion, Epoch: epoch}
	if !c.intent.IsZero() {
		j := intentJSON(c.intent)
		m.Intent = &j
		if c.intent.Replace {
			m.Version = replaceVersion
		}
	}
	if c.gap != (Gap{}) {
		m.Gap = &[2]int64{c.gap.Start, c.gap.End}
	}
	if c.rebuild != (Rebuild{}) {
		m.Rebuild = &c.rebuild
	}
	if c.rebuilt != (Rebuild{}) {
		m.Rebuilt = &c.rebuilt
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encode commit metadata: %w", err)
	}
	if len(b) > maxMetadataBytes {
		return "", fmt.Errorf("commit metadata has %d bytes; Kafka takes %d", len(b), maxMetadataBytes)
	}
	return string(b), nil
}

// decodeCommitted reads back a commit. ok is false if it belongs to another epoch, so
// that nothing is committed in this one. Empty metadata (an offset that an operator set
// by hand) is an offset without an intent.
func decodeCommitted(offset int64, metadata string, epoch uint8) (c committed, ok bool, err error) {
	c.next = offset
	if metadata == "" {
		return c, true, nil
	}
	if len(metadata) > maxMetadataBytes {
		return c, false, fmt.Errorf("%w: it has %d bytes", ErrIntent, len(metadata))
	}
	var m commitMetadata
	if err := json.Unmarshal([]byte(metadata), &m); err != nil {
		return c, false, fmt.Errorf("%w: %w", ErrIntent, err)
	}
	if m.Version < intentVersion || m.Version > replaceVersion {
		return c, false, fmt.Errorf("%w: version %d, this node writes up to %d", ErrIntent, m.Version, replaceVersion)
	}
	if m.Epoch != epoch {
		return committed{}, false, nil
	}
	if m.Gap != nil {
		c.gap = Gap{Start: m.Gap[0], End: m.Gap[1]}
	}
	for from, into := range map[*Rebuild]*Rebuild{m.Rebuild: &c.rebuild, m.Rebuilt: &c.rebuilt} {
		if from == nil {
			continue
		}
		if err := from.check(); err != nil {
			return c, false, fmt.Errorf("%w: %w", ErrIntent, err)
		}
		*into = *from
	}
	if m.Intent != nil {
		c.intent = Intent(*m.Intent)
		if err := c.intent.check(offset); err != nil {
			return c, false, fmt.Errorf("%w: %w", ErrIntent, err)
		}
	}
	return c, true, nil
}

// check refuses what no node of ours writes, before a range is acted on.
func (in Intent) check(next int64) error {
	switch {
	case in.Start < 0 || in.End <= in.Start || in.End > schema.MaxOffset+1:
		return fmt.Errorf("range [%d, %d)", in.Start, in.End)
	case in.Start > next, in.Start < next && in.End > next:
		return fmt.Errorf("range [%d, %d) with committed offset %d", in.Start, in.End, next)
	case in.Records < 1 || int64(in.Records) > in.End-in.Start:
		return fmt.Errorf("%d records in range [%d, %d)", in.Records, in.Start, in.End)
	case in.Attempt < 0 || in.MaxMs < in.MinMs:
		return fmt.Errorf("attempt %d, times %d to %d", in.Attempt, in.MinMs, in.MaxMs)
	case len(in.Rebuild) > maxRebuildID:
		return fmt.Errorf("rebuild id of %d bytes", len(in.Rebuild))
	}
	return nil
}

// removal names the deleting of a range's rows before they are inserted anew.
func (in Intent) removal(partition uint16) string {
	return fmt.Sprintf("rebuild-%s/%d/%d-%d/remove", in.Rebuild, partition, in.Start, in.End)
}

// token names one try to insert a range. It is the deduplication token, so that of two
// equal inserts one counts, and the query id, so that a second one is refused while
// the first still runs, and that one can be killed.
func (in Intent) token(epoch uint8, partition uint16) string {
	rebuild := ""
	if in.Rebuild != "" {
		rebuild = "rebuild-" + in.Rebuild + "/"
	}
	return fmt.Sprintf("%d/%s/%d/%d-%d/%s%d", epoch, schema.TopicEvents, partition, in.Start, in.End, rebuild, in.Attempt)
}
