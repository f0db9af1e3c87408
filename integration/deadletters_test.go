package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// foreign writes records to the events topic as a producer other than Playhead would, and
// works out what readers must make of them.
type foreign struct {
	t         *testing.T
	cl        *kgo.Client
	placement schema.Placement
	rng       *rand.Rand
	baseMs    int64

	records map[schema.Position]*kgo.Record
	passed  []schema.Position // of batches that cannot be read
}

// foreignPartitions is what parts.serve makes.
const foreignPartitions = 3

func newForeign(t *testing.T, brokers string) *foreign {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return &foreign{
		t: t, cl: cl, placement: schema.Placement{Partitions: foreignPartitions, Shards: schema.DefaultShards},
		rng: rand.New(rand.NewPCG(6, 6)), baseMs: time.Now().Add(-time.Hour).UnixMilli(), records: make(map[schema.Position]*kgo.Record),
	}
}

// good returns a record that is an event of the workspace.
func (f *foreign) good(session, typ, messageID string) *kgo.Record {
	f.baseMs++
	e := &schema.Event{
		Workspace: "ws_default", Session: session, Type: typ, MessageID: messageID, TMs: 3,
		ContentType: schema.DefaultContentType, Payload: []byte("{\r\n \"n\": 1,\n\r\"text\": \"\u2028\"\n}"),
	}
	return &kgo.Record{
		Topic: schema.TopicEvents, Partition: int32(f.placement.Partition(e.Workspace, session)), Timestamp: time.UnixMilli(f.baseMs),
		Value: e.Payload, Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, fmt.Sprint(f.baseMs)),
	}
}

// set replaces a header.
func set(r *kgo.Record, key, value string) {
	r.Headers = append(slices.DeleteFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == key }),
		kgo.RecordHeader{Key: key, Value: []byte(value)})
}

// poisons are records of every kind that is no event.
func (f *foreign) poisons() []*kgo.Record {
	var out []*kgo.Record
	for _, spoil := range []func(r *kgo.Record){
		func(r *kgo.Record) { r.Headers, r.Key = nil, nil },
		func(r *kgo.Record) { set(r, "ce_type", "") },
		func(r *kgo.Record) { set(r, "ce_subject", "a/b") },
		func(r *kgo.Record) { set(r, "ce_subject", strings.Repeat("x", 129)) },
		func(r *kgo.Record) { set(r, "ce_workspace", "\xff\xfe") },
		func(r *kgo.Record) { set(r, "ce_type", "playhead.dead_letter") },
		func(r *kgo.Record) { set(r, "ce_type", "playhead.duplicate") },
		func(r *kgo.Record) { set(r, "ce_type", "error") },
		func(r *kgo.Record) { set(r, "ce_specversion", "0.3") },
		func(r *kgo.Record) { set(r, "ce_time", "0000-00-00") },
		func(r *kgo.Record) { set(r, "ce_tms", "-1") },
		func(r *kgo.Record) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: "CE_SUBJECT", Value: []byte("other")})
		},
		func(r *kgo.Record) { r.Partition = (r.Partition + 1) % foreignPartitions },
		func(r *kgo.Record) { set(r, "ce_workspace", "ws_nobody") },
		func(r *kgo.Record) { r.Value = []byte("{") },
		func(r *kgo.Record) { r.Value = []byte("\"\xff\"") },
		func(r *kgo.Record) { r.Value = nil },
		func(r *kgo.Record) { r.Timestamp = time.UnixMilli(-1) },
	} {
		r := f.good("here", "a", "")
		spoil(r)
		out = append(out, r)
	}
	many := f.good("here", "a", "")
	for i := range 1000 {
		many.Headers = append(many.Headers, kgo.RecordHeader{Key: fmt.Sprint("h", i), Value: []byte{0xff}})
	}
	old := f.good("here", "a", "")
	old.Timestamp = time.UnixMilli(0)
	return append(out, many, old) // these two are events
}

// random returns a record with bytes changed at random.
func (f *foreign) random() *kgo.Record {
	junk := func(most int) []byte {
		const alphabet = "\x00\n\r\":{}[]a1é~/\xff\xfe"
		b := make([]byte, f.rng.IntN(most))
		for i := range b {
			b[i] = alphabet[f.rng.IntN(len(alphabet))]
		}
		return b
	}
	r := f.good(fmt.Sprint("r", f.rng.IntN(4)), "a", []string{"", fmt.Sprint("m", f.rng.IntN(40))}[f.rng.IntN(2)])
	for range f.rng.IntN(3) {
		switch i := f.rng.IntN(len(r.Headers) + 6); {
		case i < len(r.Headers):
			r.Headers[i].Value = junk(12)
		case i == len(r.Headers):
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(junk(6)), Value: junk(200)})
		case i == len(r.Headers)+1:
			r.Headers = slices.Delete(r.Headers, 0, 1)
		case i == len(r.Headers)+2:
			r.Headers = append(r.Headers, r.Headers[f.rng.IntN(len(r.Headers))])
		case i == len(r.Headers)+3:
			r.Value = junk(40)
		case i == len(r.Headers)+4:
			set(r, "content-type", []string{"text/plain", "application/x+json", "", "x"}[f.rng.IntN(4)])
		default:
			r.Partition = int32(f.rng.IntN(foreignPartitions))
		}
		if len(r.Headers) == 0 {
			break
		}
	}
	return r
}

// produce appends records, one after the other in each partition.
func (f *foreign) produce(records ...*kgo.Record) {
	f.t.Helper()
	if err := f.cl.ProduceSync(f.t.Context(), records...).FirstErr(); err != nil {
		f.t.Fatal(err)
	}
	for _, r := range records {
		f.records[schema.Position{Epoch: 1, Partition: uint16(r.Partition), Offset: r.Offset}] = r
	}
}

// bomb is a compressor whose batches decompress to more than a batch may.
type bomb []byte

func (b bomb) Compress(*bytes.Buffer, []byte, ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	return b, kgo.CodecZstd
}

// produceBomb appends a batch that nobody can read.
func (f *foreign) produceBomb(brokers string, partition int32) {
	f.t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.t.Fatal(err)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.WithCompressor(bomb(w.EncodeAll(make([]byte, kafka.MaxBatchDecompressedBytes+1), nil))))
	if err != nil {
		f.t.Fatal(err)
	}
	defer cl.Close()
	f.baseMs++
	r := &kgo.Record{Topic: schema.TopicEvents, Partition: partition, Value: make([]byte, 64<<10), Timestamp: time.UnixMilli(f.baseMs)}
	if err := cl.ProduceSync(f.t.Context(), r).FirstErr(); err != nil {
		f.t.Fatal(err)
	}
	f.passed = append(f.passed, schema.Position{Epoch: 1, Partition: uint16(partition), Offset: r.Offset})
}

// verdict returns the ids of the workspace's events by session, sorted, and the letters that
// there must be: position and reason.
func (f *foreign) verdict() (shown map[string][]string, letters []string) {
	shown = make(map[string][]string)
	letter := func(at schema.Position, reason schema.Reason) {
		letters = append(letters, fmt.Sprint(at.Partition, "/", at.Offset, " ", reason))
	}
	windows := make(map[uint16]*schema.Window)
	var positions []schema.Position
	for at := range f.records {
		positions = append(positions, at)
	}
	slices.SortFunc(positions, schema.Position.Compare)
	place := func(string) schema.Placement { return f.placement }
	for _, at := range positions {
		r := f.records[at]
		if windows[at.Partition] == nil {
			windows[at.Partition] = schema.NewWindow(schema.DedupeRule{Offsets: schema.DefaultDedupeOffsets, Age: schema.DefaultDedupeAge})
		}
		e, err := schema.DecodePlaced(schema.EventID{Position: at, TimeMs: r.Timestamp.UnixMilli()}, r.Headers, r.Value, place)
		if err != nil {
			letter(at, err.(*schema.RejectError).Reason) //nolint:errorlint // as it is documented
			continue
		}
		_, repeats := windows[at.Partition].Observe(e)
		switch {
		case repeats || e.Hidden():
		case e.Workspace != "ws_default":
			letter(at, schema.ReasonWorkspace)
		default:
			shown[e.Session] = append(shown[e.Session], e.ID.String())
		}
	}
	for _, at := range f.passed {
		letter(at, schema.ReasonUnreadable)
	}
	slices.Sort(letters)
	return shown, letters
}

// check asks a node for the events in every way there is.
func (f *foreign) check(s *server, how string) {
	f.t.Helper()
	shown, _ := f.verdict()
	var all []string
	for session, want := range shown {
		all = append(all, want...)
		checkPages(f.t, s, session, want)
		if got := s.replayed("/v1/sessions/"+session+"/events/stream?from=start", ""); !slices.Equal(got, want) {
			f.t.Errorf("%s: the stream of %s has %d events, want %d", how, session, len(got), len(want))
		}
		if n := getJSON[struct {
			EventCount int `json:"event_count"`
		}](s, "/v1/sessions/"+session).EventCount; n != len(want) {
			f.t.Errorf("%s: the state of %s counts %d events, want %d", how, session, n, len(want))
		}
	}
	slices.Sort(all)
	got := s.replayed("/v1/stream?from=start", "")
	slices.Sort(got)
	if !slices.Equal(got, all) {
		f.t.Errorf("%s: the workspace's stream has %d events, want %d:\n%v, want\n%v", how, len(got), len(all), got, all)
	}
	var paged []string
	for cursor := ""; ; {
		p := getJSON[page](s, "/v1/events?pageSize=100&order=asc&cursor="+cursor)
		for _, e := range p.Data {
			paged = append(paged, e.EventID)
		}
		if cursor = p.Pagination.NextCursor; !p.Pagination.HasMore {
			break
		}
	}
	slices.Sort(paged)
	if !slices.Equal(paged, all) {
		f.t.Errorf("%s: the workspace's pages have %d events, want %d", how, len(paged), len(all))
	}
	if n := getJSON[struct {
		Count int `json:"count"`
	}](s, "/v1/events/count").Count; n != len(all) {
		f.t.Errorf("%s: %d events are counted, want %d", how, n, len(all))
	}
}

// deadLetters runs playhead dead-letters against the server.
func (s *server) deadLetters(args ...string) (output string, exitCode int) {
	s.t.Helper()
	path, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, append(append([]string{"dead-letters"}, args...), "--url", s.url(""))...)
	cmd.Env = append(cmd.Environ(), "PLAYHEAD_KEY="+s.key)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

// listedLetter is a line of playhead dead-letters list --json.
type listedLetter struct {
	ID        string  `json:"id"`
	Reason    string  `json:"reason"`
	Partition int     `json:"partition"`
	Offset    int64   `json:"offset"`
	Session   *string `json:"session_id"`
	Redriven  *struct {
		EventID string `json:"event_id"`
	} `json:"redriven"`
}

func (s *server) listLetters(filters ...string) (letters []listedLetter, texts []string) {
	s.t.Helper()
	out, code := s.deadLetters(append([]string{"list", "--json"}, filters...)...)
	if code != 0 {
		s.t.Fatalf("dead-letters list: exit code %d\n%s", code, out)
	}
	for line := range strings.Lines(out) {
		var l listedLetter
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			s.t.Fatalf("dead-letters list: %v in %q", err, line)
		}
		letters = append(letters, l)
		texts = append(texts, fmt.Sprint(l.Partition, "/", l.Offset, " ", l.Reason))
	}
	slices.Sort(texts)
	return letters, texts
}

// awaitLetters waits until the list has each letter that there must be, once, and none else.
func (f *foreign) awaitLetters(s *server) {
	f.t.Helper()
	_, want := f.verdict()
	eventually(f.t, 60*time.Second, "every record that is no event is a dead letter", func() error {
		_, got := s.listLetters()
		for _, l := range want {
			if !slices.Contains(got, l) {
				return fmt.Errorf("%s is not listed; %d of %d are", l, len(got), len(want))
			}
		}
		return nil
	})
	if _, got := s.listLetters(); !slices.Equal(got, want) {
		f.t.Errorf("listed %d letters, want %d:\n%s\nwant\n%s", len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestPoisonStopsNobodyAndIsListedOnce writes every kind of record that is no event, and
// some hundred of random bytes, between events, and has them read from the tape, from Kafka
// below it, and from ClickHouse.
func TestPoisonStopsNobodyAndIsListedOnce(t *testing.T) {
	p := startParts(t)
	a := p.serve(t, "ingest,streamer,query")
	f := newForeign(t, p.brokers)
	a.status("/v1/stream", "") // its tapes are open: it reads what follows from there
	var records []*kgo.Record
	for _, r := range f.poisons() {
		records = append(records, f.good("here", "a", ""), r)
	}
	f.produce(records...)
	for partition := range int32(foreignPartitions) {
		f.produceBomb(p.brokers, partition)
	}
	records = nil
	for range 300 {
		records = append(records, f.random())
	}
	f.produce(append(records, f.good("here", "a", ""))...)
	f.check(a, "from the tape")
	b := p.serve(t, "ingest,streamer,query") // the records are too old for its tapes
	f.check(b, "from Kafka")

	m := p.serve(t, "materializer")
	f.awaitLetters(a)
	copied := func() {
		t.Helper()
		eventually(t, 60*time.Second, "every record is a row", func() error {
			for _, w := range getJSON[struct {
				Data []struct {
					LagEvents int64 `json:"lag_events"`
				} `json:"data"`
			}](b, "/v1/watermarks?all=1").Data {
				if w.LagEvents > 0 {
					return fmt.Errorf("%d offsets are not", w.LagEvents)
				}
			}
			return nil
		})
	}
	copied()
	f.check(b, "from ClickHouse")

	_, letters := f.verdict()

	// A materialiser that has lost its place writes each letter again; the list has one.
	m.stop()
	conn := p.clickhouse(t)
	p.forgetHistory(t, conn)
	p.serve(t, "materializer")
	eventually(t, 60*time.Second, "the table is made anew", func() error {
		if n := count(t, conn, "1"); n < uint64(len(f.records)) {
			return fmt.Errorf("%d rows of %d", n, len(f.records))
		}
		return nil
	})
	if n := topicRecords(t, p.brokers, schema.TopicDeadLetters); n < 2*len(letters) {
		t.Errorf("%d records in the topic of %d letters; the test is of no use", n, len(letters))
	}
	f.awaitLetters(a)
	f.awaitLetters(b)
}

// topicRecords counts the records of a topic of one partition.
func topicRecords(t *testing.T, brokers, topic string) int {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	offsets, err := kadm.NewClient(cl).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	o, _ := offsets.Lookup(topic, 0)
	return int(o.Offset)
}

// TestDeadLettersAreAppendedAgain by the command line: one by one with corrections, twice, on
// two nodes, and all that a filter takes.
func TestDeadLettersAreAppendedAgain(t *testing.T) {
	p := startParts(t)
	a, b := p.serve(t, ""), p.serve(t, "")
	f := newForeign(t, p.brokers)
	misplaced := f.good("lost", "a", "")
	misplaced.Partition = (misplaced.Partition + 1) % foreignPartitions
	f.produce(misplaced)
	for i := range 5 {
		r := f.good("bare", "a", "")
		r.Value = fmt.Appendf(nil, "not JSON %d", i)
		f.produce(r)
	}
	f.produce(f.good("bare", "a", ""))
	f.awaitLetters(a)

	letters, _ := a.listLetters("--reason", "wrong_partition")
	if len(letters) != 1 {
		t.Fatalf("%d letters of the wrong partition, want 1", len(letters))
	}
	id := letters[0].ID
	if out, code := b.deadLetters("show", id); code != 0 || !strings.Contains(out, `"ce_subject"`) || !strings.Contains(out, `"complete": true`) {
		t.Errorf("show: exit code %d\n%s", code, out)
	}
	out, code := a.deadLetters("redrive", id)
	if code != 0 || !strings.Contains(out, "1 appended, 0 failed") {
		t.Fatalf("redrive: exit code %d\n%s", code, out)
	}
	event := strings.Fields(out)[1]
	for _, s := range []*server{a, b} {
		checkPages(t, s, "lost", []string{event})
		if out, code := s.deadLetters("redrive", id); code != 0 || !strings.Contains(out, event+" (appended before)") {
			t.Errorf("redrive again: exit code %d\n%s", code, out)
		}
	}
	if out, code := a.deadLetters("redrive", id, "--session", "other"); code != 1 || !strings.Contains(out, "dead_letter_redriven") {
		t.Errorf("redrive into another session: exit code %d\n%s", code, out)
	}

	if out, code := a.deadLetters("redrive", "--all", "--reason", "invalid_json"); code != 1 || !strings.Contains(out, "0 appended, 5 failed") {
		t.Errorf("redrive as they are: exit code %d\n%s", code, out)
	}
	if out, code := a.deadLetters("redrive", "--all", "--reason", "invalid_json", "--content-type", "text/plain", "--session", "found"); code != 0 || !strings.Contains(out, "5 appended, 0 failed") {
		t.Errorf("redrive as text: exit code %d\n%s", code, out)
	}
	if out, code := b.deadLetters("redrive", "--all"); code != 0 || !strings.Contains(out, "0 appended, 0 failed") {
		t.Errorf("redrive of what is left: exit code %d\n%s", code, out)
	}
	if n := len(b.allPages("found").Data); n != 5 {
		t.Errorf("%d events in the session of the corrections, want 5", n)
	}
	if redriven, _ := b.listLetters("--redriven", "true"); len(redriven) != 6 || redriven[0].Redriven == nil {
		t.Errorf("%d letters were appended again, want 6", len(redriven))
	}

	// What is erased is neither listed nor appended again.
	last := f.good("found", "a", "")
	last.Value = []byte("{")
	f.produce(last)
	eventually(t, 60*time.Second, "the last letter is listed", func() error {
		if l, _ := a.listLetters("--redriven", "false"); len(l) != 1 {
			return fmt.Errorf("%d letters", len(l))
		}
		return nil
	})
	gone, _ := a.listLetters("--redriven", "false")
	a.erase("/v1/sessions/found")
	eventually(t, 10*time.Second, "both nodes list it no more", func() error {
		for _, s := range []*server{a, b} {
			if l, _ := s.listLetters("--redriven", "false"); len(l) != 0 {
				return fmt.Errorf("%+v", l)
			}
		}
		return nil
	})
	if status, body := b.do(http.MethodPost, "/admin/v1/dead-letters/"+gone[0].ID+"/redrive", "", ""); status != http.StatusNotFound {
		t.Errorf("redrive of an erased letter: %d %s", status, body)
	}
	if out, code := a.deadLetters("redrive"); code != 2 {
		t.Errorf("redrive of nothing: exit code %d\n%s", code, out)
	}
}
