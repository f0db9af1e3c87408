package deadletters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// world is an embedded broker with a writer, and books.
type world struct {
	t       *testing.T
	cfg     kafka.Config
	writer  *Writer
	metrics *Metrics
	erased  map[scope]schema.Erasure
}

func newWorld(t *testing.T) *world {
	t.Helper()
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", 1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	if err := kafka.EnsureTopics(t.Context(), broker.Config()); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, cfg: broker.Config(), metrics: NewMetrics(nil), erased: make(map[scope]schema.Erasure)}
	if w.writer, err = NewWriter(w.cfg, w.metrics, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.writer.Close)
	return w
}

func (w *world) book(maxListed int) *Book {
	w.t.Helper()
	b := NewBook(Config{MaxListed: maxListed}, w.cfg, func(workspace, session string) (schema.Erasure, bool) {
		e, ok := w.erased[scope{workspace, session}]
		return e, ok
	}, w.metrics, slog.New(slog.DiscardHandler))
	w.t.Cleanup(b.Close)
	return b
}

func (w *world) keep(letters ...*schema.DeadLetter) {
	w.t.Helper()
	if err := w.writer.Keep(w.t.Context(), letters); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) note(r schema.LetterRecord) {
	w.t.Helper()
	if err := w.writer.Note(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
}

const nowMs = 1_790_000_000_000

// letterAt makes a letter of a record that names a workspace and a session.
func letterAt(offset int64, workspace, session string, more ...schema.Header) *schema.DeadLetter {
	headers := append([]schema.Header{
		{Key: "ce_workspace", Value: []byte(workspace)}, {Key: "ce_subject", Value: []byte(session)}, {Key: "ce_type", Value: []byte("t")},
	}, more...)
	return schema.NewDeadLetter(schema.Position{Epoch: 1, Offset: offset}, schema.Rejected(schema.ReasonVersion, "no version"), nowMs,
		[]byte("key"), headers, []byte(`{"n":1}`))
}

// offsets lists a book's letters after it has read the topic.
func offsets(t *testing.T, b *Book) string {
	t.Helper()
	if err := b.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out []string
	page, _ := b.List(-1, 1<<20, func(*Entry) bool { return true })
	for _, e := range page {
		out = append(out, fmt.Sprint(e.At.Offset))
	}
	return strings.Join(out, " ")
}

func TestEachLetterIsListedOnceInItsPlace(t *testing.T) {
	w := newWorld(t)
	b := w.book(100)
	if got := offsets(t, b); got != "" {
		t.Errorf("an empty topic lists %q", got)
	}
	w.keep(letterAt(5, "w", "s"), letterAt(3, "w", "s"))
	w.keep(letterAt(5, "w", "s")) // the materialiser died in between
	w.keep(letterAt(9, "w2", "s"))
	for name, b := range map[string]*Book{"which follows": b, "which begins": w.book(100)} {
		if got := offsets(t, b); got != "5 3 9" {
			t.Errorf("a book %s lists %q, want 5 3 9", name, got)
		}
		page, more := b.List(-1, 2, func(*Entry) bool { return true })
		if len(page) != 2 || !more {
			t.Fatalf("a page of 2 has %d, more %v", len(page), more)
		}
		rest, more := b.List(page[1].Place, 2, func(*Entry) bool { return true })
		if len(rest) != 1 || more || rest[0].At.Offset != 9 {
			t.Errorf("the rest is %+v, more %v", rest, more)
		}
		one, more := b.List(-1, 2, func(e *Entry) bool { return e.Workspace == "w2" })
		if len(one) != 1 || more {
			t.Errorf("filtered: %+v, more %v", one, more)
		}
		letter, err := b.Letter(t.Context(), page[0])
		if want := letterAt(5, "w", "s"); err != nil || letter.At != want.At || !bytes.Equal(letter.Value, want.Value) || len(letter.Headers) != 3 {
			t.Errorf("letter = %+v, %v", letter, err)
		}
	}
}

func TestABookIsBounded(t *testing.T) {
	w := newWorld(t)
	var letters []*schema.DeadLetter
	for i := range 250 {
		letters = append(letters, letterAt(int64(i), "w", "s"))
	}
	w.keep(letters...)
	b := w.book(100)
	if got := strings.Fields(offsets(t, b)); len(got) != 100 || got[0] != "150" {
		t.Errorf("%d letters from %s on, want 100 from 150", len(got), got[0])
	}
	if _, ok := b.Entry(schema.Position{Epoch: 1, Offset: 149}); ok {
		t.Error("a letter beyond the bound is still there")
	}
}

func TestWhatKafkaHasDeletedIsNotListed(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.keep(letterAt(int64(i), "w", "s"))
	}
	b, late := w.book(100), w.book(100)
	if got := offsets(t, b); got != "0 1 2 3 4" {
		t.Fatalf("listed: %s", got)
	}
	e, _ := b.Entry(schema.Position{Epoch: 1, Offset: 1})
	opts, err := w.cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var upTo kadm.Offsets
	upTo.Add(kadm.Offset{Topic: schema.TopicDeadLetters, At: 3})
	if _, err := kadm.NewClient(cl).DeleteRecords(t.Context(), upTo); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Letter(t.Context(), e); !errors.Is(err, ErrGone) {
		t.Errorf("Letter = %v, want ErrGone", err)
	}
	for _, b := range []*Book{b, late} {
		if got := offsets(t, b); got != "3 4" {
			t.Errorf("listed: %s, want 3 4", got)
		}
	}
}

// TestABookBeginsAnewWhereKafkaHasLostRecords: what comes then has offsets that it has read
// others at.
func TestABookBeginsAnewWhereKafkaHasLostRecords(t *testing.T) {
	w := newWorld(t)
	w.keep(letterAt(1, "w", "s"))
	b := w.book(100)
	offsets(t, b)
	lost := letterAt(9, "w", "s")
	b.mu.Lock()
	b.add(lost, &kgo.Record{Offset: 1})
	b.next = 3
	b.mu.Unlock()
	w.keep(letterAt(2, "w", "s"))
	if got := offsets(t, b); got != "1 2" {
		t.Errorf("listed: %s, want 1 2", got)
	}
}

// TestCloseEndsReads: also of callers that would wait for long.
func TestCloseEndsReads(t *testing.T) {
	w := newWorld(t)
	b := w.book(100)
	ctx, done, err := b.takeTurn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() { b.Close(); close(closed) }()
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), ErrClosed) {
		t.Errorf("reads end by %v, want ErrClosed", context.Cause(ctx))
	}
	done()
	<-closed
	if err := b.Sync(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Sync after Close = %v, want ErrClosed", err)
	}
}

func TestForeignRecordsDoNotStopABook(t *testing.T) {
	w := newWorld(t)
	opts, err := w.cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	w.keep(letterAt(1, "w", "s"))
	for _, r := range []*kgo.Record{
		{}, {Key: []byte("x"), Value: []byte("y")},
		{Key: []byte(schema.DeadLetterID(schema.Position{Epoch: 1})), Headers: []kgo.RecordHeader{{Key: "dl_version", Value: []byte("1")}, {Key: "dl_redriven"}}, Value: []byte("{")},
	} {
		r.Topic = schema.TopicDeadLetters
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	w.keep(letterAt(2, "w", "s"))
	if got := offsets(t, w.book(100)); got != "1 2" {
		t.Errorf("listed: %s, want 1 2", got)
	}
}

func TestErasedLettersAreNotListed(t *testing.T) {
	w := newWorld(t)
	young := letterAt(3, "w", "gone")
	young.TimeMs = nowMs + 10
	timeless := letterAt(4, "w", "gone")
	timeless.TimeMs = -1
	w.keep(letterAt(1, "w", "kept"), letterAt(2, "w", "gone"), young, timeless, letterAt(5, "w2", "gone"), letterAt(6, "", ""), letterAt(7, "w", ""))
	b := w.book(100)
	w.note(schema.LetterRecord{Erasure: &schema.LetterErasure{WorkspaceID: "w", SessionID: "gone", AtMs: nowMs}})
	w.keep(letterAt(8, "w", "gone")) // of a node that had not heard
	if got := offsets(t, b); got != "1 3 5 6 7" {
		t.Errorf("listed: %s, want 1 3 5 6 7", got)
	}
	if _, ok := b.Entry(schema.Position{Epoch: 1, Offset: 2}); ok {
		t.Error("an erased letter is found by its id")
	}
	// As far as the erasures themselves are known.
	w.erased[scope{"w2", "gone"}] = schema.Erasure{Workspace: "w2"}
	w.erased[scope{"w", "kept"}] = schema.Erasure{Workspace: "w", Session: "kept", Below: schema.Position{Epoch: 1, Offset: 2}}
	if got := offsets(t, b); got != "3 6 7" {
		t.Errorf("listed: %s, want 3 6 7", got)
	}
}

func TestABookForgetsErasuresLast(t *testing.T) {
	b := NewBook(Config{MaxListed: 100}, kafka.Config{}, func(string, string) (schema.Erasure, bool) { return schema.Erasure{}, false },
		NewMetrics(nil), slog.New(slog.DiscardHandler))
	b.add(letterAt(1, "w", "s"), &kgo.Record{})
	b.add(letterAt(2, "w", "t"), &kgo.Record{Offset: 1})
	b.erase(scope{"w", "s"}, nowMs)
	for i := range maxMarks {
		b.erase(scope{"w", fmt.Sprint("x", i)}, nowMs)
	}
	if len(b.erased) > maxMarks || len(b.erased) != len(b.marks) {
		t.Errorf("%d erasures remembered, %d in order", len(b.erased), len(b.marks))
	}
	page, _ := b.List(-1, 10, func(*Entry) bool { return true })
	if len(page) != 1 || page[0].At.Offset != 2 {
		t.Errorf("listed: %+v", page)
	}
}

// shelf is an Appender in memory that can fail.
type shelf struct {
	mu     sync.Mutex
	events map[string]*schema.Event
	order  []*schema.Event
	fail   error
}

func (s *shelf) AppendOnce(_ context.Context, e *schema.Event) (schema.EventID, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return schema.EventID{}, false, s.fail
	}
	key := e.Workspace + "/" + e.Session + "/" + e.MessageID
	if had := s.events[key]; had != nil {
		return had.ID, true, nil
	}
	made := *e
	made.ID = schema.EventID{Position: schema.Position{Epoch: 1, Offset: int64(1000 + len(s.order))}, TimeMs: nowMs}
	s.events[key], s.order = &made, append(s.order, &made)
	return made.ID, false, nil
}

func (w *world) redriver(b *Book, s *shelf, known ...string) *Redriver {
	w.t.Helper()
	log, err := kafka.OpenLog(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(log.Close)
	return &Redriver{
		Book: b, Writer: w.writer, Appender: s, Log: log, Epoch: 1, Known: func(id string) bool { return slices.Contains(known, id) },
		Metrics: w.metrics, Now: func() time.Time { return time.UnixMilli(nowMs) },
	}
}

func entryAt(t *testing.T, b *Book, offset int64) *Entry {
	t.Helper()
	if err := b.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, ok := b.Entry(schema.Position{Epoch: 1, Offset: offset})
	if !ok {
		t.Fatalf("there is no letter of offset %d", offset)
	}
	return e
}

func TestALetterIsAppendedOnce(t *testing.T) {
	w := newWorld(t)
	w.keep(letterAt(1, "w", "s", schema.Header{Key: "Ce_Tms", Value: []byte("17")}, schema.Header{Key: "ce_id", Value: []byte("own")}))
	b, s := w.book(100), &shelf{events: make(map[string]*schema.Event)}
	r := w.redriver(b, s, "w")
	e := entryAt(t, b, 1)
	first, again, err := r.Redrive(t.Context(), e, schema.Correction{}, "key_1")
	if err != nil || again || first.EventID == "" || first.By != "key_1" || first.AtMs != nowMs {
		t.Fatalf("Redrive = %+v, %v, %v", first, again, err)
	}
	got := s.order[0]
	if got.Workspace != "w" || got.Session != "s" || got.Type != "t" || got.TMs != 17 || got.MessageID != schema.DeadLetterID(e.At) ||
		string(got.Payload) != `{"n":1}` || got.ClientTimeMs == nil || *got.ClientTimeMs != nowMs {
		t.Errorf("appended %+v", got)
	}
	// By the note of it, and, had that been lost with its node, by the message id.
	for name, e := range map[string]*Entry{"noted": entryAt(t, b, 1), "not noted": e} {
		second, again, err := r.Redrive(t.Context(), e, schema.Correction{Session: "s"}, "key_2")
		if err != nil || !again || second.EventID != first.EventID {
			t.Errorf("%s: Redrive = %+v, %v, %v; want the first event", name, second, again, err)
		}
	}
	if _, _, err := r.Redrive(t.Context(), entryAt(t, b, 1), schema.Correction{Session: "other"}, "key_2"); !errors.Is(err, ErrRedriven) {
		t.Errorf("with another session: %v, want ErrRedriven", err)
	}
	if len(s.order) != 1 {
		t.Errorf("%d events were appended, want 1", len(s.order))
	}
	if e := entryAt(t, w.book(100), 1); e.Redriven == nil || e.Redriven.EventID != first.EventID || e.Redriven.By != "key_1" {
		t.Errorf("another book has %+v, want the first note", e.Redriven)
	}
}

func TestCorrections(t *testing.T) {
	w := newWorld(t)
	b, s := w.book(100), &shelf{events: make(map[string]*schema.Event)}
	r := w.redriver(b, s, "w", "w2")
	h := func(k, v string) schema.Header { return schema.Header{Key: k, Value: []byte(v)} }
	at := func(offset int64) schema.Position { return schema.Position{Epoch: 1, Offset: offset} }
	letter := func(offset int64, value []byte, headers ...schema.Header) *schema.DeadLetter {
		return schema.NewDeadLetter(at(offset), schema.Rejected(schema.ReasonVersion, "x"), -1, nil, headers, value)
	}
	w.keep(
		letter(1, []byte("\xff")),
		letter(2, []byte("{}"), h("ce_workspace", "w"), h("ce_subject", "a/b"), h("ce_type", "error"), h("ce_confidence", "2")),
		letter(3, nil, h("ce_workspace", "w"), h("ce_subject", "s"), h("ce_type", "t"), h("content-type", "text/plain")),
		letter(4, []byte("{}"), h("ce_workspace", "w"), h("ce_workspace", "w2"), h("ce_subject", "s"), h("ce_type", "t")),
		letter(5, []byte("{}"), h("ce_workspace", "nowhere"), h("ce_subject", "s"), h("ce_type", "t")),
	)
	f := func(offset int64, c schema.Correction, want any) {
		t.Helper()
		_, _, err := r.Redrive(t.Context(), entryAt(t, b, offset), c, "k")
		var rejected *schema.RejectError
		switch want := want.(type) {
		case nil:
			if err != nil {
				t.Errorf("letter %d with %+v: %v", offset, c, err)
			}
		case error:
			if !errors.Is(err, want) {
				t.Errorf("letter %d with %+v: %v, want %v", offset, c, err, want)
			}
		case schema.Reason:
			if !errors.As(err, &rejected) || rejected.Reason != want {
				t.Errorf("letter %d with %+v: %v, want reason %s", offset, c, err, want)
			}
		}
	}
	f(1, schema.Correction{}, schema.ReasonMissing)
	f(1, schema.Correction{Workspace: "w", Session: "s", Type: "t"}, schema.ReasonJSON)
	f(1, schema.Correction{Workspace: "w", Session: "s", Type: "t", ContentType: "application/octet-stream"}, nil)
	f(2, schema.Correction{}, schema.ReasonHeader)
	f(2, schema.Correction{Session: "s"}, schema.ReasonHeader)
	f(2, schema.Correction{Session: "s", LeaveOut: []string{"ce_confidence"}}, schema.ReasonReserved)
	f(2, schema.Correction{Session: "s", Type: "t", LeaveOut: []string{"ce_confidence"}}, nil)
	f(3, schema.Correction{}, nil)
	f(4, schema.Correction{}, schema.ReasonRepeated)
	f(4, schema.Correction{Workspace: "w2"}, nil)
	f(5, schema.Correction{}, ErrWorkspace)
	f(5, schema.Correction{Workspace: "w"}, nil)
	if n := len(s.order); n != 5 {
		t.Errorf("%d events were appended, want 5", n)
	}
	for _, e := range s.order {
		if e.Payload == nil {
			t.Errorf("event %+v has no payload: its record would be a deletion", e)
		}
	}
}

func TestLettersThatCannotBeAppendedAgain(t *testing.T) {
	w := newWorld(t)
	unreadable := schema.NewDeadLetter[schema.Header](schema.Position{Epoch: 1, Offset: 1}, schema.Rejected(schema.ReasonUnreadable, "x"), -1, nil, nil, nil)
	nobodys := letterAt(2, "late", "s")
	nobodys.Reason = schema.ReasonWorkspace
	cut := letterAt(3, "w", "s")
	cut.ValueBytes = 2 << 20
	ancient := letterAt(3, "w", "s")
	ancient.At.Epoch, ancient.ValueBytes = 2, 2<<20
	w.keep(unreadable, nobodys, cut, ancient)
	b, s := w.book(100), &shelf{events: make(map[string]*schema.Event)}
	r := w.redriver(b, s, "w", "late")
	entryAt(t, b, 1)
	ancientEntry, _ := b.Entry(ancient.At)
	for e, want := range map[*Entry]error{
		entryAt(t, b, 1): ErrUnreadable, entryAt(t, b, 2): ErrIsEvent, entryAt(t, b, 3): ErrCut, ancientEntry: ErrCut,
	} {
		if _, _, err := r.Redrive(t.Context(), e, schema.Correction{}, "k"); !errors.Is(err, want) {
			t.Errorf("Redrive of %+v: %v, want %v", e.At, err, want)
		}
	}
	if _, _, err := r.Redrive(t.Context(), entryAt(t, b, 2), schema.Correction{Workspace: "w"}, "k"); err != nil {
		t.Errorf("nobody's event into another workspace: %v", err)
	}
	s.fail = errors.New("away")
	w.keep(letterAt(9, "w", "s"))
	if _, _, err := r.Redrive(t.Context(), entryAt(t, b, 9), schema.Correction{}, "k"); !errors.Is(err, s.fail) {
		t.Errorf("Redrive = %v, want %v", err, s.fail)
	}
	if e := entryAt(t, b, 9); e.Redriven != nil {
		t.Errorf("a letter that was not appended is noted: %+v", e.Redriven)
	}
}

// TestALetterThatWasCutIsReadFromTheLog: a value above the letter's bound is whole in the
// events topic for as long as Kafka keeps it.
func TestALetterThatWasCutIsReadFromTheLog(t *testing.T) {
	w := newWorld(t)
	opts, err := w.cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(opts, kgo.ProducerBatchMaxBytes(2<<20))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	value := bytes.Repeat([]byte("x"), schema.MaxLetterValueBytes+1)
	record := &kgo.Record{Topic: schema.TopicEvents, Value: value, Timestamp: time.UnixMilli(nowMs), Headers: []kgo.RecordHeader{
		{Key: "ce_workspace", Value: []byte("w")}, {Key: "ce_subject", Value: []byte("s")}, {Key: "ce_type", Value: []byte("t")},
		{Key: "content-type", Value: []byte("text/plain")},
	}}
	if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.keep(schema.NewDeadLetter(schema.Position{Epoch: 1}, schema.Rejected(schema.ReasonVersion, "x"), nowMs, nil, record.Headers, value))
	b, s := w.book(100), &shelf{events: make(map[string]*schema.Event)}
	if _, _, err := w.redriver(b, s, "w").Redrive(t.Context(), entryAt(t, b, 0), schema.Correction{}, "k"); err != nil {
		t.Fatal(err)
	}
	if got := s.order[0]; !bytes.Equal(got.Payload, value) || got.Session != "s" {
		t.Errorf("appended an event of %d bytes of session %q, want %d of s", len(got.Payload), got.Session, len(value))
	}
}

// TestRefusedLettersAreCountedAndDoNotWait: the topic is gone.
func TestRefusedLettersAreCountedAndDoNotWait(t *testing.T) {
	w := newWorld(t)
	opts, err := w.cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).DeleteTopic(t.Context(), schema.TopicDeadLetters); err != nil {
		t.Fatal(err)
	}
	if err := w.writer.Keep(t.Context(), []*schema.DeadLetter{letterAt(1, "w", "s")}); err != nil {
		t.Errorf("Keep = %v, want nil: no waiting mends it", err)
	}
	if err := w.writer.Note(t.Context(), schema.LetterRecord{Erasure: &schema.LetterErasure{WorkspaceID: "w"}}); !errors.Is(err, ErrRefused) {
		t.Errorf("Note = %v, want ErrRefused", err)
	}
}

func TestACancelledReadGoesOnLater(t *testing.T) {
	w := newWorld(t)
	w.keep(letterAt(1, "w", "s"))
	b := w.book(100)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Sync(ctx); err == nil {
		t.Error("Sync with a cancelled context succeeds")
	}
	if got := offsets(t, b); got != "1" {
		t.Errorf("listed: %q, want 1", got)
	}
	b.Close()
	if err := b.Sync(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Sync after Close = %v, want ErrClosed", err)
	}
}

func TestConfigBounds(t *testing.T) {
	for name, c := range map[string]Config{
		"too few": {MaxListed: 99}, "too many": {MaxListed: 10_000_001}, "no id": {MaxListed: 100, OperatorWorkspace: "a/b"},
	} {
		if c.Validate() == nil {
			t.Errorf("%s: Validate() = nil", name)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}
