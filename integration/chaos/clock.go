package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/playhead-dev/playhead/integration/cluster"
)

// Clocks are stepped without a word in the product: with -clock the server is built with
// Go's own time package replaced (go build -overlay) by one whose Now adds what a file
// says. The monotonic clock stays, as it does where an administrator sets the time.

// maxStep is how far a clock is put forward or back: what docs/architecture.md says the
// nodes' clocks may differ by is a minute.
const maxStep = 50 * time.Second

const (
	nowAsItIs  = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	nowStepped = nowAsItIs + "\tsec += step.Load()\n"

	stepSource = `package time

import "sync/atomic"

var step atomic.Int64

// Step has Now be that many seconds ahead.
func Step(seconds int64) { step.Store(seconds) }
`
	watchSource = `package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

func init() {
	path := os.Getenv("` + cluster.ClockVariable + `")
	if path == "" {
		return
	}
	go func() {
		for {
			if b, err := os.ReadFile(path); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
					time.Step(n)
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
}
`
)

// buildClocked builds a server whose clock can be stepped.
func buildClocked(ctx context.Context, source, dir string) (string, error) {
	goroot, err := command(ctx, "go", "env", "GOROOT")
	if err != nil {
		return "", err
	}
	root, err := filepath.Abs(source)
	if err != nil {
		return "", err
	}
	original := filepath.Join(goroot, "src", "time", "time.go")
	b, err := os.ReadFile(original)
	if err != nil {
		return "", fmt.Errorf("a clock to step: %w", err)
	}
	if strings.Count(string(b), nowAsItIs) != 1 {
		return "", fmt.Errorf("a clock to step: time.Now of this Go is not as expected in %s", original)
	}
	replace := make(map[string]string)
	var errs []error
	for i, f := range []struct{ at, source string }{
		{original, strings.Replace(string(b), nowAsItIs, nowStepped, 1)},
		{filepath.Join(goroot, "src", "time", "step.go"), stepSource},
		{filepath.Join(root, "cmd", "playhead", "clock_step.go"), watchSource},
	} {
		path := filepath.Join(dir, fmt.Sprintf("clock%d.go", i))
		replace[f.at] = path
		errs = append(errs, os.WriteFile(path, []byte(f.source), 0o600))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	path := filepath.Join(dir, "clock.json")
	if err := errors.Join(append(errs, err, os.WriteFile(path, overlay, 0o600))...); err != nil {
		return "", fmt.Errorf("a clock to step: %w", err)
	}
	server := filepath.Join(dir, "playhead-clock")
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", path, "-o", server, "./cmd/playhead")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("a clock to step: build: %w\n%s", err, out)
	}
	return server, nil
}

// clockFaults step a node's clock, for a while or for good.
func clockFaults() []fault {
	return []fault{{"clock of a node stepped", 5, func(ctx context.Context, h *hand) string {
		n := h.node()
		step := h.between(-maxStep, maxStep)
		n.StepClock(step)
		h.wait(ctx, time.Second, 4*time.Second)
		if h.random.IntN(2) == 0 {
			n.StepClock(0)
		}
		return ""
	}}}
}
