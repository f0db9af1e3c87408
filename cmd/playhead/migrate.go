package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/query/materializer"
)

const migrateUsage = `Usage: playhead migrate status|up|down [flags]

Brings the tables in ClickHouse to another version of the schema.

  status   lists the migrations, and which of them are applied
  up       applies the missing ones, as every start of a node does
  down     undoes the newest, or all above --to, for going back to an older program.
           Stop all nodes first: one of this program that starts migrates up again

Each may be run again after it was interrupted, and goes on where it was. A migration
that gives the table another order copies it: it needs room for both on the disk, and
pages are answered from the old one until they change places.

Flags:
`

// runMigrate is `playhead migrate`. What is done is logged to stderr; status goes to
// stdout.
func runMigrate(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) error {
	o := newOperator("migrate", migrateUsage, env, stderr)
	to := o.flags.Int("to", -1, "`version` to stop at: up to it, or down to it")
	dropHistory := o.flags.Bool("drop-history", false, "let down to version 0 drop the table of events though it has rows")
	force := o.flags.Bool("force", false, "let down run though nodes run, or Kafka does not say whether any do")
	words, err := o.parse(args, 1)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return o.complain("wants status, up or down")
	}
	if *to < -1 {
		return o.complain("--to is %d; want 0 or more", *to)
	}
	cfg, err := o.config()
	if err != nil {
		return err
	}
	if err := cfg.ClickHouse.Validate(); err != nil {
		return err
	}
	conn, err := query.OpenMigrations(ctx, cfg.ClickHouse)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight
	m := query.NewMigrator(conn, cfg.ClickHouse.Table, slog.New(slog.NewTextHandler(stderr, nil)))
	switch words[0] {
	case "status":
	case "up":
		err = m.Up(ctx, uint32(max(*to, 0)))
	case "down":
		err = migrateDown(ctx, m, cfg, *to, *dropHistory, *force)
	default:
		return o.complain("%q is none of status, up and down", words[0])
	}
	if err != nil {
		return err
	}
	return printMigrations(ctx, m, stdout)
}

// migrateDown undoes the migrations above to, or the newest if to is negative.
func migrateDown(ctx context.Context, m *query.Migrator, cfg Config, to int, dropHistory, force bool) error {
	if !force {
		if err := refuseWhileNodesRun(ctx, cfg); err != nil {
			return err
		}
	}
	if to < 0 {
		status, err := m.Status(ctx)
		if err != nil {
			return err
		}
		for _, s := range status {
			if !s.AppliedAt.IsZero() {
				to = int(s.Version) - 1
			}
		}
	}
	if to < 0 {
		return nil // nothing is applied
	}
	return m.Down(ctx, uint32(to), dropHistory)
}

// nodesTimeout bounds the question whether nodes run.
const nodesTimeout = 10 * time.Second

var errNodesRun = errors.New("nodes run, and need the tables as they are; stop them first (or give --force)")

func refuseWhileNodesRun(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, nodesTimeout)
	defer cancel()
	desk, stop, err := openDesk(cfg)
	if err != nil {
		return err
	}
	defer stop()
	n, err := desk.Members(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("whether nodes run is not known (give --force to go on all the same): %w", err)
	case n > 0:
		return fmt.Errorf("%d %w", n, errNodesRun)
	}
	return nil
}

// openDesk reaches the materialiser's group; stop closes the client.
func openDesk(cfg Config) (desk *materializer.Desk, stop func(), err error) {
	opts, err := cfg.Kafka.Options()
	if err != nil {
		return nil, nil, err
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, nil, fmt.Errorf("kafka client: %w", err)
	}
	return materializer.NewDesk(kadm.NewClient(client)), client.Close, nil
}

func printMigrations(ctx context.Context, m *query.Migrator, w io.Writer) error {
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VERSION\tNAME\tAPPLIED\tNOTE")
	for _, s := range status {
		applied, note := "no", ""
		if !s.AppliedAt.IsZero() {
			applied = s.AppliedAt.UTC().Format(time.RFC3339)
		}
		switch {
		case s.Changed:
			note = "differs from this program's: one of the two is not what was released"
		case !s.Known:
			note = "of a newer program"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", s.Version, s.Name, applied, note)
	}
	return t.Flush()
}
