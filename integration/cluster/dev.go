package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Dev is one playhead dev and its data directory.
type Dev struct {
	*Process
	Data string // its data directory

	addr  string
	state devState
}

// devState is the part of dev.json that is used here.
type devState struct {
	Kafka      string `json:"kafka"`
	ClickHouse string `json:"clickhouse_dsn"`
}

// StartDev prepares a playhead dev in cfg.Dir; Dev.Start starts it. Clients reach it by
// the fronts that they reach a cluster by.
func StartDev(cfg Config) (c *Cluster, err error) {
	d := &Dev{Data: filepath.Join(cfg.Dir, "data"), addr: freeAddr()}
	c = &Cluster{cfg: cfg, dir: cfg.Dir, front: make(map[string]*Link)}
	for _, role := range []string{RoleIngest, RoleStreamer, RoleQuery} {
		if c.front[role], err = OpenLink("front of "+role, d.addr); err != nil {
			return c, errors.Join(err, c.Close())
		}
	}
	args := []string{"dev", "--listen", d.addr, "--data-dir", d.Data, "--key", Key, "--log-level", "info"}
	if d.Process, err = newProcess("dev", filepath.Join(cfg.Dir, "dev.log"), cfg.Binary, args, cfg.Env); err != nil {
		return c, errors.Join(err, c.Close())
	}
	c.Dev = d
	return c, nil
}

// RefusedError reports a playhead dev that ended instead of becoming ready. It holds the
// last that it said.
type RefusedError struct{ Said string }

func (e *RefusedError) Error() string { return "playhead dev has ended: " + e.Said }

// Start starts it once and returns when it is ready, or *RefusedError when it has ended.
func (d *Dev) Start(ctx context.Context) error {
	before := d.Output.size()
	d.mu.Lock()
	err := d.startLocked()
	exited := d.exited
	d.mu.Unlock()
	if err != nil {
		return err
	}
	n := &Node{Process: d.Process, addr: d.addr}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with ctx
		select {
		case <-exited:
			cancel(errDevEnded)
		case <-ctx.Done():
		}
	}()
	if err := n.awaitReady(ctx, time.Minute); err != nil {
		if errors.Is(context.Cause(ctx), errDevEnded) {
			return &RefusedError{d.Output.since(before)}
		}
		return err
	}
	b, err := os.ReadFile(filepath.Join(d.Data, "dev.json"))
	if err == nil {
		d.state = devState{}
		err = json.Unmarshal(b, &d.state)
	}
	if err != nil {
		return fmt.Errorf("dev.json: %w", err)
	}
	return nil
}

var errDevEnded = errors.New("it has ended")
