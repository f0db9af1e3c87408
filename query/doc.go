// Package query answers questions about history: pages of a session's events, its
// state, first occurrences of message ids, and the stored part of a replay.
//
// History asks ClickHouse, every question bounded and behind one circuit breaker. A
// page is joined from three neighbouring stretches of the log, so that it never lags
// behind what an append acknowledged:
//
//	ClickHouse            Kafka                 tape
//	[…, committed)        [committed, start)    [start, high watermark)
//
// "committed" is the materialiser's committed offset: rows at or beyond it may be in
// doubt and are never shown. Kafka is read only if the tape does not reach back to it,
// and in the place of ClickHouse while that is unavailable.
package query
