package clients

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// exported is a row of an export, as a reader saw it. Times are Unix ms.
type exported struct {
	EventID     string            `json:"event_id"`
	SessionID   string            `json:"session_id"`
	WorkflowID  *string           `json:"workflow_id"`
	Type        string            `json:"type"`
	Time        int64             `json:"time"`
	ClientTime  *int64            `json:"client_time"`
	TMs         int64             `json:"t_ms"`
	Confidence  *float64          `json:"confidence"`
	FrameID     *string           `json:"frame_id"`
	MessageID   *string           `json:"message_id"`
	Metadata    map[string]string `json:"metadata"`
	ContentType string            `json:"content_type"`
	Payload     string            `json:"payload"`
}

// wantExported is what a reader should see of an event.
func wantExported(t *testing.T, e event) exported {
	t.Helper()
	id, err := schema.ParseEventID(e.id)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := json.Marshal(e.Payload) // without its white space, as log.append sends it
	if err != nil {
		t.Fatal(err)
	}
	row := exported{
		EventID: e.id, SessionID: e.session, Type: e.Type, Time: id.TimeMs, TMs: e.TMs,
		Metadata: e.Metadata, ContentType: schema.DefaultContentType, Payload: string(sent),
	}
	if e.FrameID != "" {
		row.FrameID = &e.FrameID
	}
	if e.Confidence != 0 {
		row.Confidence = &e.Confidence
	}
	if e.Content != "" {
		raw, err := base64.StdEncoding.DecodeString(e.Base64)
		if err != nil {
			t.Fatal(err)
		}
		row.ContentType, row.Payload = e.Content, base64.StdEncoding.EncodeToString(raw)
	}
	return row
}

// export fetches an export of the server, part by part if maxRows is given, and returns the
// files of its parts.
func export(t *testing.T, s *server, q url.Values) []string {
	t.Helper()
	dir := t.TempDir()
	var files []string
	for {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+"/v1/export?"+q.Encode(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+devKey)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("export %s: %d, %v, %.500s", q.Encode(), res.StatusCode, err, body)
		}
		file := filepath.Join(dir, "part-"+string(rune('a'+len(files)))+"."+q.Get("format"))
		if err := os.WriteFile(file, body, 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		next := res.Header.Get("X-Playhead-Next")
		if next == "" {
			return files
		}
		q.Set("after", next)
		q.Set("end", res.Header.Get("X-Playhead-Cursor"))
	}
}

// TestExportsAreReadByOthers reads exports in every format by pyarrow and DuckDB and compares
// what they saw with what was appended.
func TestExportsAreReadByOthers(t *testing.T) {
	t.Parallel()
	client{lacks: lacksPython}.need(t)
	s := sharedServer(t)
	random := newRandom(t, "export")
	want := map[string]exported{}
	stamp := newSession(t, s, "export:a", "").session
	for _, session := range []string{"export:b", "export:c"} {
		l := newSession(t, s, session, "")
		l.stamp = stamp
		for i := range 4 {
			l.append(t, samples(random, 60*i, 60)...)
		}
		for _, e := range l.events {
			want[e.id] = wantExported(t, e)
		}
	}
	files := map[string][]string{}
	for _, format := range []string{"csv", "arrow", "parquet"} {
		q := url.Values{"format": {format}, "filters[run]": {stamp}}
		if format == "parquet" {
			q.Set("max_rows", "100")
		}
		files[format] = export(t, s, q)
	}
	if n := len(files["parquet"]); n != 5 {
		t.Errorf("%d events came in %d files of 100, want 5", len(want), n)
	}
	arg, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-B", filepath.Join("python", "export.py"), string(arg))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("export.py: %v\n%s", err, stderr.String())
	}
	readers := map[string]int{}
	for line := range strings.Lines(string(out)) {
		var told struct {
			Reader  string
			Rows    []exported
			Columns map[string]string
		}
		if err := json.Unmarshal([]byte(line), &told); err != nil {
			t.Fatalf("%v in %.300s", err, line)
		}
		if told.Columns != nil {
			checkColumns(t, told.Reader, told.Columns)
			continue
		}
		readers[told.Reader] = len(told.Rows)
		checkExported(t, told.Reader, told.Rows, want)
	}
	if len(readers) != 6 {
		t.Errorf("read by %v, want 6 readers", readers)
	}
}

func checkExported(t *testing.T, reader string, rows []exported, want map[string]exported) {
	t.Helper()
	left := maps.Clone(want)
	last := map[string]string{}
	for _, row := range rows {
		if row.EventID <= last[row.SessionID] {
			t.Errorf("%s: %s comes after %s", reader, row.EventID, last[row.SessionID])
		}
		last[row.SessionID] = row.EventID
		if w := left[row.EventID]; !reflect.DeepEqual(row, w) {
			got, _ := json.Marshal(row)
			should, _ := json.Marshal(w)
			t.Fatalf("%s read\n%.600s, want\n%.600s", reader, got, should)
		}
		delete(left, row.EventID)
	}
	if len(left) > 0 {
		t.Errorf("%s missed %d of %d events", reader, len(left), len(want))
	}
}

// checkColumns holds the types to those that docs/api.md promises.
func checkColumns(t *testing.T, reader string, columns map[string]string) {
	t.Helper()
	want := map[string]string{
		"time": "timestamp[ms, tz=UTC]", "client_time": "timestamp[ms, tz=UTC]", "t_ms": "int64", "confidence": "float",
	}
	for _, name := range []string{"event_id", "session_id", "workflow_id", "type", "frame_id", "message_id", "content_type", "payload"} {
		want[name] = "string"
	}
	metadata := columns["metadata"]
	if !strings.HasPrefix(metadata, "map<string, string") {
		t.Errorf("%s: metadata is %s", reader, metadata)
	}
	delete(columns, "metadata")
	if !maps.Equal(columns, want) {
		t.Errorf("%s: columns are %v, want %v", reader, columns, want)
	}
}
