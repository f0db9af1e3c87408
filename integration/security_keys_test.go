package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/kafka"
)

// checkKeysAreNowhere uses keys in every way there is, good ones and others, and then looks for
// them in every answer, the log, the metrics, the topics, the table and the files.
func checkKeysAreNowhere(t *testing.T, g *guarded) {
	workspace := "ws_default"
	secrets := map[string]string{
		"bootstrap": g.server.key, "stranger": g.stranger,
		"browser": g.key(t, control.KeySpec{Workspace: workspace, Scopes: control.ScopeRead, Session: "text", ExpiresIn: time.Hour}),
		"expired": g.key(t, control.KeySpec{Workspace: workspace, Scopes: control.AllScopes, ExpiresIn: time.Millisecond}),
		"unknown": "pk_live_NobodyHasEverMadeThisKeyHere000", "short": "shortAndNoKey17",
	}
	revoked, text, err := g.store.CreateKey(t.Context(), control.KeySpec{Workspace: workspace, Scopes: control.AllScopes})
	if err == nil {
		err = g.store.RevokeKey(t.Context(), workspace, revoked.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	secrets["revoked"] = text

	// find reports a secret in b. Its beginning says what kind of key it is, and may be told.
	find := func(where string, b []byte) {
		t.Helper()
		for name, secret := range secrets {
			if bytes.Contains(b, []byte(secret[len(secret)-12:])) {
				t.Errorf("%s: the %s key is in %.2000q", where, name, b)
			}
		}
	}
	ask := func(method, path, body string, header http.Header) reply {
		t.Helper()
		a := g.ask(t, method, path, "", body, header)
		where := method + " " + strings.SplitN(path, "?", 2)[0]
		find(where, []byte(a.body))
		for name, values := range a.header {
			find(where+" "+name, []byte(strings.Join(values, "\n")))
		}
		return a
	}

	statuses := make(map[int]bool)
	for name, key := range secrets {
		for _, r := range routes(t) {
			if name != "bootstrap" && (r.method != "GET" || !strings.Contains(r.path, "stream")) {
				continue
			}
			if strings.HasSuffix(r.path, "/redrive") {
				continue
			}
			path, body := r.fill("none"), ""
			if r.method != "GET" && r.method != "DELETE" {
				body = `{"no_such_field":"` + key + `"}`
			}
			upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
			with := func(h http.Header, name, value string) http.Header {
				h = h.Clone()
				h.Set(name, value)
				return h
			}
			for _, try := range []struct {
				query  string
				header http.Header
			}{
				{"", with(http.Header{}, "Authorization", "Bearer "+key)},
				{"", with(http.Header{}, "X-Api-Key", key)},
				{"?token=" + key, http.Header{}},
				{"?api_key=" + key + "&key=" + key, with(http.Header{}, "Authorization", "Token "+key)},
				{"", with(upgrade, "Sec-Websocket-Protocol", "playhead.v1, key."+key)},
				{"?token=" + key, with(upgrade, "Authorization-Token", key)},
			} {
				statuses[ask(r.method, path+try.query, body, try.header).status] = true
				if r.method != "GET" {
					break
				}
			}
		}
	}
	for _, want := range []int{200, 400, 401, 404} {
		if !statuses[want] {
			t.Errorf("no answer was %d (%v); the test is of no use", want, statuses)
		}
	}

	// A key that is made is in that answer, and in no other.
	var made struct{ ID, Key string }
	a := g.ask(t, "POST", "/v1/keys", g.server.key, `{"scopes":["read"],"name":"made"}`, nil)
	if err := json.Unmarshal([]byte(a.body), &made); err != nil || a.status != 201 || made.Key == "" {
		t.Fatalf("make a key: %d %s", a.status, a.body)
	}
	secrets["made"] = made.Key
	owner := http.Header{"Authorization": {"Bearer " + g.server.key}}
	if a := ask("GET", "/v1/keys?limit=1000", "", owner); !strings.Contains(a.body, made.ID) {
		t.Errorf("the key is not listed: %s", a.body)
	}
	ask("DELETE", "/v1/keys/"+made.ID, "", owner)
	for _, path := range []string{"/metrics", "/readyz", "/healthz"} {
		ask("GET", path, "", nil)
	}

	// Requests that are none, with a key in them.
	key := g.server.key
	for _, request := range []string{
		"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + "\r\nbroken\r\n\r\n",
		"GET /v1/sessions?token=" + key + " HTTP/9.9\r\nHost: x\r\n\r\n",
		"FROB /v1/sessions?token=" + key + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /v1/sessions/%zz?token=" + key + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + strings.Repeat("x", 32<<10) + "\r\n\r\n",
		"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + "\r\nContent-Length: -1\r\n\r\n",
		"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + "\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + key,
		key + "\r\n\r\n", "GET http://" + key + "@x/?token=" + key + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
	} {
		find(request[:20], []byte(g.raw(t, request)))
	}

	g.server.stop()
	logged := g.output.String()
	find("the log", []byte(logged))
	if !strings.Contains(logged, "level=DEBUG") {
		t.Error("the log has no line of level debug; the test is of no use")
	}
	checkTopics(t, g, find, g.server.key)
	conn := g.clickhouse(t)
	holds := func(text string) uint64 {
		return count(t, conn, "position(toString(tuple(*)), '"+text+"') > 0")
	}
	for name, secret := range secrets {
		if holds(secret[len(secret)-12:]) > 0 {
			t.Errorf("the %s key is in ClickHouse", name)
		}
	}
	if holds(marked) == 0 {
		t.Error("ClickHouse lacks what was appended; the test is of no use")
	}
	checkFiles(t, g.dir, find)
}

// checkTopics reads all that Kafka holds. The hash of the key is there, the key is not.
func checkTopics(t *testing.T, g *guarded, find func(string, []byte), key string) {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = strings.Split(g.parts.brokers, ",")
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	topics, err := kadm.NewClient(client).ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(key))
	hashed := false
	for name, topic := range topics {
		log, err := kafka.OpenTopic(t.Context(), cfg, name)
		if err != nil {
			t.Fatal(err)
		}
		for partition := range uint16(len(topic.Partitions)) {
			start, end, err := log.Bounds(t.Context(), partition)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := log.Read(t.Context(), partition, start, end, func(r *kgo.Record) error {
				find("a record of "+name, r.Key)
				find("a record of "+name, r.Value)
				for _, h := range r.Headers {
					find("a header in "+name, []byte(h.Key))
					find("a header in "+name, h.Value)
				}
				hashed = hashed || bytes.Contains(r.Value, []byte(hex.EncodeToString(sum[:])))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		log.Close()
	}
	if !hashed {
		t.Error("Kafka does not hold the key's hash; the test is of no use")
	}
}

// checkFiles looks through the files of the embedded parts, which are for their owner alone.
func checkFiles(t *testing.T, dir string, find func(string, []byte)) {
	t.Helper()
	files := 0
	for _, part := range []string{"kafka", "clickhouse"} {
		info, err := os.Stat(filepath.Join(dir, part))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Errorf("the directory %s has mode %v, want 0700", part, info.Mode())
		}
		err = filepath.WalkDir(filepath.Join(dir, part), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
				return nil // ClickHouse merges parts while we look
			}
			if err != nil {
				return err
			}
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			files++
			find(path, b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files == 0 {
		t.Error("there are no files; the test is of no use")
	}
}
