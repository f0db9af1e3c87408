// Package ingest takes events in and makes them durable.
//
// A request travels in three steps. Its body becomes events (decode.go and its
// neighbours): JSON, NDJSON or CloudEvents, plain or compressed, every part bounded,
// every refusal naming the field. The Appender then decides what each event is: a
// repeat of an earlier one, an event of a session that has ended, or a new one, which
// it stamps and produces to the session's Kafka partition. Once Kafka has it on all
// replicas, its offset and its own timestamp give the event id, which is the answer.
//
// The Appender knows nothing of HTTP; routes.go and sessions.go put it behind the
// public API. What it must know of the log's recent past (message ids, the state of
// sessions) it asks of a Tail, which follows the partition; between the
// acknowledgement of a record and the moment the tail has passed it, the partition's
// lane remembers it.
//
// Bulk imports have a lane of their own (backfill.go): a bounded share of the node that
// makes way for live appends, and a Kafka client of its own. What is appended is the same.
//
// Not guaranteed: two nodes that take the same message id in the same instant both
// append it (readers drop the second, by schema.DedupeRule); and an append that races
// the end of its session on another node is kept and marked late.
package ingest
