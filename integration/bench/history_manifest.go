package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// historyManifest is what a data directory says about itself, in historyManifestFile. It
// is written first without, and at the end with, Filled.
type historyManifest struct {
	Version   int           `json:"version"` // of the shape of the data
	Rows      int64         `json:"rows"`
	Workspace string        `json:"workspace"`
	Server    string        `json:"server"` // that made the tables
	Filled    bool          `json:"filled"`
	Filling   time.Duration `json:"filling_ns"`
	Settling  time.Duration `json:"settling_ns"`
}

const (
	historyManifestFile = "history.json"
	historyVersion      = 1

	historyPartitions = 8 // of the events topic of playhead dev
)

// The parts of a data directory of playhead dev.
const (
	devStateFile = "dev.json"
	devKafka     = "kafka"
	devEngine    = "clickhouse"
)

// ensureHistory returns the data in the configured directory, which is made if it is not
// there. A directory that holds anything else is left alone.
func (b *bench) ensureHistory(ctx context.Context, t *comparison) (historyData, error) {
	dir := b.cfg.history.data
	m, err := readHistoryManifest(dir)
	if err != nil {
		return historyData{}, err
	}
	d := newHistoryData(m.Workspace, historyPartitions, b.size.rows)
	switch {
	case m.Filled && m.Version == historyVersion && m.Rows == d.rows():
		b.logf("%s holds %s rows already", dir, number(float64(m.Rows)))
	case m.Filled:
		return d, fmt.Errorf("%s holds %d rows of shape %d, want %d of shape %d; remove it, or name another -data",
			dir, m.Rows, m.Version, d.rows(), historyVersion)
	default:
		if d, m, err = b.makeHistory(ctx, dir); err != nil {
			return d, err
		}
	}
	t.note("The tables were made by %s and filled with %s rows in %v (%s rows/s, merges beside it), by INSERT … SELECT; %v later the engine had finished merging.",
		m.Server, number(float64(m.Rows)), m.Filling.Round(time.Second), number(float64(m.Rows)/m.Filling.Seconds()), m.Settling.Round(time.Second))
	return d, nil
}

// readHistoryManifest returns the zero manifest of an empty directory, or of one that was
// not filled to the end, which it empties.
func readHistoryManifest(dir string) (historyManifest, error) {
	var m historyManifest
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return m, fmt.Errorf("data of history: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, historyManifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		there, err := os.ReadDir(dir)
		if err == nil && len(there) > 0 {
			err = fmt.Errorf("%s is not empty, and was not made by this benchmark", dir)
		}
		return m, err
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return m, fmt.Errorf("data of history: %w", err)
	}
	if m.Filled {
		return m, nil
	}
	var errs []error
	for _, name := range []string{devStateFile, devKafka, devEngine} {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	return historyManifest{}, errors.Join(errs...)
}

func (m historyManifest) write(dir string) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, historyManifestFile), append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("data of history: %w", err)
	}
	return nil
}

// historyState is the part of dev.json that is used here.
type historyState struct {
	Workspace  string `json:"workspace_id"`
	ClickHouse string `json:"clickhouse_dsn"`
}

func readHistoryState(dir string) (historyState, error) {
	var s historyState
	text, err := os.ReadFile(filepath.Join(dir, devStateFile))
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("state of the server: %w", err)
	}
	return s, nil
}
