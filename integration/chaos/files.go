package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/playhead-dev/playhead/integration/cluster"
)

// This file damages files in the data directory of playhead dev between two of its lives.
// What the next life may do is refuse, saying what is wrong, or go on with nothing that was
// acknowledged lost; or, where the disk has lost the only copy, say so in its log. It may
// not lose anything in silence.

// damage is one way to damage a file.
type damage struct {
	name string
	do   func(path string, random *mathrand.Rand) error
}

// damages are what disks, operators and restores do to a file.
var damages = []damage{
	{"cut off at the end", func(path string, random *mathrand.Rand) error {
		return changeSize(path, func(size int64) int64 { return size - 1 - random.Int64N(min(size, 500)) })
	}},
	{"cut in half", func(path string, _ *mathrand.Rand) error {
		return changeSize(path, func(size int64) int64 { return size / 2 })
	}},
	{"emptied", func(path string, _ *mathrand.Rand) error {
		return changeSize(path, func(int64) int64 { return 0 })
	}},
	{"with a bit flipped", func(path string, random *mathrand.Rand) error {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		b[random.IntN(len(b))] ^= 1 << random.IntN(8)
		return os.WriteFile(path, b, 0o600)
	}},
	{"with a block of zeros", func(path string, random *mathrand.Rand) error {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		at := random.IntN(len(b))
		clear(b[at:min(len(b), at+4096)])
		return os.WriteFile(path, b, 0o600)
	}},
	{"with garbage behind its end", func(path string, _ *mathrand.Rand) error {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, rand.Reader, 100)
		return errors.Join(err, f.Close())
	}},
	{"removed", func(path string, _ *mathrand.Rand) error { return os.RemoveAll(path) }},
}

func changeSize(path string, change func(int64) int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, max(0, change(info.Size())))
}

// victim is a kind of file, by a pattern of its path in the data directory.
type victim struct {
	name    string
	pattern *regexp.Regexp
}

// victims are the kinds of files of a data directory, apart from locks and ClickHouse's
// own scratch.
var victims = []victim{
	{"segment of the log", regexp.MustCompile(`^kafka/partitions/playhead\.events-\d+/\d+\.dat$`)},
	{"index of the log", regexp.MustCompile(`^kafka/partitions/playhead\.events-\d+/\d+\.idx$`)},
	{"snapshot of the log", regexp.MustCompile(`^kafka/partitions/playhead\.events-\d+/snapshot\.json$`)},
	{"segment of the control topic", regexp.MustCompile(`^kafka/partitions/playhead\.control-0/\d+\.dat$`)},
	{"commits of groups", regexp.MustCompile(`^kafka/groups\.log$`)},
	{"producers", regexp.MustCompile(`^kafka/(pids\.log|seq_windows\.json)$`)},
	{"topics", regexp.MustCompile(`^kafka/topics\.json$`)},
	{"the broker's meta.json", regexp.MustCompile(`^kafka/meta\.json$`)},
	{"dev.json", regexp.MustCompile(`^dev\.json$`)},
	{"column of a part", regexp.MustCompile(`^clickhouse/clickhouse/store/.*/all_[^/]*/(data|.*)\.(bin|mrk\d?|cmrk\d?)$|^clickhouse/clickhouse/store/.*\d{6}_[^/]*/[^/]*\.(bin|mrk\d?|cmrk\d?)$`)},
	{"checksums of a part", regexp.MustCompile(`^clickhouse/clickhouse/store/.*\d{6}_[^/]*/(checksums|columns|count)\.txt$`)},
	{"metadata of ClickHouse", regexp.MustCompile(`^clickhouse/clickhouse/(metadata|store)/.*\.sql$`)},
	{"the log of deduplication", regexp.MustCompile(`^clickhouse/clickhouse/store/.*/deduplication_logs/`)},
}

// fileCase is one file damaged, and what came of it.
type fileCase struct {
	Seed    uint64 `json:"seed"`
	File    string `json:"file"`
	Damage  string `json:"damage"`
	After   string `json:"after"` // a kill, or a stop in order
	Outcome string `json:"outcome"`
	Detail  string `json:"detail,omitempty"`
	Dir     string `json:"dir,omitempty"` // kept
	OK      bool   `json:"ok"`
}

// fileReport is a campaign's on files.
type fileReport struct {
	Cases []*fileCase `json:"cases"`
}

// OK reports whether nothing was lost in silence.
func (r *fileReport) OK() bool {
	return !slices.ContainsFunc(r.Cases, func(c *fileCase) bool { return !c.OK })
}

func (r *fileReport) print(w io.Writer) {
	fmt.Fprintf(w, "| file | damage | after | outcome |\n| --- | --- | --- | --- |\n")
	for _, c := range r.Cases {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", c.File, c.Damage, c.After, c.Outcome)
	}
	for _, c := range r.Cases {
		if !c.OK {
			fmt.Fprintf(w, "\nseed %d failed (%s %s); its directory is %s\n%s\n", c.Seed, c.File, c.Damage, c.Dir, c.Detail)
		}
	}
}

// damageFiles runs one case after the other: every kind of file with every damage, in an
// order that follows from the seed, until the time or the faults are used up.
func damageFiles(ctx context.Context, cfg config, progress io.Writer) (*fileReport, error) {
	type pair struct {
		v victim
		d damage
	}
	var pairs []pair
	for _, v := range victims {
		for _, d := range damages {
			pairs = append(pairs, pair{v, d})
		}
	}
	mathrand.New(mathrand.NewPCG(cfg.seed, 0)).Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	r := &fileReport{}
	began := time.Now()
	for i, p := range pairs {
		if cfg.faults > 0 && i >= cfg.faults || cfg.duration > 0 && time.Since(began) > cfg.duration || ctx.Err() != nil {
			break
		}
		c := &fileCase{Seed: cfg.seed + uint64(i), File: p.v.name, Damage: p.d.name}
		if err := c.run(ctx, cfg, p.v, p.d); err != nil {
			return r, fmt.Errorf("%s %s: %w", c.File, c.Damage, err)
		}
		r.Cases = append(r.Cases, c)
		fmt.Fprintf(progress, "%s %s, after %s: %s\n", c.File, c.Damage, c.After, c.Outcome)
	}
	return r, nil
}

// fileLoad is small: what matters is what lies on the disk.
func fileLoad(seed uint64) cluster.LoadConfig {
	l := cluster.DefaultLoad(seed)
	l.Writers, l.Unnamed, l.SessionListeners, l.SocketListeners, l.Pause = 3, 1, 1, 0, 10*time.Millisecond
	return l
}

// run writes, ends the server, damages a file, and looks what the next life says.
func (c *fileCase) run(ctx context.Context, cfg config, v victim, d damage) (err error) {
	random := mathrand.New(mathrand.NewPCG(c.Seed, 1))
	dir, err := os.MkdirTemp(cfg.dir, fmt.Sprintf("playhead-files-%d-", c.Seed))
	if err != nil {
		return fmt.Errorf("directory of the case: %w", err)
	}
	defer func() {
		if err == nil && c.OK && !cfg.keep {
			err = os.RemoveAll(dir)
		} else {
			c.Dir = dir
		}
	}()
	one, err := cluster.StartDev(cluster.Config{Dir: dir, Binary: cfg.server, Library: cfg.library})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, one.Close()) }()
	if err := one.Dev.Start(ctx); err != nil {
		return err
	}
	load := cluster.StartLoad(one, fileLoad(c.Seed))
	select {
	case <-time.After(time.Duration(1+random.IntN(2)) * time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := load.Finish(ctx, finishWithin); err != nil {
		return err
	}
	c.After = "kill"
	if random.IntN(3) == 0 {
		c.After = "stop"
		if err := one.Dev.Stop(stopPatience); err != nil {
			return err
		}
	}
	one.Dev.Kill()
	path, err := pick(one.Dev.Data, v, random)
	if err != nil {
		return err
	}
	if path == "" {
		c.Outcome, c.OK = "there is no such file", true
		return nil
	}
	if err := d.do(path, random); err != nil {
		return fmt.Errorf("damage %s: %w", path, err)
	}
	return c.look(ctx, one, load)
}

// pick picks a file of the kind; "" if there is none.
func pick(data string, v victim, random *mathrand.Rand) (string, error) {
	var all []string
	err := filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(data, path)
		info, infoErr := e.Info()
		if err := errors.Join(err, infoErr); err != nil {
			return err
		}
		if v.pattern.MatchString(filepath.ToSlash(rel)) && info.Size() > 0 {
			all = append(all, path)
		}
		return nil
	})
	if err != nil || len(all) == 0 {
		return "", err
	}
	return all[random.IntN(len(all))], nil
}

// look starts the server on the damaged directory and judges what it does.
func (c *fileCase) look(ctx context.Context, one *cluster.Cluster, load *cluster.Load) error {
	err := one.Dev.Start(ctx)
	var refused *cluster.RefusedError
	if errors.As(err, &refused) {
		lines := strings.Split(refused.Said, "\n")
		c.Outcome, c.OK = "refused: "+lines[len(lines)-1], true
		if strings.Contains(refused.Said, "panic") || strings.Contains(refused.Said, "goroutine ") {
			c.Outcome, c.OK = "panicked", false
		}
		return nil
	}
	if err != nil {
		c.Outcome, c.Detail = "neither started nor refused: "+err.Error(), one.LastWords(3000)
		return nil
	}
	// New events must find places of their own, and old ones their rows.
	more := cluster.StartLoad(one, fileLoad(c.Seed).Later())
	select {
	case <-time.After(500 * time.Millisecond):
	case <-ctx.Done():
	}
	finishErr := more.Finish(ctx, finishWithin)
	before, err := one.Audit(ctx, load)
	if err != nil {
		c.Outcome, c.Detail = "cannot be audited: "+err.Error(), one.LastWords(3000)
		return nil
	}
	c.judge(before, errors.Join(finishErr, more.Complaints()))
	if !c.OK {
		c.Detail += "\n" + one.LastWords(3000)
	}
	return nil
}

// judge words the outcome of a server that went on.
func (c *fileCase) judge(v *cluster.Verdict, later error) {
	others := 0
	for _, f := range v.Findings {
		if !strings.HasPrefix(f.Where, "log of ") { // those are the server's own
			others++
		}
	}
	switch {
	case later != nil:
		c.Outcome = "what comes later fails: " + strings.SplitN(later.Error(), "\n", 2)[0]
	case others == 0 && v.Alarms == 0:
		c.Outcome, c.OK = "nothing lost", true
	case others == 0:
		c.Outcome, c.OK = "nothing lost, after the log has raised an alarm", true
	case v.Alarms > 0:
		c.Outcome, c.OK = fmt.Sprintf("%d lost, %d doubled, %d reordered, and the log says so", v.Lost, v.Doubled, v.Reordered), true
	default:
		c.Outcome = fmt.Sprintf("%d LOST, %d doubled, %d reordered IN SILENCE", v.Lost, v.Doubled, v.Reordered)
	}
	for _, f := range v.Findings {
		c.Detail += fmt.Sprintf("  %s: %s\n", f.Where, f.What)
	}
}
