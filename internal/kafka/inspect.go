package kafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/playhead-dev/playhead/schema"
)

// ErrDamaged reports files of the embedded broker that do not hold what it has written
// to them. Nothing was changed.
var ErrDamaged = errors.New("the log's files are damaged")

// inspect refuses a directory whose damage the broker would mend by throwing events away:
// it cuts a segment off at the first batch that it cannot read, whatever lies behind that,
// and begins an empty log where its lists of topics are gone. What a crash leaves passes: a
// last batch that was not written to its end has not been acknowledged.
//
// That the end of the last segment is missing cannot be seen here: it looks the same.
// Whoever knows how far the log reached can (Embedded's user compares the committed
// offsets).
//
// What it has read of producers it writes to the broker's file: see sequences.
func inspect(dir string) error {
	parts, err := partitionDirs(dir)
	if err != nil || len(parts) == 0 {
		return err
	}
	topics, err := listedTopics(dir)
	if err != nil {
		return err
	}
	producers := make(sequences)
	for _, p := range parts {
		if topics[p.topic] <= p.partition {
			return fmt.Errorf("%w: %s does not list %s-%d, whose events are in %s", ErrDamaged,
				filepath.Join(dir, "topics.json"), p.topic, p.partition, p.dir)
		}
		if err := p.inspect(producers); err != nil {
			return err
		}
	}
	return producers.save(dir)
}

// partitionFiles are the segments of a partition, in their order.
type partitionFiles struct {
	dir       string
	topic     string
	partition int
	bases     []int64 // of the segments, ascending
}

var partitionDir = regexp.MustCompile(`^(playhead\..+)-(\d+)$`)

// partitionDirs lists the partitions of our topics that hold anything.
func partitionDirs(dir string) ([]partitionFiles, error) {
	root := filepath.Join(dir, "partitions")
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []partitionFiles
	for _, e := range entries {
		m := partitionDir.FindStringSubmatch(e.Name())
		if m == nil || !e.IsDir() {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			continue
		}
		p := partitionFiles{dir: filepath.Join(root, e.Name()), topic: m[1], partition: n}
		if p.bases, err = segments(p.dir); err != nil {
			return nil, err
		}
		if len(p.bases) > 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

// segments lists the first offsets of a partition's segments that are not empty.
func segments(dir string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var bases []int64
	for _, e := range entries {
		name := e.Name()
		base, err := strconv.ParseInt(name[:max(0, len(name)-len(segmentSuffix))], 10, 64)
		if err != nil || filepath.Ext(name) != segmentSuffix {
			continue
		}
		if info, err := e.Info(); err != nil {
			return nil, err
		} else if info.Size() > 0 {
			bases = append(bases, base)
		}
	}
	slices.Sort(bases)
	return bases, nil
}

const segmentSuffix = ".dat"

// listedTopics reads how many partitions each topic has.
func listedTopics(dir string) (map[string]int, error) {
	if _, err := os.Stat(filepath.Join(dir, "meta.json")); err != nil {
		return nil, fmt.Errorf("%w: %w; without it a new log would begin in place of the one in %s", ErrDamaged, err, filepath.Join(dir, "partitions"))
	}
	var listed struct {
		Topics []struct {
			Name       string `json:"name"`
			Partitions int    `json:"partitions"`
		} `json:"topics"`
	}
	path := filepath.Join(dir, "topics.json")
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &listed)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	topics := make(map[string]int)
	for _, t := range listed.Topics {
		topics[t.Name] = t.Partitions
	}
	return topics, nil
}

// inspect walks the batches of all segments. Those of playhead.events, which is never
// compacted, have no gaps between them.
func (p *partitionFiles) inspect(producers sequences) error {
	gapless := p.topic == schema.TopicEvents
	next := p.bases[0] // the offset behind what was read so far
	for i, base := range p.bases {
		path := filepath.Join(p.dir, strconv.FormatInt(base, 10)+segmentSuffix)
		if gapless && base != next {
			return fmt.Errorf("%w: offsets %d to %d of %s are missing before %s", ErrDamaged, next, base, p.topic, path)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var good int
		note := func(batch []byte) { producers.note(p.topic, p.partition, batch) }
		if good, next = readableBatches(b, max(base, next), gapless, note); good == len(b) {
			continue
		}
		misplaced, _, _ := batchAt(b[good:]) // whole, and not where it belongs
		if i < len(p.bases)-1 || misplaced > 0 || batchIn(b[good:], next) {
			return fmt.Errorf("%w: %s cannot be read from byte %d (offset %d) on, and events lie behind that. Put a copy of the file back; "+
				"or cut it off there, which loses them: truncate -s %d %s", ErrDamaged, path, good, next, good, path)
		}
	}
	return nil
}

// Layout of a batch of records (kafka.apache.org/documentation, "Record Batch").
const (
	batchLengthAt = 8
	batchPrefix   = batchLengthAt + 4 // what the length does not count
	batchMagicAt  = 16
	batchCRCAt    = 17
	batchCRCFrom  = 21
	batchDeltaAt  = 23
	batchHead     = 61
	batchMagic    = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// readableBatches returns how many bytes of a segment are whole batches, from offset next
// on, and the offset behind the last of them. gapless batches follow each other closely.
// note is called with each.
func readableBatches(b []byte, next int64, gapless bool, note func(batch []byte)) (good int, end int64) {
	for {
		n, first, after := batchAt(b[good:])
		if n == 0 || first < next || gapless && first != next {
			return good, next
		}
		note(b[good : good+n])
		good, next = good+n, after
	}
}

// batchAt returns the length of the batch that b begins with, its first offset and the one
// behind it; 0 if there is none, or not all of it, or not as it was written.
func batchAt(b []byte) (length int, first, next int64) {
	if len(b) < batchHead || b[batchMagicAt] != batchMagic {
		return 0, 0, 0
	}
	length = batchPrefix + int(int32(binary.BigEndian.Uint32(b[batchLengthAt:])))
	if length < batchHead || length > len(b) {
		return 0, 0, 0
	}
	if crc32.Checksum(b[batchCRCFrom:length], castagnoli) != binary.BigEndian.Uint32(b[batchCRCAt:]) {
		return 0, 0, 0
	}
	first = int64(binary.BigEndian.Uint64(b))
	return length, first, first + int64(int32(binary.BigEndian.Uint32(b[batchDeltaAt:]))) + 1
}

// batchIn reports whether a whole batch of offset from or above lies anywhere in b.
func batchIn(b []byte, from int64) bool {
	for i := range b {
		if len(b)-i < batchHead {
			return false
		}
		if first := int64(binary.BigEndian.Uint64(b[i:])); first < from || first > schema.MaxOffset {
			continue
		}
		if n, _, _ := batchAt(b[i:]); n > 0 {
			return true
		}
	}
	return false
}
