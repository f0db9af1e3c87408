package importer

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/zeebo/xxh3"
)

const (
	checkpointVersion = 1
	// checkpointKept is how long the checkpoint of an import that nobody resumed stays.
	checkpointKept = 30 * 24 * time.Hour
)

// checkpoint is the file that says how far one source is acknowledged by one workspace.
// The zero value keeps nothing. It may lag behind the truth, never run ahead of it: what
// is sent twice is answered as a duplicate.
type checkpoint struct {
	path  string
	state checkpointState
}

type checkpointState struct {
	Version   int          `json:"version"`
	Workspace string       `json:"workspace"`
	File      fileIdentity `json:"file"`
	Lines     int64        `json:"lines"`    // acknowledged up to this one
	Complete  bool         `json:"complete"` // all of the file; another of the same command was not
}

// openCheckpoint reads the checkpoint of a file in dir. One that is missing, damaged or
// of another content of the file counts as none.
func openCheckpoint(dir, workspace string, id fileIdentity) (*checkpoint, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of checkpoints: %w", err)
	}
	pruneCheckpoints(dir)
	sum := xxh3.HashString128(workspace + "\n" + id.Path).Bytes()
	c := &checkpoint{
		path:  filepath.Join(dir, hex.EncodeToString(sum[:])+".json"),
		state: checkpointState{Version: checkpointVersion, Workspace: workspace, File: id},
	}
	text, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a checkpoint: %w", err)
	}
	var found checkpointState
	if json.Unmarshal(text, &found) != nil || found.Lines < 0 {
		return c, nil
	}
	want := c.state
	want.Lines, want.Complete = found.Lines, found.Complete
	if found == want {
		c.state = found
	}
	return c, nil
}

// save records that the file is acknowledged up to the given line.
func (c *checkpoint) save(lines int64) error {
	if c.path == "" || lines == c.state.Lines {
		return nil
	}
	c.state.Lines = lines
	return c.write()
}

// complete records that all of the file is acknowledged.
func (c *checkpoint) complete(lines int64) error {
	if c.path == "" {
		return nil
	}
	c.state.Lines, c.state.Complete = lines, true
	return c.write()
}

// remove forgets the file.
func (c *checkpoint) remove() error {
	if c.path == "" {
		return nil
	}
	if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a checkpoint: %w", err)
	}
	return nil
}

// write replaces the file in one step. It is not synced: losing it costs duplicates only.
func (c *checkpoint) write() error {
	text, err := json.Marshal(c.state)
	if err != nil {
		return fmt.Errorf("encode a checkpoint: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.path), ".checkpoint-*")
	if err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // gone already after the rename
	_, err = tmp.Write(text)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	if err := os.Rename(tmp.Name(), c.path); err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	return nil
}

// pruneCheckpoints removes what nobody came back for. Errors are left to the next run.
func pruneCheckpoints(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > checkpointKept {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
