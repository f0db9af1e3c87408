package query

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/klauspost/compress/zstd"
	dto "github.com/prometheus/client_model/go"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/openapi/conform"
	"github.com/playhead-dev/playhead/schema"
)

// exportSite serves exports over a real connection: rows are in the real engine, Kafka and
// the tape are stood for by what was inserted. The log is in its second epoch.
type exportSite struct {
	t       testing.TB
	conn    driver.Conn
	faulty  *faultyConn
	history *History
	exports *Exports
	url     string

	committed *Watermarks
	mu        sync.Mutex // guards log and ends
	log       []*schema.Event
	ends      map[uint16]int64
}

var exportPlacement = schema.Placement{Partitions: 4, Shards: 2}

const exportEpoch = 2

func (s *exportSite) HighWatermark(_ context.Context, p uint16) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ends[p], nil
}

func (s *exportSite) Open(context.Context, uint16) (Tape, error) { return exportTape{site: s}, nil }

type noLog struct{ Log } // only HighWatermark is asked for

type exportLog struct {
	noLog
	*exportSite
}

func (l exportLog) HighWatermark(ctx context.Context, p uint16) (int64, error) {
	return l.exportSite.HighWatermark(ctx, p)
}

type exportTape struct {
	Tape
	site *exportSite
}

func (exportTape) WaitFor(context.Context, int64) error { return nil }

func (t exportTape) Session(_ context.Context, workspace, session string) (schema.Session, error) {
	t.site.mu.Lock()
	defer t.site.mu.Unlock()
	state := schema.NewSession()
	for _, e := range t.site.log {
		if e.Workspace == workspace && e.Session == session {
			state.Apply(e)
		}
	}
	return state, nil
}

// newExportSite starts a site; change may alter the settings.
func newExportSite(t testing.TB, change func(*ExportConfig)) *exportSite {
	t.Helper()
	conn, _ := openEngine(t)
	return serveExports(t, conn, change)
}

func serveExports(t testing.TB, conn driver.Conn, change func(*ExportConfig)) *exportSite {
	t.Helper()
	s := &exportSite{t: t, conn: conn, faulty: &faultyConn{Conn: conn}, committed: NewWatermarks(), ends: map[uint16]int64{}}
	cfg := DefaultExportConfig()
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s.history = NewHistory(conn, DefaultConfig(), newTestLog(t), NewMetrics(nil))
	s.exports = NewExports(cfg, ExportDeps{
		Conn: s.faulty, History: s.history, Tapes: s, Log: exportLog{exportSite: s}, Committed: s.committed,
		Placement: func(string) schema.Placement { return exportPlacement },
		Epoch:     exportEpoch, Logger: newTestLog(t), Metrics: NewMetrics(nil),
	})
	app := httpapi.NewApp(httpapi.DefaultConfig(), slog.New(slog.DiscardHandler))
	app.Use(httpapi.Authenticate(keys{}))
	s.exports.Routes(app)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + ln.Addr().String()
	served := make(chan struct{})
	go func() { defer close(served); _ = app.Listener(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.exports.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := app.ShutdownWithContext(ctx); err != nil {
			t.Error(err)
		}
		<-served
	})
	return s
}

// add inserts events as committed rows.
func (s *exportSite) add(events ...*schema.Event) {
	s.t.Helper()
	insert(s.t, s.conn, events)
	s.note(events...)
	for p, end := range s.ends {
		s.committed.Set(p, end)
	}
}

// note takes events into the log alone.
func (s *exportSite) note(events ...*schema.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, events...)
	for _, e := range events {
		if e.ID.Epoch == exportEpoch {
			s.ends[e.ID.Partition] = max(s.ends[e.ID.Partition], e.ID.Offset+1)
		}
	}
}

// want lists what an export should hold, in its order.
func (s *exportSite) want(holds func(*schema.Event) bool) []*schema.Event {
	var out []*schema.Event
	for _, e := range s.log {
		if !e.Hidden() && holds(e) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *schema.Event) int { return a.ID.Compare(b.ID.Position) })
	return out
}

func ofWorkspace(workspace string) func(*schema.Event) bool {
	return func(e *schema.Event) bool { return e.Workspace == workspace }
}

// exportEvents makes a log of two workspaces over two epochs, with offsets far enough apart
// for several windows.
func exportEvents(r *rand.Rand, n int) []*schema.Event {
	var out []*schema.Event
	next := map[schema.Position]int64{}
	ms := int64(testStartMs)
	for i := range n {
		epoch := uint8(exportEpoch)
		placement := exportPlacement
		if i < n/4 {
			epoch, placement = 1, schema.Placement{Partitions: 3, Shards: 3}
		}
		workspace, session := pick(r, "w1", "w1", "w2"), pick(r, "s1", "s2", "s3", "s1x")
		at := schema.Position{Epoch: epoch, Partition: placement.Partition(workspace, session)}
		pos := at
		pos.Offset = next[at]
		next[at] += 1 + r.Int64N(20_000)
		ms += r.Int64N(40) - 3
		e := randomEvent(r, workspace, session, pos, ms)
		if e.Metadata != nil && r.IntN(20) == 0 {
			e.ContentType = pick(r, "text/plain; charset=utf-8", "text/json", "Application/Vnd.X+JSON; a=b", "application/cloudevents+json")
			if schema.IsJSON(e.ContentType) {
				e.Payload = []byte("{\n  \"a\": [1,\r\n 2]}")
			}
		}
		out = append(out, e)
	}
	return out
}

// get asks for an export as a client that takes no compression unless asked.
func (s *exportSite) get(key, path string, q url.Values, headers ...string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path+"?"+q.Encode(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Accept-Encoding", "identity")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client := http.Client{Transport: conform.Transport{Next: http.DefaultTransport, Report: func(err error) { s.t.Error(err) }}}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp
}

// whole reads an export to its end.
func (s *exportSite) whole(key, path string, q url.Values, headers ...string) ([]byte, http.Header) {
	s.t.Helper()
	resp := s.get(key, path, q, headers...)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		s.t.Fatalf("GET %s?%s = %d, %v, %.500s", path, q.Encode(), resp.StatusCode, err, body)
	}
	return body, resp.Header
}

func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Add(pairs[i], pairs[i+1])
	}
	return q
}

func with(q url.Values, pairs ...string) url.Values {
	q = maps.Clone(q)
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	return q
}

// exportRow is a line of ndjson.
type exportRow struct {
	EventID     string            `json:"event_id"`
	SessionID   string            `json:"session_id"`
	WorkflowID  *string           `json:"workflow_id"`
	Type        string            `json:"type"`
	Time        string            `json:"time"`
	ClientTime  *string           `json:"client_time"`
	TMs         int64             `json:"t_ms"`
	Confidence  *float32          `json:"confidence"`
	FrameID     *string           `json:"frame_id"`
	MessageID   *string           `json:"message_id"`
	Metadata    map[string]string `json:"metadata"`
	ContentType string            `json:"content_type"`
	Payload     json.RawMessage   `json:"payload"`
}

const exportTime = "2006-01-02T15:04:05.000Z"

func optionalText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// rowOf is what an export says of e; payload is its text.
func rowOf(e *schema.Event) (row exportRow, payload string) {
	row = exportRow{
		EventID: e.ID.String(), SessionID: e.Session, WorkflowID: optionalText(e.Workflow), Type: e.Type,
		Time: e.Time().Format(exportTime), TMs: e.TMs, Confidence: e.Confidence, FrameID: optionalText(e.FrameID),
		MessageID: optionalText(e.MessageID), Metadata: e.Metadata, ContentType: e.ContentType,
	}
	if row.Metadata == nil {
		row.Metadata = map[string]string{}
	}
	if e.ClientTimeMs != nil {
		row.ClientTime = optionalText(time.UnixMilli(*e.ClientTimeMs).UTC().Format(exportTime))
	}
	payload = string(e.Payload)
	if !e.JSONPayload() {
		payload = base64.StdEncoding.EncodeToString(e.Payload)
	}
	return row, payload
}

// checkNDJSON compares lines with events, field by field.
func checkNDJSON(t testing.TB, body []byte, want []*schema.Event) {
	t.Helper()
	lines := bytes.SplitAfter(body, []byte("\n"))
	if last := lines[len(lines)-1]; len(last) > 0 {
		t.Fatalf("the body ends in %q", last)
	}
	if lines = lines[:len(lines)-1]; len(lines) != len(want) {
		t.Fatalf("%d lines, want %d", len(lines), len(want))
	}
	for i, line := range lines {
		var got exportRow
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&got); err != nil {
			t.Fatalf("line %d %.300s: %v", i, line, err)
		}
		row, payload := rowOf(want[i])
		if want[i].JSONPayload() {
			payload = strings.NewReplacer("\n", " ", "\r", " ").Replace(payload)
		} else {
			payload = strconv.Quote(payload)
		}
		if string(got.Payload) != payload {
			t.Fatalf("payload of line %d %.300s: want %.300s", i, line, payload)
		}
		row.Payload = got.Payload
		a, _ := json.Marshal(got)
		if b, _ := json.Marshal(row); !bytes.Equal(a, b) {
			t.Fatalf("line %d is\n%s, want\n%s", i, a, b)
		}
	}
}

func derefText(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// checkCSV compares records with events, field by field.
func checkCSV(t testing.TB, body []byte, want []*schema.Event) {
	t.Helper()
	records, err := csv.NewReader(bytes.NewReader(body)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != len(want)+1 || !slices.Equal(records[0], exportColumnNames[:]) {
		t.Fatalf("%d records, want %d and a head: %v", len(records), len(want), records[:1])
	}
	for i, got := range records[1:] {
		row, payload := rowOf(want[i])
		confidence := ""
		if row.Confidence != nil {
			confidence = strconv.FormatFloat(float64(*row.Confidence), 'g', -1, 32)
		}
		record := []string{
			row.EventID, row.SessionID, derefText(row.WorkflowID), row.Type, row.Time, derefText(row.ClientTime),
			strconv.FormatInt(row.TMs, 10), confidence, derefText(row.FrameID), derefText(row.MessageID), got[10], row.ContentType, strings.ReplaceAll(payload, "\r\n", "\n"),
		}
		var metadata map[string]string
		if err := json.Unmarshal([]byte(got[10]), &metadata); err != nil || !maps.Equal(metadata, row.Metadata) {
			t.Fatalf("record %d: metadata %q, want %q (%v)", i, got[10], row.Metadata, err)
		}
		if !slices.Equal(got, record) {
			t.Fatalf("record %d is\n%q, want\n%q", i, got, record)
		}
	}
}

// loadBinary puts a Parquet file or an Arrow stream into a table of the engine and returns
// its rows as the engine's own JSON.
func (s *exportSite) loadBinary(format string, body []byte) []byte {
	s.t.Helper()
	table := "loaded_" + strconv.FormatUint(rand.Uint64(), 36)
	err := s.conn.Exec(s.t.Context(), "CREATE TABLE "+table+` (n UInt64 DEFAULT rowNumberInAllBlocks(), event_id String, session_id String, workflow_id Nullable(String), type String,
		time DateTime64(3,'UTC'), client_time Nullable(DateTime64(3,'UTC')), t_ms Int64, confidence Nullable(Float32), frame_id Nullable(String),
		message_id Nullable(String), metadata Map(String,String), content_type String, payload String) ENGINE = Memory`)
	if err == nil {
		err = s.conn.InsertFormat(s.t.Context(), format, "INSERT INTO "+table+" ("+strings.Join(exportColumnNames[:], ",")+")", bytes.NewReader(body))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	raw, err := s.conn.QueryFormat(s.t.Context(), "JSONEachRow", "SELECT * EXCEPT n FROM "+table+" SETTINGS max_threads = 1, date_time_output_format = 'iso', output_format_json_escape_forward_slashes = 0, output_format_json_quote_64bit_integers = 0")
	if err != nil {
		s.t.Fatal(err)
	}
	defer raw.Close()
	out, err := io.ReadAll(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *exportSite) checkBinary(format string, body []byte, want []*schema.Event) {
	s.t.Helper()
	d := json.NewDecoder(bytes.NewReader(s.loadBinary(format, body)))
	for i, e := range want {
		var got exportRow
		if err := d.Decode(&got); err != nil {
			s.t.Fatalf("row %d of %d: %v", i, len(want), err)
		}
		row, payload := rowOf(e)
		row.Payload, _ = json.Marshal(payload)
		var text string
		if err := json.Unmarshal(got.Payload, &text); err != nil || text != payload {
			s.t.Fatalf("row %d: payload %.300q, want %.300q", i, text, payload)
		}
		got.Payload = row.Payload
		a, _ := json.Marshal(got)
		if b, _ := json.Marshal(row); !bytes.Equal(a, b) {
			s.t.Fatalf("row %d is\n%s, want\n%s", i, a, b)
		}
	}
	if d.More() {
		s.t.Fatalf("more than %d rows", len(want))
	}
}

// check compares a body of any format.
func (s *exportSite) check(format string, body []byte, want []*schema.Event) {
	s.t.Helper()
	switch format {
	case "ndjson":
		checkNDJSON(s.t, body, want)
	case "csv":
		checkCSV(s.t, body, want)
	case "arrow":
		s.checkBinary("ArrowStream", body, want)
	default:
		s.checkBinary("Parquet", body, want)
	}
}

var exportFormatNames = []string{"ndjson", "csv", "arrow", "parquet"}

// specialEvents are what formats stumble over.
func specialEvents() []*schema.Event {
	r := rand.New(rand.NewPCG(3, 3))
	big := make([]byte, 1<<20)
	for i := range big {
		big[i] = byte(r.Uint32())
	}
	bigJSON, _ := json.Marshal(base64.StdEncoding.EncodeToString(big)[:1<<20-2])
	confidence, client := float32(0.93), int64(testStartMs+1)
	at := exportPlacement.Partition("w1", "s1")
	var out []*schema.Event
	for i, e := range []*schema.Event{
		{ContentType: "application/octet-stream", Payload: big},
		{Payload: bigJSON},
		{Payload: []byte("{\"a\\n\": \"x,\\\"y\\\"\",\n\r\n\t\"b\": \"Grüße 漢 \U0001f642 \u2028\"}")},
		{Payload: []byte(`"__exception__"`)},
		{ContentType: "text/csv", Payload: []byte("a,b\r\n\"c\",\\N\n")},
		{ContentType: "audio/wav", Payload: []byte{}},
		{
			Payload: []byte(`12345678901234567890.123456789`), Workflow: "wf1", MessageID: "m:1", FrameID: `frame "1", 'x' \ 漢`, Confidence: &confidence,
			ClientTimeMs: &client, Metadata: map[string]string{"": "", "a\"b,c": "line\nline\r\n\ttab \\ nul\x00 ' {} /", "漢": "\U0001f642"},
		},
	} {
		if e.ContentType == "" {
			e.ContentType = schema.DefaultContentType
		}
		e.Workspace, e.Session, e.Type, e.TMs = "w1", "s1", "special", int64(i)<<52
		e.ID = schema.EventID{Position: schema.Position{Epoch: exportEpoch, Partition: at, Offset: 1<<40 + int64(i)}, TimeMs: testStartMs + int64(i)}
		out = append(out, e)
	}
	return out
}

func TestExportsHoldEveryFieldInEveryFormat(t *testing.T) {
	s := newExportSite(t, nil)
	s.exports.windowRows = 40
	s.add(exportEvents(rand.New(rand.NewPCG(1, 2)), 1500)...)
	s.add(specialEvents()...)
	outer := s.t
	for _, format := range exportFormatNames {
		t.Run(format, func(t *testing.T) {
			s.t = t
			defer func() { s.t = outer }()
			body, _ := s.whole("w1", "/v1/export", query("format", format))
			s.check(format, body, s.want(ofWorkspace("w1")))
			for _, session := range []string{"s1", "s2", "s3"} {
				body, _ := s.whole("w1", "/v1/sessions/"+session+"/export", query("format", format))
				s.check(format, body, s.want(func(e *schema.Event) bool { return e.Workspace == "w1" && e.Session == session }))
			}
			body, _ = s.whole("nobody", "/v1/export", query("format", format))
			s.check(format, body, nil)
		})
	}
}

func TestExportIDsAreGos(t *testing.T) {
	conn, _ := openEngine(t)
	r := rand.New(rand.NewPCG(5, 6))
	ids := []schema.EventID{
		{Position: schema.Position{Epoch: 255, Partition: schema.MaxPartition, Offset: schema.MaxOffset}, TimeMs: schema.MaxEventTimeMs},
		{Position: schema.Position{Epoch: 1}},
	}
	for range 3000 {
		ids = append(ids, schema.EventID{
			Position: schema.Position{Epoch: uint8(1 + r.IntN(255)), Partition: uint16(r.Uint32()), Offset: r.Int64N(schema.MaxOffset+1) >> r.IntN(48)},
			TimeMs:   r.Int64N(schema.MaxEventTimeMs+1) >> r.IntN(43),
		})
	}
	var epochs, partitions, offsets, times []uint64
	for _, id := range ids {
		epochs, partitions = append(epochs, uint64(id.Epoch)), append(partitions, uint64(id.Partition))
		offsets, times = append(offsets, uint64(id.Offset)), append(times, uint64(id.TimeMs))
	}
	var s statement
	from := fmt.Sprintf(`SELECT toUInt8(e) AS log_epoch, toUInt16(p) AS kafka_partition, o AS kafka_offset, fromUnixTimestamp64Milli(toInt64(t), 'UTC') AS ts
		FROM (SELECT 1) ARRAY JOIN %s AS e, %s AS p, %s AS o, %s AS t`,
		s.bind("Array(UInt64)", epochs), s.bind("Array(UInt64)", partitions), s.bind("Array(UInt64)", offsets), s.bind("Array(UInt64)", times))
	rows, err := conn.Query(t.Context(), "SELECT "+eventIDColumn+" FROM ("+from+")", s.args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for _, id := range ids {
		var got string
		if !rows.Next() || rows.Scan(&got) != nil || got != id.String() {
			t.Fatalf("id of %+v is %q, want %s (%v)", id, got, id, rows.Err())
		}
	}
}

func TestExportKnowsJSONAsGoDoes(t *testing.T) {
	conn, _ := openEngine(t)
	f := func(contentType string) {
		t.Helper()
		var got bool
		var s statement
		row := conn.QueryRow(t.Context(), "SELECT CAST("+jsonContent+", 'Bool') FROM (SELECT "+s.bind("String", contentType)+" AS content_type)", s.args...)
		if err := row.Scan(&got); err != nil || got != schema.IsJSON(contentType) {
			t.Errorf("content type %q is JSON: %v, want %v (%v)", contentType, got, schema.IsJSON(contentType), err)
		}
	}
	for _, c := range []string{
		"", "application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=utf-8", "application/json\t ; a=b",
		"text/json", "text/json;", "application/cloudevents+json", "application/cloudevents+JSON ; x=\"y;z+json\"", "text/plain; x=a+json",
		"application/jsonx", "x-application/json", "+json", "audio/wav", " application/json", "json", "application/json+xml",
	} {
		f(c)
	}
}

func TestExportFilters(t *testing.T) {
	s := newExportSite(t, nil)
	s.exports.windowRows = 100
	s.add(exportEvents(rand.New(rand.NewPCG(7, 2)), 1200)...)
	r := rand.New(rand.NewPCG(8, 8))
	for range 25 {
		f := randomFilter(r)
		f.UntilMs, f.FrameID = nil, "" // not every value of randomFilter is one of a query
		q := query()
		for _, typ := range f.Types {
			q.Add("type", typ)
		}
		f.Prefixes = nil
		if f.ConfidenceGTE != nil {
			q.Set("confidence_gte", strconv.FormatFloat(float64(*f.ConfidenceGTE), 'g', -1, 32))
		}
		if f.FromTMs != nil {
			q.Set("from_t_ms", strconv.FormatInt(*f.FromTMs, 10))
		}
		if f.ToTMs != nil {
			q.Set("to_t_ms", strconv.FormatInt(*f.ToTMs, 10))
		}
		if f.SinceMs != nil {
			q.Set("since", strconv.FormatInt(*f.SinceMs, 10))
		}
		for k, v := range f.Metadata {
			q.Set("filters["+k+"]", v)
		}
		body, _ := s.whole("w1", "/v1/export", q)
		checkNDJSON(t, body, s.want(func(e *schema.Event) bool { return e.Workspace == "w1" && f.Match(e) }))
	}
	body, _ := s.whole("w1", "/v1/export", query("workflow_id", "wf2"))
	checkNDJSON(t, body, s.want(func(e *schema.Event) bool { return e.Workspace == "w1" && e.Workflow == "wf2" }))
}

func TestExportsShowNobodyElsesEvents(t *testing.T) {
	s := newExportSite(t, nil)
	s.add(exportEvents(rand.New(rand.NewPCG(9, 2)), 600)...)
	f := func(key, path string, holds func(*schema.Event) bool) {
		t.Helper()
		body, _ := s.whole(key, path, query())
		checkNDJSON(t, body, s.want(holds))
	}
	f("w1", "/v1/export", ofWorkspace("w1"))
	f("w2", "/v1/export", ofWorkspace("w2"))
	f("s1-only", "/v1/export", func(e *schema.Event) bool { return e.Workspace == "w1" && e.Session == "s1" })
	f("s1-only", "/v1/sessions/s1/export", func(e *schema.Event) bool { return e.Workspace == "w1" && e.Session == "s1" })
	f("wf1-only", "/v1/export", func(e *schema.Event) bool { return e.Workspace == "w1" && e.Workflow == "wf1" })

	refused := func(key, target string, status int, code, param string) {
		t.Helper()
		path, raw, _ := strings.Cut(target, "?")
		q, err := url.ParseQuery(raw)
		if err != nil {
			t.Fatal(err)
		}
		resp := s.get(key, path, q)
		defer resp.Body.Close()
		var body pageJSON
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != status || body.Error.Code != code || body.Error.Param != param {
			t.Errorf("GET %s by %s = %d %+v (%v), want %d %s of %q", target, key, resp.StatusCode, body.Error, err, status, code, param)
		}
	}
	refused("s1-only", "/v1/sessions/s2/export", 404, "not_found", "")
	refused("wf1-only", "/v1/export?workflow_id=wf2", 404, "not_found", "")
	refused("w1", "/v1/sessions/nobody/export", 404, "not_found", "")
	refused("w3", "/v1/sessions/s1/export", 404, "not_found", "")
	refused("ingest-only", "/v1/export", 403, "insufficient_scope", "")
	refused("w1", "/v1/export?format=xml", 400, "invalid_parameter", "format")
	refused("w1", "/v1/export?compression=lz4", 400, "invalid_parameter", "compression")
	refused("w1", "/v1/export?format=arrow&compression=gzip", 400, "invalid_parameter", "compression")
	refused("w1", "/v1/export?max_rows=0", 400, "invalid_parameter", "max_rows")
	refused("w1", "/v1/export?max_rows=1e3", 400, "invalid_parameter", "max_rows")
	refused("w1", "/v1/export?cursor=x", 400, "invalid_cursor", "cursor")
	refused("w1", "/v1/export?end=x", 400, "invalid_cursor", "end")
	refused("w1", "/v1/export?after=evt_01003G00000096E0D0RH86R000~A7AJBQAEqYwG", 400, "invalid_cursor", "after")
	refused("w1", "/v1/export?workflow_id=a%20b", 400, "invalid_parameter", "workflow_id")
	refused("w1", "/v1/sessions/s1/export?workflow_id=wf1", 400, "unknown_parameter", "workflow_id")
	refused("w1", "/v1/export?since=x", 400, "invalid_parameter", "since")
	beyond := schema.EventID{Position: schema.Position{Epoch: exportEpoch, Partition: exportPlacement.Partition("w1", "s1"), Offset: 1 << 40}, TimeMs: 1}
	refused("w1", "/v1/sessions/s1/export?after="+beyond.String(), 400, "invalid_cursor", "after")
	refused("w1", "/v1/export?end="+beyond.String(), 400, "invalid_cursor", "end")
	beyond.Epoch++
	refused("w1", "/v1/export?cursor="+beyond.String(), 400, "invalid_cursor", "cursor")
}

func TestExportEndsWhereItWasWhenItBegan(t *testing.T) {
	s := newExportSite(t, nil)
	all := exportEvents(rand.New(rand.NewPCG(10, 2)), 900)
	s.add(all[:600]...)
	first := s.want(ofWorkspace("w1"))
	body, header := s.whole("w1", "/v1/export", query())
	checkNDJSON(t, body, first)
	cursor := header.Get(httpapi.HeaderExportCursor)
	if c, err := schema.ParseCursor(cursor); err != nil || c.String() != cursor {
		t.Fatalf("cursor %q: %v", cursor, err)
	}
	s.add(all[600:]...)
	// The same export again, and what came after it.
	body, header = s.whole("w1", "/v1/export", query("end", cursor))
	checkNDJSON(t, body, first)
	if header.Get(httpapi.HeaderExportCursor) != cursor {
		t.Errorf("the cursor became %q, want %q", header.Get(httpapi.HeaderExportCursor), cursor)
	}
	seen := map[schema.EventID]bool{}
	for _, e := range first {
		seen[e.ID] = true
	}
	body, _ = s.whole("w1", "/v1/export", query("cursor", cursor))
	checkNDJSON(t, body, s.want(func(e *schema.Event) bool { return e.Workspace == "w1" && !seen[e.ID] }))
	// An event's own id: in its partition what follows, elsewhere what was appended from then on.
	at := first[len(first)-20].ID
	body, _ = s.whole("w1", "/v1/export", query("cursor", at.String()))
	checkNDJSON(t, body, s.want(func(e *schema.Event) bool {
		return e.Workspace == "w1" && e.ID.Epoch == at.Epoch &&
			(e.ID.Partition == at.Partition && e.ID.Offset > at.Offset || e.ID.Partition != at.Partition && e.ID.TimeMs >= at.TimeMs)
	}))
}

func TestExportWaitsForClickHouse(t *testing.T) {
	s := newExportSite(t, func(c *ExportConfig) { c.SyncTimeout = 200 * time.Millisecond })
	all := exportEvents(rand.New(rand.NewPCG(11, 2)), 400)
	s.add(all[:300]...)
	stored := s.want(ofWorkspace("w1"))
	s.note(all[300:]...)
	body, header := s.whole("w1", "/v1/export", query())
	checkNDJSON(t, body, stored)
	if n, err := strconv.Atoi(header.Get(httpapi.HeaderExportBehind)); err != nil || n <= 0 {
		t.Errorf("%s is %q", httpapi.HeaderExportBehind, header.Get(httpapi.HeaderExportBehind))
	}
	s.exports.cfg.SyncTimeout = 20 * time.Second
	got := make(chan []byte)
	go func() {
		body, _ := s.whole("w1", "/v1/export", query())
		got <- body
	}()
	insert(t, s.conn, all[300:])
	for p, end := range s.ends {
		s.committed.Set(p, end)
	}
	checkNDJSON(t, <-got, s.want(ofWorkspace("w1")))
}

func TestExportLeavesErasedEventsOut(t *testing.T) {
	s := newExportSite(t, nil)
	s.add(exportEvents(rand.New(rand.NewPCG(12, 2)), 400)...)
	of := s.want(func(e *schema.Event) bool { return e.Workspace == "w1" && e.Session == "s1" })
	below := of[len(of)-10].ID.Position
	s.exports.deps.Erased = erasedUpTo{ID: "era_1", Workspace: "w1", Session: "s1", Below: below}
	body, _ := s.whole("w1", "/v1/export", query())
	checkNDJSON(t, body, s.want(func(e *schema.Event) bool {
		return e.Workspace == "w1" && !(e.Session == "s1" && e.ID.Precedes(below))
	}))
}

func TestPartsOfAnExportAreTheWhole(t *testing.T) {
	s := newExportSite(t, nil)
	s.exports.windowRows = 30
	s.add(exportEvents(rand.New(rand.NewPCG(13, 2)), 700)...)
	want := s.want(ofWorkspace("w1"))
	for _, format := range exportFormatNames {
		for _, size := range []int{1 + len(want)/7, len(want) / 2, len(want), len(want) + 1} {
			q, left := query("format", format, "max_rows", strconv.Itoa(size)), want
			for {
				body, header := s.whole("w1", "/v1/export", q)
				n := min(size, len(left))
				s.check(format, body, left[:n])
				left = left[n:]
				next := header.Get(httpapi.HeaderExportNext)
				if (next == "") != (len(left) == 0) {
					t.Fatalf("%s: next is %q with %d left", format, next, len(left))
				}
				if next == "" {
					break
				}
				q = with(q, "after", next, "end", header.Get(httpapi.HeaderExportCursor))
			}
		}
	}
}

// erasedUpTo is one erasure, and pending.
type erasedUpTo schema.Erasure

func (e erasedUpTo) ErasedBelow(workspace, session string) schema.Position {
	if workspace != e.Workspace || session != e.Session {
		return schema.Position{}
	}
	return e.Below
}

func (e erasedUpTo) PendingErasures(workspace string) []schema.Erasure {
	if workspace != e.Workspace {
		return nil
	}
	return []schema.Erasure{schema.Erasure(e)}
}

// faultyConn fails answers as it is told.
type faultyConn struct {
	driver.Conn
	mu    sync.Mutex
	fault func(stream io.ReadCloser) io.ReadCloser // nil: none
	hangs atomic.Int32                             // so many answers do not come
	open  atomic.Int32                             // answers that are being read
}

func (c *faultyConn) set(fault func(io.ReadCloser) io.ReadCloser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = fault
}

func (c *faultyConn) QueryFormat(ctx context.Context, format, text string, args ...any) (io.ReadCloser, error) {
	stream, err := c.Conn.QueryFormat(ctx, format, text, args...)
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	stream = &countedStream{ReadCloser: stream, open: &c.open}
	if c.hangs.Add(-1) >= 0 {
		return hungStream{stream, ctx}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil {
		stream = c.fault(stream)
	}
	return stream, nil
}

type countedStream struct {
	io.ReadCloser
	open *atomic.Int32
}

func (s *countedStream) Close() error { s.open.Add(-1); return s.ReadCloser.Close() }

// hungStream gives nothing until its context ends.
type hungStream struct {
	io.ReadCloser
	ctx context.Context
}

func (s hungStream) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// cutStream fails once it, and all others with the same left, have given so many bytes.
type cutStream struct {
	io.ReadCloser
	left *atomic.Int64
}

func cutAfter(stream io.ReadCloser, n int) cutStream {
	left := new(atomic.Int64)
	left.Store(int64(n))
	return cutStream{stream, left}
}

var errCut = errors.New("connection reset")

func (s cutStream) Read(p []byte) (int, error) {
	left := s.left.Load()
	if left <= 0 {
		return 0, errCut
	}
	n, err := s.ReadCloser.Read(p[:min(len(p), int(left))])
	s.left.Add(-int64(n))
	return n, err
}

func TestExportSurvivesFailuresOfClickHouse(t *testing.T) {
	s := newExportSite(t, nil)
	s.exports.windowRows = 200
	s.add(exportEvents(rand.New(rand.NewPCG(14, 2)), 1500)...)
	s.add(specialEvents()...)
	want := s.want(ofWorkspace("w1"))
	for _, format := range []string{"ndjson", "csv", "arrow"} {
		r := rand.New(rand.NewPCG(15, 2))
		n := 0
		s.faulty.set(func(stream io.ReadCloser) io.ReadCloser {
			if n++; n%3 == 0 {
				return stream
			}
			return cutAfter(stream, r.IntN(pick(r, 100, 10_000, 2_000_000)))
		})
		body, _ := s.whole("w1", "/v1/export", query("format", format))
		s.faulty.set(nil)
		s.check(format, body, want)
		if n < 6 {
			t.Errorf("%s: only %d statements", format, n)
		}
	}
}

// changedStream gives another byte than was there.
type changedStream struct{ io.ReadCloser }

func (s changedStream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	for i := range p[:n] {
		p[i] ^= 1
	}
	return n, err
}

// A client must not take what was cut for a whole export, in any format, compressed or not.
func TestCutExportHasNoEnd(t *testing.T) {
	s := newExportSite(t, nil)
	s.add(exportEvents(rand.New(rand.NewPCG(16, 2)), 100)...)
	s.add(specialEvents()...)
	for _, format := range exportFormatNames {
		for _, coding := range []string{"", "gzip", "zstd"} {
			q := query("format", format)
			if coding != "" {
				if format == "arrow" || format == "parquet" {
					continue
				}
				q.Set("compression", coding)
			}
			left := new(atomic.Int64) // of all statements together
			left.Store(1 << 20)
			s.faulty.set(func(stream io.ReadCloser) io.ReadCloser {
				if left.Load() > 0 {
					return cutStream{stream, left}
				}
				return changedStream{stream} // as if other rows were there now
			})
			resp := s.get("w1", "/v1/export", q)
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			s.faulty.set(nil)
			if resp.StatusCode != 200 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s %s: %d, %d bytes, %v; want an unexpected end", format, coding, resp.StatusCode, n, err)
			}
		}
	}
	s.awaitIdle()
}

func TestExportIsUnavailableWithoutClickHouse(t *testing.T) {
	s := serveExports(t, brokenConn{}, nil)
	s.note(exportEvents(rand.New(rand.NewPCG(16, 2)), 100)...)
	for p, end := range s.ends {
		s.committed.Set(p, end)
	}
	resp := s.get("w1", "/v1/export", query())
	defer resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	s.awaitIdle()
}

type brokenConn struct{ driver.Conn }

func (brokenConn) Query(context.Context, string, ...any) (driver.Rows, error) { return nil, errCut }

func (brokenConn) Close() error { return nil }

// awaitIdle waits until no export and no statement runs.
func (s *exportSite) awaitIdle() {
	s.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s.exports.mu.Lock()
		total, of := s.exports.total, len(s.exports.running)
		s.exports.mu.Unlock()
		open, ahead := s.faulty.open.Load(), len(s.exports.ahead)
		if total == 0 && of == 0 && open == 0 && ahead == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d exports of %d workspaces, %d statements, %d ahead, want none", total, of, open, ahead)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// decoded undoes a coding of which the end may be missing.
func decoded(t testing.TB, coding string, body []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(body)
	switch coding {
	case "gzip":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil
		}
		r = z
	case "zstd":
		z, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	out, err := io.ReadAll(r)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return out
}

// wholeRows returns the part of a cut body that is whole rows, and the last event's id.
func wholeRows(format string, body []byte) ([]byte, string) {
	ends := []int{}
	quoted := false
	for i, c := range body {
		switch {
		case c == '"' && format == "csv":
			quoted = !quoted
		case c == '\n' && !quoted:
			ends = append(ends, i+1)
		}
	}
	skip := 0
	if format == "csv" {
		skip = 1
	}
	if len(ends) <= skip {
		return nil, ""
	}
	body = body[:ends[len(ends)-1]]
	from := 0
	if len(ends) > 1 {
		from = ends[len(ends)-2]
	}
	at := bytes.Index(body[from:], []byte(schema.EventIDPrefix))
	return body, string(body[from+at : from+at+30])
}

func TestExportGoesOnAfterACut(t *testing.T) {
	s := newExportSite(t, nil)
	s.exports.windowRows = 150
	events := exportEvents(rand.New(rand.NewPCG(17, 2)), 1300)
	s.add(events[:1200]...)
	r := rand.New(rand.NewPCG(18, 2))
	for _, format := range []string{"ndjson", "csv"} {
		for _, coding := range []string{"", "gzip", "zstd"} {
			want := s.want(ofWorkspace("w1"))
			q := query("format", format)
			if coding != "" {
				q.Set("compression", coding)
			}
			var got []byte
			for cut := 0; ; cut++ {
				resp := s.get("w1", "/v1/export", q)
				q = with(q, "end", resp.Header.Get(httpapi.HeaderExportCursor))
				limit := int64(1) << 40
				if cut < 12 {
					limit = r.Int64N(pick[int64](r, 40, 4000, 60_000))
				}
				body, err := io.ReadAll(io.LimitReader(resp.Body, limit))
				if err != nil {
					t.Fatal(err)
				}
				complete := limit == 1<<40
				resp.Body.Close() // reads no further: the connection breaks
				rows, last := wholeRows(format, decoded(t, coding, body))
				if format == "csv" && len(got) > 0 { // the head again
					rows = rows[bytes.IndexByte(append(rows, '\n'), '\n')+min(len(rows), 1):]
				}
				got = append(got, rows...)
				if last != "" {
					q = with(q, "after", last)
				}
				if cut == 3 && len(s.log) == 1200 {
					s.add(events[1200:]...) // must not show
				}
				if complete {
					break
				}
			}
			s.check(format, got, want)
		}
	}
	s.awaitIdle()
}

func TestExportIsCompressedAsAsked(t *testing.T) {
	s := newExportSite(t, nil)
	s.add(exportEvents(rand.New(rand.NewPCG(19, 2)), 300)...)
	want := s.want(ofWorkspace("w1"))
	f := func(accept, compression, coding string) {
		t.Helper()
		q := query("format", "csv")
		if compression != "" {
			q.Set("compression", compression)
		}
		body, header := s.whole("w1", "/v1/export", q, "Accept-Encoding", accept)
		if got := header.Get("Content-Encoding"); got != coding {
			t.Fatalf("accept %q, compression %q: coding %q, want %q", accept, compression, got, coding)
		}
		checkCSV(t, decoded(t, coding, body), want)
	}
	f("identity", "", "")
	f("gzip, zstd", "", "zstd")
	f("gzip, deflate, br", "", "gzip")
	f("gzip;q=1.0, zstd; q=0.5", "", "gzip")
	f("gzip;q=0, zstd;q=0.000", "", "")
	f("gzip", "none", "")
	f("identity", "gzip", "gzip")
	f("gzip", "zstd", "zstd")
	for _, format := range []string{"arrow", "parquet"} {
		for _, inner := range slices.Sorted(maps.Keys(s.exports.formats[slices.IndexFunc(s.exports.formats, func(f *exportFormat) bool { return f.name == format })].inner)) {
			q := query("format", format)
			if inner != "" {
				q.Set("compression", inner)
			}
			body, header := s.whole("w1", "/v1/export", q, "Accept-Encoding", "gzip, zstd")
			if header.Get("Content-Encoding") != "" {
				t.Errorf("%s is coded as %q", format, header.Get("Content-Encoding"))
			}
			s.check(format, body, want)
		}
	}
}

// openRaw begins an export on a connection of its own and reads the first line of its answer.
func (s *exportSite) openRaw(key, target string) *net.TCPConn {
	s.t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	conn := nc.(*net.TCPConn)
	s.t.Cleanup(func() { _ = conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", target, key)
	head := make([]byte, 12)
	if _, err := io.ReadFull(conn, head); err != nil || string(head) != "HTTP/1.1 200" {
		s.t.Fatalf("GET %s begins with %q (%v)", target, head, err)
	}
	return conn
}

// bulk adds n events of size bytes each.
func (s *exportSite) bulk(n, size int) {
	s.t.Helper()
	r := rand.New(rand.NewPCG(20, 2))
	var events []*schema.Event
	at := exportPlacement.Partition("w1", "s1")
	for i := range n {
		payload := make([]byte, size)
		for j := range payload {
			payload[j] = byte(r.Uint32())
		}
		events = append(events, &schema.Event{
			ID:        schema.EventID{Position: schema.Position{Epoch: exportEpoch, Partition: at, Offset: int64(i)}, TimeMs: testStartMs},
			Workspace: "w1", Session: "s1", Type: "blob", ContentType: "application/octet-stream", Payload: payload,
		})
		if len(events) == 100 || i == n-1 {
			s.add(events...)
			events = nil
		}
	}
}

func TestClientThatStopsReadingIsCutOff(t *testing.T) {
	s := newExportSite(t, func(c *ExportConfig) {
		c.WriteTimeout, c.BufferBytes, c.MaxPerWorkspace, c.MaxRunning = 300*time.Millisecond, 1<<20, 4, 4
	})
	s.bulk(400, 100_000) // 53 MB as text
	for _, format := range exportFormatNames {
		conn := s.openRaw("w1", "/v1/export?format="+format)
		s.awaitIdle()
		n, err := io.Copy(io.Discard, conn)
		if n > 30<<20 {
			t.Errorf("%s: %d bytes were waiting, %v", format, n, err)
		}
	}
	if got := counted(t, s, "client"); got != 4 {
		t.Errorf("%v exports ended by their clients, want 4", got)
	}
}

func TestClientThatGoesAwayFreesItsPlace(t *testing.T) {
	s := newExportSite(t, func(c *ExportConfig) { c.BufferBytes = 1 << 20 })
	s.bulk(400, 100_000)
	for _, format := range exportFormatNames {
		conn := s.openRaw("w1", "/v1/export?format="+format)
		_ = conn.SetLinger(0)
		_ = conn.Close()
		s.awaitIdle() // long before the write's deadline
	}
	// While there is nothing to write to it.
	s.faulty.hangs.Store(1)
	conn := s.openRaw("w1", "/v1/export")
	_ = conn.Close()
	s.awaitIdle() // long before the statement's
}

func TestExportAsksAgainWhereClickHouseHangs(t *testing.T) {
	s := newExportSite(t, func(c *ExportConfig) { c.StatementTimeout = time.Second })
	s.add(exportEvents(rand.New(rand.NewPCG(22, 2)), 200)...)
	s.faulty.hangs.Store(1)
	resp := s.get("w1", "/v1/export", query())
	defer resp.Body.Close()
	defer time.AfterFunc(20*time.Second, func() { _ = resp.Body.Close() }).Stop()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	checkNDJSON(t, body, s.want(ofWorkspace("w1")))
}

func TestArrowStreamsAreJoined(t *testing.T) {
	conn, _ := openEngine(t)
	stream := func(rows int) []byte {
		t.Helper()
		r, err := conn.QueryFormat(t.Context(), "ArrowStream", fmt.Sprintf("SELECT number, toString(number) AS text FROM numbers(%d) SETTINGS max_block_size = 100", rows))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const end = 8 // bytes of the end of a stream
	streams := [][]byte{stream(250), stream(0), stream(1)}
	schemaBytes := len(stream(0)) - end
	want := slices.Clone(streams[0][:schemaBytes])
	for _, b := range streams {
		want = append(want, b[schemaBytes:len(b)-end]...)
	}
	want = append(want, streams[0][len(streams[0])-end:]...)
	r := rand.New(rand.NewPCG(23, 2))
	for range 50 {
		var got []byte
		out := func(b []byte) error { got = append(got, b...); return nil }
		var j arrowJoiner
		for _, b := range streams {
			j.next()
			for len(b) > 0 {
				n := 1 + r.IntN(min(len(b), pick(r, 3, 50, 5000)))
				if err := j.write(b[:n], out); err != nil {
					t.Fatal(err)
				}
				b = b[n:]
			}
		}
		if err := j.end(out); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes joined (%v), want %d", len(got), err, len(want))
		}
	}
	for _, bad := range []string{"Code: 1. DB::Exception", "\xff\xff\xff\xff\xff\xff\xff\x7f", "\xff\xff\xff\xff\x08\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"} {
		j := arrowJoiner{}
		if err := j.write([]byte(bad), func([]byte) error { return nil }); err == nil {
			t.Errorf("%q is taken for an Arrow stream", bad)
		}
	}
}

func TestExportConfigNamesEveryProblem(t *testing.T) {
	if err := DefaultExportConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	err := ExportConfig{DSN: "clickhouse://secret@x", ReadAhead: -1, SyncTimeout: -1}.Validate()
	for _, key := range []string{
		"dsn", "max_running", "max_per_workspace", "read_ahead", "threads", "buffer_bytes", "sync_timeout",
		"statement_timeout", "write_timeout", "max_duration",
	} {
		if err == nil || !strings.Contains(err.Error(), "query.export."+key+" ") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s is not reported, or a secret is: %v", key, err)
		}
	}
}

func counted(t testing.TB, s *exportSite, outcome string) float64 {
	t.Helper()
	total := 0.0
	for _, f := range exportFormatNames {
		var m dto.Metric
		if err := s.exports.metrics.exports.WithLabelValues(f, outcome).Write(&m); err != nil {
			t.Fatal(err)
		}
		total += m.GetCounter().GetValue()
	}
	return total
}

// admitted takes a place for an export, once there is one.
func (s *exportSite) admitted(workspace string) (release func()) {
	s.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		release, err := s.exports.admit(workspace, "csv")
		if err == nil {
			return release
		}
		if time.Now().After(deadline) {
			s.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestExportsAreLimited(t *testing.T) {
	s := newExportSite(t, func(c *ExportConfig) { c.MaxRunning, c.MaxPerWorkspace, c.BufferBytes = 3, 2, 1<<20 })
	s.bulk(200, 100_000)
	refused := func(key, of string) {
		t.Helper()
		resp := s.get(key, "/v1/export", query())
		defer resp.Body.Close()
		var body struct {
			Error struct {
				Code    string
				Details map[string]any
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" ||
			body.Error.Code != "export_limit_exceeded" || body.Error.Details["of"] != of {
			t.Errorf("%d %+v (%v), want 429 of the %s", resp.StatusCode, body.Error, err, of)
		}
	}
	a, b := s.openRaw("w1", "/v1/export"), s.openRaw("w1", "/v1/export")
	refused("w1", "workspace")
	s.whole("w2", "/v1/export", query())
	release := s.admitted("w2") // its end is noticed a little after its last byte came
	refused("w3", "node")
	release()
	_, _ = a.Close(), b.Close()
	s.awaitIdle()
	s.whole("w1", "/v1/export", query())
}

func TestStoppingEndsExports(t *testing.T) {
	s := newExportSite(t, func(c *ExportConfig) { c.BufferBytes = 1 << 20 })
	s.bulk(300, 100_000)
	conn := s.openRaw("w1", "/v1/export")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.exports.Close(ctx); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(conn)
	if bytes.HasSuffix(rest, []byte("\r\n0\r\n\r\n")) {
		t.Error("the body of an export that was ended looks whole")
	}
	resp := s.get("w1", "/v1/export", query())
	resp.Body.Close()
	if resp.StatusCode != 503 {
		t.Errorf("status %d of an export after the end", resp.StatusCode)
	}
}

func TestExportThatTakesTooLongIsCutOff(t *testing.T) {
	s := newExportSite(t, func(c *ExportConfig) { c.BufferBytes, c.MaxDuration = 1<<20, time.Second })
	s.bulk(300, 100_000)
	conn := s.openRaw("w1", "/v1/export")
	s.awaitIdle()
	rest, _ := io.ReadAll(conn)
	if bytes.HasSuffix(rest, []byte("\r\n0\r\n\r\n")) || counted(t, s, exportExpired) != 1 {
		t.Errorf("%v exports expired, want 1", counted(t, s, exportExpired))
	}
}

func TestHeadOfAnExportRunsNothing(t *testing.T) {
	s := serveExports(t, brokenConn{}, nil)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodHead, s.url+"/v1/export?format=csv", nil)
	req.Header.Set("Authorization", "Bearer w1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/csv") {
		t.Errorf("HEAD = %d, %q", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	s.exports.conn = nil
	resp = s.get("w1", "/v1/export", query())
	resp.Body.Close()
	if resp.StatusCode != 501 {
		t.Errorf("without a connection: %d, want 501", resp.StatusCode)
	}
}

// The statements of an export read in the order of the table, or of its projection, so that
// their memory does not grow with what they read.
func TestExportReadsInOrder(t *testing.T) {
	s := newExportSite(t, nil)
	s.add(exportEvents(rand.New(rand.NewPCG(21, 2)), 600)...)
	to := s.ends[exportPlacement.Partition("w1", "s1")]
	for _, scope := range []schema.Scope{{Workspace: "w1"}, {Workspace: "w1", Workflow: "wf1"}, {Workspace: "w1", Session: "s1"}} {
		q := &exportQuery{scope: scope, filter: &schema.Filter{}}
		for _, p := range scope.Partitions(exportPlacement) {
			q.legs = append(q.legs, exportLeg{epoch: exportEpoch, partition: p, to: to})
		}
		for _, f := range s.exports.formats {
			text, args := q.rowsStatement(f, exportSpan{exportLeg: q.legs[0], rows: 1})
			settings := q.useProjection(s.exports.settings(&exportRequest{format: f, inner: f.inner[""]}))
			explain := func(kind string) string {
				t.Helper()
				ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(settings))
				rows, err := s.conn.Query(ctx, "EXPLAIN "+kind+" "+text, args...)
				if err != nil {
					t.Fatal(err)
				}
				defer rows.Close()
				var plan strings.Builder
				for rows.Next() {
					var line string
					if err := rows.Scan(&line); err != nil {
						t.Fatal(err)
					}
					plan.WriteString(line + "\n")
				}
				return plan.String()
			}
			if plan := explain("PIPELINE"); !strings.Contains(plan, "InOrder") || strings.Contains(plan, "MergeSorting") {
				t.Errorf("%s of %+v is not read in order:\n%s", f.name, scope, plan)
			}
			if plan := explain("actions = 0"); strings.Contains(plan, "by_session") != (scope.Session != "") {
				t.Errorf("%s of %+v uses another projection:\n%s", f.name, scope, plan)
			}
		}
	}
}
