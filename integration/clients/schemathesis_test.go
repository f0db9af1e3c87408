package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// schemathesisTime bounds the whole run, which takes a minute on a machine of two idle cores.
const schemathesisTime = 10 * time.Minute

// TestSchemathesisFindsNothing has Schemathesis make requests of openapi.json, good and bad,
// and hold the answers against it: no 5xx, no status, header or body that is not in it, bad
// input refused and good input taken, no answer without a key. schemathesis.toml says what is
// left out and why.
func TestSchemathesisFindsNothing(t *testing.T) {
	client{lacks: lacksPython}.need(t)
	s := ownServer(t)
	s.post(t, "/v1/sessions", `{"id":"call","kind":"call","workflow_id":"flow","metadata":{"a":"b"}}`, http.StatusCreated, nil)
	s.post(t, "/v1/sessions/call/events", `{"events":[{"type":"a","t_ms":1,"message_id":"m","payload":{"x":[1]}},{"type":"b","payload_base64":"AAEC"}]}`, http.StatusOK, nil)
	var key struct{ Key string }
	s.post(t, "/v1/keys", `{"scopes":["ingest","read","control","admin"]}`, http.StatusCreated, &key)
	poison(t, s)

	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), schemathesisTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(here, filepath.Dir(python), "schemathesis"),
		"--config-file", filepath.Join(here, "python", "schemathesis.toml"), "run", "http://"+s.addr+"/openapi.json",
		"--header", "Authorization: Bearer "+key.Key)
	cmd.Dir = t.TempDir() // it leaves notes
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "COLUMNS=160")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("schemathesis: %v\n%s", err, out.String())
	}
	// It may have revoked its own key, and would then have been refused everything.
	if status, body := askAs(t, s, key.Key, "/v1/limits"); status != http.StatusOK {
		t.Errorf("its key is answered %d %s after the run", status, body)
	}
}

// poison has the server find dead letters.
func poison(t *testing.T, s *server) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dataDir, "dev.json"))
	if err != nil {
		t.Fatal(err)
	}
	var parts struct{ Kafka string }
	if err := json.Unmarshal(text, &parts); err != nil {
		t.Fatal(err)
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(parts.Kafka))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	records := []*kgo.Record{{Topic: schema.TopicEvents, Value: []byte("{}")}, {Topic: schema.TopicEvents, Key: []byte{0xff}}}
	if err := producer.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the dead letters are listed", func() error {
		var list struct{ Data []struct{ ID string } }
		status, body := askAs(t, s, devKey, "/admin/v1/dead-letters")
		if err := json.Unmarshal(body, &list); err != nil || status != http.StatusOK || len(list.Data) < len(records) {
			return fmt.Errorf("%d %s, error %w", status, body, err)
		}
		return nil
	})
}

// askAs returns what a GET with a key is answered.
func askAs(t *testing.T, s *server, key, path string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, body
}
