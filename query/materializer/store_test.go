package materializer

import (
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

func TestColumnsAreThoseOfTheTable(t *testing.T) {
	conn := openDatabase(t)
	for _, c := range tableColumns() {
		var got string
		err := conn.QueryRow(t.Context(), "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = '"+
			schema.TableEvents+"' AND name = '"+c.name+"'").Scan(&got)
		if err != nil {
			t.Fatalf("column %s: %v", c.name, err)
		}
		if got != c.columnType {
			t.Errorf("column %s has type %s in the table, %s here", c.name, got, c.columnType)
		}
	}
	var names []string
	for _, c := range tableColumns() {
		names = append(names, c.name)
	}
	if want := "(" + strings.Join(names, ", ") + ")"; !strings.HasSuffix(insertStatement, want) {
		t.Errorf("insert statement %q does not end with %s", insertStatement, want)
	}
}

// The server's deduplication goes by the token alone: a repeat is not kept, and equal
// rows under another token are.
func TestATokenCountsOnce(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore) {
		b := newBatch(1, 0)
		b.add(&row{offset: 1, ms: time.Now().UnixMilli(), kind: "a"})
		f := func(token string, want int) {
			t.Helper()
			if err := s.insert(t.Context(), token, b); err != nil {
				t.Fatal(err)
			}
			if h, err := s.count(t.Context(), 0, offsetRange{end: 9}); err != nil || h.rows != want {
				t.Errorf("rows after an insert with token %s = %+v, %v; want %d", token, h, err, want)
			}
		}
		f("0-2/0", 1)
		f("0-2/0", 1)
		f("0-2/1", 2)
	})
}

func TestRowsComeBackAsTheyWere(t *testing.T) {
	s := newEngineStore(t)
	clientMs, confidence := int64(1_790_000_000_123), float32(0.25)
	ms := time.Date(2026, 7, 1, 2, 3, 4, 567_000_000, time.UTC).UnixMilli()
	full := row{
		workspace: "ws", session: "s", workflow: "wf", offset: 1 << 40, ms: ms, clientMs: &clientMs, tMs: 77, kind: "a.b",
		confidence: &confidence, frame: "f", messageID: "m", metadata: map[string]string{"k": "v", "ü": "\n"},
		contentType: "application/json", payload: `{"x":"é"}`,
	}
	bare := row{offset: 1<<40 + 1, ms: ms + 1, kind: schema.TypeDuplicate, payload: "\xff\x00"}
	b := newBatch(1, 9)
	b.add(&full)
	b.add(&bare)
	if err := s.insert(t.Context(), "t", b); err != nil {
		t.Fatal(err)
	}
	for i, want := range []row{full, bare} {
		var got row
		var at, client *time.Time
		var offset, tMs uint64
		err := s.conn.QueryRow(s.params(t.Context(), 9, offsetRange{start: want.offset, end: want.offset + 1, minMs: ms, maxMs: ms + 1}),
			"SELECT workspace_id, session_id, workflow_id, kafka_offset, ts, client_ts, t_ms, type, confidence, frame_id, message_id,"+
				" metadata, content_type, payload FROM events"+offsetRange{maxMs: 1}.where()).Scan(
			&got.workspace, &got.session, &got.workflow, &offset, &at, &client, &tMs, &got.kind, &got.confidence, &got.frame,
			&got.messageID, &got.metadata, &got.contentType, &got.payload)
		if err != nil {
			t.Fatal(err)
		}
		got.offset, got.ms, got.tMs = int64(offset), at.UnixMilli(), int64(tMs)
		if client != nil {
			ms := client.UnixMilli()
			got.clientMs = &ms
		}
		if !equalRows(got, want) {
			t.Errorf("row %d = %+v, want %+v", i, got, want)
		}
	}
}
