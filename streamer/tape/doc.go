// Package tape keeps the recent past of Kafka partitions in memory.
//
// One reader follows the tail of each partition in use, whatever the number of
// listeners. A Tape holds the last events (by age and bytes), indexed by session, the
// state of the sessions it has heard of, and the dedupe window. Everything that asks
// what happened just now asks the tape: live streams, the end of a history page, the
// checks of an append.
//
// A record that repeats an earlier one (schema.DedupeRule) never gets onto the tape.
package tape
