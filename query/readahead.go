package query

import (
	"sync"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// Bounds of what is read ahead, in memory for all readers together.
const (
	maxReadAheadBytes = 256 << 20
	readAheadLife     = 30 * time.Second // unless the next call comes
)

// readAhead keeps what statements read beyond the chunk that was asked for, until the call
// that goes on from there. It is safe for concurrent use.
type readAhead struct {
	forgot func(readKey) // told of what nobody has come for

	mu    sync.Mutex
	kept  map[readPlace]*keptStretch // guarded by mu
	bytes int                        // guarded by mu; of all that is kept
}

// readPlace is where a reader goes on.
type readPlace struct {
	key  readKey
	next schema.Position // without its partition
}

type keptStretch struct {
	stretch
	forget *time.Timer
}

func newReadAhead(forgot func(readKey)) *readAhead {
	return &readAhead{forgot: forgot, kept: make(map[readPlace]*keptStretch)}
}

// room reports whether so many bytes could be kept.
func (a *readAhead) room(bytes int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes+bytes <= maxReadAheadBytes
}

func placeOf(key readKey, next schema.Position) readPlace {
	next.Partition = 0
	return readPlace{key: key, next: next}
}

// take hands out what is kept from from on, if it ends at to at the latest.
func (a *readAhead) take(key readKey, from, to schema.Position) (stretch, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	place := placeOf(key, from)
	k := a.kept[place]
	if k == nil || before(to, k.end) {
		return stretch{}, false
	}
	a.remove(place, k)
	return k.stretch, true
}

// keep takes what comes from from on. If there is no room, it is forgotten: it will be
// read again.
func (a *readAhead) keep(key readKey, from schema.Position, s stretch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	place := placeOf(key, from)
	if old := a.kept[place]; old != nil { // another reader is at the same place
		a.remove(place, old)
	}
	if a.bytes+s.bytes > maxReadAheadBytes {
		return
	}
	k := &keptStretch{stretch: s}
	k.forget = time.AfterFunc(readAheadLife, func() { a.expire(place, k) })
	a.kept[place] = k
	a.bytes += s.bytes
}

// expire forgets what nobody has come for.
func (a *readAhead) expire(place readPlace, k *keptStretch) {
	a.mu.Lock()
	if a.kept[place] != k {
		a.mu.Unlock()
		return
	}
	a.remove(place, k)
	a.mu.Unlock()
	a.forgot(place.key)
}

// remove is called with mu held.
func (a *readAhead) remove(place readPlace, k *keptStretch) {
	k.forget.Stop()
	delete(a.kept, place)
	a.bytes -= k.bytes
}
