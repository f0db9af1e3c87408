package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// restartPause is what a Process that has ended by itself waits before it is started
// again, as a service manager would.
const restartPause = 200 * time.Millisecond

// Process is one program under test. While it is wanted it is started again whenever it
// ends. Safe for concurrent use; Up, Kill and Stop wait for each other.
type Process struct {
	Name   string
	Output *Output

	path string
	args []string
	env  []string

	ops sync.Mutex // held by Up, Kill and Stop; taken before mu

	mu     sync.Mutex // guards what follows
	cmd    *exec.Cmd  // nil while none runs
	exited chan struct{}
	wanted bool
	paused bool
	starts int
	lapses int // ends that nobody asked for
	keeper sync.WaitGroup
}

// newProcess prepares a program; Up starts it. Its output goes to logFile.
func newProcess(name, logFile, path string, args, env []string) (*Process, error) {
	out, err := openOutput(logFile)
	if err != nil {
		return nil, err
	}
	return &Process{Name: name, Output: out, path: path, args: args, env: env}, nil
}

// Up starts the program, unless it runs, and keeps it running until Kill, Stop or Close.
func (p *Process) Up() error {
	p.ops.Lock()
	defer p.ops.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted {
		return nil
	}
	if err := p.startLocked(); err != nil {
		return err
	}
	p.wanted = true
	p.keeper.Go(p.keep)
	return nil
}

func (p *Process) startLocked() error {
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = p.Output, p.Output
	cmd.SysProcAttr = processAttributes()
	cmd.WaitDelay = time.Second // a grandchild may hold its output open
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	p.starts++
	go func() { // ends with the process, which Kill, Stop and Close wait for
		_ = cmd.Wait()
		close(exited)
	}()
	return nil
}

// keep starts the program again whenever it ends, while it is wanted.
func (p *Process) keep() {
	for {
		p.mu.Lock()
		exited := p.exited
		p.mu.Unlock()
		<-exited
		p.mu.Lock()
		if !p.wanted {
			p.mu.Unlock()
			return
		}
		p.lapses++
		p.cmd = nil
		p.mu.Unlock()
		time.Sleep(restartPause) // as a service manager's
		p.mu.Lock()
		if !p.wanted {
			p.mu.Unlock()
			return
		}
		if err := p.startLocked(); err != nil {
			p.Output.note(err.Error())
			p.wanted = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
}

// Pid is the process id, 0 while none runs.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Wanted reports whether the program is to run.
func (p *Process) Wanted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wanted
}

// EndedByItself counts how often it ended without being asked to.
func (p *Process) EndedByItself() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lapses
}

// Kill ends it as a power cut would (SIGKILL) and returns when it is gone.
func (p *Process) Kill() { p.end(syscall.SIGKILL, 0) }

// ErrDidNotStop reports a program that had to be killed.
var ErrDidNotStop = errors.New("did not stop in time and was killed")

// Stop asks it to end (SIGTERM) and returns when it is gone. One that takes longer than
// patience is killed, which is an error.
func (p *Process) Stop(patience time.Duration) error {
	if !p.end(syscall.SIGTERM, patience) {
		return fmt.Errorf("%s: %w (%s)", p.Name, ErrDidNotStop, patience)
	}
	return nil
}

// end reports whether the signal was enough.
func (p *Process) end(signal syscall.Signal, patience time.Duration) bool {
	p.ops.Lock()
	defer p.ops.Unlock()
	p.mu.Lock()
	p.wanted = false
	cmd, exited := p.cmd, p.exited
	if cmd != nil {
		if p.paused && signal != syscall.SIGKILL {
			_ = cmd.Process.Signal(syscall.SIGCONT) // it may have ended
		}
		p.paused = false
		_ = cmd.Process.Signal(signal) // it may have ended
	}
	p.mu.Unlock()
	inTime := true
	if cmd != nil {
		if signal != syscall.SIGKILL {
			select {
			case <-exited:
			case <-time.After(patience):
				inTime = false
				_ = cmd.Process.Kill() // it may have ended meanwhile
			}
		}
		<-exited
	}
	p.keeper.Wait()
	p.mu.Lock()
	p.cmd = nil
	p.mu.Unlock()
	return inTime
}

// Pause stops it where it is (SIGSTOP). Its connections stay open and nobody answers.
func (p *Process) Pause() { p.signalIfUp(syscall.SIGSTOP, true) }

// Resume lets it go on (SIGCONT).
func (p *Process) Resume() { p.signalIfUp(syscall.SIGCONT, false) }

func (p *Process) signalIfUp(s syscall.Signal, paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Signal(s); err == nil {
		p.paused = paused
	}
}

// close kills it and closes its output.
func (p *Process) close() error {
	p.Kill()
	return p.Output.close()
}
