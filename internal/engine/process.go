package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Process is an engine that is kept running: a child process, started again whenever it dies.
//
// The parent owns the listening socket and hands it to each child. So the address never changes, nobody else
// can take the port while the child is down, and a client that connects meanwhile waits in the socket's
// queue for the next child instead of being refused. A statement that was under way fails, as it does when
// a server crashes.
type Process struct {
	cfg      Config
	listener *net.TCPListener
	socket   *os.File // a copy of the listener's descriptor, for children
	stop     context.CancelCauseFunc
	done     chan struct{} // closed when the supervising goroutine is through
	err      error         // of the last child's end; read after done

	restarts atomic.Int64
	pid      atomic.Int64
	version  atomic.Pointer[string]
}

// Start runs the engine as a child process and returns once it answers statements. The Process outlives ctx,
// which bounds only the start; Close ends it.
//
// It returns ErrLibraryNotFound if libchdb is not installed, and ErrDataPathInUse if another engine has the
// data path open.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Password == "" {
		cfg.Password = rand.Text()
	}
	addr, err := net.ResolveTCPAddr("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("engine address: %w", err)
	}
	listener, err := net.ListenTCP("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	socket, err := listener.File()
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("engine socket: %w", err)
	}
	life, stop := context.WithCancelCause(context.Background())
	p := &Process{cfg: cfg, listener: listener, socket: socket, stop: stop, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.supervise(life, started)
	select {
	case err = <-started:
	case <-ctx.Done():
		err = fmt.Errorf("start engine: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Addr is the address that the engine listens on, the same for the life of the Process.
func (p *Process) Addr() string { return p.listener.Addr().String() }

// DSN is for clickhouse.ParseDSN. It holds the password.
func (p *Process) DSN() string {
	u := url.URL{Scheme: "http", User: url.UserPassword("default", p.cfg.Password), Host: p.Addr(), Path: "/" + p.cfg.Database}
	return u.String()
}

// Restarts counts how often the child was started again.
func (p *Process) Restarts() int64 { return p.restarts.Load() }

// Pid is the child's process id, or 0 while there is none that answers.
func (p *Process) Pid() int { return int(p.pid.Load()) }

// Version is ClickHouse's, as the engine reports it.
func (p *Process) Version() string { return *p.version.Load() }

// Close ends the child: it may finish, is then told to cancel, and after Config.StopTimeout is killed.
// It returns an error if the end was not clean. It may be called again.
func (p *Process) Close() error {
	p.stop(errClosed)
	<-p.done
	return p.err
}

var errClosed = errors.New("engine closed")

const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
	// A child that lived that long was healthy: the next failure is a new one.
	healthyAfter = 30 * time.Second
)

// supervise keeps one child running until life ends. It sends the outcome of the first start to started.
//
// It holds on to its thread: Linux sends a child its parent-death signal when the thread that started it ends.
func (p *Process) supervise(life context.Context, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	defer func() {
		_ = p.socket.Close()
		_ = p.listener.Close()
	}()
	log := p.cfg.Log.With("data_path", p.cfg.DataPath)
	backoff := backoffMin
	for first := true; ; first = false {
		begun := time.Now()
		c, err := p.startChild(life)
		if first {
			started <- err
		}
		switch {
		case c != nil:
			log.Info("engine started", "pid", c.cmd.Process.Pid, "addr", p.Addr(), "version", p.Version(), "took", time.Since(begun))
			err = c.wait(life)
			p.pid.Store(0)
			if time.Since(begun) > healthyAfter {
				backoff = backoffMin
			}
		case err != nil && first:
			return
		}
		if life.Err() != nil {
			p.err = err
			return
		}
		log.Error("engine died", "error", err, "restart_in", backoff)
		select {
		case <-time.After(backoff):
		case <-life.Done():
			return
		}
		backoff = min(2*backoff, backoffMax)
		p.restarts.Add(1)
	}
}

// child is one run of the engine's process.
type child struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	exited  chan error // gets the outcome of cmd.Wait
	stderr  *tail
	timeout time.Duration
}

// startChild starts a process and waits until it is ready. It returns neither child nor error if
// life has ended meanwhile and the process has stopped as it should.
func (p *Process) startChild(life context.Context) (*child, error) {
	config, err := json.Marshal(ChildConfig{
		LibraryPath: p.cfg.LibraryPath, ColdPath: p.cfg.ColdPath, DataPath: p.cfg.DataPath, Database: p.cfg.Database, Password: p.cfg.Password,
		MaxConcurrent: p.cfg.MaxConcurrent, MaxQueued: p.cfg.MaxQueued,
		MaxMemoryBytes: p.cfg.MaxMemoryBytes, BackgroundThreads: p.cfg.BackgroundThreads,
		LogLevel: levelOf(p.cfg.Log),
	})
	if err != nil {
		return nil, fmt.Errorf("engine configuration: %w", err)
	}
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	defer func() { _ = readyRead.Close() }()
	c := &child{exited: make(chan error, 1), stderr: &tail{to: p.cfg.Stderr}, timeout: p.cfg.StopTimeout}
	c.cmd = exec.Command(p.cfg.Executable, p.cfg.ChildArgs...)
	c.cmd.Env = childEnv(os.Environ())
	c.cmd.Stdout, c.cmd.Stderr = c.stderr, c.stderr
	c.cmd.ExtraFiles = []*os.File{p.socket, readyWrite} // listenerFD, readyFD
	c.cmd.SysProcAttr = childAttributes()
	c.cmd.WaitDelay = time.Second
	c.stdin, err = c.cmd.StdinPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	_ = readyWrite.Close()
	if err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	go func() { c.exited <- c.cmd.Wait() }()
	if _, err := c.stdin.Write(append(config, '\n')); err != nil {
		return nil, fmt.Errorf("configure engine: %w", errors.Join(err, c.kill()))
	}
	ready := make(chan error, 1)
	var message readyMessage
	go func() { ready <- json.NewDecoder(readyRead).Decode(&message) }()
	select {
	case err = <-ready:
		if err != nil { // the pipe closed: the child is ending
			return nil, fmt.Errorf("start engine: %w", errors.Join(c.wait(life), c.stderr.sentinel()))
		}
	case <-time.After(p.cfg.StartTimeout):
		return nil, fmt.Errorf("start engine: not ready after %s: %w", p.cfg.StartTimeout, errors.Join(errNotReady, c.kill()))
	case <-life.Done():
		return nil, c.wait(life)
	}
	p.version.Store(&message.Version)
	p.pid.Store(int64(c.cmd.Process.Pid))
	return c, nil
}

var errNotReady = errors.New("gave up waiting")

// childEnv is the parent's environment with the time zone that results are in.
func childEnv(environ []string) []string {
	env := make([]string, 0, len(environ)+1)
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "TZ=") {
			env = append(env, kv)
		}
	}
	return append(env, "TZ=UTC")
}

// wait returns when the child has ended: by itself, which is an error, or because life ended.
func (c *child) wait(life context.Context) error {
	select {
	case err := <-c.exited:
		if life.Err() != nil && err == nil {
			return nil
		}
		return c.outcome(err)
	case <-life.Done():
	}
	_ = c.stdin.Close() // which asks it to stop
	select {
	case err := <-c.exited:
		if err != nil {
			return c.outcome(err)
		}
		return nil
	case <-time.After(c.timeout):
		return fmt.Errorf("engine did not stop within %s: %w", c.timeout, c.kill())
	}
}

func (c *child) kill() error {
	_ = c.cmd.Process.Kill() // it may have ended already
	return c.outcome(<-c.exited)
}

// outcome words the end of a child that was not asked to end, with the last it had to say.
func (c *child) outcome(err error) error {
	if err == nil {
		err = errors.New("exit status 0")
	}
	if last := c.stderr.last(); last != "" {
		return fmt.Errorf("engine process ended: %w: %s", err, last)
	}
	return fmt.Errorf("engine process ended: %w", err)
}

// tail passes writes on and remembers the end of them. Safe for concurrent use.
type tail struct {
	to  io.Writer
	mu  sync.Mutex // guards end, and orders writes
	end []byte
}

const tailBytes = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if extra := len(t.end) - tailBytes; extra > 0 {
		t.end = append(t.end[:0], t.end[extra:]...)
	}
	return t.to.Write(p)
}

// last is the last line written.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.end), []byte("\n"))
	return string(lines[len(lines)-1])
}

// sentinel recognises the errors of the child that callers branch on; they crossed a process as text.
func (t *tail) sentinel() error {
	if strings.Contains(t.last(), ErrDataPathInUse.Error()) {
		return ErrDataPathInUse
	}
	return nil
}

// levelOf returns the lowest level that log takes.
func levelOf(log *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), level) {
			return level
		}
	}
	return slog.LevelError
}
