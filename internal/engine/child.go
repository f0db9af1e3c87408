package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ChildConfig is what one engine process needs to know. Start hands it over on standard input, so that the
// password shows neither in the argument list nor in the environment.
type ChildConfig struct {
	LibraryPath       string
	DataPath          string
	ColdPath          string // see Config
	Database          string
	Password          string
	MaxConcurrent     int
	MaxQueued         int
	MaxMemoryBytes    int64
	BackgroundThreads int
	LogLevel          slog.Level // of what ChildMain logs, to standard error

	// Listener serves the HTTP protocol; RunChild closes it. Nil: RunChild listens on Addr.
	Listener net.Listener `json:"-"`
	Addr     string

	// Ready is called once, when statements are answered, with the engine's version and the address.
	Ready func(version, addr string) `json:"-"`
	Log   *slog.Logger               `json:"-"`
}

// File descriptors that Start passes to its child.
const (
	listenerFD = 3 // the listening socket
	readyFD    = 4 // a pipe: one JSON line when ready
)

type readyMessage struct{ Version, Addr string }

// ChildMain is the whole life of an engine process started by Start: it takes its configuration from
// standard input, serves, and returns nil after a clean end: on SIGTERM or SIGINT, when ctx ends, or when the
// other end of standard input closes because the parent is gone, however it went. The caller exits then.
func ChildMain(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// The engine writes results into pipes from threads of its own; a broken one is an error, not an end.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	stdin := bufio.NewReader(os.Stdin)
	line, err := stdin.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("engine: read configuration from standard input (this command is not for people to run): %w", err)
	}
	var cfg ChildConfig
	if err := json.Unmarshal(line, &cfg); err != nil {
		return fmt.Errorf("engine: read configuration from standard input: %w", err)
	}
	// Ends with the process: nothing can interrupt a read of standard input.
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		cancel(errParentGone)
	}()
	socket := os.NewFile(listenerFD, "listener")
	cfg.Listener, err = net.FileListener(socket)
	if err != nil {
		return fmt.Errorf("engine: take over the listening socket: %w", err)
	}
	_ = socket.Close()
	ready := os.NewFile(readyFD, "ready")
	cfg.Ready = func(version, addr string) {
		_ = json.NewEncoder(ready).Encode(readyMessage{version, addr}) // a parent that is gone shows on standard input
		_ = ready.Close()
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	return RunChild(ctx, cfg)
}

var errParentGone = errors.New("the parent has stopped it, or is gone")

// RunChild loads the engine, opens the data path, and answers ClickHouse's HTTP protocol until ctx ends.
// It returns nil after a clean stop: statements that still run after a grace of 3 s are cancelled.
//
// It can run once in a process: the library cannot be started again. It fails if the data path is in use
// by another engine for longer than lockPatience.
func RunChild(ctx context.Context, cfg ChildConfig) (err error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	lock, err := lockPath(ctx, cfg.DataPath)
	if err != nil {
		return err
	}
	defer lock.release()

	tmp := filepath.Join(cfg.DataPath, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return fmt.Errorf("engine data path: %w", err)
	}
	lib, err := loadLibrary(cfg.LibraryPath)
	if err != nil {
		return err
	}
	args, err := serverConfig(cfg, cfg.DataPath)
	if err != nil {
		return err
	}
	pool, err := newPool(lib, args, baseSettings(cfg), cfg.MaxConcurrent, cfg.MaxQueued, cfg.Log)
	if err != nil {
		return fmt.Errorf("open %s: %w", cfg.DataPath, err)
	}
	if cfg.Database != "default" {
		if _, err := pool.onControl("CREATE DATABASE IF NOT EXISTS "+quoteName(cfg.Database), "Null", nil); err != nil {
			return fmt.Errorf("create database %s: %w", cfg.Database, err)
		}
	}
	version, err := pool.onControl("SELECT version()", "TabSeparated", nil)
	if err != nil {
		return fmt.Errorf("ask the engine for its version: %w", err)
	}
	if cfg.Listener == nil {
		if cfg.Listener, err = net.Listen("tcp", cfg.Addr); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	return serve(ctx, cfg, lib, pool, tmp, strings.TrimSpace(string(version)))
}

// serve runs the HTTP server and stops everything in order.
func serve(ctx context.Context, cfg ChildConfig, lib *library, pool *pool, tmp, version string) error {
	requests, cancelRequests := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancelRequests(nil)
	server := &http.Server{
		Handler:           &listener{pool: pool, database: cfg.Database, password: cfg.Password, spoolDir: tmp, log: cfg.Log},
		ReadHeaderTimeout: 30 * time.Second,
		MaxHeaderBytes:    maxStatementBytes + 1<<20,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(cfg.Listener) }()
	addr := cfg.Listener.Addr().String()
	cfg.Log.Info("engine ready", "version", version, "addr", addr)
	if cfg.Ready != nil {
		cfg.Ready(version, addr)
	}
	var failure error
	select {
	case <-ctx.Done():
		cfg.Log.Info("engine stops", "reason", context.Cause(ctx))
	case err := <-served:
		failure = fmt.Errorf("serve %s: %w", addr, err)
	}
	cutOff := time.AfterFunc(stopGrace, func() { cancelRequests(errStopping) })
	defer cutOff.Stop()
	total, cancel := context.WithTimeout(context.Background(), stopGrace+stopCancelled)
	defer cancel()
	if err := server.Shutdown(total); err != nil {
		failure = errors.Join(failure, fmt.Errorf("stop serving: %w", err))
		_ = server.Close()
	}
	if err := pool.close(total); err != nil {
		return errors.Join(failure, err)
	}
	if state := lib.shutdownFn(); state != 0 {
		// All sessions are closed, so everything is on disk; the process ends now, and the threads with it.
		cfg.Log.Debug("the engine did not stop all of its threads")
	}
	return failure
}

var errStopping = errors.New("the engine is stopping")

// Steps of a stop: statements may end by themselves, then are cancelled.
const (
	stopGrace     = 3 * time.Second
	stopCancelled = 5 * time.Second
)
