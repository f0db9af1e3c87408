package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// historyConfig is what the command line says about the section history.
type historyConfig struct {
	data string // directory of the data, kept
	asks int    // of each kind; 0 leaves out all but replays
}

func (c *historyConfig) flags(flags *flag.FlagSet) {
	cache, _ := os.UserCacheDir() // without one -data has to be given
	if cache != "" {
		cache = filepath.Join(cache, "playhead", "bench-history")
	}
	flags.StringVar(&c.data, "data", cache, "directory of the section history's data, made once for -rows and kept; about 210 B a row, and as much again while it is made")
	flags.IntVar(&c.asks, "n", 200, "requests of each kind in the section history, by 1 client and by 4; 0 measures replays alone")
}

func (c *historyConfig) check() error {
	if c.asks < 0 {
		return fmt.Errorf("-n is %d; want at least 0", c.asks)
	}
	return nil
}

// Bounds of the section.
const (
	minHistoryRows = 2_000_000 // for fewer no session of a call begins and ends within a partition
	historyClients = 4
	historyWarmUp  = 3 // requests of each kind before those that count
	// historyPatience bounds one kind's requests: those that take long are fewer than -n.
	historyPatience = 8 * time.Second
)

// Columns of the tables. The engine's are the same statements, of other targets.
const (
	byPage    = "page"
	byEngine  = "engine"
	ratio     = "×"
	byPage4   = "page, 4 at once"
	byEngine4 = "engine, 4 at once"
	ratio4    = "×, 4 at once"
)

// measureHistory measures history over a table that is too large for memory. Only -only
// history runs it: the table takes minutes to make and stays on the disk.
func (b *bench) measureHistory(ctx context.Context) error {
	if !slices.Contains(b.cfg.only, "history") {
		b.logf("left out; -only history asks for it")
		return nil
	}
	if b.cfg.history.data == "" || b.size.rows < minHistoryRows {
		return fmt.Errorf("-data is %q and -rows %d; want a directory, and at least %d rows", b.cfg.history.data, b.size.rows, minHistoryRows)
	}
	c := b.report.comparison("History: the table", []string{"table"},
		"One workspace, %s rows in %d Kafka partitions, %d days; payload %d B on average, metadata with a region (8 values) and a user (1,000,000). "+
			"The log has deleted all of it, so that pages come from ClickHouse alone. The rows were inserted into the tables that the product's migrations made; server, embedded Kafka and engine are those of playhead dev.",
		number(float64(b.size.rows)), 4, historyDays, historyPayload)
	d, err := b.ensureHistory(ctx, c)
	if err != nil {
		return err
	}
	if b.cfg.history.asks == 0 {
		return b.askHistory(ctx, c, &d, nil, nil, nil)
	}
	all := historyQuestions(&d)
	recorded, exports, err := b.recordHistory(ctx, &d, all)
	if err != nil {
		return err
	}
	return b.askHistory(ctx, c, &d, all, recorded, exports)
}

// askHistory starts the server as playhead dev does by itself and measures.
func (b *bench) askHistory(ctx context.Context, table *comparison, d *historyData, all []questions, recorded [][]recording, exports []recording) (err error) {
	b.logf("measuring")
	s, err := newServer(b.cfg.server, b.cfg.history.data)
	if err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	defer s.stopInto(&err)
	state, err := readHistoryState(b.cfg.history.data)
	if err != nil {
		return err
	}
	if err := historyStorage(ctx, table, state.ClickHouse, d.rows()); err != nil {
		return err
	}
	m := &historyMeter{bench: b, server: s}
	if m.engine, err = newStraight(state.ClickHouse); err != nil {
		return err
	}
	defer m.engine.close()
	if m.conn, err = dial(s.addr); err != nil {
		return err
	}
	defer m.conn.close()
	if _, err := m.conn.get(workspacePage()); err != nil { // opens the tapes
		return err
	}
	for i, q := range all {
		c := b.report.comparison(q.title, []string{byPage, byEngine, ratio, byPage4, byEngine4, ratio4},
			"%s Pages of %d over HTTP on kept connections, %d of each kind by 1 client, then by %d, each about a random target; in the order of the rows. "+
				"Engine: the statements of such pages as the server sends them, recorded for other targets beforehand, sent to the engine over its HTTP, one after the other, and read to the end but not decoded; by turns with the pages.",
			q.shape, pageSize, b.cfg.history.asks, historyClients)
		for j, kind := range q.kinds {
			if why := recorded[i][j].why; why != "" {
				c.note("%s: %s.", kind.name, why)
				continue
			}
			if err := m.measure(ctx, c, &kind, recorded[i][j].pages, historyRandom(i, j, 2)); err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
		}
	}
	if b.cfg.history.asks > 0 {
		if err := b.exportHistory(ctx, s, m.engine, d, exports); err != nil {
			return err
		}
	}
	return b.replayHistory(ctx, s, d)
}
