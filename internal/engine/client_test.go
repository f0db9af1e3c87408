package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// eventsTable is the table of the materialiser with every part of it that an engine might not know.
const eventsTable = `CREATE TABLE events (
  workspace_id LowCardinality(String), session_id String CODEC(ZSTD(1)), workflow_id LowCardinality(String),
  log_epoch UInt8, kafka_partition UInt16 CODEC(T64,ZSTD(1)), kafka_offset UInt64 CODEC(Delta,ZSTD(1)),
  ts DateTime64(3,'UTC') CODEC(Delta,ZSTD(1)),
  client_ts Nullable(DateTime64(3,'UTC')), t_ms UInt64 CODEC(Delta,ZSTD(1)),
  type LowCardinality(String), confidence Nullable(Float32), frame_id String CODEC(ZSTD(1)), message_id String CODEC(ZSTD(1)),
  metadata Map(LowCardinality(String),String) CODEC(ZSTD(1)),
  meta_kv Array(String) MATERIALIZED arrayMap((k,v)->concat(k,'=',v), mapKeys(metadata), mapValues(metadata)),
  content_type LowCardinality(String), payload String CODEC(ZSTD(3)),
  INDEX i_off kafka_offset TYPE minmax GRANULARITY 1, INDEX i_ts ts TYPE minmax GRANULARITY 1,
  INDEX i_type type TYPE set(64) GRANULARITY 1, INDEX i_meta meta_kv TYPE text(tokenizer='array'),
  PROJECTION by_time (SELECT * ORDER BY workspace_id, ts, kafka_partition, kafka_offset),
  PROJECTION hist (SELECT workspace_id, toStartOfHour(ts), type, count() GROUP BY workspace_id, toStartOfHour(ts), type)
) ENGINE = MergeTree PARTITION BY toYYYYMM(ts)
ORDER BY (workspace_id, session_id, log_epoch, kafka_offset)
TTL toDateTime(ts) + INTERVAL 365 DAY DELETE
SETTINGS non_replicated_deduplication_window=10000, ttl_only_drop_parts=1, fsync_after_insert=1, fsync_part_directory=1`

var eventTime = time.Now().UTC().Truncate(time.Hour).Add(123 * time.Millisecond)

func insertEvents(t testing.TB, conn driver.Conn, first, n int) {
	t.Helper()
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO events")
	if err != nil {
		t.Fatal(err)
	}
	payload := strings.Repeat("p", 200)
	for i := first; i < first+n; i++ {
		var client *time.Time
		var confidence *float32
		if i%2 == 0 {
			at, f := eventTime.Add(-time.Second), float32(0.5)
			client, confidence = &at, &f
		}
		err := batch.Append("ws", fmt.Sprintf("s%04d", i%1000), "wf", uint8(1), uint16(7), uint64(i), eventTime.Add(time.Duration(i)*time.Millisecond),
			client, uint64(i), fmt.Sprintf("a.b%d", i%10), confidence, "f", fmt.Sprintf("m%d", i), map[string]string{"k": "v", "n": fmt.Sprint(i % 100)}, "application/json", payload)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
}

func TestEventsTable(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	mustExec(t, conn, eventsTable)
	begun := time.Now()
	insertEvents(t, conn, 0, 50_000)
	t.Logf("50,000 events inserted in %s", time.Since(begun))
	if n := count(t, conn, "events"); n != 50_000 {
		t.Fatalf("count() = %d, want 50000", n)
	}

	explain := func(query string) string {
		rows, err := conn.Query(t.Context(), "EXPLAIN indexes=1, projections=1 "+query)
		if err != nil {
			t.Fatalf("EXPLAIN %s: %v", query, err)
		}
		var plan string
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			plan += line + "\n"
		}
		return plan
	}
	for _, tt := range []struct{ name, query, want string }{
		{"primary key", "SELECT payload FROM events WHERE workspace_id='ws' AND session_id='s0001' AND kafka_offset > 5 ORDER BY log_epoch, kafka_offset LIMIT 100 SETTINGS optimize_use_projections=0", "PrimaryKey"},
		{"text index", "SELECT count() FROM events WHERE has(meta_kv, 'n=7') SETTINGS optimize_use_projections=0", "i_meta"},
		{"time projection", "SELECT payload FROM events WHERE workspace_id='ws' AND ts >= now() - 3600 ORDER BY workspace_id, ts, kafka_partition, kafka_offset LIMIT 100 SETTINGS force_optimize_projection_name='by_time'", "by_time"},
		{"count projection", "SELECT type, count() FROM events WHERE workspace_id='ws' GROUP BY type", "hist"},
	} {
		if plan := explain(tt.query); !strings.Contains(plan, tt.want) {
			t.Errorf("%s: plan does not use %s:\n%s", tt.name, tt.want, plan)
		}
	}
	var sum uint64
	if err := conn.QueryRow(t.Context(), "SELECT sum(t_ms) FROM (SELECT t_ms FROM events WHERE workspace_id='ws' ORDER BY workspace_id, ts, kafka_partition, kafka_offset LIMIT 100 SETTINGS force_optimize_projection_name='by_time')").Scan(&sum); err != nil || sum != 4950 {
		t.Errorf("sum over the time projection = %d, %v, want 4950", sum, err)
	}

	// The same token again stores nothing; the engine keeps the promise that retries rest on.
	with := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": "1/7/0-1", "async_insert": 0}))
	for range 2 {
		if err := conn.Exec(with, "INSERT INTO events (workspace_id, session_id, kafka_offset, ts) VALUES ('other', 's', 1, now64(3))"); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, conn, "events WHERE workspace_id = 'other'"); n != 1 {
		t.Errorf("an insert repeated with its token stored %d rows, want 1", n)
	}
	for _, name := range []string{"fsync_after_insert", "fsync_part_directory"} {
		if n := count(t, conn, "system.merge_tree_settings WHERE value = '1' AND name = '"+name+"'"); n != 1 {
			t.Errorf("%s is off by default", name)
		}
	}
	mustExec(t, conn, "SYSTEM FLUSH LOGS")
	mustExec(t, conn, "OPTIMIZE TABLE events FINAL")
	if n := count(t, conn, "system.parts WHERE active AND table = 'events'"); n != 1 {
		t.Errorf("%d active parts after OPTIMIZE FINAL, want 1", n)
	}
}

func TestBackgroundMergesRun(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	mustExec(t, conn, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
	for i := range 12 {
		mustExec(t, conn, fmt.Sprintf("INSERT INTO t VALUES (%d)", i))
	}
	waitFor(t, "a merge", func() bool { return count(t, conn, "system.parts WHERE active AND table = 't'") < 12 })
}

// roundTrip sends v through a column of that type and back.
func TestTypesRoundTrip(t *testing.T) {
	p := startEngine(t, nil)
	big := string(bytes.Repeat([]byte{0, 1, 0xff, '\'', '\\', '\n', '\t', '"'}, 3<<20/8))
	at := time.Date(2026, 11, 22, 12, 0, 0, 123e6, time.UTC)
	f32 := float32(0.25)
	types := []struct {
		typ    string
		values []any
	}{
		{"LowCardinality(String)", []any{"a", "", "b", "a"}},
		{"LowCardinality(Nullable(String))", []any{ptr("a"), (*string)(nil)}},
		{"String", []any{"", "plain", "\x00nul\x00", "quote ' back \\ tab \t line \n", "\xff\xfe not UTF-8", "äöü 漢字 🎉", big}},
		{"FixedString(4)", []any{"abcd", "\x00\x01\x02\x03"}},
		{"DateTime64(3,'UTC')", []any{at, time.UnixMilli(0).UTC()}},
		{"Nullable(DateTime64(3,'UTC'))", []any{&at, (*time.Time)(nil)}},
		{"DateTime('UTC')", []any{at.Truncate(time.Second)}},
		{"Nullable(Float32)", []any{&f32, (*float32)(nil)}},
		{"Float64", []any{0.1, math.Inf(1), -math.MaxFloat64}},
		{"Map(LowCardinality(String),String)", []any{map[string]string{}, map[string]string{"k": "v", "'\\\n\x00": "\t"}}},
		{"Map(String,UInt64)", []any{map[string]uint64{"a": math.MaxUint64}, map[string]uint64{}}},
		{"Array(String)", []any{[]string{}, []string{"", "a\x00", "'"}}},
		{"Array(LowCardinality(String))", []any{[]string{"x", "x", "y"}, []string{}}},
		{"Array(Nullable(Int64))", []any{[]*int64{ptr(int64(1)), nil}}},
		{"UInt8", []any{uint8(0), uint8(255)}},
		{"UInt16", []any{uint16(math.MaxUint16)}},
		{"UInt32", []any{uint32(math.MaxUint32)}},
		{"UInt64", []any{uint64(math.MaxUint64), uint64(0)}},
		{"Int8", []any{int8(-128)}},
		{"Int16", []any{int16(-32768)}},
		{"Int32", []any{int32(math.MinInt32)}},
		{"Int64", []any{int64(math.MinInt64), int64(math.MaxInt64)}},
		{"Bool", []any{true, false}},
		{"Tuple(String, UInt64)", []any{[]any{"a", uint64(1)}}},
		{"Array(Tuple(UInt64, String))", []any{[][]any{{uint64(1), "a"}, {uint64(2), ""}}, [][]any{}}},
		{"Enum8('a' = 1, 'b' = 2)", []any{"a", "b"}},
	}
	for _, c := range []struct {
		name   string
		change func(*clickhouse.Options)
	}{
		{"uncompressed", nil},
		{"lz4", compression(clickhouse.CompressionLZ4)},
		{"zstd", compression(clickhouse.CompressionZSTD)},
		{"gzip", compression(clickhouse.CompressionGZIP)},
		{"deflate", compression(clickhouse.CompressionDeflate)},
		{"br", compression(clickhouse.CompressionBrotli)},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := open(t, p, c.change)
			for _, tt := range types {
				mustExec(t, conn, "CREATE OR REPLACE TABLE t (i UInt32, v "+tt.typ+") ENGINE = MergeTree ORDER BY i")
				batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
				if err != nil {
					t.Fatalf("%s: %v", tt.typ, err)
				}
				for i, v := range tt.values {
					if err := batch.Append(uint32(i), v); err != nil {
						t.Fatalf("%s: append %.40v: %v", tt.typ, v, err)
					}
				}
				if err := batch.Send(); err != nil {
					t.Errorf("%s: send: %v", tt.typ, err)
					continue
				}
				rows, err := conn.Query(t.Context(), "SELECT v FROM t ORDER BY i")
				if err != nil {
					t.Errorf("%s: %v", tt.typ, err)
					continue
				}
				i := 0
				for ; rows.Next(); i++ {
					got := reflect.New(reflect.TypeOf(tt.values[i]))
					if err := rows.Scan(got.Interface()); err != nil {
						t.Errorf("%s: scan: %v", tt.typ, err)
						break
					}
					if !reflect.DeepEqual(got.Elem().Interface(), tt.values[i]) {
						t.Errorf("%s: got %.80v, want %.80v", tt.typ, got.Elem(), tt.values[i])
					}
				}
				if err := rows.Err(); err != nil || i != len(tt.values) {
					t.Errorf("%s: %d rows of %d, %v", tt.typ, i, len(tt.values), err)
				}
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func compression(method clickhouse.CompressionMethod) func(*clickhouse.Options) {
	return func(o *clickhouse.Options) {
		level := 0
		if method == clickhouse.CompressionGZIP || method == clickhouse.CompressionDeflate || method == clickhouse.CompressionBrotli {
			level = 3
			o.Settings = clickhouse.Settings{"enable_http_compression": 1}
		}
		o.Compression = &clickhouse.Compression{Method: method, Level: level}
	}
}

func TestAggregatesRoundTrip(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, compression(clickhouse.CompressionLZ4))
	mustExec(t, conn, "CREATE TABLE t (k LowCardinality(String), n UInt64, s String) ENGINE = MergeTree ORDER BY n")
	mustExec(t, conn, "INSERT INTO t SELECT if(number % 2 = 0, 'even', 'odd'), number, toString(number) FROM numbers(10)")
	var (
		n, distinct uint64
		first, last string
		list        []string
		pairs       [][]any
		sums        map[string]uint64
		states      []string
	)
	err := conn.QueryRow(t.Context(), `SELECT count(), uniqExact(k), argMin(s, n), argMax(s, n), groupArray(s), arraySort(groupArray((n, s))),
		sumMap(map(toString(k), n)), arraySort(groupUniqArray(k)) FROM t`).Scan(&n, &distinct, &first, &last, &list, &pairs, &sums, &states)
	if err != nil {
		t.Fatal(err)
	}
	if n != 10 || distinct != 2 || first != "0" || last != "9" || len(list) != 10 || len(pairs) != 10 || sums["even"] != 20 || sums["odd"] != 25 || len(states) != 2 {
		t.Error(n, distinct, first, last, list, pairs, sums, states)
	}
	rows, err := conn.Query(t.Context(), "SELECT k, groupArray((n, k)), max(n) FROM t GROUP BY k ORDER BY k")
	if err != nil {
		t.Fatal(err)
	}
	groups := 0
	for ; rows.Next(); groups++ {
		var k string
		var list [][]any
		var top uint64
		if err := rows.Scan(&k, &list, &top); err != nil {
			t.Fatal(err)
		}
		if len(list) != 5 || list[0][1] != k {
			t.Error(k, list, top)
		}
	}
	if groups != 2 || rows.Err() != nil {
		t.Error(groups, rows.Err())
	}
}

func TestParametersRoundTrip(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	at := time.Date(2026, 11, 22, 12, 0, 0, 123e6, time.UTC)
	for _, tt := range []struct {
		typ   string
		value any
	}{
		{"String", ""},
		{"String", `it's a "quote", a \ and a \n`},
		{"String", "tab\tline\nreturn\rnul\x00end"},
		{"String", "äöü 漢字 🎉 %27 &a=b;+"},
		{"String", "{x:String} -- /* ? $1 @a"},
		{"String", strings.Repeat("long ' ", 20_000)},
		{"UInt8", uint8(255)}, {"UInt16", uint16(65535)}, {"UInt64", uint64(math.MaxUint64)},
		{"Int64", int64(math.MinInt64)}, {"Float64", 0.1}, {"Bool", true},
		{"DateTime64(3,'UTC')", at},
		{"Array(String)", []string{"", "it's", `back\slash`, "tab\tline\n", "漢字"}},
		{"Array(UInt64)", []uint64{1, math.MaxUint64}},
		{"Array(String)", []string{}},
		{"Map(String,String)", map[string]string{"k'": `v\`}},
	} {
		got := reflect.New(reflect.TypeOf(tt.value))
		err := conn.QueryRow(t.Context(), "SELECT {p:"+tt.typ+"}", clickhouse.Named("p", tt.value)).Scan(got.Interface())
		if err != nil || !reflect.DeepEqual(got.Elem().Interface(), tt.value) {
			t.Errorf("%s %.60q came back as %.60q, %v", tt.typ, tt.value, got.Elem(), err)
		}
	}
	var null *string
	if err := conn.QueryRow(t.Context(), "SELECT {p:Nullable(String)}", clickhouse.Named("p", nil)).Scan(&null); err != nil || null != nil {
		t.Errorf("NULL came back as %v, %v", null, err)
	}
	var many uint64
	keys := make([]string, 5000)
	for i := range keys {
		keys[i] = fmt.Sprintf("session-%05d", i)
	}
	if err := conn.QueryRow(t.Context(), "SELECT length({p:Array(String)})", clickhouse.Named("p", keys)).Scan(&many); err != nil || many != 5000 {
		t.Errorf("5000 keys: %d, %v", many, err)
	}
	mustExec(t, conn, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	mustExec(t, conn, "INSERT INTO t VALUES ({a:UInt64}, {s:String})", clickhouse.Named("a", uint64(7)), clickhouse.Named("s", "it's\n"))
	mustExec(t, conn, "INSERT INTO t (a, s) SELECT {a:UInt64}, {s:String};", clickhouse.Named("a", uint64(8)), clickhouse.Named("s", "it's\n"))
	if n := count(t, conn, "t WHERE s = 'it\\'s\\n'"); n != 2 {
		t.Errorf("%d rows by parameters, want 2", n)
	}
}

func TestErrorsCarryTheirCodes(t *testing.T) {
	p := startEngine(t, nil)
	for _, c := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4, clickhouse.CompressionGZIP} {
		conn := open(t, p, compression(c))
		mustExec(t, conn, "CREATE TABLE IF NOT EXISTS t (a UInt64) ENGINE = MergeTree ORDER BY a")
		for _, tt := range []struct {
			query string
			code  int32
		}{
			{"SELEC 1", 62}, {"SELECT", 62}, {"1 + 1", 62}, {"SELECT 1; SELECT 2", 62},
			{"SELECT * FROM nowhere", 60}, {"INSERT INTO nowhere VALUES (1)", 60}, {"DROP TABLE nowhere", 60},
			{"SELECT nothing", 47}, {"SELECT nofunction()", 46},
			{"SELECT {p:String}", 456}, {"SELECT toUInt8('x')", 6},
			{"SELECT * FROM nodb.t", 81}, {"CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a", 57},
			{"INSERT INTO t VALUES ('x')", 6}, {"SELECT 1 SETTINGS nosuch = 1", 115},
			{"SELECT throwIf(number = 2) FROM numbers(3)", 395},
			{"SELECT 1 FORMAT NoSuchFormat", 73}, {"SELECT 1 INTO OUTFILE '/tmp/x'", 48},
		} {
			wantCode(t, conn.Exec(t.Context(), tt.query), tt.code)
		}
		wantCode(t, conn.Exec(clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"nosuch": 1})), "SELECT 1"), 115)
		wantCode(t, open(t, p, func(o *clickhouse.Options) { o.Auth.Database = "nodb" }).Ping(t.Context()), 81)
		// Far into a result, when the status has long been sent.
		rows, err := conn.Query(t.Context(), "SELECT throwIf(number = 3000000) FROM numbers(4000000)")
		if err == nil {
			for rows.Next() {
			}
			err = rows.Err()
		}
		wantCode(t, err, 395)
		if n := count(t, conn, "numbers(3)"); n != 3 {
			t.Errorf("after errors, count() = %d", n)
		}
	}
}

// 1. a long insert meets a value of the wrong type near its end; 2. nothing of it may be stored.
func TestBadRowInAnInsertStoresNothing(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	mustExec(t, conn, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	var rows bytes.Buffer
	for i := range 300_000 {
		fmt.Fprintf(&rows, "%d\tvalue\n", i)
	}
	rows.WriteString("not a number\tvalue\n")
	status, text, header := get(t, p, "query="+url.QueryEscape("INSERT INTO playhead.t FORMAT TSV"), &rows)
	if status != 400 || header.Get("X-ClickHouse-Exception-Code") != "27" {
		t.Errorf("status %d, code %s: %.200s", status, header.Get("X-ClickHouse-Exception-Code"), text)
	}
	// The client dies in the middle of its body.
	body := io.MultiReader(strings.NewReader(strings.Repeat("1\tvalue\n", 100_000)), failingReader{})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.Addr()+"/?query_id=cut&query="+url.QueryEscape("INSERT INTO playhead.t FORMAT TSV"), body)
	req.SetBasicAuth("default", p.cfg.Password)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Error("a cut request was answered")
	}
	mustExec(t, conn, "KILL QUERY WHERE query_id = 'cut' SYNC")
	if n := count(t, conn, "t"); n != 0 {
		t.Errorf("%d rows of failed inserts are stored", n)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("the client dies") }

func TestLargeResultsStream(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, compression(clickhouse.CompressionLZ4))
	if n := count(t, conn, "numbers(3)"); n != 3 { // warm
		t.Fatal(n)
	}
	before := rss(t, p.Pid())
	// As clickhouse-go asks for it, but read without decoding, which under -race takes minutes.
	begun := time.Now()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.Addr()+"/?default_format=Native&client_protocol_version=54460", strings.NewReader("SELECT number, number FROM numbers(10000000)"))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("default", p.cfg.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n < 16*10_000_000 || n > 16*10_000_000+100_000 {
		t.Errorf("10M rows are %d bytes, %v", n, err)
	}
	after := rss(t, p.Pid())
	t.Logf("10M rows in %s; resident %d MB before, %d MB after", time.Since(begun), before>>20, after>>20)
	if after > before+200<<20 {
		t.Errorf("memory grew from %d to %d MB", before>>20, after>>20)
	}

	many, err := conn.Query(t.Context(), "SELECT number, toString(number) FROM numbers(300000)")
	if err != nil {
		t.Fatal(err)
	}
	var next uint64
	for ; many.Next(); next++ {
		var v uint64
		var s string
		if err := many.Scan(&v, &s); err != nil || v != next || s != fmt.Sprint(next) {
			t.Fatal(v, s, next, err)
		}
	}
	if many.Err() != nil || next != 300_000 {
		t.Error(next, many.Err())
	}
	rows, err := conn.Query(t.Context(), "SELECT number FROM numbers(10) WHERE number > 100")
	if err != nil {
		t.Fatal(err)
	}
	if rows.Next() || rows.Err() != nil {
		t.Errorf("an empty result has rows or %v", rows.Err())
	}
	rows, err = conn.Query(t.Context(), "SELECT toLowCardinality(toString(number)) AS k, map(k, number) FROM numbers(10) WHERE number > 100")
	if err != nil || rows.Next() || rows.Err() != nil {
		t.Errorf("an empty result has rows or %v, %v", err, rows.Err())
	}
}

func rss(t testing.TB, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skipf("resident memory: %v", err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

func TestIdleMemoryIsSmall(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	mustExec(t, conn, eventsTable)
	insertEvents(t, conn, 0, 10_000)
	_ = count(t, conn, "events WHERE payload != ''")
	mb := rss(t, p.Pid()) >> 20
	t.Logf("%d MB resident", mb)
	if mb > 400 {
		t.Errorf("%d MB resident, want at most 400", mb)
	}
}

func TestFormatsForCurl(t *testing.T) {
	p := startEngine(t, nil)
	const q = "SELECT number AS n, toString(number) AS s FROM numbers(200000) ORDER BY n"
	for _, tt := range []struct {
		format string
		check  func(text string) error
	}{
		{"JSON", func(text string) error {
			var v struct{ Rows int }
			if err := json.Unmarshal([]byte(text), &v); err != nil || v.Rows != 200000 {
				return fmt.Errorf("%d rows, %w", v.Rows, err)
			}
			return nil
		}},
		{"JSONEachRow", lines(200000)}, {"TabSeparated", lines(200000)}, {"CSV", lines(200000)}, {"CSVWithNames", lines(200001)},
		{"Parquet", framedBy("PAR1", "PAR1")}, {"ArrowStream", framedBy("\xff\xff\xff\xff", "\x00\x00\x00\x00")},
		{"Native", nil}, {"RowBinary", nil},
	} {
		for _, query := range []string{
			"query=" + url.QueryEscape(q+" FORMAT "+tt.format),
			"default_format=" + tt.format + "&query=" + url.QueryEscape(q+";"),
			"wait_end_of_query=1&query=" + url.QueryEscape(q+" FORMAT "+tt.format+" SETTINGS max_threads=1"),
		} {
			status, text, header := get(t, p, query, nil)
			if status != 200 || header.Get("X-ClickHouse-Format") != tt.format {
				t.Errorf("%s: status %d, format %s: %.300s", query, status, header.Get("X-ClickHouse-Format"), text)
			} else if tt.check != nil {
				if err := tt.check(text); err != nil {
					t.Errorf("%s: %v: %.80q", query, err, text)
				}
			}
		}
	}
	for _, tt := range []struct{ query, body, want string }{
		{"query=SELECT+1", "", "1\n"},
		{"", "SELECT 1 FORMAT JSONEachRow", "{\"1\":1}\n"},
		{"query=SELECT", " 1 -- after", "1\n"},
		{"query=" + url.QueryEscape("SELECT {a:Array(String)}, {b:String}") + "&param_a=['x','y']&param_b=z", "", "['x','y']\tz\n"},
		{"default_format=JSONEachRow", "SHOW DATABASES LIKE 'playhead'", "{\"name\":\"playhead\"}\n"},
		{"", "CREATE TABLE c (a UInt64, s String) ENGINE = MergeTree ORDER BY a", ""},
		{"", "INSERT INTO c FORMAT JSONEachRow\n{\"a\":1,\"s\":\"x\"}\n{\"a\":2,\"s\":\"y\"}\n", ""},
		{"query=INSERT+INTO+c+(a,s)+VALUES", "(3, 'it''s'), (4, concat('a', 'b'));", ""},
		{"query=INSERT+INTO+c+FORMAT+TSV", "5\t\t6\n", ""},
		{"", "/* INSERT */ SELECT count(), max(s) FROM c -- FORMAT JSON", "4\ty\n"},
		{"", "SELECT 'FORMAT JSON' AS format FORMAT TSV", "FORMAT JSON\n"},
		{"", "EXPLAIN SYNTAX SELECT 1", "SELECT 1\nFROM system.one\n"},
		{"max_threads=3", "SELECT getSetting('max_threads')", "3\n"},
		{"", "SELECT getSetting('max_threads') = 3, currentDatabase()", "0\tplayhead\n"},
		{"", "SET max_threads = 3", ""}, {"", "USE system", ""},
		{"database=system", "SELECT currentDatabase()", "system\n"},
		{"", "SELECT getSetting('max_threads') = 3, currentDatabase()", "0\tplayhead\n"},
		{"readonly=1", "SELECT 1", "1\n"},
		{"readonly=1&max_threads=2", "SELECT 1", "1\n"},
		{"", "SELECT timezone()", "UTC\n"},
	} {
		status, text, _ := get(t, p, tt.query, strings.NewReader(tt.body))
		if tt.query == "query=INSERT+INTO+c+FORMAT+TSV" {
			if status != 400 { // three columns for two
				t.Errorf("%s %s = %d %.200q", tt.query, tt.body, status, text)
			}
			continue
		}
		if status != 200 || text != tt.want {
			t.Errorf("%s %s = %d %.300q, want %q", tt.query, tt.body, status, text, tt.want)
		}
	}
	resp, err := http.Get("http://" + p.Addr() + "/ping")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); string(text) != "Ok.\n" {
		t.Errorf("/ping = %q", text)
	}
}

func lines(want int) func(string) error {
	return func(text string) error {
		if n := strings.Count(text, "\n"); n != want {
			return fmt.Errorf("%d lines, want %d", n, want)
		}
		return nil
	}
}

func framedBy(head, foot string) func(string) error {
	return func(text string) error {
		if !strings.HasPrefix(text, head) || !strings.HasSuffix(text, foot) || strings.Count(text, "PAR1") > 2 {
			return errors.New("not one complete document")
		}
		return nil
	}
}

func TestConcurrentQueries(t *testing.T) {
	p := startEngine(t, func(c *Config) { c.MaxConcurrent = 3 })
	conn := open(t, p, func(o *clickhouse.Options) { o.MaxOpenConns = 20 })
	mustExec(t, conn, "CREATE TABLE t (w UInt64, i UInt64) ENGINE = MergeTree ORDER BY w")
	var wg sync.WaitGroup
	for w := range uint64(12) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range uint64(15) {
				ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"max_threads": w + 1}))
				var threads, sum uint64
				if err := conn.QueryRow(ctx, "SELECT toUInt64(getSetting('max_threads')), sum(number) FROM numbers({n:UInt64})", clickhouse.Named("n", w*1000)).Scan(&threads, &sum); err != nil {
					t.Error(err)
				} else if n := w * 1000; threads != w+1 || n > 0 && sum != n*(n-1)/2 {
					t.Errorf("worker %d got the answer of another: %d, %d", w, threads, sum)
				}
				if err := conn.Exec(t.Context(), "INSERT INTO t VALUES ({w:UInt64}, {i:UInt64})", clickhouse.Named("w", w), clickhouse.Named("i", i)); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if n := count(t, conn, "t"); n != 12*15 {
		t.Errorf("count() = %d, want %d", n, 12*15)
	}
}

const endless = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 7"

func TestFullQueueIsRefused(t *testing.T) {
	p := startEngine(t, func(c *Config) { c.MaxConcurrent, c.MaxQueued = 1, 1 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	results := make(chan error, 2)
	one, two, three := open(t, p, nil), open(t, p, nil), open(t, p, nil)
	go func() { results <- one.Exec(ctx, endless) }()
	waitUntilBusy(t, three)
	go func() { results <- two.Exec(ctx, endless) }()
	// Until the second has taken the one place to wait, this takes it for a moment, and the second is refused.
	waitFor(t, "a refusal", func() bool {
		select {
		case err := <-results:
			wantCode(t, err, codeTooManyQueries)
			go func() { results <- two.Exec(ctx, endless) }()
		default:
		}
		short, done := context.WithTimeout(ctx, 50*time.Millisecond)
		defer done()
		return hasCode(three.Exec(short, "SELECT 2"), codeTooManyQueries)
	})
	if err := three.Ping(ctx); err != nil {
		t.Errorf("Ping() of a busy engine = %v", err)
	}
	cancel()
	for range 2 {
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled query = %v", err)
		}
	}
	waitFor(t, "the slot", func() bool { return three.Exec(t.Context(), "SELECT 2") == nil })
}

func TestHangUpCancelsTheQuery(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, nil)
	for _, query := range []string{
		endless,
		"SELECT number FROM numbers(1000000000000) WHERE 'sipHash64' != ''",
		"INSERT INTO FUNCTION null('n UInt64') SELECT number FROM numbers(1000000000000) WHERE 'sipHash64' != ''",
		"SELECT number FROM numbers(1000000000000) WHERE 'sipHash64' != '' FORMAT Parquet",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- conn.Exec(ctx, query) }()
		waitForProcess(t, p, "sipHash64")
		cancel()
		// The driver may call it a success if the answer had begun: what counts is below.
		t.Logf("%s: %v", query, <-done)
		waitFor(t, "the query to end: "+query, func() bool {
			return count(t, conn, "system.processes WHERE position(query, concat('sip', 'Hash64')) > 0") == 0
		})
	}
}

// waitUntilBusy waits until the only slot is taken.
func waitUntilBusy(t testing.TB, conn driver.Conn) {
	t.Helper()
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the slot to be taken", func() bool {
		short, done := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer done()
		return conn.Exec(short, "SELECT 2") != nil
	})
}

func TestKillByQueryID(t *testing.T) {
	p := startEngine(t, func(c *Config) { c.MaxConcurrent = 1 })
	conn := open(t, p, func(o *clickhouse.Options) { o.MaxOpenConns = 10 })
	mustExec(t, conn, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
	start := func(id, query string) chan error {
		done := make(chan error, 1)
		go func() { done <- conn.Exec(clickhouse.Context(t.Context(), clickhouse.WithQueryID(id)), query) }()
		return done
	}
	kill := func(id string) (status string) {
		t.Helper()
		rows, err := conn.Query(t.Context(), "KILL QUERY WHERE query_id = '"+id+"' SYNC")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, user, query string
			if err := rows.Scan(&status, &id, &user, &query); err != nil {
				t.Fatal(err)
			}
		}
		return status
	}
	if status := kill("nobody"); status != "" {
		t.Errorf("KILL of an unknown id = %q", status)
	}
	// The slot is taken and another statement waits for it. Both can be killed, the one that waits first.
	running := start("a'b", endless)
	waitUntilBusy(t, conn)
	waiting := start("c", "INSERT INTO t VALUES (1)")
	waitFor(t, "a KILL of the statement that waits", func() bool { return kill("c") == "finished" })
	wantCode(t, <-waiting, codeQueryCancelled)
	wantCode(t, conn.Exec(clickhouse.Context(t.Context(), clickhouse.WithQueryID("a'b")), "SELECT 1"), codeQueryIDRunning)
	if status := kill(`a\'b`); status != "finished" {
		t.Errorf("KILL of a running query = %q, want finished", status)
	}
	wantCode(t, <-running, codeQueryCancelled)
	// An insert whose body never ends.
	body, feed := io.Pipe()
	defer feed.Close()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.Addr()+"/?query_id=slow&query="+url.QueryEscape("INSERT INTO playhead.t FORMAT TSV"), body)
	req.SetBasicAuth("default", p.cfg.Password)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	if _, err := feed.Write([]byte("1\n2\n3\n")); err != nil {
		t.Fatal(err)
	}
	waitUntilBusy(t, conn)
	if status := kill("slow"); status != "finished" {
		t.Errorf("KILL of an insert = %q, want finished", status)
	}
	feed.CloseWithError(io.ErrClosedPipe)
	<-answered
	if n := count(t, conn, "t"); n != 0 {
		t.Errorf("%d rows of killed inserts are stored", n)
	}
}

func hasCode(err error, code int32) bool {
	var e *clickhouse.Exception
	return errors.As(err, &e) && e.Code == code
}

func TestFormatsRoundTrip(t *testing.T) {
	p := startEngine(t, nil)
	conn := open(t, p, compression(clickhouse.CompressionLZ4))
	mustExec(t, conn, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	status, text, _ := get(t, p, "query="+url.QueryEscape("INSERT INTO t FORMAT JSONEachRow"), strings.NewReader(strings.Repeat("{\"a\":1,\"s\":\"é\"}\n", 1000)))
	if status != 200 {
		t.Fatal(status, text)
	}
	_, parquet, _ := get(t, p, "query="+url.QueryEscape("SELECT * FROM t FORMAT Parquet"), nil)
	if status, text, _ := get(t, p, "query="+url.QueryEscape("INSERT INTO t FORMAT Parquet"), strings.NewReader(parquet)); status != 200 {
		t.Fatal(status, text)
	}
	if n := count(t, conn, "t WHERE s = 'é'"); n != 2000 {
		t.Errorf("count() = %d, want 2000", n)
	}
}

// BenchmarkInsertEvents inserts batches of 50,000 events of 300 B; go test -bench InsertEvents -benchtime 20x is 1M rows.
func BenchmarkInsertEvents(b *testing.B) {
	for _, method := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4} {
		b.Run(method.String(), func(b *testing.B) {
			conn := open(b, startEngine(b, nil), compression(method))
			mustExec(b, conn, eventsTable)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				insertEvents(b, conn, i*50_000, 50_000)
			}
			b.ReportMetric(float64(b.N)*50_000/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkReadEvents reads whole events back, as a replay does.
func BenchmarkReadEvents(b *testing.B) {
	conn := open(b, startEngine(b, nil), nil)
	mustExec(b, conn, eventsTable)
	const n = 200_000
	insertEvents(b, conn, 0, n)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		rows, err := conn.Query(b.Context(), "SELECT session_id, kafka_partition, kafka_offset, ts, type, metadata, payload FROM events")
		if err != nil {
			b.Fatal(err)
		}
		var session, typ, payload string
		var partition uint16
		var offset uint64
		var at time.Time
		var metadata map[string]string
		got := 0
		for ; rows.Next(); got++ {
			if err := rows.Scan(&session, &partition, &offset, &at, &typ, &metadata, &payload); err != nil {
				b.Fatal(err)
			}
		}
		if rows.Err() != nil || got != n {
			b.Fatal(got, rows.Err())
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "rows/s")
}
