package deadletters

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// Entry is a dead letter as a Book lists it.
type Entry struct {
	schema.Claim
	At         schema.Position // of the record
	Next       int64           // the offset behind it; of an unreadable batch that behind its last
	Place      int64           // the letter's offset in playhead.dead_letters
	FoundMs    int64           // when the letter was written, Unix ms
	Reason     schema.Reason
	Why        string
	TimeMs     int64 // the record's timestamp, Unix ms, which may be any number
	ValueBytes int
	Redriven   *schema.Redrive // nil: not appended again
}

// scope names a workspace, or one of its sessions.
type scope struct{ workspace, session string }

// Book lists dead letters. It reads the topic when it is asked (Sync), and holds of each
// letter what a list shows, of the latest Config.MaxListed. It is safe for concurrent use.
// The caller closes it.
type Book struct {
	max     int
	erasure func(workspace, session string) (schema.Erasure, bool) // control.Store.Erasure
	kafka   kafka.Config
	metrics *Metrics
	logger  *slog.Logger

	life context.Context // ends with Close
	end  context.CancelCauseFunc
	turn chan struct{} // a token: who holds it reads the topic
	log  *kafka.Log    // guarded by turn; nil until the first Sync, and after Close

	mu      sync.RWMutex // guards what follows; not held while Kafka is asked
	next    int64        // the first offset that was not read yet
	entries []*Entry
	byAt    map[schema.Position]*Entry
	erased  map[scope]int64 // Unix ms: no older record of it is listed
	marks   []scope         // the keys of erased, the oldest first
}

// maxMarks bounds the erasures that a Book remembers. Of those beyond it the letters that
// are listed are forgotten, which leaves only what a node writes that hears of an erasure as
// late as that.
const maxMarks = 100_000

// NewBook returns a Book that has read nothing yet. erasure returns the erasure that counts
// for a session, or for a workspace if session is ""; it answers at once.
func NewBook(cfg Config, k kafka.Config, erasure func(workspace, session string) (schema.Erasure, bool), metrics *Metrics, logger *slog.Logger) *Book {
	k.ReadConnections = 1
	b := &Book{max: cfg.MaxListed, erasure: erasure, kafka: k, metrics: metrics, logger: logger, turn: make(chan struct{}, 1)}
	b.life, b.end = context.WithCancelCause(context.Background())
	b.forget()
	b.turn <- struct{}{}
	return b
}

// forget begins anew.
func (b *Book) forget() {
	b.next, b.entries, b.marks = 0, nil, nil
	b.byAt, b.erased = make(map[schema.Position]*Entry), make(map[scope]int64)
}

// ErrClosed is the error of a Book after Close.
var ErrClosed = errors.New("dead letters: closed")

// Close ends calls that read, and waits for them.
func (b *Book) Close() {
	b.end(ErrClosed)
	<-b.turn
	if b.log != nil {
		b.log.Close()
		b.log = nil
	}
	b.turn <- struct{}{}
}

// takeTurn waits for the right to read the topic. Reads go by the context it returns, which
// Close ends too; the caller calls done behind them.
func (b *Book) takeTurn(ctx context.Context) (reading context.Context, done func(), err error) {
	select {
	case <-b.turn:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if b.life.Err() != nil {
		b.turn <- struct{}{}
		return nil, nil, ErrClosed
	}
	reading, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.life, func() { cancel(ErrClosed) })
	return reading, func() {
		stop()
		cancel(nil)
		b.turn <- struct{}{}
	}, nil
}

// Sync reads the topic up to where it ended when the call began. What it has read it
// keeps, also when ctx ends before it is through: the next call goes on there.
func (b *Book) Sync(ctx context.Context) error {
	ctx, done, err := b.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	err = b.read(ctx)
	if errors.Is(err, kafka.ErrTopicRecreated) && b.log != nil {
		b.log.Close()
		b.log = nil
		b.mu.Lock()
		b.forget()
		b.mu.Unlock()
		err = b.read(ctx)
	}
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	return nil
}

// read is Sync with the turn held.
func (b *Book) read(ctx context.Context) (err error) {
	if b.log == nil {
		if b.log, err = kafka.OpenTopic(ctx, b.kafka, schema.TopicDeadLetters); err != nil {
			b.log = nil
			return err
		}
	}
	for {
		start, end, err := b.log.Bounds(ctx, 0)
		if err != nil {
			return err
		}
		from := b.expire(start, end)
		next, err := b.log.Read(ctx, 0, from, end, func(r *kgo.Record) error {
			b.fold(r)
			return nil
		})
		if out, ok := errors.AsType[*kafka.OffsetRangeError](err); ok && out.Offset < out.Start {
			continue // deleted since the bounds were asked for
		}
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.next = max(b.next, next)
		b.mu.Unlock()
		return nil
	}
}

// expire drops what Kafka has deleted, or all if Kafka has lost what was read last, and
// returns where to read on.
func (b *Book) expire(start, end int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next > end {
		b.forget()
	}
	n, _ := slices.BinarySearchFunc(b.entries, start, func(e *Entry, place int64) int { return cmp.Compare(e.Place, place) })
	b.drop(n)
	b.next = max(b.next, start)
	return b.next
}

// drop forgets the first n entries; mu is held.
func (b *Book) drop(n int) {
	for _, e := range b.entries[:n] {
		delete(b.byAt, e.At)
	}
	clear(b.entries[:n])
	b.entries = b.entries[n:]
	b.metrics.listed.Set(float64(len(b.entries)))
}

// fold takes one record of the topic.
func (b *Book) fold(r *kgo.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = r.Offset + 1
	record, err := schema.DecodeLetterRecord(r.Key, r.Headers, r.Value)
	switch {
	case err != nil:
		b.logger.Warn("record of the dead letters is skipped", "offset", r.Offset, "error", err)
	case record.Redrive != nil:
		if e := b.byAt[record.Redrive.At]; e != nil && e.Redriven == nil {
			changed := *e // lists hold the entry as it was
			changed.Redriven = record.Redrive
			b.replace(&changed)
		}
	case record.Erasure != nil:
		b.erase(scope{record.Erasure.WorkspaceID, record.Erasure.SessionID}, record.Erasure.AtMs)
	default:
		b.add(record.Letter, r)
	}
}

// add lists a letter, unless its position is listed; mu is held.
func (b *Book) add(l *schema.DeadLetter, r *kgo.Record) {
	if b.byAt[l.At] != nil {
		return // written again, after a crash
	}
	e := &Entry{
		Claim: l.Claim, At: l.At, Next: l.Next, Place: r.Offset, FoundMs: r.Timestamp.UnixMilli(),
		Reason: l.Reason, Why: l.Why, TimeMs: l.TimeMs, ValueBytes: l.ValueBytes,
	}
	b.entries = append(b.entries, e)
	b.byAt[e.At] = e
	if over := len(b.entries) - b.max; over > 0 {
		b.metrics.forgotten.Add(float64(over))
		b.drop(over)
	}
	b.metrics.listed.Set(float64(len(b.entries)))
}

// replace puts e in the place of its former self; mu is held.
func (b *Book) replace(e *Entry) {
	i, ok := slices.BinarySearchFunc(b.entries, e.Place, func(e *Entry, place int64) int { return cmp.Compare(e.Place, place) })
	if ok {
		b.entries[i], b.byAt[e.At] = e, e
	}
}

// erase notes an erasure; mu is held.
func (b *Book) erase(s scope, atMs int64) {
	at, known := b.erased[s]
	b.erased[s] = max(at, atMs)
	if known {
		return
	}
	if b.marks = append(b.marks, s); len(b.marks) <= maxMarks {
		return
	}
	b.entries = slices.DeleteFunc(b.entries, func(e *Entry) bool {
		gone := b.gone(e)
		if gone {
			delete(b.byAt, e.At)
		}
		return gone
	})
	const many = maxMarks / 10 // or each further one would go through all entries
	for _, old := range b.marks[:many] {
		delete(b.erased, old)
	}
	b.marks = slices.Delete(b.marks, 0, many)
}

// gone reports whether e is erased; mu is held.
func (b *Book) gone(e *Entry) bool {
	if e.Workspace == "" {
		return false
	}
	for _, s := range []scope{{e.Workspace, ""}, {e.Workspace, e.Session}} {
		if at, ok := b.erased[s]; ok && e.notAfter(at) {
			return true
		}
	}
	x, ok := b.erasure(e.Workspace, e.Session)
	return ok && (x.Session == "" || e.notAfter(x.AtMs) || e.At.Partition == x.Below.Partition && e.At.Precedes(x.Below))
}

// notAfter reports whether the record may be from before a time. Of one whose timestamp
// cannot be a time nobody can tell that it is younger.
func (e *Entry) notAfter(ms int64) bool {
	return e.TimeMs < 0 || e.TimeMs <= ms || e.TimeMs > schema.MaxEventTimeMs
}

// List returns the letters behind a place that want takes, the oldest first, at most limit,
// and whether there are more. want must not block. The entries are shared: they are not to
// be changed.
func (b *Book) List(after int64, limit int, want func(*Entry) bool) (page []*Entry, more bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	first, _ := slices.BinarySearchFunc(b.entries, after+1, func(e *Entry, place int64) int { return cmp.Compare(e.Place, place) })
	for _, e := range b.entries[first:] {
		if b.gone(e) || !want(e) {
			continue
		}
		if len(page) == limit {
			return page, true
		}
		page = append(page, e)
	}
	return page, false
}

// Entry returns the letter of a position; false if there is none.
func (b *Book) Entry(at schema.Position) (*Entry, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	e := b.byAt[at]
	if e == nil || b.gone(e) {
		return nil, false
	}
	return e, true
}

// ErrGone reports a letter that Kafka has deleted since it was listed.
var ErrGone = errors.New("dead letter is no longer in the topic")

// Letter reads the whole letter of an entry.
func (b *Book) Letter(ctx context.Context, e *Entry) (*schema.DeadLetter, error) {
	ctx, done, err := b.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if b.log == nil { // the topic was made anew, and could not be opened since
		return nil, ErrGone
	}
	var letter *schema.DeadLetter
	_, err = b.log.Read(ctx, 0, e.Place, e.Place+1, func(r *kgo.Record) error {
		record, err := schema.DecodeLetterRecord(r.Key, r.Headers, r.Value)
		letter = record.Letter
		return err
	})
	if _, ok := errors.AsType[*kafka.OffsetRangeError](err); ok || err == nil && (letter == nil || letter.At != e.At) {
		return nil, ErrGone
	}
	return letter, err
}
