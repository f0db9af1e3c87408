package schema_test

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

var update = flag.Bool("update", false, "write the golden files anew instead of comparing with them")

// golden compares got with testdata/name, or writes it there with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (a wire format that clients and stored data rely on).\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func eventID(partition uint16, offset, ms int64) schema.EventID {
	return schema.EventID{Position: schema.Position{Epoch: 1, Partition: partition, Offset: offset}, TimeMs: ms}
}

func ptr[T any](v T) *T { return &v }

func TestGoldenEventIDs(t *testing.T) {
	var b strings.Builder
	for _, id := range []schema.EventID{
		eventID(7, 4711, 1_790_000_000_000),
		eventID(0, 0, 0),
		eventID(1, 1, 1),
		{Position: schema.Position{Epoch: 255, Partition: schema.MaxPartition, Offset: schema.MaxOffset}, TimeMs: schema.MaxTimeMs},
		{Position: schema.Position{Epoch: 2, Partition: 0, Offset: 0}, TimeMs: schema.MaxEventTimeMs},
	} {
		fmt.Fprintf(&b, "epoch=%d partition=%d offset=%d time_ms=%d\t%s\n", id.Epoch, id.Partition, id.Offset, id.TimeMs, id)
	}
	golden(t, "event_ids.txt", b.String())
}

func TestGoldenCursors(t *testing.T) {
	id := eventID(7, 4711, 1_790_000_000_000)
	others := []schema.NextOffset{{Partition: 3, Offset: 1200}, {Partition: 8, Offset: 0}, {Partition: 12, Offset: 99881}}
	var b strings.Builder
	for _, c := range []struct {
		name   string
		cursor schema.Cursor
	}{
		{"one partition", schema.Cursor{ID: id}},
		{"several partitions", schema.Cursor{ID: id, Others: others}},
		{"a page", schema.Cursor{ID: id, Filter: 0x9f3ac1d2}},
		{"a page, several partitions", schema.Cursor{ID: id, Others: others, Filter: 1}},
		{"the largest numbers", schema.Cursor{
			ID:     eventID(0, schema.MaxOffset, schema.MaxTimeMs),
			Others: []schema.NextOffset{{Partition: schema.MaxPartition, Offset: schema.MaxOffset}},
			Filter: 1<<32 - 1,
		}},
	} {
		fmt.Fprintf(&b, "%s\t%s\n", c.name, c.cursor)
	}
	golden(t, "cursors.txt", b.String())
}

func TestGoldenRecordHeaders(t *testing.T) {
	for _, c := range []struct {
		file string
		e    *schema.Event
	}{
		{"record_full.txt", fullEvent()},
		{"record_minimal.txt", minimalEvent()},
	} {
		var b strings.Builder
		fmt.Fprintf(&b, "key\t%s\n", schema.RecordKey(c.e.Workspace, c.e.Session))
		for _, h := range schema.AppendHeaders([]schema.Header(nil), c.e, "01JB2Q0W3T9") {
			fmt.Fprintf(&b, "%s\t%s\n", h.Key, h.Value)
		}
		fmt.Fprintf(&b, "\n%s\n", c.e.Payload)
		golden(t, c.file, b.String())
	}
}

func TestGoldenPlacement(t *testing.T) {
	var b strings.Builder
	for _, p := range []schema.Placement{{1, 1}, {16, 4}, {12, 5}, {4, 16}, {schema.MaxPartition + 1, 4}} {
		for _, pair := range [][2]string{
			{"default", "a"}, {"default", "sess_01JB2Q0W3T9"}, {"ws_demo", "sess_01JB2Q0W3T9"},
			{"acme-prod", "call-42"}, {"acme-prod", "call-43"}, {"x", "0"},
		} {
			fmt.Fprintf(&b, "partitions=%d shards=%d %s/%s\t%d\n", p.Partitions, p.Shards, pair[0], pair[1], p.Partition(pair[0], pair[1]))
		}
	}
	golden(t, "placement.txt", b.String())
}

func TestGoldenFilterTags(t *testing.T) {
	var b strings.Builder
	for _, query := range []string{
		"", "type=a", "type=a,b", "type=b,a", "type=a.*", "confidence_gte=0.5", "from_t_ms=5", "to_t_ms=5", "frame_id=f",
		"since=1000", "until=1000", "filters[k]=v", "filters[k]=v&filters[a]=b&type=memory.*,x&confidence_gte=1&since=2026-01-01T00:00:00Z",
	} {
		f := mustFilter(t, query)
		fmt.Fprintf(&b, "%s\tasc=%08x desc=%08x\n", query, f.Tag(false), f.Tag(true))
	}
	golden(t, "filter_tags.txt", b.String())
}

// Released migrations do not change: a database that has had one is never told again.
// With a new migration, -update adds a line; no line may change.
func TestGoldenMigrations(t *testing.T) {
	var b strings.Builder
	for _, m := range schema.Migrations() {
		var steps []string
		for _, step := range m.Up {
			steps = append(steps, strings.TrimPrefix(step.Rebuild+"\x00"+step.SQL, "\x00"))
		}
		sum := sha256.Sum256([]byte(strings.Join(steps, "\x00") + "\n"))
		fmt.Fprintf(&b, "%d %s %s\n", m.Version, m.Name, hex.EncodeToString(sum[:]))
	}
	golden(t, "migrations.txt", b.String())
}
