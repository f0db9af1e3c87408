package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/internal/engine"
	"github.com/playhead-dev/playhead/schema"
)

// engineChild makes the test binary the engine's process. It is looked for before any
// TestMain runs, since the package has one of those at most.
const engineChild = "playhead-query-test-engine"

func init() {
	if len(os.Args) == 2 && os.Args[1] == engineChild {
		if err := engine.ChildMain(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// testLog shows what is logged with the test it belongs to.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func newTestLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testLog{t}, nil))
}

// openEngine starts an embedded ClickHouse with the tables in place.
func openEngine(t testing.TB) (driver.Conn, *engine.Process) {
	t.Helper()
	p, err := engine.Start(t.Context(), engine.Config{
		DataPath: filepath.Join(t.TempDir(), "engine"), LibraryPath: engine.LibraryPath(os.Getenv), ChildArgs: []string{engineChild},
		Log: newTestLog(t), Stderr: testLog{t},
	})
	if errors.Is(err, engine.ErrLibraryNotFound) && os.Getenv("PLAYHEAD_REQUIRE_ENGINE") != "1" {
		t.Skipf("no engine to test with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close engine: %v", err)
		}
	})
	cfg := DefaultClickHouseConfig()
	cfg.DSN = p.DSN()
	conn, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := Migrate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	return conn, p
}

func newHistory(t testing.TB, conn driver.Conn) *History {
	return NewHistory(conn, DefaultConfig(), newTestLog(t), NewMetrics(nil))
}

// insert writes events as rows, as the materialiser does.
func insert(t testing.TB, conn driver.Conn, events []*schema.Event) {
	t.Helper()
	batch, err := conn.PrepareBatch(t.Context(), `INSERT INTO events (workspace_id, session_id, workflow_id, log_epoch,
		kafka_partition, kafka_offset, ts, client_ts, t_ms, type, confidence, frame_id, message_id, metadata, content_type, payload)`)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		var client *time.Time
		if e.ClientTimeMs != nil {
			at := time.UnixMilli(*e.ClientTimeMs).UTC()
			client = &at
		}
		metadata := e.Metadata
		if metadata == nil {
			metadata = map[string]string{}
		}
		err := batch.Append(e.Workspace, e.Session, e.Workflow, e.ID.Epoch, e.ID.Partition, uint64(e.ID.Offset), e.Time(), client,
			uint64(e.TMs), e.Type, e.Confidence, e.FrameID, e.MessageID, metadata, e.ContentType, string(e.Payload))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
}

const testStartMs = 1_767_225_600_000 // 2026-01-01T00:00:00Z

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// randomEvent makes an event out of few enough values that random filters hit.
func randomEvent(r *rand.Rand, workspace, session string, pos schema.Position, ms int64) *schema.Event {
	e := &schema.Event{
		ID: schema.EventID{Position: pos, TimeMs: ms}, Workspace: workspace, Session: session,
		Type:        pick(r, "init", "mouse_move", "memory.stored", "memory.read", "memo", "keypress", "call.ended", "call.completed"),
		Workflow:    pick(r, "", "wf1", "wf2"),
		TMs:         r.Int64N(10_000),
		FrameID:     pick(r, "", "", "f1", "frame \\ '\"ü{}%"),
		ContentType: schema.DefaultContentType,
		Payload:     []byte(pick(r, `{}`, `{"x": 1}`, `"text with \n \\ and 'quotes'"`, `[1,2.50,3]`, `null`)),
	}
	switch r.IntN(12) {
	case 0:
		e.Type = "playhead.other"
	case 1:
		e.ContentType, e.Payload = "audio/wav", []byte{0, 1, 0xff, '\n', byte(r.IntN(256))}
	case 2:
		at := testStartMs + r.Int64N(1e9)
		e.ClientTimeMs = &at
	}
	if r.IntN(2) == 0 {
		c := pick[float32](r, 0, 0.1, 0.25, 0.3, 0.7, 0.9, 1)
		e.Confidence = &c
	}
	if r.IntN(3) == 0 {
		e.MessageID = fmt.Sprint("m-", r.IntN(40))
	}
	if e.Type == "playhead.other" { // no event in Kafka, so it begins nothing that could repeat
		e.MessageID = ""
	}
	if r.IntN(2) == 0 {
		e.Metadata = map[string]string{}
		for range 1 + r.IntN(3) {
			e.Metadata[randomKey(r)] = randomValue(r)
		}
	}
	return e
}

func randomKey(r *rand.Rand) string { return pick(r, "a", "b", "key '\\' ü", "{p0:String}") }

func randomValue(r *rand.Rand) string {
	return pick(r, "", "1", "x", "tab\tnew\nline\r\\n \\ ' \" nul\x00 end", "NULL", `\N`, "ü 漢 🙂")
}

// randomFilter makes a filter that often takes some events of randomEvent.
func randomFilter(r *rand.Rand) schema.Filter {
	var f schema.Filter
	one := func() bool { return r.IntN(4) == 0 }
	if one() {
		f.Types = []string{"init", "keypress", "none"}[:1+r.IntN(3)]
	}
	if one() {
		f.Prefixes = []string{pick(r, "memory.", "memo", "m", "", "none.", "playhead.")}
	}
	if one() {
		c := pick[float32](r, 0, 0.1, 0.3, 0.300001, 0.9, 1)
		f.ConfidenceGTE = &c
	}
	if one() {
		v := r.Int64N(10_000)
		f.FromTMs = &v
	}
	if one() {
		v := pick(r, r.Int64N(10_000), 1<<62)
		f.ToTMs = &v
	}
	if one() {
		f.FrameID = pick(r, "f1", "frame \\ '\"ü{}%", "none")
	}
	if one() {
		f.Metadata = map[string]string{}
		for range 1 + r.IntN(2) {
			f.Metadata[randomKey(r)] = randomValue(r)
		}
	}
	if one() {
		v := pick(r, testStartMs+r.Int64N(20_000), 0)
		f.SinceMs = &v
	}
	if one() {
		v := pick(r, testStartMs+r.Int64N(20_000), schema.MaxTimeMs)
		f.UntilMs = &v
	}
	return f
}

// randomLog makes the log of several sessions over two epochs: dense in the partition,
// so that offsets of one session have gaps.
func randomLog(r *rand.Rand, n int) []*schema.Event {
	var out []*schema.Event
	pos, ms := schema.Position{Epoch: 1, Partition: 3}, int64(testStartMs)
	for i := range n {
		if i == n/3 {
			pos = schema.Position{Epoch: 2, Partition: 5}
		}
		ms += r.Int64N(40) - 3 // clocks of nodes differ
		out = append(out, randomEvent(r, pick(r, "w1", "w1", "w2"), pick(r, "s1", "s2", "s1x"), pos, ms))
		pos.Offset += 1 + r.Int64N(3)
	}
	return out
}
