// Package engine runs the embedded ClickHouse: the real engine as a library (libchdb), in a child process
// that answers ClickHouse's HTTP protocol. The rest of Playhead speaks that protocol through clickhouse-go,
// and cannot tell the child from a server.
//
//	parent                                    child (same binary, hidden command)
//	Start ── socket, config on stdin ──▶ ChildMain ─▶ RunChild
//	Process: restarts it                        listener ─▶ pool of sessions ─▶ libchdb
//	clickhouse-go ──────── HTTP ───────────────▶
//
// A child process, so that a crash of the engine is what a crash of a server is: statements under way fail,
// the address stays, and what was acknowledged is there when the next child answers.
//
// How cmd uses it:
//
//	// in run, before anything else, since the child is the same binary:
//	if len(args) == 1 && args[0] == "engine" {
//		return engine.ChildMain(ctx)
//	}
//	// in playhead dev:
//	p, err := engine.Start(ctx, engine.Config{
//		DataPath:  filepath.Join(dataDir, "clickhouse"),
//		ChildArgs: []string{"engine"},
//		Log:       log,
//	})
//	if err != nil {
//		return err // ErrLibraryNotFound says what to do
//	}
//	defer p.Close()
//	options, err := clickhouse.ParseDSN(p.DSN())
//	...
//	conn, err := clickhouse.Open(options)
//
// # What differs from a server
//
//   - Every insert is synchronous: async_insert and wait_for_async_insert are accepted and have no effect.
//   - session_id, roles and external tables get code 48.
//   - The query id of a request is known to the listener alone: KILL QUERY WHERE query_id = '…' [SYNC] and the
//     refusal of a second statement of the same id (code 216) work, while system.processes shows ids of the
//     engine's own. Other forms of KILL QUERY reach the engine as they are.
//   - No query_log and the like: SYSTEM FLUSH LOGS succeeds and does nothing.
//   - Every MergeTree table has fsync_after_insert and fsync_part_directory unless it says otherwise.
//   - The time zone is UTC.
//
// # Kill, then count
//
// A client that is in doubt about an INSERT sends KILL QUERY WHERE query_id = '…' SYNC. The listener cancels
// that statement wherever it is: waiting for its turn, reading its body, or in the engine. When the KILL
// returns, the statement has ended: its rows are all there or not there, and none can appear later.
package engine
