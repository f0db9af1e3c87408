package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// peerProcess is a peer's server, with whatever processes it starts itself.
type peerProcess struct {
	dir    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
}

// startPeer runs a command in a directory, its output in a file there, and waits until
// something listens on addr.
func startPeer(ctx context.Context, dir, addr, name string, args ...string) (*peerProcess, error) {
	out, err := os.OpenFile(filepath.Join(dir, "output.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	defer out.Close()
	p := &peerProcess{dir: dir, cmd: exec.Command(name, args...), exited: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours to pass on
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	go func() { // ends with the process, which stop waits for
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	err = until(ctx, 30*time.Second, filepath.Base(name)+" listens", func() (bool, error) {
		select {
		case <-p.exited:
			return true, p.died()
		default:
		}
		nc, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false, err
		}
		return true, nc.Close()
	})
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *peerProcess) died() error {
	b, _ := os.ReadFile(filepath.Join(p.dir, "output.log")) // without it the error says less
	return fmt.Errorf("it has ended; its last words: %s", b[max(0, len(b)-1000):])
}

func (p *peerProcess) pid() int { return p.cmd.Process.Pid }

// stop ends the process and its children.
func (p *peerProcess) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.exited:
		return nil
	case <-time.After(10 * time.Second):
	}
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL) // its group: exec made it one
	<-p.exited
	return fmt.Errorf("%s did not stop within 10 seconds and was killed", filepath.Base(p.cmd.Path))
}

// freeAddr returns an address of the loopback interface that nobody listens on.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("free port: %w", err)
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
