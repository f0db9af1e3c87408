package kafkacluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// brokerHeap is enough for what tests store.
const brokerHeap = "256m"

// Broker is one process of a cluster, broker and controller. Its data outlives it. Its
// methods are for one goroutine at a time.
type Broker struct {
	number                   int // node.id, from 1
	dir                      string
	open, secure, controller string // addresses
	installation             Installation
	process                  *process // of the last start; nil before the first
}

// Number is the broker's node id, from 1.
func (b *Broker) Number() int { return b.number }

// Addr is where the broker listens for anybody.
func (b *Broker) Addr() string { return b.open }

func (b *Broker) data() string       { return filepath.Join(b.dir, "data") }
func (b *Broker) properties() string { return filepath.Join(b.dir, "server.properties") }
func (b *Broker) log() string        { return filepath.Join(b.dir, "broker.log") }

// format makes the broker's data directory as a new member of the cluster.
func (b *Broker) format(ctx context.Context, clusterID string) error {
	p, err := b.run("format.log", "kafka.tools.StorageTool", "format", "--cluster-id", clusterID, "--config", b.properties())
	if err != nil {
		return err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), p.kill())
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("format broker %d: exit code %d: %s", b.number, code, tail(filepath.Join(b.dir, "format.log")))
	}
	return nil
}

// Start starts the broker, if it does not run. It does not wait: Cluster.Await does.
func (b *Broker) Start() (err error) {
	if b.Running() {
		return nil
	}
	b.process, err = b.run("broker.log", "kafka.Kafka", b.properties())
	return err
}

// run starts a Java program whose output is added to a file.
func (b *Broker) run(output string, args ...string) (*process, error) {
	f, err := os.OpenFile(filepath.Join(b.dir, output), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := b.installation.command(brokerHeap, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.dir, f, f
	return startProcess(cmd)
}

// Running reports whether the broker's process is there, be it paused.
func (b *Broker) Running() bool { return b.process != nil && b.process.running() }

// Pid is the process's id, 0 if there is none.
func (b *Broker) Pid() int {
	if !b.Running() {
		return 0
	}
	return b.process.cmd.Process.Pid
}

// Stop ends the broker in order: its partitions go to others first. It returns when the
// process has ended, or kills it when ctx ends.
func (b *Broker) Stop(ctx context.Context) error {
	if !b.Running() {
		return nil
	}
	if err := b.process.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-b.process.exited:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop broker %d: %w", b.number, context.Cause(ctx)), b.Kill())
	}
}

// Kill ends the broker at once, and returns when it is gone.
func (b *Broker) Kill() error {
	if !b.Running() {
		return nil
	}
	return b.process.kill()
}

// Pause stops the process where it is; Resume lets it go on.
func (b *Broker) Pause() error { return b.send(syscall.SIGSTOP) }

// Resume ends a Pause.
func (b *Broker) Resume() error { return b.send(syscall.SIGCONT) }

func (b *Broker) send(s syscall.Signal) error {
	if !b.Running() {
		return fmt.Errorf("broker %d does not run", b.number)
	}
	return b.process.signal(s)
}

// tailBytes is how much of a log is shown in an error.
const tailBytes = 4 << 10

// tail returns the end of a log file.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-tailBytes):]))
}
