package main

import (
	"fmt"
	"maps"
	"net"
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

// secretText stands for a key or a password.
const secretText = "pk_live_thisIsASecretThatNobodyMayPrint"

func TestConfigurationErrorsTellNoSecrets(t *testing.T) {
	for _, tt := range []struct{ name, yaml, want string }{
		{"unknown key beside one", "bootstrap_key: " + secretText + "\nrolls: [ingest]\n", "rolls"},
		{"wrong type beside one", "kafka:\n  sasl:\n    password: " + secretText + "\n  partitions: many\n", "partitions"},
		{"wrong type of one", "clickhouse:\n  dsn: [" + secretText + "]\n", "[2:"},
		{"no blank", "bootstrap_key:" + secretText + "\n", "[1:1]"},
		{"not closed", "bootstrap_key: \"" + secretText + "\nroles: [ingest]\n", "playhead.yaml"},
		{"twice", "bootstrap_key: " + secretText + "\nbootstrap_key: " + secretText + "2\n", "bootstrap_key"},
		{"tab", "clickhouse:\n\tdsn: http://default:" + secretText + "@127.0.0.1:8123/x\n", "[2:"},
		{"scheme of dsn", "clickhouse:\n  dsn: htp://default:" + secretText + "@127.0.0.1:8123/x\n", "clickhouse.dsn"},
		{"address of dsn", "clickhouse:\n  dsn: http://default:" + secretText + "@127.0.0.1:a/%zz\n", "clickhouse.dsn"},
		{"parameter of dsn", "clickhouse:\n  dsn: http://default:" + secretText + "@127.0.0.1:1/x?dial_timeout=many\n", "clickhouse.dsn"},
		{"dsn of exports", "query:\n  export:\n    dsn: clickhouse://default:" + secretText + "@127.0.0.1:9000/x\n", "export.dsn"},
		{"mechanism", "kafka:\n  sasl:\n    mechanism: magic\n    username: u\n    password: " + secretText + "\n", "sasl.mechanism"},
		{"no mechanism", "kafka:\n  sasl:\n    password: " + secretText + "\n", "sasl.mechanism"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "playhead.yaml")
			if err := os.WriteFile(path, []byte(tt.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			var stderr strings.Builder
			err := run(t.Context(), []string{"serve", "--config", path}, func(string) string { return "" }, nil, &stderr, &stderr)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that names %s", err, tt.want)
			}
			if said := stderr.String() + fmt.Sprint(err); strings.Contains(said, "thisIsASecret") {
				t.Errorf("the secret is printed: %s", said)
			}
		})
	}
}

// The flag package prints defaults, and what is set in the environment is one.
func TestUsageTellsNoSecrets(t *testing.T) {
	env := func(name string) string {
		if strings.HasSuffix(name, "KEY") || strings.HasSuffix(name, "DSN") {
			return secretText
		}
		return ""
	}
	for _, command := range []string{"dev", "serve", "import", "migrate", "rebuild", "dead-letters"} {
		for _, flag := range []string{"-h", "--no-such-flag"} {
			var said strings.Builder
			if err := run(t.Context(), []string{command, flag}, env, strings.NewReader(""), &said, &said); err == nil {
				t.Errorf("playhead %s %s has no error", command, flag)
			}
			if text := said.String(); strings.Contains(text, secretText) || !strings.Contains(text, "-") {
				t.Errorf("playhead %s %s prints %s", command, flag, text)
			}
		}
	}
}

func TestNodesListenOnLoopbackUnlessTold(t *testing.T) {
	host, _, err := net.SplitHostPort(DefaultConfig().HTTP.Listen)
	if err != nil {
		t.Fatal(err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		t.Errorf("the default address is of %s, want loopback", host)
	}
	if len(DefaultConfig().HTTP.CORS.AllowedOrigins) > 0 {
		t.Error("pages of other origins are allowed by default")
	}
}
