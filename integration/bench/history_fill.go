package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/internal/engine"
	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/schema"
)

// makeHistory fills an empty data directory: the server itself makes topics, workspace and
// tables; the rows go straight into the table; and the log is made to agree with them.
func (b *bench) makeHistory(ctx context.Context, dir string) (d historyData, m historyManifest, err error) {
	m = historyManifest{Version: historyVersion, Server: b.report.About.Server}
	if err := m.write(dir); err != nil {
		return d, m, err
	}
	s, err := newServer(b.cfg.server, dir)
	if err != nil {
		return d, m, err
	}
	if err := errors.Join(s.start(ctx), s.stop()); err != nil {
		return d, m, err
	}
	state, err := readHistoryState(dir)
	if err != nil {
		return d, m, err
	}
	d = newHistoryData(state.Workspace, historyPartitions, b.size.rows)
	m.Workspace, m.Rows = state.Workspace, d.rows()
	if m.Filling, m.Settling, err = b.fillHistory(ctx, dir, &d); err != nil {
		return d, m, err
	}
	if err := alignLog(ctx, filepath.Join(dir, devKafka), &d); err != nil {
		return d, m, err
	}
	m.Filled = true
	return d, m, m.write(dir)
}

// historyEngine starts the engine of a data directory without the server, with the
// settings it has in playhead dev.
func (b *bench) historyEngine(ctx context.Context, dir string) (*engine.Process, error) {
	return engine.Start(ctx, engine.Config{
		DataPath: filepath.Join(dir, devEngine), LibraryPath: engine.LibraryPath(os.Getenv),
		Executable: b.cfg.server, ChildArgs: []string{"engine"},
		Log: slog.New(slog.NewTextHandler(b.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), Stderr: b.stderr,
	})
}

// fillRows is how many rows one insert writes, and so how large the first parts are: as
// much as the materialiser's largest batches, of a few of them.
const (
	fillRows   = 200_000
	fillAtOnce = 2
	fillReport = 15 * time.Second
)

// fillHistory inserts the rows in the order of their time and waits until the engine has
// merged what it will.
func (b *bench) fillHistory(ctx context.Context, dir string, d *historyData) (filling, settling time.Duration, err error) {
	p, err := b.historyEngine(ctx, dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	cfg := query.DefaultClickHouseConfig()
	cfg.DSN, cfg.ReadTimeout = p.DSN(), time.Hour
	conn, err := query.Open(ctx, cfg)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := prepareWords(ctx, conn); err != nil {
		return 0, 0, err
	}
	begun, said := time.Now(), time.Now()
	group, inserts := errgroup.WithContext(ctx)
	group.SetLimit(fillAtOnce)
	for from := int64(0); from < d.perPartition && inserts.Err() == nil; from += fillRows {
		to := min(from+fillRows, d.perPartition)
		for shard := range d.partitions {
			group.Go(func() error { return conn.Exec(inserts, d.insert(shard, from, to)) })
		}
		if time.Since(said) > fillReport {
			said = time.Now()
			b.logf("about %s rows after %v", number(float64(from*int64(len(d.partitions)))), time.Since(begun).Round(time.Second))
		}
	}
	if err := group.Wait(); err != nil {
		return 0, 0, fmt.Errorf("insert: %w", err)
	}
	filling = time.Since(begun)
	b.logf("%s rows inserted in %v", number(float64(d.rows())), filling.Round(time.Second))
	if err := conn.Exec(ctx, "DROP DATABASE "+wordsDatabase+" SYNC"); err != nil {
		return 0, 0, fmt.Errorf("drop the words: %w", err)
	}
	begun = time.Now()
	if err := awaitMerges(ctx, conn); err != nil {
		return 0, 0, err
	}
	settling = time.Since(begun)
	return filling, settling, d.verify(ctx, conn)
}

// Payloads are cut out of a text of this size, so large that the engine's compression,
// which looks back some hundred kilobytes, finds few of the pieces again.
const (
	wordsBytes    = 8 << 20
	wordsDatabase = "bench"
)

// prepareWords puts the text of the payloads where inserts read it.
func prepareWords(ctx context.Context, conn driver.Conn) error {
	for _, statement := range []string{
		"CREATE DATABASE IF NOT EXISTS " + wordsDatabase,
		"CREATE OR REPLACE TABLE " + wordsDatabase + ".words (text String) ENGINE = Memory",
	} {
		if err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("prepare words: %w", err)
		}
	}
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO "+wordsDatabase+".words")
	if err == nil {
		err = batch.Append(wordsText())
	}
	if err == nil {
		err = batch.Send()
	}
	if err != nil {
		return fmt.Errorf("prepare words: %w", err)
	}
	return nil
}

// wordsText is text of made-up words, of which a few are frequent, as in any language.
func wordsText() string {
	random := rand.New(rand.NewPCG(7, 8)) // the same in every run
	words := make([]string, 5000)
	for i := range words {
		var w strings.Builder
		for range 2 + random.IntN(9) {
			w.WriteByte("etaoinshrdlucmfwypvbgkjqxz"[min(random.IntN(26), random.IntN(26))])
		}
		words[i] = w.String()
	}
	frequent := rand.NewZipf(random, 1.1, 4, uint64(len(words)-1))
	var text strings.Builder
	for text.Len() < wordsBytes {
		text.WriteString(words[frequent.Uint64()])
		text.WriteByte(' ')
	}
	return text.String()[:wordsBytes]
}

// insert returns the statement that inserts the offsets [from, to) of a shard. It makes of
// an offset what historyData says.
func (d *historyData) insert(shard int, from, to int64) string {
	// The generations that are under way between from and to, for the names of the sessions.
	first := (from + 999) / callSpan
	last := (to + 999 + (liveCalls-1)*callEvents) / callSpan
	var calls []string
	for i := first * liveCalls; i < (last+1)*liveCalls; i++ {
		calls = append(calls, quoteText(d.call(i, shard)))
	}
	longFrom, longTo, _ := d.longRange()
	if shard != 0 {
		longFrom, longTo = 0, 0
	}
	var types, regions []string
	for _, t := range historyTypes {
		for range t.weight {
			types = append(types, quoteText(t.name))
		}
	}
	for _, r := range historyRegions {
		regions = append(regions, quoteText(r))
	}
	return strings.NewReplacer(
		"$table", schema.TableEvents, "$workspace", quoteText(d.workspace), "$partition", fmt.Sprint(d.partitions[shard]), "$shard", fmt.Sprint(shard),
		"$perPartition", fmt.Sprint(d.perPartition), "$startMs", fmt.Sprint(historyStart.UnixMilli()), "$lifeMs", fmt.Sprint(historyLife.Milliseconds()),
		"$liveCalls", fmt.Sprint(liveCalls), "$callEvents", fmt.Sprint(callEvents), "$callSpan", fmt.Sprint(callSpan), "$firstCall", fmt.Sprint(first*liveCalls),
		"$calls", strings.Join(calls, ","), "$sparseName", quoteText(d.sparse(shard)), "$verySparseName", quoteText(d.verySparse(shard)), "$longName", quoteText(d.long()),
		"$sparseEvery", fmt.Sprint(sparseEvery), "$sparseAt", fmt.Sprint(sparseAt),
		"$verySparseEvery", fmt.Sprint(verySparseEvery), "$verySparseAt", fmt.Sprint(verySparseAt),
		"$longFrom", fmt.Sprint(longFrom), "$longTo", fmt.Sprint(longTo),
		"$created", quoteText(schema.TypeSessionCreated), "$ended", quoteText(schema.TypeSessionEnded),
		"$types", strings.Join(types, ","), "$seldomType", quoteText(seldomType), "$rareType", quoteText(rareType),
		"$regions", strings.Join(regions, ","), "$users", fmt.Sprint(historyUsers), "$workflows", fmt.Sprint(historyWorkflows),
		"$contentType", quoteText(schema.DefaultContentType), "$wordsBytes", fmt.Sprint(wordsBytes), "$words", wordsDatabase+".words",
		"$from", fmt.Sprint(from), "$count", fmt.Sprint(to-from), "$rows", fmt.Sprint(fillRows),
	).Replace(insertHistorySQL)
}

// quoteText quotes text of the benchmark's own, which has nothing to escape.
func quoteText(s string) string { return "'" + s + "'" }

const insertHistorySQL = `INSERT INTO $table
  (workspace_id, session_id, workflow_id, log_epoch, kafka_partition, kafka_offset, ts, client_ts, t_ms, type,
   confidence, frame_id, message_id, metadata, content_type, payload)
WITH
  toInt64(number) AS i,
  i % 1000 AS last,
  cityHash64(number, $shard) AS h,
  cityHash64(number, $shard, 1) AS g,
  multiIf(
    last = 0, (2 * $liveCalls - 1 - intDiv(i, 1000) % $liveCalls) % $liveCalls,
    last = 1, ($liveCalls - intDiv(i + 999, 1000) % $liveCalls) % $liveCalls,
    toInt64(h % $liveCalls)) AS slot,
  i + 999 + slot * $callEvents AS place,
  toInt64(intDiv(place, $callSpan) * $liveCalls + slot) AS call,
  last < 2 AS hidden,
  multiIf(
    hidden, '',
    i % $sparseEvery = $sparseAt, $sparseName,
    i % $verySparseEvery = $verySparseAt, $verySparseName,
    i % 2 = 0 AND i >= $longFrom AND i < $longTo, $longName,
    '') AS own,
  if(own = '', [$calls][call - $firstCall + 1], own) AS session,
  intDiv(i * $lifeMs, $perPartition) AS ms,
  $startMs + ms AS at,
  intDiv(if(own = '', least(place % $callSpan, i), i) * $lifeMs, $perPartition) AS since,
  (SELECT text FROM $words) AS words
SELECT
  $workspace, session, if(own = '', concat('flow-', toString((call * 7 + $shard) % $workflows)), ''),
  1, $partition, number, fromUnixTimestamp64Milli(at, 'UTC'),
  if(hidden OR h % 2 = 0, NULL, fromUnixTimestamp64Milli(at - 20, 'UTC')), since,
  multiIf(
    last = 0, $ended,
    last = 1, $created,
    g % 1000000 = 0, $rareType,
    g % 10000 = 1, $seldomType,
    [$types][1 + bitShiftRight(g, 32) % 64]),
  if(hidden OR h % 8 != 1, NULL, toFloat32(bitShiftRight(h, 24) % 1000) / 1000),
  if(hidden OR bitShiftRight(h, 8) % 10 != 0, '', concat('frame-', toString(bitShiftRight(h, 16) % 1000))),
  if(hidden, '', concat(session, '-', toString(number))),
  if(hidden, map(), map('region', [$regions][1 + bitShiftRight(h, 40) % 8], 'user', concat('u', toString(cityHash64(number, $shard, 2) % $users)))),
  $contentType,
  multiIf(
    last = 0, '{}',
    last = 1, concat('{"kind":"', ['call', 'conversation', 'session'][1 + call % 3], '"}'),
    concat('{"x":', toString(g % 1920), ',"y":', toString(bitShiftRight(g, 16) % 1080), ',"text":"',
      substring(words, 1 + bitShiftRight(g, 20) % ($wordsBytes - 300), 170 + h % 101), '"}'))
FROM numbers($from, $count)
SETTINGS max_threads = 1, max_insert_threads = 1, min_insert_block_size_rows = $rows, min_insert_block_size_bytes = 0`

// awaitMerges waits until the engine has had nothing to merge for a while.
func awaitMerges(ctx context.Context, conn driver.Conn) error {
	const quiet = 5 * time.Second
	var idle time.Time
	return until(ctx, 2*time.Hour, "the engine has finished merging", func() (bool, error) {
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return true, err
		}
		var merges uint64
		if err := conn.QueryRow(ctx, "SELECT count() FROM system.merges").Scan(&merges); err != nil {
			return true, fmt.Errorf("ask for merges: %w", err)
		}
		if merges > 0 {
			idle = time.Time{}
			return false, nil
		}
		if idle.IsZero() {
			idle = time.Now()
		}
		return time.Since(idle) > quiet, nil
	})
}
