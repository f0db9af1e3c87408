package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

func TestCheckParts(t *testing.T) {
	for _, tt := range []struct {
		name      string
		holds     []string
		elsewhere bool // the log
		refused   bool
	}{
		{"first start", nil, false, false},
		{"both", []string{"kafka/topics.json", "clickhouse/engine.lock"}, false, false},
		{"only the log", []string{"kafka/topics.json"}, false, false},
		{"only history", []string{"clickhouse/engine.lock"}, false, true},
		{"history and an empty directory for the log", []string{"kafka/", "clickhouse/engine.lock"}, false, true},
		{"first start with a log elsewhere", nil, true, false},
		{"only history, with a log elsewhere", []string{"clickhouse/engine.lock"}, true, false},
		{"a log here and one elsewhere", []string{"kafka/topics.json", "clickhouse/engine.lock"}, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dataDir := t.TempDir()
			for _, path := range tt.holds {
				dir, file := filepath.Split(path)
				if err := os.MkdirAll(filepath.Join(dataDir, dir), 0o700); err != nil {
					t.Fatal(err)
				}
				if file == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dataDir, path), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := checkParts(dataDir, tt.elsewhere)
			if (err != nil) != tt.refused {
				t.Fatalf("checkParts = %v, want refused %t", err, tt.refused)
			}
		})
	}
}

// A dev that starts must not make a new log beside old history.
func TestDevRefusesHistoryWithoutLog(t *testing.T) {
	dataDir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dataDir, clickhouseDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dataDir, clickhouseDir, "engine.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	err := runDev(t.Context(), []string{"--data-dir", dataDir, "--listen", "127.0.0.1:0"},
		func(string) string { return "" }, &stdout, &stderr)
	if err == nil || !strings.Contains(err.Error(), "its log in") {
		t.Fatalf("dev = %v, want a refusal that names the missing log", err)
	}
	if _, err := os.Stat(filepath.Join(dataDir, kafkaDir)); err == nil {
		t.Error("dev made a new log all the same")
	}
}

// A dev that starts must not give new events the places of old ones, which their rows
// still hold.
func TestDevRefusesLogThatLostItsEnd(t *testing.T) {
	dataDir := t.TempDir()
	broker, err := kafka.StartEmbedded(filepath.Join(dataDir, kafkaDir), "127.0.0.1:0", devPartitions, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cfg := broker.Config()
	cfg.Partitions = devPartitions
	if err := kafka.EnsureTopics(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	var copied kadm.Offsets
	copied.Add(kadm.Offset{Topic: schema.TopicEvents, Partition: 3, At: 7})
	err = kadm.NewClient(cl).CommitAllOffsets(t.Context(), schema.GroupMaterializer, copied)
	cl.Close()
	if err := errors.Join(err, broker.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // one that does not refuse runs on
	defer cancel()
	var stdout, stderr strings.Builder
	err = runDev(ctx, []string{"--data-dir", dataDir, "--listen", "127.0.0.1:0", "--clickhouse-dsn", "http://127.0.0.1:1/default"},
		func(string) string { return "" }, &stdout, &stderr)
	if err == nil || !strings.Contains(err.Error(), "partition 3 of the log") {
		t.Fatalf("dev = %v, want a refusal that names the partition", err)
	}
}

func TestLostStateFileAdoptsTheWorkspace(t *testing.T) {
	old := []control.Workspace{{ID: "ws_other", Name: "other"}, {ID: "ws_old", Name: devWorkspaceName}}
	if got := workspaceToAdopt(old, "ws_new"); got != "ws_old" {
		t.Errorf("with an earlier workspace: %s, want ws_old", got)
	}
	if got := workspaceToAdopt(old[:1], "ws_new"); got != "ws_new" {
		t.Errorf("without one: %s, want ws_new", got)
	}
}

// The file with the key is for its owner alone, whatever was in its place before.
func TestStateFileIsForItsOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, devStateFile)
	for _, name := range []string{path, path + ".new"} {
		if err := os.WriteFile(name, []byte("{}"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := loadDevState(path, secretText); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), secretText) {
		t.Fatalf("%s holds %s (%v), want the key", path, b, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), secretText) && info.Mode().Perm() != 0o600 {
			t.Errorf("%s holds the key and has mode %v, want 0600", f.Name(), info.Mode())
		}
	}
}
