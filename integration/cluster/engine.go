package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/playhead-dev/playhead/internal/engine"
)

// ClickHouse is the embedded engine in a process of its own, with a Link for each node.
// A killed engine is started again at once by its keeper, which this process is. Up and
// Down are for one goroutine at a time, the other methods for any.
type ClickHouse struct {
	Output *Output
	cfg    engine.Config

	mu      sync.Mutex // guards what follows
	process *engine.Process
	paused  int // process id; 0 if none is
}

func startClickHouse(ctx context.Context, dir, binary, library string) (*ClickHouse, error) {
	out, err := openOutput(filepath.Join(dir, "engine.log"))
	if err != nil {
		return nil, err
	}
	c := &ClickHouse{Output: out, cfg: engine.Config{
		DataPath: filepath.Join(dir, "clickhouse"), LibraryPath: library, Executable: binary, ChildArgs: []string{"engine"},
		Addr: freeAddr(), Password: rand.Text(), // the same in all its lives
		Stderr: out, Log: slog.New(slog.NewTextHandler(out, nil)),
	}}
	if err := c.Up(ctx); err != nil {
		return nil, errors.Join(err, out.close())
	}
	return c, nil
}

// Up starts an engine after Down.
func (c *ClickHouse) Up(ctx context.Context) error {
	process, err := engine.Start(ctx, c.cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process = process
	return nil
}

// Down kills the engine, and it does not come back until Up.
func (c *ClickHouse) Down() {
	c.Kill()
	_ = c.running().Close() // it says that it was killed
}

func (c *ClickHouse) running() *engine.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process
}

// dsn is the engine's by way of a link.
func (c *ClickHouse) dsn(link *Link) (string, error) {
	u, err := url.Parse(c.running().DSN())
	if err != nil {
		return "", fmt.Errorf("the engine's address: %w", err)
	}
	u.Host = link.Addr()
	return u.String(), nil
}

// Kill ends the engine as a power cut would. It comes back by itself.
func (c *ClickHouse) Kill() { c.signal(syscall.SIGKILL) }

// Pause stops it where it is, Resume lets it go on.
func (c *ClickHouse) Pause() {
	pid := c.signal(syscall.SIGSTOP)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = pid
}

// Resume ends a Pause.
func (c *ClickHouse) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused != 0 {
		_ = syscall.Kill(c.paused, syscall.SIGCONT) // it may have been killed
		c.paused = 0
	}
}

func (c *ClickHouse) signal(s syscall.Signal) int {
	pid := c.running().Pid()
	if pid == 0 {
		return 0
	}
	if err := syscall.Kill(pid, s); err != nil {
		return 0
	}
	return pid
}

// awaitUp waits until an engine answers.
func (c *ClickHouse) awaitUp(ctx context.Context) error {
	return await(ctx, time.Minute, "the engine runs", func(context.Context) error {
		if c.running().Pid() == 0 {
			return errors.New("it does not")
		}
		return nil
	})
}

// close ends the engine. That it was killed before is no mistake of its.
func (c *ClickHouse) close() error {
	c.Resume()
	return errors.Join(c.running().Close(), c.Output.close())
}
