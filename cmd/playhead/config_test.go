package main

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

const sampleConfig = "../../deploy/playhead.yaml"

func TestSampleConfigurationHoldsEveryDefault(t *testing.T) {
	cfg := Config{}
	if err := cfg.readFile(sampleConfig); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("the sample does not validate: %v", err)
	}
	want := DefaultConfig()
	want.ClickHouse.DSN = cfg.ClickHouse.DSN // has no default
	for key, v := range settingsOf(t, want) {
		if got := settingsOf(t, cfg)[key]; !reflect.DeepEqual(got, v) {
			t.Errorf("%s in the sample is %v, the default is %v", key, got, v)
		}
	}
}

func TestSampleConfigurationNamesEverySetting(t *testing.T) {
	b, err := os.ReadFile(sampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	named := flatten("", tree)
	for _, key := range slices.Sorted(maps.Keys(settingsOf(t, DefaultConfig()))) {
		if _, ok := named[key]; !ok {
			t.Errorf("the sample lacks %s", key)
		}
	}
}

func TestConfigurationErrorsNameTheKey(t *testing.T) {
	for _, tt := range []struct{ name, yaml, want string }{
		{"unknown key", "streamer:\n  max_streems: 3\n", "max_streems"},
		{"wrong type", "ingest:\n  max_batch_events: many\n", "max_batch_events"},
		{"out of range", "streamer:\n  keep_alive: 1ms\n", "keep_alive"},
		{"unknown role", "roles: [cook]\n", "cook"},
		{"no dsn", "clickhouse:\n  dsn: ''\n", "clickhouse.dsn"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "playhead.yaml")
			if err := os.WriteFile(path, []byte(tt.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := DefaultConfig()
			err := cfg.readFile(path)
			if err == nil {
				err = cfg.Validate()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that names %s", err, tt.want)
			}
		})
	}
}

// settingsOf lists a configuration's settings by their dotted keys.
func settingsOf(t *testing.T, cfg Config) map[string]any {
	t.Helper()
	b, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	return flatten("", tree)
}

func flatten(prefix string, tree map[string]any) map[string]any {
	out := make(map[string]any)
	for k, v := range tree {
		if sub, ok := v.(map[string]any); ok {
			maps.Copy(out, flatten(prefix+k+".", sub))
			continue
		}
		out[prefix+k] = v
	}
	return out
}
