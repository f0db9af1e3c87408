package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// pathLock is the exclusive right to a data path. The kernel drops it with the process, so a kill leaves
// nothing to clean up.
type pathLock struct{ file *os.File }

// lockPatience is how long a new engine waits for its predecessor to let go of the data path: longer than
// an orderly stop takes.
const lockPatience = 10 * time.Second

// ErrDataPathInUse says that another engine has the data path open.
var ErrDataPathInUse = errors.New("data path is in use by another engine")

func lockPath(ctx context.Context, dir string) (*pathLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("engine data path: %w", err)
	}
	name := filepath.Join(dir, "engine.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock engine data path: %w", err)
	}
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	patience := time.After(lockPatience)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-retry.C:
		case <-patience:
			owner, _ := io.ReadAll(io.LimitReader(f, 32)) // who it is helps, but is not needed
			_ = f.Close()
			return nil, fmt.Errorf("%w: %s is held by process %s", ErrDataPathInUse, dir, strings.TrimSpace(string(owner)))
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
		}
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid()) // for the message above
	}
	return &pathLock{f}, nil
}

func (l *pathLock) release() { _ = l.file.Close() }
