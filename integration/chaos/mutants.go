package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/playhead-dev/playhead/integration/cluster"
)

// mutant is a server with one line of it broken on purpose: a campaign that does not catch
// it proves nothing.
type mutant struct {
	name string
	file string // from the module's root
	old  string // stands there once
	new  string
}

// mutants are breaks of what keeps the promises.
var mutants = []mutant{
	{
		name: "commit before insert",
		file: "query/materializer/worker.go",
		old: `	w.state.intent = w.batch.intent(w.state.next)
	if err := w.commit(); err != nil {
		return err
	}
`,
		new: `	announced := w.batch.intent(w.state.next)
	w.state.next, w.state.intent = announced.End, Intent{}
	if err := w.commit(); err != nil {
		return err
	}
	w.state.intent = announced
`,
	},
	{
		name: "ignore the intent",
		file: "query/materializer/worker.go",
		old:  "	if !w.state.intent.IsZero() {\n",
		new:  "	if w.state.intent = (Intent{}); !w.state.intent.IsZero() {\n",
	},
	{
		name: "drop the fence",
		file: "query/materializer/commit.go",
		old:  "			if err := kerr.ErrorForCode(p.ErrorCode); fenced(err) {\n				return fmt.Errorf(\"%w (%w)\", ErrFenced, err)\n",
		new:  "			if err := kerr.ErrorForCode(p.ErrorCode); fenced(err) {\n				return nil\n",
	},
	{
		name: "take a lost answer for a failed insert",
		file: "query/materializer/worker.go",
		old:  "	return w.settle(b)\n}\n\n// insert sends",
		new:  "	w.state.intent.Attempt++\n	return w.insert(b)\n}\n\n// insert sends",
	},
	{
		name: "resume one too far",
		file: "streamer/begin.go",
		old:  "			legs[i].from.Epoch, legs[i].from.Offset = epoch, next\n",
		new:  "			legs[i].from.Epoch, legs[i].from.Offset = epoch, next+1\n",
	},
	{
		name: "resume one too near",
		file: "streamer/begin.go",
		old:  "			legs[i].from.Epoch, legs[i].from.Offset = epoch, next\n",
		new:  "			legs[i].from.Epoch, legs[i].from.Offset = epoch, max(next-1, 0)\n",
	},
	{
		name: "acknowledge what kafka has not taken",
		file: "ingest/acknowledge.go",
		old:  "	if err != nil {\n		res.Err = produceError(err)\n",
		new: `	if err != nil {
		res.ID = schema.EventID{
			Position: schema.Position{Epoch: r.a.layout.Epoch(), Partition: t.lane.partition, Offset: t.tail.Next()},
			TimeMs:   r.items[i].Event.ID.TimeMs,
		}
`,
	},
	{
		name: "acknowledge before it is on disk",
		file: "internal/kafka/answers.go",
		old:  "	if c.waits(p) {\n",
		new:  "	if c.waits(p) && false {\n",
	},
	{
		name: "show repeats live",
		file: "streamer/tape/tape.go",
		old:  "		_, duplicate := t.window.Observe(&r.event.Event)\n",
		new:  "		_, duplicate := t.window.Observe(&r.event.Event)\n		duplicate = false\n",
	},
	{
		name: "read rows in doubt",
		file: "query/watermark.go",
		old:  "		return m.next\n",
		new:  "		return m.next + 1000\n",
	},
}

// mutantResult is what became of a mutant.
type mutantResult struct {
	Mutant  string  `json:"mutant"`
	Caught  bool    `json:"caught"`
	Seconds float64 `json:"seconds"` // of breaking things, audits not counted
	Faults  int     `json:"faults"`
	By      string  `json:"by"` // the first finding
}

// mutantReport is what became of all of them.
type mutantReport struct {
	Results []mutantResult `json:"results"`
}

// OK reports whether all were caught.
func (r *mutantReport) OK() bool {
	for _, m := range r.Results {
		if !m.Caught {
			return false
		}
	}
	return true
}

func (r *mutantReport) print(w io.Writer) {
	fmt.Fprint(w, "| mutant | caught after | faults | by |\n| --- | --- | --- | --- |\n")
	for _, m := range r.Results {
		after := fmt.Sprintf("%.0f s", m.Seconds)
		if !m.Caught {
			after = "NOT, in " + after
		}
		fmt.Fprintf(w, "| %s | %s | %d | %s |\n", m.Mutant, after, m.Faults, m.By)
	}
}

// apply returns the source of the mutant's file, broken.
func (m mutant) apply(root string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return nil, fmt.Errorf("mutant %q: %w", m.name, err)
	}
	if n := strings.Count(string(b), m.old); n != 1 {
		return nil, fmt.Errorf("mutant %q: what it breaks stands %d times in %s, want once: bring the mutant up to date", m.name, n, m.file)
	}
	return []byte(strings.Replace(string(b), m.old, m.new, 1)), nil
}

// build builds the mutant's server and returns its path.
func (m mutant) build(ctx context.Context, root, dir string) (string, error) {
	source, err := m.apply(root)
	if err != nil {
		return "", err
	}
	broken := filepath.Join(dir, filepath.Base(m.file))
	overlay := filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, m.file): broken}})
	if err == nil {
		err = errors.Join(os.WriteFile(broken, source, 0o600), os.WriteFile(overlay, replace, 0o600))
	}
	if err != nil {
		return "", fmt.Errorf("mutant %q: %w", m.name, err)
	}
	path := filepath.Join(dir, "playhead")
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", path, "./cmd/playhead")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mutant %q: build: %w\n%s", m.name, err, out)
	}
	return path, nil
}

// hunt runs rounds on the mutant until one catches it, or cfg.duration is over.
func (m mutant) hunt(ctx context.Context, cfg config, root string, progress io.Writer) (result mutantResult, err error) {
	result.Mutant = m.name
	dir, err := os.MkdirTemp(cfg.dir, "playhead-mutant-")
	if err != nil {
		return result, fmt.Errorf("mutant %q: %w", m.name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if cfg.server, err = m.build(ctx, root, dir); err != nil {
		return result, err
	}
	// The embedded broker is this program: it is broken by building it as well.
	if strings.HasPrefix(m.file, "internal/kafka/") {
		if cfg.self, err = m.buildSelf(ctx, root, dir); err != nil {
			return result, err
		}
	}
	cfg.dir = dir
	for i := uint64(0); result.Seconds < cfg.duration.Seconds() && ctx.Err() == nil; i++ {
		one, err := newRound(cfg, cfg.seed+i, 0).run(ctx, min(cfg.round, cfg.duration))
		result.Seconds += one.Seconds
		result.Faults += one.Faults
		if one.OK() {
			if err != nil {
				return result, fmt.Errorf("mutant %q: %w", m.name, err)
			}
			continue
		}
		result.Caught, result.By = true, one.firstFinding()
		break
	}
	fmt.Fprintf(progress, "%s: caught %v after %.0f s, %d faults: %s\n", m.name, result.Caught, result.Seconds, result.Faults, result.By)
	return result, context.Cause(ctx)
}

// buildSelf builds this program with the mutant in it, for its broker.
func (m mutant) buildSelf(ctx context.Context, root, dir string) ([]string, error) {
	path := filepath.Join(dir, "chaos")
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", path, "./integration/chaos")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mutant %q: build its broker: %w\n%s", m.name, err, out)
	}
	return []string{path, cluster.BrokerCommand}, nil
}

// firstFinding is what says that a round has failed.
func (r *roundReport) firstFinding() string {
	if len(r.Verdict.Findings) > 0 {
		f := r.Verdict.Findings[0]
		return fmt.Sprintf("%s: %.120s", f.Where, f.What)
	}
	return strings.Join(r.Broken, "; ")
}

// huntMutants builds and hunts all mutants, or those that are named.
func huntMutants(ctx context.Context, cfg config, progress io.Writer) (*mutantReport, error) {
	root, err := filepath.Abs(cfg.source)
	if err != nil {
		return nil, err
	}
	if cfg.duration == 0 {
		cfg.duration = 5 * time.Minute
	}
	r := &mutantReport{}
	for _, m := range mutants {
		if cfg.only != "" && !strings.Contains(m.name, cfg.only) {
			continue
		}
		result, err := m.hunt(ctx, cfg, root, progress)
		if err != nil {
			return r, err
		}
		r.Results = append(r.Results, result)
	}
	return r, nil
}
