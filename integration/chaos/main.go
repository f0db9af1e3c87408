// Command chaos breaks a cluster of Playhead at random, under load, and judges what is
// left: `make chaos SEED=… [DURATION=…|FAULTS=…]`.
//
// A campaign is rounds, each a cluster of its own in a temporary directory: Kafka,
// ClickHouse and nodes as processes behind proxies (integration/cluster), clients that
// append, listen and page, and hands that break things: processes, networks, disks.
// What they do follows from the seed; when it falls into what the cluster is doing does not.
// After each round everything is put back, and an audit compares what clients were told
// with the log and the history. A round that broke a promise is told with its seed, and its
// directory is kept. Exit codes: 0 every promise was kept; 1 not, or it could not be run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/playhead-dev/playhead/integration/cluster"
	"github.com/playhead-dev/playhead/internal/engine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the next signal kills
	if len(os.Args) > 1 && os.Args[1] == cluster.BrokerCommand {
		exit(cluster.BrokerMain(ctx, os.Args[2:], os.Stderr))
	}
	exit(run(ctx, os.Args[1:], engine.LibraryPath(os.Getenv), os.Stdout, os.Stderr))
}

func exit(err error) {
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// config is what the command line says.
type config struct {
	server   string // path of the playhead binary
	library  string // of the embedded engine
	self     []string
	dir      string
	seed     uint64
	duration time.Duration
	faults   int
	round    time.Duration
	nodes    int
	json     string
	keep     bool

	mode   string
	source string // the module's root, to build mutants from
	clock  bool   // step the nodes' clocks as well
	only   string // of the mutants

	streams, resident int // of the over-load
}

// The modes of the command.
const (
	modeCampaign = "campaign"
	modeFiles    = "files"
	modeMutants  = "mutants"
	modeOverload = "overload"
)

func parseFlags(args []string, stderr io.Writer) (config, error) {
	c := config{}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.server, "server", "bin/playhead", "the playhead binary to break")
	flags.StringVar(&c.dir, "dir", os.TempDir(), "directory for the clusters' data")
	flags.Uint64Var(&c.seed, "seed", 1, "what the faults follow from; round i has seed + i")
	flags.DurationVar(&c.duration, "duration", 0, "how long to break things, in all; 0: until -faults")
	flags.IntVar(&c.faults, "faults", 0, "how many faults, in all; 0: until -duration. Neither: 5m")
	flags.DurationVar(&c.round, "round", 3*time.Minute, "how long a round is at most, without its audit")
	flags.IntVar(&c.nodes, "nodes", 3, "nodes with all roles")
	flags.StringVar(&c.json, "json", "", "file to write the report to as JSON as well")
	flags.StringVar(&c.mode, "mode", modeCampaign, "what to do: campaign; files (damage the files of playhead dev between two lives); mutants (see that campaigns catch servers broken on purpose); overload (ask ten times of a node what it can do)")
	flags.IntVar(&c.streams, "streams", 5000, "with -mode overload, streams, half of them stuck")
	flags.IntVar(&c.resident, "resident", 1024, "with -mode overload, MiB of memory that the node may take")
	flags.StringVar(&c.source, "source", ".", "with -mode mutants or -clock, the root of the module")
	flags.BoolVar(&c.clock, "clock", false, "build a server whose clock can be stepped, in place of -server, and step it")
	flags.StringVar(&c.only, "only", "", "with -mode mutants, only those whose name contains this")
	flags.BoolVar(&c.keep, "keep", false, "keep the directories of all rounds, not only of those that failed")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	switch {
	case flags.NArg() > 0:
		return c, fmt.Errorf("takes no arguments, got %q", flags.Arg(0))
	case c.nodes < 1 || c.nodes > 16:
		return c, fmt.Errorf("-nodes is %d; want 1 to 16", c.nodes)
	case c.duration < 0 || c.faults < 0 || c.round < time.Second:
		return c, fmt.Errorf("-duration is %v, -faults %d, -round %v; want none negative, and rounds of 1s at least", c.duration, c.faults, c.round)
	case !slices.Contains([]string{modeCampaign, modeFiles, modeMutants, modeOverload}, c.mode):
		return c, fmt.Errorf("-mode is %q; want campaign, files, mutants or overload", c.mode)
	case c.mode == modeOverload && c.duration == 0:
		c.duration = 2 * time.Minute
	case c.mode == modeCampaign && c.duration == 0 && c.faults == 0:
		c.duration = 5 * time.Minute
	}
	return c, nil
}

// outcome is what a mode has found out.
type outcome interface {
	OK() bool
	print(w io.Writer)
}

func run(ctx context.Context, args []string, library string, stdout, stderr io.Writer) error {
	cfg, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	cfg.library = library
	if cfg.server, err = filepath.Abs(cfg.server); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg.self = []string{self, cluster.BrokerCommand}
	var r outcome
	switch cfg.mode {
	case modeFiles:
		r, err = damageFiles(ctx, cfg, stderr)
	case modeMutants:
		r, err = huntMutants(ctx, cfg, stderr)
	case modeOverload:
		r, err = overload(ctx, cfg, stderr)
	default:
		r, err = campaign(ctx, cfg, stderr)
	}
	// What was found is still printed.
	r.print(stdout)
	if cfg.json != "" {
		b, jerr := json.MarshalIndent(r, "", "  ")
		err = errors.Join(err, jerr, os.WriteFile(cfg.json, append(b, '\n'), 0o600))
	}
	if err == nil && !r.OK() {
		err = errors.New("a promise was broken")
	}
	return err
}
