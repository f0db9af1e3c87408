package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// importServer takes every event; it remembers the keys it was shown.
type importServer struct {
	mu     sync.Mutex
	keys   []string
	events int
	lane   string // of the last request
}

func (s *importServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lane = r.URL.Query().Get("lane")
	s.keys = append(s.keys, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	if len(body) == 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	// One event a request, in these tests.
	s.events++
	fmt.Fprint(w, `{"results":[{"id":"evt_x","duplicate":false}]}`)
}

func startImportServer(t *testing.T) (*importServer, string) {
	t.Helper()
	s := new(importServer)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server.URL
}

func writeDevFile(t *testing.T, dev devState) (dataDir string) {
	t.Helper()
	text, err := json.Marshal(dev)
	if err != nil {
		t.Fatal(err)
	}
	dataDir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dataDir, devStateFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dataDir
}

const oneEvent = `{"session_id":"s","type":"tick","message_id":"m"}` + "\n"

func importWith(ctx context.Context, env map[string]string, args ...string) (stdout, stderr string, err error) {
	var out, told bytes.Buffer
	err = runImport(ctx, args, func(name string) string { return env[name] }, strings.NewReader(oneEvent), &out, &told)
	return out.String(), told.String(), err
}

func TestImportFindsServerAndKey(t *testing.T) {
	server, url := startImportServer(t)
	dev := writeDevFile(t, devState{URL: url, Key: "pk_of_dev"})
	none := t.TempDir()
	for _, c := range []struct {
		name    string
		env     map[string]string
		args    []string
		wantKey string // "" if it must not send anything
	}{
		{"dev.json by flag", nil, []string{"--data-dir", dev, "-"}, "pk_of_dev"},
		{"dev.json by environment", map[string]string{"PLAYHEAD_DATA_DIR": dev}, []string{"-"}, "pk_of_dev"},
		{"the same url given", nil, []string{"--data-dir", dev, "--url", url + "/", "-"}, "pk_of_dev"},
		{"key by flag wins", map[string]string{"PLAYHEAD_KEY": "pk_env"}, []string{"-", "--data-dir", dev, "--key", "pk_flag"}, "pk_flag"},
		{"key by environment", map[string]string{"PLAYHEAD_KEY": "pk_env", "PLAYHEAD_DEV_KEY": "pk_dev_env"}, []string{"--data-dir", dev, "-"}, "pk_env"},
		{"dev key by environment", map[string]string{"PLAYHEAD_DEV_KEY": "pk_dev_env", "PLAYHEAD_URL": url}, []string{"--data-dir", none, "-"}, "pk_dev_env"},
		{"the key of another server is not sent", map[string]string{"PLAYHEAD_URL": url + "/elsewhere"}, []string{"--data-dir", dev, "-"}, ""},
		{"no key anywhere", map[string]string{"PLAYHEAD_URL": url}, []string{"--data-dir", none, "-"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			server.keys = nil
			_, told, err := importWith(t.Context(), c.env, append([]string{"--state-dir", ""}, c.args...)...)
			if c.wantKey == "" {
				if !errors.Is(err, errUsage) || !strings.Contains(told, "no API key") || server.keys != nil {
					t.Errorf("error %v, told %q, keys sent %v; want errUsage and nothing sent", err, told, server.keys)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, told)
			}
			if keys := slices.Compact(server.keys); len(keys) != 1 || keys[0] != c.wantKey {
				t.Errorf("keys sent = %v, want %s", keys, c.wantKey)
			}
		})
	}
}

func TestImportReportsOnStdout(t *testing.T) {
	_, url := startImportServer(t)
	file := filepath.Join(t.TempDir(), "events.ndjson")
	if err := os.WriteFile(file, []byte(oneEvent), 0o600); err != nil {
		t.Fatal(err)
	}
	out, told, err := importWith(t.Context(), nil, file, "--url", url, "--key", "k", "--state-dir", t.TempDir(), "--on-error=skip")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out, "1 events accepted, 0 duplicates, 0 failed in ") || told != "" {
		t.Errorf("stdout %q, stderr %q; want the closing line and nothing", out, told)
	}
}

func TestImportTakesTheLaneOfBackfills(t *testing.T) {
	server, url := startImportServer(t)
	for flag, want := range map[string]string{"": "backfill", "--lane=backfill": "backfill", "--lane=live": ""} {
		args := []string{"-", "--url", url, "--key", "k", "--state-dir", ""}
		if flag != "" {
			args = append(args, flag)
		}
		if _, told, err := importWith(t.Context(), nil, args...); err != nil || server.lane != want {
			t.Errorf("%q: lane %q, error %v, told %q; want lane %q", flag, server.lane, err, told, want)
		}
	}
}

func TestImportUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "no file given"},
		{[]string{"-", "-"}, "more than once"},
		{[]string{"-", "--on-error=maybe"}, "want stop or skip"},
		{[]string{"-", "--lane=fast"}, `--lane is "fast"; want backfill or live`},
		{[]string{"-", "--no-such-flag"}, "no-such-flag"},
		{[]string{"-", "--url", "ftp://x", "--key", "k"}, "url is"},
		{[]string{"-", "--lanes=0", "--key", "k"}, "lanes is 0; want 1 to 64"},
	} {
		_, told, err := importWith(t.Context(), nil, append([]string{"--data-dir", t.TempDir(), "--state-dir", ""}, c.args...)...)
		if !errors.Is(err, errUsage) || !strings.Contains(told, c.want) {
			t.Errorf("import %q: error %v, told %q; want errUsage and %q", c.args, err, told, c.want)
		}
	}
	_, told, err := importWith(t.Context(), nil, "-h")
	if !errors.Is(err, flag.ErrHelp) || !strings.Contains(told, "Exit codes:") {
		t.Errorf("import -h: error %v, told %q", err, told)
	}
}

func TestImportFailuresSayWhatToDo(t *testing.T) {
	denying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":{"code":"invalid_key","message":"The key is not known."}}`)
	}))
	t.Cleanup(denying.Close)
	_, _, err := importWith(t.Context(), nil, "-", "--url", denying.URL, "--key", "k", "--state-dir", "")
	if err == nil || errors.Is(err, errUsage) || !strings.Contains(err.Error(), "invalid_key") || !strings.Contains(err.Error(), "PLAYHEAD_KEY") {
		t.Errorf("a denied key: %v", err)
	}

	bad := filepath.Join(t.TempDir(), "bad.ndjson")
	if err := os.WriteFile(bad, []byte(oneEvent+"nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, url := startImportServer(t)
	_, told, err := importWith(t.Context(), nil, bad, "--url", url, "--key", "k", "--state-dir", "")
	if err == nil || !strings.Contains(err.Error(), "--on-error=skip") || !strings.Contains(told, "bad.ndjson:2: ") {
		t.Errorf("a bad line: error %v, told %q", err, told)
	}
	_, _, err = importWith(t.Context(), nil, bad, "--url", url, "--key", "k", "--state-dir", "", "--on-error=skip")
	if err == nil || !strings.Contains(err.Error(), "1 events were not imported") {
		t.Errorf("a bad line skipped: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = importWith(ctx, nil, bad, "--url", url, "--key", "k", "--state-dir", t.TempDir())
	if !errors.Is(err, context.Canceled) || err.Error() != "interrupted; run the same command to resume" {
		t.Errorf("interrupted: %v", err)
	}
}

func TestImportFlagsMayFollowFiles(t *testing.T) {
	f := func(args []string, wantFiles ...string) {
		t.Helper()
		opts, err := parseImport(args, func(string) string { return "" }, io.Discard)
		if err != nil || !slices.Equal(opts.files, wantFiles) {
			t.Errorf("parseImport(%q) = %v, %v; want files %q", args, opts, err, wantFiles)
		}
	}
	f([]string{"a", "--lanes", "2", "b"}, "a", "b")
	f([]string{"--lanes=2", "a", "-"}, "a", "-")
	f([]string{"a", "--", "--lanes", "b"}, "a", "--lanes", "b")
	f([]string{"--", "-"}, "-")
}
