// Package materializer copies the log (topic playhead.events) into the ClickHouse
// table events, each record exactly once, with no coordination but the log's own.
//
// # How exactly once works
//
// The state of a partition is the materialiser group's committed offset c and the
// metadata string of that commit, the Intent: the range [c, e) that is about to be
// inserted. A batch is (1) cut, (2) announced by committing c with the intent,
// (3) inserted under a deduplication token made of the range and an attempt, and
// (4) finished by the next commit, which carries offset e. So whoever owns the
// partition next knows the one range that may or may not be in the table, and settles
// it by counting (settle.go). Everything below c is in the table; nothing above e is.
// A member that has lost the partition cannot commit: Kafka fences it by the group's
// generation, and it drops what it holds.
//
// # What becomes a row
//
// Every record does, so that rows and offsets can be compared by counting: an event, a
// repeat of an earlier event (type playhead.duplicate), a record that is none of ours
// (type playhead.dead_letter), or what is left of an erased event (type playhead.erased).
// See rows.go. What is no event is kept in the topic playhead.dead_letters besides, before
// its range is announced (letters.go).
//
// # Files
//
//	run.go        group membership; which partitions are ours
//	worker.go     the life of one partition: gather, announce, insert, commit
//	recover.go    how that life begins: committed state, gaps, dedupe window, recovery
//	tail.go       reading one partition's records as they come
//	rows.go       record to row
//	letters.go    what is no event, kept for people
//	batch.go      rows on their way into one insert, and where batches are cut
//	intent.go     the commit's metadata, tokens
//	commit.go     commits and the reading back of them
//	settle.go     the state machine that ends a range whose insert is in doubt
//	store.go      the table: insert, count, kill
//	rebuild.go    making rows anew, below the committed offset: repairs, a lost table, what was asked for
//	request.go    how a rebuild is asked for and followed, from any process
//	selfcheck.go  the standing comparison of table and log
package materializer
