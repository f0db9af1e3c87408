package engine

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Version is the release of libchdb that this package is built against and that scripts/fetch-engine.sh
// installs: ClickHouse 26.7 as a library.
const Version = "26.7.3-stable.1"

// Defaults of Config.
const (
	DefaultDatabase          = "playhead"
	DefaultMaxConcurrent     = 8
	DefaultMaxQueued         = 256
	DefaultMaxMemoryBytes    = 2 << 30
	DefaultBackgroundThreads = 2
	DefaultStartTimeout      = 60 * time.Second
	DefaultStopTimeout       = 15 * time.Second
)

// TieredPolicy names the storage policy that there is with Config.ColdPath.
const TieredPolicy = "tiered"

// Config says how Start runs the engine. Only DataPath and ChildArgs have no default.
type Config struct {
	// DataPath is the directory that holds the engine's tables; it is created if missing. One engine at a
	// time may have it open.
	DataPath string

	// ColdPath is a directory for a second disk, "cold", which the volume "cold" of the storage policy
	// TieredPolicy consists of, after its volume "default", DataPath. Empty: neither exists.
	ColdPath string

	// LibraryPath is the file libchdb.so; the function LibraryPath says where scripts/fetch-engine.sh puts it.
	LibraryPath string

	// Executable and ChildArgs are the command line that ends up in ChildMain. Executable defaults to the
	// running binary.
	Executable string
	ChildArgs  []string

	// Addr is the TCP address to listen on, 127.0.0.1:0 unless set. Port 0 picks a free one, once: it stays
	// the same over restarts of the child.
	Addr string

	// Database is created if missing, and named by DSN.
	Database string

	// Password of the user "default". Empty: a random one for the life of the Process, part of DSN. So
	// neither another user of the machine nor a web page in a browser on it can talk to the engine.
	Password string

	// MaxConcurrent is how many statements run at once (8). MaxQueued is how many more wait their turn
	// (256) before the next gets code 202, TOO_MANY_SIMULTANEOUS_QUERIES.
	MaxConcurrent int
	MaxQueued     int

	// MaxMemoryBytes bounds what the engine allocates (2 GiB; the engine itself lowers it to 90 % of the
	// machine). One statement may take half. At the bound a statement fails with code 241. Caches take at
	// most an eighth.
	MaxMemoryBytes int64

	// BackgroundThreads merge parts (2).
	BackgroundThreads int

	// StartTimeout bounds the wait for a child to be ready (60 s), StopTimeout the wait for a clean end (15 s)
	// before it is killed.
	StartTimeout time.Duration
	StopTimeout  time.Duration

	// Log gets state changes: started, died and why, restarted. Nil: slog.Default.
	Log *slog.Logger
	// Stderr gets what the child writes to its standard error. Nil: os.Stderr.
	Stderr io.Writer
}

func (c Config) withDefaults() (Config, error) {
	setDefault(&c.Addr, "127.0.0.1:0")
	setDefault(&c.Database, DefaultDatabase)
	setDefault(&c.MaxConcurrent, DefaultMaxConcurrent)
	setDefault(&c.MaxQueued, DefaultMaxQueued)
	setDefault(&c.MaxMemoryBytes, DefaultMaxMemoryBytes)
	setDefault(&c.BackgroundThreads, DefaultBackgroundThreads)
	setDefault(&c.StartTimeout, DefaultStartTimeout)
	setDefault(&c.StopTimeout, DefaultStopTimeout)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Stderr == nil {
		c.Stderr = os.Stderr
	}
	var problems []error
	if c.DataPath == "" {
		problems = append(problems, errors.New("DataPath: must name a directory"))
	}
	if c.MaxConcurrent < 1 || c.MaxConcurrent > 1000 {
		problems = append(problems, fmt.Errorf("MaxConcurrent: %d is not in 1..1000", c.MaxConcurrent))
	}
	if c.MaxQueued < 0 {
		problems = append(problems, fmt.Errorf("MaxQueued: %d is negative", c.MaxQueued))
	}
	if c.MaxMemoryBytes < 256<<20 {
		problems = append(problems, fmt.Errorf("MaxMemoryBytes: %d is below 256 MiB, with which the engine does not start", c.MaxMemoryBytes))
	}
	if c.BackgroundThreads < 1 || c.BackgroundThreads > 64 {
		problems = append(problems, fmt.Errorf("BackgroundThreads: %d is not in 1..64", c.BackgroundThreads))
	}
	if err := errors.Join(problems...); err != nil {
		return c, fmt.Errorf("engine configuration: %w", err)
	}
	abs, err := filepath.Abs(c.DataPath)
	if err != nil {
		return c, fmt.Errorf("engine data path %q: %w", c.DataPath, err)
	}
	c.DataPath = abs
	if c.ColdPath != "" {
		if c.ColdPath, err = filepath.Abs(c.ColdPath); err != nil {
			return c, fmt.Errorf("engine cold path: %w", err)
		}
	}
	if c.LibraryPath == "" {
		return c, fmt.Errorf("%w: no path to look at (set PLAYHEAD_ENGINE_DIR)", ErrLibraryNotFound)
	}
	if c.LibraryPath, err = filepath.Abs(c.LibraryPath); err != nil {
		return c, fmt.Errorf("engine library path: %w", err)
	}
	if _, err := os.Stat(c.LibraryPath); err != nil {
		return c, libraryNotFound(c.LibraryPath)
	}
	if c.Executable == "" {
		if c.Executable, err = os.Executable(); err != nil {
			return c, fmt.Errorf("engine executable: %w", err)
		}
	}
	return c, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// ErrLibraryNotFound says that libchdb is not installed. The error that wraps it tells what to do.
var ErrLibraryNotFound = errors.New("embedded ClickHouse engine not found")

func libraryNotFound(path string) error {
	return fmt.Errorf("%w at %s: run scripts/fetch-engine.sh (it needs npm) to install it, or give the DSN of a ClickHouse server, and no engine is needed", ErrLibraryNotFound, path)
}

// LibraryPath is where scripts/fetch-engine.sh of the same release puts libchdb.so: below the environment's
// PLAYHEAD_ENGINE_DIR, or else the user's cache directory. env reads one environment variable. The file need
// not exist; "" says that the environment names no place at all. The rule is here and not in cmd because the
// script, cmd and the tests must agree on it.
func LibraryPath(env func(string) string) string {
	dir := env("PLAYHEAD_ENGINE_DIR")
	if dir == "" {
		cache := env("XDG_CACHE_HOME")
		if cache == "" {
			if env("HOME") == "" {
				return ""
			}
			cache = filepath.Join(env("HOME"), ".cache")
		}
		dir = filepath.Join(cache, "playhead", "engine")
	}
	return filepath.Join(dir, Version+"-"+platform(), "libchdb.so")
}

// platform names the machine the way the engine's packages do.
func platform() string {
	arch := strings.NewReplacer("amd64", "x64").Replace(runtime.GOARCH)
	if runtime.GOOS == "linux" {
		return "linux-" + arch + "-gnu"
	}
	return runtime.GOOS + "-" + arch
}
