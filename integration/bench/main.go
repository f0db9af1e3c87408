// Command bench measures a playhead dev process from the outside, over loopback HTTP,
// and prints a table for docs/benchmarks.md. `make bench` runs it. With -peers it measures
// other servers beside it: `make bench-peers`.
//
// Each section starts servers of its own in a temporary directory and stops them again.
// What is compared with something (raw franz-go, another source) is measured in the same
// run, on the same machine, turn by turn, so that ratios hold even where absolute figures
// do not. The load generator shares the machine's processors with the server; the
// processor time each of them used is measured, not guessed (proc(5)).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the next signal kills
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// section is one group of measurements. It runs all of its runs, so that it decides what
// they share.
type section struct {
	name string
	run  func(*bench, context.Context) error
}

// sections lists them in the order they run.
func sections() []section {
	return []section{
		{"append", (*bench).measureAppends},
		{"backfill", (*bench).measureBackfill},
		{"fanout", (*bench).measureFanout},
		{"replay", (*bench).measureReplay},
		{"materialise", (*bench).measureMaterialiser},
		{"idle", (*bench).measureIdle},
		{"pages", (*bench).measurePages},
		{"start", (*bench).measureStart},
		{"history", (*bench).measureHistory},
	}
}

func sectionNames() []string {
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	return names
}

// config is what the command line says.
type config struct {
	server string // path of the playhead binary
	dir    string // where data directories are made
	runs   int
	rows   int
	quick  bool
	only   []string
	json   string // file that gets the report as JSON too

	history historyConfig

	peers   string   // directory of scripts/fetch-peers.sh: compare, in place of the sections
	targets []string // to compare; none: all
}

func parseFlags(args []string, stderr io.Writer) (config, error) {
	var c config
	var only, targets string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.server, "server", "bin/playhead", "the playhead binary to measure")
	flags.StringVar(&c.dir, "dir", os.TempDir(), "directory for the servers' data, removed afterwards")
	flags.IntVar(&c.runs, "runs", 3, "runs of each measurement; the table has their median, least and greatest")
	flags.IntVar(&c.rows, "rows", 0, "rows in the table that pages and start, or history, work on (default 1,000,000; with -quick 50,000)")
	c.history.flags(flags)
	flags.BoolVar(&c.quick, "quick", false, "one short run of everything, to see that it works")
	flags.StringVar(&only, "only", "", "sections to run, separated by commas: "+strings.Join(sectionNames(), ", ")+"; with -peers: "+strings.Join(boutNames(), ", "))
	flags.StringVar(&c.json, "json", "", "file to write the report to as JSON as well")
	flags.StringVar(&c.peers, "peers", "", "directory where scripts/fetch-peers.sh has put other servers: compare with them, in place of the sections")
	flags.StringVar(&targets, "targets", "", "with -peers, what to compare, separated by commas: "+strings.Join(contestantNames(), ", "))
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("takes no arguments, got %q", flags.Arg(0))
	}
	names := sectionNames()
	if c.peers != "" {
		names = boutNames()
	}
	var err error
	if c.only, err = someOf("-only", only, names); err != nil {
		return c, err
	}
	if targets != "" && c.peers == "" {
		return c, errors.New("-targets is for -peers")
	}
	if c.targets, err = someOf("-targets", targets, contestantNames()); err != nil {
		return c, err
	}
	if c.quick {
		c.runs = 1
	}
	if c.runs < 1 {
		return c, fmt.Errorf("-runs is %d; want at least 1", c.runs)
	}
	return c, c.history.check()
}

// someOf splits a list of names by commas and checks them.
func someOf(flag, list string, names []string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	some := strings.Split(list, ",")
	for _, name := range some {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("%s has %q; want some of %s", flag, name, strings.Join(names, ", "))
		}
	}
	return some, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	cfg, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	b := newBench(cfg, stderr)
	if b.report.About, err = describe(ctx, cfg, b.size); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	if cfg.peers != "" {
		err = b.comparePeers(ctx)
	} else {
		err = b.runSections(ctx)
	}
	// What has been measured is still printed.
	if cfg.json != "" {
		err = errors.Join(err, b.report.writeJSON(cfg.json))
	}
	return errors.Join(err, b.report.writeMarkdown(stdout))
}

func (b *bench) runSections(ctx context.Context) error {
	for _, s := range sections() {
		if len(b.cfg.only) > 0 && !slices.Contains(b.cfg.only, s.name) {
			continue
		}
		b.logf("== %s", s.name)
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}
