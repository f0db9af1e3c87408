package main

import (
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"
)

// Whatever a configuration file holds, it is read or refused with a sentence; what is read
// and passes is one that the roles take.
func FuzzConfig(f *testing.F) {
	sample, err := os.ReadFile(filepath.Join("..", "..", "deploy", "playhead.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	for _, s := range []string{
		"", "roles: [ingest]", "roles: x", "http: {listen: \"\"}", "http: null", "http: {read_timeout: 5}", "http: {read_timeout: 1h1m1s}", "unknown: 1", "a: &a [*a]", "roles: &r [*r]",
		"log: {level: loud}", "kafka: {brokers: [{}]}", "http: {cors: {allowed_origins: [\"*\", \"https://*.x.y\", \"http://a:80\"]}}", "\xff\xfe", "? [a]\n: b", "---\n---\n", "!!binary x",
		"clickhouse: {dsn: \"https://u:p@%zz\"}", "streamer: {max_streams: 1e3}", "materializer: {max_batch_rows: -9223372036854775808}", "http: {body_limit: 0x7fffffffffffffff}",
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "playhead.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := DefaultConfig()
		err := cfg.readFile(path)
		if err == nil {
			err = cfg.Validate()
		}
		if err != nil && (err.Error() == "" || !utf8.ValidString(err.Error()) && utf8.Valid(text)) {
			t.Errorf("%q is refused by %q", text, err)
		}
	})
}
