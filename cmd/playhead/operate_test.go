package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/query/materializer"
)

func noEnv(string) string { return "" }

func TestOperatorsMistakesChangeNothing(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"migrate"}, "wants status, up or down"},
		{[]string{"migrate", "sideways", "--clickhouse-dsn", "http://127.0.0.1:1/x"}, `"sideways" is none of`},
		{[]string{"migrate", "up", "down"}, `takes no argument "down"`},
		{[]string{"migrate", "up", "--to", "-2"}, "--to is -2"},
		{[]string{"migrate", "up", "--to", "x"}, "invalid value"},
		{[]string{"rebuild"}, "either --partition or --all"},
		{[]string{"rebuild", "--all", "--partition", "1"}, "either --partition or --all"},
		{[]string{"rebuild", "--partition", "1,x"}, `--partition is "1,x"`},
		{[]string{"rebuild", "--partition", "70000"}, `--partition is "70000"`},
		{[]string{"rebuild", "--all", "--from", "-1"}, "--from is -1"},
		{[]string{"rebuild", "--all", "--to", "yesterday"}, `--to is "yesterday"; want an offset, or a time`},
		{[]string{"rebuild", "--all", "--replace", "--dry-run"}, "exclude each other"},
		{[]string{"rebuild", "--all", "more"}, `takes no argument "more"`},
	} {
		var stdout, stderr strings.Builder
		err := run(t.Context(), tt.args, noEnv, strings.NewReader(""), &stdout, &stderr)
		if !errors.Is(err, errUsage) || !strings.Contains(stderr.String(), tt.want) || stdout.Len() > 0 {
			t.Errorf("playhead %q = %v, %q; want %v and %q", tt.args, err, stderr.String(), errUsage, tt.want)
		}
	}
}

func TestOperatorsMeanAPlayheadDev(t *testing.T) {
	dir := t.TempDir()
	o := newOperator("migrate", "", noEnv, &strings.Builder{})
	if _, err := o.parse([]string{"status", "--data-dir", dir}, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := o.config(); err == nil || !strings.Contains(err.Error(), devStateFile) {
		t.Errorf("config() of a directory without state = %v", err)
	}
	state := `{"url":"x","kafka":"127.0.0.1:1","clickhouse_dsn":"http://127.0.0.1:2/playhead"}`
	if err := os.WriteFile(filepath.Join(dir, devStateFile), []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := o.config()
	if err != nil || cfg.Kafka.Brokers[0] != "127.0.0.1:1" || cfg.ClickHouse.DSN != "http://127.0.0.1:2/playhead" {
		t.Errorf("config() = %v, %q, %v", cfg.Kafka.Brokers, cfg.ClickHouse.DSN, err)
	}
}

func TestParsePosition(t *testing.T) {
	f := func(s string, want position) {
		t.Helper()
		if got, err := parsePosition(s); err != nil || got != want {
			t.Errorf("parsePosition(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	f("0", position{})
	f("12345", position{offset: 12345})
	f("2026-01-31T15:00:00Z", position{at: time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)})
}

func TestSummaryFailsOnWhatIsLeft(t *testing.T) {
	f := func(b materializer.Rebuild, fails bool) {
		t.Helper()
		var out strings.Builder
		err := summarise(map[uint16]materializer.Rebuild{0: {Checked: 5}, 3: b}, &out)
		if (err != nil) != fails || !strings.Contains(out.String(), "partition 3") {
			t.Errorf("summarise(%+v) = %v, %q; want failure %v", b, err, out.String(), fails)
		}
	}
	f(materializer.Rebuild{Missing: 4, Inserted: 4}, false)
	f(materializer.Rebuild{Missing: 4, DryRun: true}, false)
	f(materializer.Rebuild{Missing: 4, Inserted: 3}, true)
	f(materializer.Rebuild{Doubled: 1}, true)
	f(materializer.Rebuild{Doubled: 1, Foreign: 2, Replace: true, Inserted: 9}, false)
	f(materializer.Rebuild{Beyond: 4}, false)
	f(materializer.Rebuild{Beyond: 4, Lost: 1, Replace: true}, true)
	f(materializer.Rebuild{Failure: "cancelled"}, true)
}
