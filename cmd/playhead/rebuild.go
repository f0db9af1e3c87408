package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/query/materializer"
	"github.com/playhead-dev/playhead/schema"
)

const rebuildUsage = `Usage: playhead rebuild --partition P[,P…]|--all [flags]

Makes rows of the history anew from Kafka, in the range of offsets that is asked for and
below what has been copied. The nodes that copy the log do it, beside that, so at least
one with the role materializer must run. Rows that are there stay, and what is missing is
inserted, each row once, whatever else goes on; --replace deletes the rows of each batch
first, for rows that are wrong or doubled (pages lack them for that moment). Erased
sessions stay erased.

Ctrl-C withdraws the request; what was done stays done, and asking again is safe.

Flags:
`

const rebuildExitCodes = `
Exit codes: 0 the range is whole; 1 something could not be restored; 2 wrong usage;
130 interrupted.
`

// rebuildPoll is how often the answers are looked at, rebuildReport how often they are
// told.
const (
	rebuildPoll   = 500 * time.Millisecond
	rebuildReport = 5 * time.Second
)

// position is where a range begins or ends: an offset or a time.
type position struct {
	offset int64
	at     time.Time // if not zero
}

func parsePosition(s string) (position, error) {
	if offset, err := strconv.ParseInt(s, 10, 64); err == nil {
		if offset < 0 || offset > schema.MaxOffset {
			return position{}, fmt.Errorf("%d; want an offset from 0 to %d", offset, int64(schema.MaxOffset))
		}
		return position{offset: offset}, nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return position{}, fmt.Errorf("%q; want an offset, or a time such as 2026-01-31T15:00:00Z", s)
	}
	return position{at: at}, nil
}

// resolve returns the position's offset in a partition.
func (p position) resolve(ctx context.Context, log *kafka.Log, partition uint16) (int64, error) {
	if p.at.IsZero() {
		return p.offset, nil
	}
	return log.OffsetForTime(ctx, partition, p.at.UnixMilli())
}

// rebuildAsk is what the command line asks for.
type rebuildAsk struct {
	partitions []uint16 // nil: all
	from, to   position
	replace    bool
	dryRun     bool
}

// runRebuild is `playhead rebuild`. Progress goes to stderr, the summary to stdout.
func runRebuild(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) error {
	o := newOperator("rebuild", rebuildUsage, env, stderr)
	usage := o.flags.Usage
	o.flags.Usage = func() { usage(); fmt.Fprint(stderr, rebuildExitCodes) }
	ask, err := parseRebuild(o, args)
	if err != nil {
		return err
	}
	cfg, err := o.config()
	if err != nil {
		return err
	}
	if err := cfg.Kafka.Validate(); err != nil {
		return err
	}
	log, err := kafka.OpenLog(ctx, cfg.Kafka)
	if err != nil {
		return err
	}
	defer log.Close()
	desk, stop, err := openDesk(cfg)
	if err != nil {
		return err
	}
	defer stop()
	requests, err := ask.requests(ctx, log, desk, stderr)
	if err != nil || len(requests) == 0 {
		return err
	}
	id, err := desk.Ask(ctx, requests)
	if err != nil {
		return err
	}
	ended, err := followRebuild(ctx, desk, id, requests, stderr)
	if err != nil && ctx.Err() != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodesTimeout)
		defer cancel()
		return errors.Join(context.Canceled, desk.Cancel(ctx, requests))
	}
	if err != nil {
		return err
	}
	return summarise(ended, stdout)
}

func parseRebuild(o *operator, args []string) (a rebuildAsk, err error) {
	partitions := o.flags.String("partition", "", "Kafka partitions, separated by commas: `P[,P…]`")
	all := o.flags.Bool("all", false, "every partition")
	from := o.flags.String("from", "0", "`offset` or time (RFC 3339) that the range begins at")
	to := o.flags.String("to", strconv.FormatInt(schema.MaxOffset, 10), "`offset` or time that it ends before, at most what has been copied")
	o.flags.BoolVar(&a.replace, "replace", false, "delete the range's rows, and insert them anew")
	o.flags.BoolVar(&a.dryRun, "dry-run", false, "only compare and count")
	if _, err := o.parse(args, 0); err != nil {
		return a, err
	}
	if *all == (*partitions != "") {
		return a, o.complain("wants either --partition or --all")
	}
	if a.replace && a.dryRun {
		return a, o.complain("--replace and --dry-run exclude each other")
	}
	if a.from, err = parsePosition(*from); err != nil {
		return a, o.complain("--from is %v", err)
	}
	if a.to, err = parsePosition(*to); err != nil {
		return a, o.complain("--to is %v", err)
	}
	if *all {
		return a, nil
	}
	for p := range strings.SplitSeq(*partitions, ",") {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return a, o.complain("--partition is %q; want numbers from 0 to %d, separated by commas", *partitions, schema.MaxPartition)
		}
		a.partitions = append(a.partitions, uint16(n))
	}
	return a, nil
}

// requests makes a request for each partition, clipped to what has been copied.
func (a rebuildAsk) requests(ctx context.Context, log *kafka.Log, desk *materializer.Desk, stderr io.Writer) (map[uint16]materializer.Request, error) {
	states, err := desk.States(ctx)
	if err != nil {
		return nil, err
	}
	partitions := a.partitions
	if partitions == nil {
		for p := range log.Partitions() {
			partitions = append(partitions, uint16(p))
		}
	}
	out := make(map[uint16]materializer.Request)
	for _, p := range partitions {
		if int(p) >= log.Partitions() {
			return nil, fmt.Errorf("partition %d does not exist; the log has %d", p, log.Partitions())
		}
		state, ok := states[p]
		if !ok {
			fmt.Fprintf(stderr, "partition %d: nothing has been copied\n", p)
			continue
		}
		from, err := a.from.resolve(ctx, log, p)
		if err != nil {
			return nil, err
		}
		to, err := a.to.resolve(ctx, log, p)
		if err != nil {
			return nil, err
		}
		if to = min(to, state.Committed); from >= to {
			fmt.Fprintf(stderr, "partition %d: the range is empty (copied up to offset %d)\n", p, state.Committed)
			continue
		}
		out[p] = materializer.Request{Epoch: state.Epoch, Start: from, End: to, Replace: a.replace, DryRun: a.dryRun}
	}
	return out, nil
}

// followRebuild tells how far the rebuild is until every partition's has ended.
func followRebuild(ctx context.Context, desk *materializer.Desk, id string, requests map[uint16]materializer.Request, stderr io.Writer) (map[uint16]materializer.Rebuild, error) {
	ended := make(map[uint16]materializer.Rebuild)
	waiting := slices.Sorted(maps.Keys(requests))
	ticker := time.NewTicker(rebuildPoll)
	defer ticker.Stop()
	reported := time.Now()
	for len(waiting) > 0 {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		states, err := desk.States(ctx)
		if err != nil {
			fmt.Fprintln(stderr, "how far it is, is not known:", err)
			continue
		}
		waiting = slices.DeleteFunc(waiting, func(p uint16) bool {
			if states[p].Last.ID == id {
				ended[p] = states[p].Last
			}
			return states[p].Last.ID == id
		})
		if time.Since(reported) < rebuildReport {
			continue
		}
		reported = time.Now()
		if replaced, err := desk.Replaced(ctx, id, waiting); err == nil && len(replaced) > 0 {
			return nil, fmt.Errorf("somebody else has asked for a rebuild of partitions %v in the same moment; ask again when it has ended", replaced)
		}
		report(ctx, desk, id, states, waiting, requests, stderr)
	}
	return ended, nil
}

// report tells how far the partitions are that have not ended.
func report(ctx context.Context, desk *materializer.Desk, id string, states map[uint16]materializer.PartitionState, waiting []uint16, requests map[uint16]materializer.Request, stderr io.Writer) {
	begun := 0
	for _, p := range waiting {
		if b := states[p].Current; b.ID == id {
			begun++
			fmt.Fprintf(stderr, "partition %d: offset %d of %d to %d, %d records checked, %d missing, %d inserted\n",
				p, b.Next, b.Start, b.End, b.Checked, b.Missing, b.Inserted)
		}
	}
	if begun == 0 && len(waiting) > 0 {
		note := "waiting for the partitions' nodes"
		if n, err := desk.Members(ctx); err == nil && n == 0 {
			note = "no node with the role materializer runs; waiting for one"
		}
		fmt.Fprintf(stderr, "%s (%d of %d partitions have ended)\n", note, len(requests)-len(waiting), len(requests))
	}
}

// errNotRestored ends a rebuild that leaves something amiss.
var errNotRestored = errors.New("not everything could be restored")

// summarise prints what each partition's rebuild found and did. It returns an error if
// something is left that is not as it should be.
func summarise(ended map[uint16]materializer.Rebuild, w io.Writer) error {
	var failed error
	for _, p := range slices.Sorted(maps.Keys(ended)) {
		b := ended[p]
		fmt.Fprintf(w, "partition %d, offsets %d to %d: %d records checked, %d missing, %d inserted, %d doubled, %d without a record, %d removed; %d offsets beyond retention, %d of them without a row; %d expired\n",
			p, b.Start, b.End, b.Checked, b.Missing, b.Inserted, b.Doubled, b.Foreign, b.Removed, b.Beyond, b.Lost, b.Expired)
		switch {
		case b.Failure != "":
			fmt.Fprintf(w, "partition %d stopped at offset %d: %s\n", p, b.Next, b.Failure)
			failed = errNotRestored
		case b.Left() > 0:
			failed = errNotRestored
			if b.Doubled+b.Foreign > 0 && !b.Replace {
				fmt.Fprintf(w, "partition %d: rows that are doubled or have no record go with --replace\n", p)
			}
		}
	}
	return failed
}
