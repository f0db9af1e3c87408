package main

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

func testHistoryData(rows int) historyData { return newHistoryData("ws_test", historyPartitions, rows) }

func TestHistorySessionsLieInTheirPartition(t *testing.T) {
	d := testHistoryData(8_000_000)
	for shard, p := range d.partitions {
		for _, name := range []string{d.sparse(shard), d.verySparse(shard), d.call(0, shard), d.call(d.calls()-1, shard)} {
			if got := d.placement.Partition(d.workspace, name); got != p {
				t.Errorf("session %s of shard %d lies in partition %d, want %d", name, shard, got, p)
			}
		}
	}
	if got := d.placement.Partition(d.workspace, d.long()); got != d.partitions[0] {
		t.Errorf("the long session lies in partition %d, want %d", got, d.partitions[0])
	}
}

func TestHistoryRowsAreRoundedUp(t *testing.T) {
	f := func(rows int, want int64) {
		t.Helper()
		d := testHistoryData(rows)
		if got := d.rows(); got != want {
			t.Errorf("rows of %d = %d, want %d", rows, got, want)
		}
	}
	f(2_000_000, 2_000_000)
	f(2_000_001, 2_004_000)
	f(100_000_000, 100_000_000)
}

func TestLongSessionHasItsEventsInItsRange(t *testing.T) {
	f := func(rows int, atLeast int64) {
		t.Helper()
		d := testHistoryData(rows)
		from, to, events := d.longRange()
		if events < atLeast || to > d.perPartition {
			t.Errorf("%d rows: %d events in [%d, %d) of %d, want at least %d", rows, events, from, to, d.perPartition, atLeast)
		}
		count := int64(0)
		for i := from; i < to; i++ { // as the statement has it
			if i%2 == 0 && i%1000 >= 2 {
				if got := d.longOffset(count); got != i {
					t.Fatalf("%d rows: event %d is at offset %d, want %d", rows, count, got, i)
				}
				count++
			}
		}
		if count != events {
			t.Errorf("%d rows: the range holds %d events, want %d", rows, count, events)
		}
	}
	f(2_000_000, 100_000)
	f(100_000_000, 1_000_000)
}

func TestCallsSucceedEachOtherInTheirSlot(t *testing.T) {
	d := testHistoryData(8_000_000)
	for i := int64(0); i+liveCalls < d.calls(); i++ {
		from, to := d.callRange(i)
		if next, _ := d.callRange(i + liveCalls); next != to || to-from != callSpan {
			t.Fatalf("call %d lives in [%d, %d), the next one of its slot from %d on", i, from, to, next)
		}
		if (from%1000+1000)%1000 != 1 {
			t.Fatalf("call %d begins at offset %d, want one that ends in 001", i, from)
		}
	}
	if _, last := d.callRange(d.calls() - 1); last < d.perPartition {
		t.Errorf("the last call ends at %d, before the log does at %d", last, d.perPartition)
	}
}

func TestInsertNamesEveryCallUnderWay(t *testing.T) {
	d := testHistoryData(8_000_000)
	for _, from := range []int64{0, 100_000, 400_000, d.perPartition - 10_000} {
		to := min(from+fillRows, d.perPartition)
		statement := d.insert(1, from, to)
		if strings.Contains(statement, "$") || !strings.Contains(statement, fmt.Sprintf("(%d - 300)", wordsBytes)) {
			t.Fatalf("a name was not replaced, or by another's value, in:\n%s", statement)
		}
		for i := range d.calls() {
			if begin, end := d.callRange(i); begin < to && end > from && !strings.Contains(statement, quoteText(d.call(i, 1))) {
				t.Errorf("offsets [%d, %d): call %d, in [%d, %d), is not named", from, to, i, begin, end)
			}
		}
	}
}

func TestHistoryCursorsSayWhereReadingGoesOn(t *testing.T) {
	d := testHistoryData(2_000_000)
	for _, offset := range []int64{0, 1, 4321, d.perPartition} {
		c, err := schema.ParseCursor(d.at(offset))
		if err != nil {
			t.Fatalf("cursor of offset %d: %v", offset, err)
		}
		for _, p := range d.partitions {
			if next, ok := c.Next(p); !ok || next != offset {
				t.Errorf("cursor of offset %d goes on at %d of partition %d (%t)", offset, next, p, ok)
			}
		}
	}
	c, err := schema.ParseCursor(d.after(2, 77))
	if err != nil {
		t.Fatal(err)
	}
	if next, ok := c.Next(d.partitions[2]); !ok || next != 78 || c.ID.TimeMs != d.timeMs(77) {
		t.Errorf("cursor behind offset 77 goes on at %d, time %d", next, c.ID.TimeMs)
	}
}

func TestHistoryQuestionsAskWithinTheData(t *testing.T) {
	for _, rows := range []int{minHistoryRows, 100_000_000} {
		d := testHistoryData(rows)
		for i, q := range historyQuestions(&d) {
			for j, kind := range q.kinds {
				random := historyRandom(i, j, 1)
				for range 50 {
					path := kind.ask(random)
					u, err := url.Parse(path)
					if err != nil {
						t.Fatalf("%s: %v", kind.name, err)
					}
					text := u.Query().Get("cursor")
					if text == "" {
						continue
					}
					c, err := schema.ParseCursor(text)
					if err != nil {
						t.Fatalf("%s: %s: %v", kind.name, path, err)
					}
					if c.ID.Offset < 0 || c.ID.Offset >= d.perPartition {
						t.Errorf("%s, %d rows: offset %d of %d", kind.name, rows, c.ID.Offset, d.perPartition)
					}
				}
			}
		}
	}
}

func TestRecordedStatementsAreAskedAgainAsTheyWere(t *testing.T) {
	var got []string
	clickHouse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		user, key, ok := r.Header.Get("X-ClickHouse-User"), r.Header.Get("X-ClickHouse-Key"), r.URL.Query().Has("query_id")
		got = append(got, fmt.Sprintf("%s %s/%s id=%t p0=%s %s", r.Header.Get("X-Format"), user, key, ok, r.URL.Query().Get("param_p0"), body))
		fmt.Fprint(w, "rows")
	}))
	t.Cleanup(clickHouse.Close)
	rec, err := startRecorder(t.Context(), strings.Replace(clickHouse.URL, "http://", "http://default:secret@", 1)+"/playhead")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rec.stop() })
	send := func(query, body string) {
		t.Helper()
		u, err := url.Parse(rec.dsn)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+u.Host+"/?"+query, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-ClickHouse-User", "default")
		req.Header.Set("X-ClickHouse-Key", "old")
		req.Header.Set("X-Format", "RowBinary")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if answer, err := io.ReadAll(res.Body); err != nil || string(answer) != "rows" {
			t.Fatalf("answer = %q, %v", answer, err)
		}
	}
	send("query_id=7&param_p0=w", "SELECT 1 FROM events WHERE x")
	send("query_id=8&param_start=3", "SELECT count() FROM events") // the materialiser's
	send("query_id=9", "SELECT 1")
	seen := rec.take()
	if len(seen) != 1 || len(rec.take()) != 0 {
		t.Fatalf("%d statements recorded, want the one of history, once", len(seen))
	}
	engine, err := newStraight(strings.Replace(clickHouse.URL, "http://", "http://default:new@", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(engine.close)
	got = nil
	if n, err := engine.ask(t.Context(), seen); err != nil || n != 4 {
		t.Fatalf("ask = %d bytes, %v, want 4", n, err)
	}
	if want := "RowBinary default/new id=false p0=w SELECT 1 FROM events WHERE x"; len(got) != 1 || got[0] != want {
		t.Errorf("asked again: %q, want %q", got, want)
	}
}

func TestStraightReportsARefusal(t *testing.T) {
	clickHouse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Code: 159", http.StatusInternalServerError)
	}))
	t.Cleanup(clickHouse.Close)
	engine, err := newStraight(clickHouse.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(engine.close)
	if _, err := engine.ask(t.Context(), []asked{{header: http.Header{}}}); err == nil || !strings.Contains(err.Error(), "159") {
		t.Errorf("ask = %v, want what the engine said", err)
	}
}

func TestAnswersCountWhatIsNotAPage(t *testing.T) {
	var a answers
	full := `{"data":[` + strings.TrimSuffix(strings.Repeat("{},", pageSize), ",") + `]}`
	for _, answer := range []struct {
		status int
		body   string
	}{{200, full}, {200, `{"data":[{}],"partial":true}`}, {422, `{}`}, {422, `{}`}} {
		if err := a.take(answer.status, []byte(answer.body), time.Millisecond, true); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.times) != 2 || a.events != pageSize+1 || a.short != 1 || a.refused[422] != 2 {
		t.Errorf("answers = %+v", a)
	}
	if err := a.take(200, []byte(`{"data":[{}]}`), time.Millisecond, true); err == nil {
		t.Error("a short page passed for a full one")
	}
}

func TestHistoryDirectoryIsOursOrEmpty(t *testing.T) {
	f := func(wantFilled bool, wantErr string, wantGone string, files map[string]string) {
		t.Helper()
		dir := t.TempDir()
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := readHistoryManifest(dir)
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("%v: error %v, want %q", files, err, wantErr)
		}
		if m.Filled != wantFilled {
			t.Errorf("%v: manifest %+v", files, m)
		}
		for name := range files {
			_, err := os.Stat(filepath.Join(dir, name))
			if gone := os.IsNotExist(err); gone != (wantGone != "" && strings.HasPrefix(name, wantGone)) {
				t.Errorf("%v: %s is gone: %t", files, name, gone)
			}
		}
	}
	f(false, "", "", nil)
	f(false, "not made by this benchmark", "", map[string]string{"letter.txt": "x"})
	f(true, "", "", map[string]string{"history.json": `{"filled":true,"rows":5}`, "clickhouse/x": "1"})
	f(false, "", "clickhouse", map[string]string{"history.json": `{"filled":false}`, "clickhouse/x": "1", "own.txt": "2"})
}

func TestHistoryFlags(t *testing.T) {
	f := func(wantErr string, args ...string) {
		t.Helper()
		var c historyConfig
		flags := flag.NewFlagSet("bench", flag.ContinueOnError)
		c.flags(flags)
		if err := flags.Parse(args); err != nil {
			t.Fatal(err)
		}
		err := c.check()
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("flags %q: %v, want %q", args, err, wantErr)
		}
	}
	f("", "-data", "d", "-n", "5")
	f("", "-data", "d", "-n", "0")
	f("-n is -1", "-n", "-1")
}
