package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// benchKey is long enough to pass for a key and plainly none of anybody's.
const benchKey = "pk_test_bench0123456789abcdef01234567"

// noClickHouse is an address that nobody listens on: a server that is given it runs
// without history, its materialiser waiting.
const noClickHouse = "http://default@127.0.0.1:1/default"

// server is one playhead dev on a data directory: running, or to be started again.
type server struct {
	binary string
	dir    string
	addr   string
	args   []string

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	state  devState
	engine int // process id of the engine, 0 without one
}

// devState is the part of dev.json that is used here.
type devState struct {
	Kafka string `json:"kafka"`
}

func newServer(binary, dir string, args ...string) (*server, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("free port: %w", err)
	}
	defer ln.Close()
	return &server{binary: binary, dir: dir, addr: ln.Addr().String(), args: args}, nil
}

// withEngine reports whether the server has a ClickHouse.
func (s *server) withEngine() bool { return !strings.Contains(strings.Join(s.args, " "), noClickHouse) }

// start runs the server and returns when it can be used.
func (s *server) start(ctx context.Context) error {
	if err := s.exec(); err != nil {
		return err
	}
	err := s.awaitReady(ctx)
	if err == nil {
		err = s.awaitState(ctx)
	}
	if err != nil {
		return errors.Join(err, s.stop())
	}
	return nil
}

// exec starts the process and returns at once.
func (s *server) exec() error {
	out, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	defer out.Close()
	// Not CommandContext: an interrupted run stops it in order.
	s.cmd = exec.Command(s.binary, append([]string{"dev", "--listen", s.addr, "--data-dir", s.dir, "--key", benchKey}, s.args...)...)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours to pass on
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) { // ends with the process, which stop waits for
		_ = cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	return nil
}

func (s *server) logFile() string { return filepath.Join(s.dir, "server.log") }

// awaitReady waits for /readyz, or for /healthz of a server without a ClickHouse.
func (s *server) awaitReady(ctx context.Context) error {
	path := "/readyz"
	if !s.withEngine() {
		path = "/healthz"
	}
	return s.await(ctx, "the server is ready", func() (bool, error) {
		c, err := dial(s.addr)
		if err != nil {
			return false, err
		}
		defer c.close()
		status, _, err := c.do(http.MethodGet, path, nil)
		return status == http.StatusOK && err == nil, err
	})
}

// awaitState waits until the server has written down where its parts listen, which is
// the last it does at a start: the key is valid then.
func (s *server) awaitState(ctx context.Context) error {
	if err := s.await(ctx, "dev.json names the broker", func() (bool, error) {
		b, err := os.ReadFile(filepath.Join(s.dir, "dev.json"))
		if err == nil {
			s.state = devState{}
			err = json.Unmarshal(b, &s.state)
		}
		return s.state.Kafka != "" && err == nil, err
	}); err != nil || !s.withEngine() {
		return err
	}
	var err error
	s.engine, err = childOf(s.pid())
	return err
}

// await polls a condition while the server runs.
func (s *server) await(ctx context.Context, what string, f func() (bool, error)) error {
	alive := func() (bool, error) {
		select {
		case <-s.exited:
			return true, s.died()
		default:
			return f()
		}
	}
	return until(ctx, 2*time.Minute, what, alive)
}

func (s *server) died() error {
	b, _ := os.ReadFile(s.logFile()) // without it the error says less
	return fmt.Errorf("the server has ended; its last words: %s", b[max(0, len(b)-1000):])
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// stop ends the server in order, if it runs.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	s.resumeEngine()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.exited:
		s.cmd = nil
		return nil
	case <-time.After(time.Minute):
		return errors.Join(errors.New("the server did not stop within a minute"), s.kill())
	}
}

// stopInto stops the server at the end of the function that used it.
func (s *server) stopInto(err *error) { *err = errors.Join(*err, s.stop()) }

// kill ends the server as a power cut would.
func (s *server) kill() error {
	err := s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
	if err != nil {
		return fmt.Errorf("kill server: %w", err)
	}
	return nil
}

// pauseEngine halts the engine's process, so that nothing is materialised and none of
// its work takes processor time. What needs no ClickHouse goes on.
func (s *server) pauseEngine() error {
	if err := syscall.Kill(s.engine, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pause engine: %w", err)
	}
	return nil
}

// resumeEngine undoes pauseEngine; without one it does nothing.
func (s *server) resumeEngine() {
	if s.engine != 0 {
		_ = syscall.Kill(s.engine, syscall.SIGCONT) // it may have ended
	}
}

// usage is the processor time of the server's processes so far.
type usage struct{ server, engine time.Duration }

func (s *server) usage() (usage, error) {
	var u usage
	var err error
	if u.server, err = cpuTime(s.pid()); err != nil || s.engine == 0 {
		return u, err
	}
	u.engine, err = cpuTime(s.engine)
	return u, err
}

func (u usage) since(before usage) usage {
	return usage{server: u.server - before.server, engine: u.engine - before.engine}
}

// settle waits until everything is materialised and the engine has finished merging, so
// that one measurement's aftermath is not part of the next.
func (s *server) settle(ctx context.Context, b *broker) error {
	if err := b.awaitMaterialised(ctx, 10*time.Minute); err != nil {
		return err
	}
	for range 60 {
		before, err := s.usage()
		if err != nil {
			return err
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		after, err := s.usage()
		if err != nil {
			return err
		}
		if used := after.since(before); used.engine+used.server < quietCPU {
			return nil
		}
	}
	return nil // a machine that never rests is measured as it is
}

// quietCPU is what server and engine use in a second of doing next to nothing.
const quietCPU = 150 * time.Millisecond
