// Package schema is Playhead's contract in pure functions: what an event is, how
// it lies in a Kafka record and in a ClickHouse row, what its id and a cursor look
// like, where a session is placed, when a record repeats an earlier one, and how a
// session's state folds out of its log.
//
// Nothing here does I/O, reads a clock or logs. Every role (ingest, streamer, query)
// computes the same answers from the same records because it computes them here.
package schema
