// Command mutants breaks Playhead on purpose, one line at a time, and wants the simulations
// to notice: each mutant is an edit of a source file, built in an overlay (go help build), so
// that the tree stays as it is. It prints which seed caught each, and fails if one was not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// run checks the mutants that args choose.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	root := flags.String("root", ".", "the module's folder")
	seeds := flags.Int("seeds", 2000, "seeds to run against each mutant, until one catches it")
	only := flags.String("only", "", "regular expression of names; empty: all")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	lab := laboratory{root: *root, seeds: *seeds}
	survived := 0
	fmt.Fprintf(out, "| mutant | broken | caught by seed | %s |\n| --- | --- | --- | --- |\n", "what it said")
	for _, m := range mutants() {
		if !chosen.MatchString(m.name) {
			continue
		}
		r, err := lab.check(ctx, m)
		if errors.Is(err, errMoved) {
			r, err = result{seed: "moved", said: err.Error()}, nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if !r.caught {
			survived++
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s |\n", m.name, m.breaks, r.seed, r.said)
	}
	if survived > 0 {
		return fmt.Errorf("%d mutants were not made, or not caught by %d seeds", survived, *seeds)
	}
	return nil
}
