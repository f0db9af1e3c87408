package schema

import (
	"maps"
	"time"

	"github.com/zeebo/xxh3"
)

// Defaults of the dedupe rule.
const (
	DefaultDedupeOffsets = 1_000_000
	DefaultDedupeAge     = 10 * time.Minute
)

// skewSlack is how much longer than the rule's age an entry is kept, since record
// times may run back by the clock skew between ingest nodes.
const skewSlack = time.Minute

// DedupeRule says how far back a record is compared with earlier ones.
//
// A record repeats an earlier one of its partition if both carry the same workspace,
// session and message id, and the earlier lies at most Offsets offsets and Age of
// record time back. "Earlier one" includes records that were repeats themselves, so
// that the answer for a record depends on one window of the log and nothing older: a
// reader that warms up over one window judges as all others do. This rests on record
// times running back by at most a minute; past a record that lies further in the future
// (which no ingest node writes), a repeat may slip through.
//
// A record of TypeErased ends this for its session: what comes behind it repeats nothing
// before it, so that an id that an erased event had may be used again. As the record lies
// in the log itself, this too is the same for every reader, whatever it knows of erasures.
type DedupeRule struct {
	Offsets int64         // at least 1; memory is 133 bytes an offset at the worst
	Age     time.Duration // at least 1 ms
}

// WarmUpAge is how far back in record time a reader must begin, so that every record
// from its starting point on is judged as all other readers judge it.
func (r DedupeRule) WarmUpAge() time.Duration { return r.Age + skewSlack }

// messageKey identifies (workspace, session, message id) by a 128-bit hash: among a
// million kept keys the chance of one false match is below 1e-26 a record.
type messageKey = xxh3.Uint128

// MessageKey returns the dedupe key of a message id. The ids' grammar has no '\n',
// so the joined text is unambiguous.
func MessageKey(workspace, session, messageID string) xxh3.Uint128 {
	var buf [3*MaxIDLen + 2]byte
	b := append(buf[:0], workspace...)
	b = append(b, '\n')
	b = append(b, session...)
	b = append(b, '\n')
	b = append(b, messageID...)
	return xxh3.Hash128(b)
}

// sighting is one record with a message id. Sightings are numbered from 0 in the order
// of their offsets.
type sighting struct {
	key    messageKey
	offset int64
	ms     int64

	firstOffset, firstMs int64 // of the first record of the chain of repeats

	session uint64 // hash of workspace and session, for fence

	// older is the number of the latest earlier sighting of the key with a later time,
	// or -1. Only where time ran back between the two can a record repeat that one and
	// not this; those between are nearer in neither respect and are skipped.
	older int64
}

// sightingsPerChunk sizes the steps in which the window's memory grows and shrinks
// (16 KiB); small, as there is a window to every partition.
const sightingsPerChunk = 256

// minShrink is the number of keys below which the map is not worth making anew.
const minShrink = 4096

// Window applies a DedupeRule to the records of one Kafka partition in one log epoch,
// fed in offset order. It is not safe for concurrent use.
type Window struct {
	rule DedupeRule
	log  Position             // epoch and partition of the records
	last map[messageKey]int64 // number of each key's latest sighting
	peak int                  // most keys since the map was made

	fenced int64 // offset of the last record of TypeErased; 0 if there was none

	// chunks hold the sightings head to tail-1; the first of chunks[0] has number base.
	chunks           []*[sightingsPerChunk]sighting
	base, head, tail int64
}

// NewWindow returns an empty window.
func NewWindow(rule DedupeRule) *Window {
	return &Window{rule: rule, last: make(map[messageKey]int64)}
}

// Observe takes the next record and reports whether it repeats an earlier one; if so,
// first is the id of the first record of that chain, as far back as the window was fed.
// If not, first is the record's own id. Records without a message id are never repeats,
// and their first is zero. Bookkeeping records are judged like any other.
func (w *Window) Observe(e *Event) (first EventID, duplicate bool) {
	w.expire(e.ID)
	if e.Type == TypeErased {
		w.fence(sessionHash(e))
		w.fenced = e.ID.Offset
		return EventID{}, false
	}
	if e.MessageID == "" {
		return EventID{}, false
	}
	w.log = Position{Epoch: e.ID.Epoch, Partition: e.ID.Partition}
	now := sighting{
		key: MessageKey(e.Workspace, e.Session, e.MessageID), offset: e.ID.Offset, ms: e.ID.TimeMs,
		firstOffset: e.ID.Offset, firstMs: e.ID.TimeMs, session: sessionHash(e), older: -1,
	}
	if last, seen := w.last[now.key]; seen {
		if duplicate = w.within(last, e.ID); duplicate {
			now.firstOffset, now.firstMs = w.at(last).firstOffset, w.at(last).firstMs
		}
		for now.older = last; now.older >= w.head && w.at(now.older).ms <= now.ms; {
			now.older = w.at(now.older).older
		}
	}
	w.last[now.key] = w.push(now)
	w.peak = max(w.peak, len(w.last))
	return w.firstOf(&now), duplicate
}

// Lookup reports whether a record with this key, appended at the position and time of
// now, would repeat an earlier one, and the first id if so. It changes nothing: calls
// may run at the same time as each other, though not as Observe.
func (w *Window) Lookup(key xxh3.Uint128, now EventID) (EventID, bool) {
	last, seen := w.last[key]
	if !seen || !w.within(last, now) {
		return EventID{}, false
	}
	return w.firstOf(w.at(last)), true
}

// Fenced returns the offset of the last record of TypeErased that the window was fed; 0 if
// there was none. Of events before it Lookup does not know any more what they repeat.
func (w *Window) Fenced() int64 { return w.fenced }

// fence forgets the message ids of a session: it has been erased. It looks at all that the
// window holds, some milliseconds at the most.
func (w *Window) fence(session uint64) {
	for n := w.head; n < w.tail; n++ {
		if s := w.at(n); s.session == session {
			delete(w.last, s.key)
		}
	}
}

// sessionHash tells sessions apart. Should another of a million sessions in the window have
// the hash of one that is erased (chance below 1e-12), repeats of its events slip through.
func sessionHash(e *Event) uint64 {
	var buf [2*MaxIDLen + 1]byte
	b := append(buf[:0], e.Workspace...)
	b = append(b, '\n')
	return xxh3.Hash(append(b, e.Session...))
}

// Len returns the number of message ids held.
func (w *Window) Len() int { return len(w.last) }

func (w *Window) firstOf(s *sighting) EventID {
	id := EventID{Position: w.log, TimeMs: s.firstMs}
	id.Offset = s.firstOffset
	return id
}

// within reports whether a record at id would repeat the sighting numbered last or one
// of those older.
func (w *Window) within(last int64, id EventID) bool {
	for n := last; n >= w.head; {
		s := w.at(n)
		if id.Offset-s.offset > w.rule.Offsets {
			return false // and the older ones are farther still
		}
		if id.TimeMs-s.ms <= w.rule.Age.Milliseconds() {
			return true
		}
		n = s.older
	}
	return false
}

func (w *Window) at(n int64) *sighting {
	i := n - w.base
	return &w.chunks[i/sightingsPerChunk][i%sightingsPerChunk]
}

// push appends s and returns its number.
func (w *Window) push(s sighting) int64 {
	if w.tail-w.base == int64(len(w.chunks))*sightingsPerChunk {
		w.chunks = append(w.chunks, new([sightingsPerChunk]sighting))
	}
	n := w.tail
	w.tail++
	*w.at(n) = s
	return n
}

// expire forgets what no later record can repeat any more, and gives the memory back.
func (w *Window) expire(now EventID) {
	keepMs := w.rule.WarmUpAge().Milliseconds()
	for ; w.head < w.tail; w.head++ {
		s := w.at(w.head)
		if now.Offset-s.offset <= w.rule.Offsets && now.TimeMs-s.ms <= keepMs {
			break
		}
		if w.last[s.key] == w.head {
			delete(w.last, s.key)
		}
	}
	for w.head-w.base >= sightingsPerChunk {
		w.chunks[0] = nil
		w.chunks = w.chunks[1:]
		w.base += sightingsPerChunk
	}
	// A map never shrinks by itself. An eighth keeps the copying short and rare.
	if w.peak > minShrink && len(w.last) < w.peak/8 {
		last := make(map[messageKey]int64, len(w.last))
		maps.Copy(last, w.last)
		w.last, w.peak = last, len(last)
	}
}
