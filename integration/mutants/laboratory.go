package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// laboratory builds mutants and runs the simulations against them.
type laboratory struct {
	root  string // the module's folder
	seeds int    // to run against each
}

// mutantTimeout bounds the run of one mutant: one that no longer ends is caught as well.
const mutantTimeout = 5 * time.Minute

// result is what became of a mutant.
type result struct {
	caught bool
	seed   string // the lowest that caught it
	said   string // the first thing that was found wrong
}

// check runs the simulation of m's package against m.
func (l laboratory) check(ctx context.Context, m mutant) (result, error) {
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // nothing of it is needed any more
	binary := filepath.Join(dir, "simulation")
	overlay, err := l.overlay(dir, m)
	if err != nil {
		return result{}, err
	}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", binary, "./"+m.simulation)
	build.Dir = l.root
	if out, err := build.CombinedOutput(); err != nil {
		return result{}, fmt.Errorf("build: %w\n%s", err, out)
	}
	test := exec.CommandContext(ctx, binary, "-test.run", "^TestSimulated", "-test.timeout", mutantTimeout.String())
	test.Dir = filepath.Join(l.root, m.simulation)
	test.Env = append(os.Environ(), "SEED=", "SEEDS="+strconv.Itoa(l.seeds))
	out, err := test.CombinedOutput()
	var failed *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return result{}, context.Cause(ctx)
	case err == nil:
		return result{seed: "none of " + strconv.Itoa(l.seeds)}, nil
	case !errors.As(err, &failed):
		return result{}, err
	}
	return read(string(out)), nil
}

// errMoved reports a mutant that has to be written anew, as the code it breaks has changed.
var errMoved = errors.New("the file does not have the text to be changed once")

// overlay writes m's file and the overlay that puts it in the place of the real one.
func (l laboratory) overlay(dir string, m mutant) (path string, err error) {
	source, err := filepath.Abs(filepath.Join(l.root, m.file))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(text), m.from); n != 1 {
		return "", fmt.Errorf("%w: %s has it %d times", errMoved, m.file, n)
	}
	changed := filepath.Join(dir, "changed.go")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.from, m.to, 1)), 0o600); err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {source: changed}})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, replace, 0o600)
}

var seedLine = regexp.MustCompile(`seed (\d+): [^:]*: (.*)`)

// read finds the lowest seed in a test's output, and what it says.
func read(out string) result {
	r := result{caught: true}
	lowest := uint64(0)
	for _, match := range seedLine.FindAllStringSubmatch(out, -1) {
		seed, err := strconv.ParseUint(match[1], 10, 64)
		if err == nil && (r.seed == "" || seed < lowest) {
			lowest, r.seed, r.said = seed, match[1], strings.ReplaceAll(match[2], "|", "/")
		}
	}
	if r.seed == "" {
		line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
		r.seed, r.said = "crash", strings.ReplaceAll(line, "|", "/")
	}
	return r
}
