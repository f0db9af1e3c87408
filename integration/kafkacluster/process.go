package kafkacluster

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child of ours. It dies with us, however we end, where the system can do
// that.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended
}

// startProcess starts cmd. Its goroutine holds on to its thread: Linux sends a child its
// parent-death signal when the thread that started it ends.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = diesWithParent()
	p := &process{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() { // ends with the process, which Broker and Cluster.Close see to
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is told by cmd.ProcessState
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// signal sends a signal, if the process runs.
func (p *process) signal(s syscall.Signal) error {
	if !p.running() {
		return nil
	}
	return p.cmd.Process.Signal(s)
}

// kill ends the process and waits until it is gone.
func (p *process) kill() error {
	err := p.signal(syscall.SIGKILL)
	if err == nil {
		<-p.exited
	}
	return err
}
