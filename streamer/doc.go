// Package streamer delivers events to listeners: live from the tape, replayed from
// ClickHouse and Kafka, and across the seams between them without gap or repeat.
//
// A subscription is a position, a filter and a connection. While it is live it has no
// goroutine and no queue: the tape wakes it, one of a few workers reads on from its
// position and writes what the socket takes. A socket that takes no more is waited for
// by a goroutine of its own, with a deadline, and costs nobody else anything. A
// position that lies below the tape is served by a replay goroutine, which reads
// ClickHouse up to the watermark, then Kafka up to the tape, and then attaches.
//
// subpackage tape holds the recent past; hub.go owns the subscriptions; replay.go the
// way from any position to the tape; view.go the wire formats.
package streamer
