package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// about says what was measured, where and when.
type about struct {
	Server    string `json:"server"` // what `playhead version` says: the commit
	Date      string `json:"date"`
	Runs      int    `json:"runs"`
	Quick     bool   `json:"quick"`
	Rows      int    `json:"rows"`
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	MemoryGiB int    `json:"memory_gib"`
	System    string `json:"system"`
	Go        string `json:"go"`
	LoadAvg   string `json:"load_avg"` // before the first run: above 0.5 somebody else was at work

	Targets []string `json:"targets,omitempty"` // of a comparison: what each is
	Absent  []string `json:"absent,omitempty"`  // and which could not be had
}

func describe(ctx context.Context, cfg config, size size) (about, error) {
	version, err := exec.CommandContext(ctx, cfg.server, "version").Output()
	if err != nil {
		return about{}, fmt.Errorf("%s version: %w (make build)", cfg.server, err)
	}
	a := about{
		Server: strings.TrimSpace(string(version)), Date: time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		Runs: cfg.runs, Quick: cfg.quick, Rows: size.rows, Cores: runtime.NumCPU(),
		CPU: procField("/proc/cpuinfo", "model name"), System: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(),
	}
	var kib int
	if _, err := fmt.Sscan(procField("/proc/meminfo", "MemTotal"), &kib); err == nil {
		a.MemoryGiB = (kib + 1<<19) >> 20
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		a.LoadAvg = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return a, nil
}

// procField returns the value of the first `key: value` line of a file, "" without one.
func procField(path, key string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (a about) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "%s, %s. %d × %s, %d GiB, %s, %s; load average before: %s. %d runs of each.\n",
		a.Server, a.Date, a.Cores, a.CPU, a.MemoryGiB, a.System, a.Go, a.LoadAvg, a.Runs)
	if a.Quick {
		b.WriteString("\n**-quick: one short run, for a smoke test. No figure to cite.**\n")
	}
}
