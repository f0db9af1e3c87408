package query

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// adminKeys is keys whose key "admin" may do everything in w1.
type adminKeys struct{ keys }

func (k adminKeys) Authenticate(key string) (control.Principal, error) {
	if key == "admin" {
		return control.Principal{Workspace: "w1", Scopes: control.AllScopes}, nil
	}
	return k.keys.Authenticate(key)
}

func TestWatermarks(t *testing.T) {
	var ws worlds
	for p := range uint16(4) {
		w := &world{t: t, epoch: 1, at: p, windows: schema.NewWindow(schema.DedupeRule{}), history: brokenHistory(t)}
		for _, offset := range []int64{0, 1, 60, 61} { // transaction markers lie between
			e := siteEvent(offset, "a", "{}")
			e.ID.Partition = p
			w.append(e)
		}
		ws = append(ws, w)
	}
	ws[1].committed = 62
	ws[2].committed = 2
	ws[3].committed, ws[3].start = 1, 60 // Kafka has forgotten what was never a row
	api := ws.api(DefaultConfig())
	placement := schema.Placement{Partitions: 4, Shards: 2}
	api.deps.Placement = func(string) schema.Placement { return placement }
	app := httpapi.NewApp(httpapi.DefaultConfig(), newTestLog(t))
	app.Use(httpapi.Authenticate(adminKeys{}))
	api.Routes(app)

	oldest := map[uint16]int64{0: 0, 2: 60, 3: 60} // offset of the oldest record that is no row
	list := func(key, query string) []partitionLag {
		t.Helper()
		before := time.Now().UnixMilli()
		status, body, _ := get(t, app, key, "/v1/watermarks"+query)
		after := time.Now().UnixMilli()
		var answer struct{ Data []partitionLag }
		if err := json.Unmarshal([]byte(body), &answer); status != 200 || err != nil {
			t.Fatalf("%s%s = %d %s", key, query, status, body)
		}
		for _, got := range answer.Data {
			committed := ws[got.Partition].committed
			if got.Epoch != 1 || got.LogEnd != 62 || got.Materialised != committed || got.LagEvents != 62-committed {
				t.Errorf("%s%s: %+v, committed %d", key, query, got, committed)
			}
			appended := siteEvent(oldest[got.Partition], "", "").ID.TimeMs
			if committed == 62 && got.LagMs != 0 || committed < 62 && (got.LagMs < before-appended || got.LagMs > after-appended) {
				t.Errorf("%s%s: %+v, want the age of the record at %d", key, query, got, oldest[got.Partition])
			}
		}
		return answer.Data
	}
	partitions := func(lags []partitionLag) (out []uint16) {
		for _, l := range lags {
			out = append(out, l.Partition)
		}
		return out
	}
	own := placement.WorkspacePartitions("w1")
	slices.Sort(own)
	if got := partitions(list("w1", "")); !slices.Equal(got, own) {
		t.Errorf("a workspace's partitions are %v, want %v", got, own)
	}
	if got := partitions(list("s1-only", "")); !slices.Equal(got, []uint16{placement.Partition("w1", "s1")}) {
		t.Errorf("a session's key sees %v", got)
	}
	if got := partitions(list("admin", "?all=1")); !slices.Equal(got, []uint16{0, 1, 2, 3}) {
		t.Errorf("all partitions are %v", got)
	}
	m := NewLagMetrics(nil)
	if err := api.reportLag(t.Context(), 4, m); err != nil {
		t.Fatal(err)
	}
	gauge := func(of *prometheus.GaugeVec, partition string) float64 {
		var got dto.Metric
		if err := of.WithLabelValues(partition).Write(&got); err != nil {
			t.Fatal(err)
		}
		return got.GetGauge().GetValue()
	}
	if end, lag, age := gauge(m.end, "2"), gauge(m.lag, "2"), gauge(m.seconds, "1"); end != 62 || lag != 60 || age != 0 {
		t.Errorf("metrics: end %v, lag %v, age %v, want 62, 60 and 0", end, lag, age)
	}
	for query, want := range map[string]string{"?all=1": `insufficient_scope`, "?all=2": `"param":"all"`, "?x=1": `unknown_parameter`} {
		if status, body, _ := get(t, app, "w1", "/v1/watermarks"+query); status/100 != 4 || !strings.Contains(body, want) {
			t.Errorf("%s = %d %s, want %s", query, status, body, want)
		}
	}
}
