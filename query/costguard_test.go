package query

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// twoPartitions is the placement of the rows of fillHours.
var twoPartitions = schema.Placement{Partitions: 2, Shards: 2}

// sessionIn returns a session of the workspace that lies in a partition.
func sessionIn(workspace string, partition uint16) string {
	for i := 0; ; i++ {
		if s := fmt.Sprint("s", i); twoPartitions.Partition(workspace, s) == partition {
			return s
		}
	}
}

// fillHours inserts rows of a workspace in two partitions, each of which has one more every
// 360 ms from testStartMs on: 10,000 an hour.
func fillHours(t testing.TB, conn driver.Conn, workspace string, n int) {
	t.Helper()
	const batch = 100_000
	for from := 0; from < n; from += batch {
		err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO events
			(workspace_id, session_id, workflow_id, log_epoch, kafka_partition, kafka_offset, ts, t_ms, type, frame_id, metadata, payload)
			SELECT '%s', ['%s', '%s'][1 + number %% 2], 'wf' || toString(number %% 7), 1, number %% 2, intDiv(number, 2),
				fromUnixTimestamp64Milli(toInt64(%d) + intDiv(number, 2) * 360, 'UTC'), number, ['a', 'b', 'c', 'd'][1 + number %% 4],
				if(number = 150000, 'rare', ''), map('n', toString(number)), '{}'
			FROM numbers(%d, %d)`, workspace, sessionIn(workspace, 0), sessionIn(workspace, 1), int64(testStartMs), from, min(batch, n-from)))
		if err != nil {
			t.Fatal(err)
		}
	}
}

func explainText(t *testing.T, h *History, query, settings string, args []any) string {
	t.Helper()
	rows, err := h.conn.Query(t.Context(), "EXPLAIN indexes = 1 "+h.bounded(query)+", optimize_use_projections = 0"+settings, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		b.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// costSite serves 40 hours of a workspace, n rows, all of them final; each session goes on
// above them with one event.
func costSite(t *testing.T, n int, cfg Config) (worlds, *fiber.App) {
	t.Helper()
	conn, _ := openEngine(t)
	fillHours(t, conn, "w1", n)
	h := NewHistory(conn, cfg, newTestLog(t), NewMetrics(nil))
	var ws worlds
	for p := range uint16(2) {
		end := int64(n / 2)
		w := &world{t: t, epoch: 1, at: p, history: h, end: end, committed: end, tapeStart: end, windows: schema.NewWindow(schema.DedupeRule{})}
		w.append(&schema.Event{
			ID:        schema.EventID{Position: schema.Position{Epoch: 1, Partition: p, Offset: end}, TimeMs: testStartMs + 50*sumMs},
			Workspace: "w1", Session: sessionIn("w1", p), Type: "a", ContentType: schema.DefaultContentType, Payload: []byte("{}"),
		})
		ws = append(ws, w)
	}
	app := httpapi.NewApp(httpapi.DefaultConfig(), newTestLog(t))
	app.Use(httpapi.Authenticate(keys{}))
	ws.api(cfg).Routes(app)
	return ws, app
}

type tooLargeJSON struct {
	Error struct {
		Code    string
		Details struct {
			Rows      int64 `json:"estimated_rows"`
			Max       int64 `json:"max_rows"`
			Suggested *struct{ StartTime, EndTime int64 }
		}
	}
}

// TestCountsThatLookAtTooMuchAreRefused asks for too much, and then for what the refusal suggests.
func TestCountsThatLookAtTooMuchAreRefused(t *testing.T) {
	const n = 800_000
	cfg := DefaultConfig()
	cfg.MaxScanRows = 60_000
	_, app := costSite(t, n, cfg)
	for name, tt := range map[string]struct {
		query string
		least int64 // that the refusal estimates
	}{
		"no index helps":         {"count?confidence_gte=0.5", n},
		"many minutes":           {"histogram?interval=minute&group_by=none", n},
		"times leave too much":   {fmt.Sprintf("count?to_t_ms=5&startTime=%d&endTime=%d", testStartMs+3*sumMs, testStartMs+20*sumMs), 300_000},
		"a session":              {"count?session_id=" + sessionIn("w1", 1), n / 2},
		"a session, half of it":  {fmt.Sprintf("histogram?session_id=%s&startTime=%d", sessionIn("w1", 0), testStartMs+20*sumMs), 150_000},
		"edges of hours, no end": {fmt.Sprintf("count?workflow_id=wf1&startTime=%d", testStartMs+5*sumMs+1), 300_000},
	} {
		t.Run(name, func(t *testing.T) {
			status, body, _ := get(t, app, "w1", "/v1/events/"+tt.query)
			var refused tooLargeJSON
			if err := json.Unmarshal([]byte(body), &refused); err != nil {
				t.Fatal(err)
			}
			d := refused.Error.Details
			if status != 422 || refused.Error.Code != "scan_too_large" || d.Max != cfg.MaxScanRows || d.Rows < tt.least || d.Rows > n+8*2048 || d.Suggested == nil {
				t.Fatalf("%d %s, want 422 scan_too_large with at least %d rows and a suggestion", status, body, tt.least)
			}
			path, params, _ := strings.Cut(tt.query, "?")
			q, err := url.ParseQuery(params)
			if err != nil {
				t.Fatal(err)
			}
			if from := q.Get("startTime"); from != "" && fmt.Sprint(d.Suggested.StartTime) < from {
				t.Errorf("suggests from %d, before %s", d.Suggested.StartTime, from)
			}
			if d.Suggested.EndTime-d.Suggested.StartTime < sumMs {
				t.Errorf("suggests %+v: less than an hour, of which there are some that pass", *d.Suggested)
			}
			q.Set("startTime", fmt.Sprint(d.Suggested.StartTime))
			q.Set("endTime", fmt.Sprint(d.Suggested.EndTime))
			if status, body, _ := get(t, app, "w1", "/v1/events/"+path+"?"+q.Encode()); status != 200 {
				t.Errorf("what it suggests, %+v: %d %s", *d.Suggested, status, body)
			}
		})
	}
	for name, query := range map[string]string{
		"sums of hours":      "count?type=a",
		"histogram of days":  "histogram?interval=day",
		"index on metadata":  "count?filters[n]=1234",
		"index on workflows": "count?workflow_id=none",
		"index on frames":    "count?frame_id=rare",
	} {
		if status, body, _ := get(t, app, "w1", "/v1/events/"+query); status != 200 {
			t.Errorf("%s: %d %s, want 200", name, status, body)
		}
	}
}

// TestCountThatTakesTooLongIsRefused has ClickHouse end a count that was estimated to do.
func TestCountThatTakesTooLongIsRefused(t *testing.T) {
	cfg := DefaultConfig()
	cfg.QueryTimeout = time.Millisecond
	ws, app := costSite(t, 800_000, cfg)
	status, body, _ := get(t, app, "w1", "/v1/events/histogram?interval=second&confidence_gte=0&group_by=none")
	if status != 422 || !strings.Contains(body, "scan_too_large") {
		t.Errorf("%d %s, want 422 scan_too_large", status, body)
	}
	if got := ws[0].history.breaker.cb.State(); got != 0 {
		t.Errorf("breaker is %v, want it closed", got)
	}
}

// TestPagesThatLookInVainAreRefused judges a page that has found nothing in its first windows.
func TestPagesThatLookInVainAreRefused(t *testing.T) {
	const n = 800_000
	cfg := DefaultConfig()
	cfg.MaxScanRows = 300_000 // 15,000 are enough to judge by
	ws, _ := costSite(t, n, cfg)
	confidence := float32(0.5)
	none := schema.Filter{ConfidenceGTE: &confidence}
	early := none
	half := int64(testStartMs + 20*sumMs)
	early.UntilMs = &half
	for name, tt := range map[string]struct {
		filter     schema.Filter
		workflow   string
		descending bool
		looked     int64 // offsets of each partition
		refused    bool
	}{
		"no index helps":             {filter: none, looked: 20_000, refused: true},
		"from the end":               {filter: none, looked: 20_000, refused: true, descending: true},
		"little has been looked at":  {filter: none, looked: 1_000},
		"what was looked at is late": {filter: early, looked: 20_000, descending: true},
		"little is left":             {filter: none, looked: n/2 - 20_000},
		"an index leaves little":     {filter: schema.Filter{FrameID: "rare"}, looked: 20_000},
		"a workflow that has no row": {workflow: "none", looked: 20_000},
		"no filter":                  {looked: 20_000},
	} {
		t.Run(name, func(t *testing.T) {
			api := ws.api(cfg)
			scope := schema.Scope{Workspace: "w1", Workflow: tt.workflow}
			begin := func(f schema.Filter) (*pageReader, *windowRows) {
				req := &pageRequest{limit: 10, filter: f, descending: tt.descending}
				views, err := api.open(t.Context(), scope)
				if err != nil {
					t.Fatal(err)
				}
				r := &pageReader{api: api, scope: scope, views: views, req: req}
				if err := r.beginScope(t.Context()); err != nil {
					t.Fatal(err)
				}
				q := &windowRows{scope: scope, epoch: 1, filter: &req.filter, limit: 11, descending: tt.descending}
				for _, l := range r.legs {
					w := window{partition: l.partition, from: l.at.Offset, to: l.at.Offset + tt.looked}
					if l.at.Offset = w.to; tt.descending {
						w.from, w.to = l.rows.Offset-tt.looked, l.rows.Offset
						l.at.Offset = w.from
					}
					q.windows = append(q.windows, w)
				}
				return r, q
			}
			r, q := begin(tt.filter)
			err := r.guardScan(t.Context(), q, r.legs)
			if !tt.refused {
				if err != nil {
					t.Errorf("%v, want the page to go on", err)
				}
				return
			}
			refusal, ok := errors.AsType[*scanTooLargeError](err)
			if !ok || refusal.narrower == nil || refusal.rows < n-3*40_000 {
				t.Fatalf("%v, want a refusal that suggests", err)
			}
			narrowed := tt.filter
			since, until := refusal.narrower.from, refusal.narrower.to-1
			narrowed.SinceMs, narrowed.UntilMs = &since, &until
			r, q = begin(narrowed)
			if err := r.guardScan(t.Context(), q, r.legs); err != nil {
				t.Errorf("what it suggests, %+v: %v", *refusal.narrower, err)
			}
		})
	}
}
