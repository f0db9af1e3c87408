// Package presence counts open streams by workspace, by key and by key and class, over
// all nodes, and refuses a stream where a limit is reached.
//
// # How
//
// A node counts its own streams in memory, exactly and at once. When its counts change
// it publishes them to one Kafka topic, playhead.presence, of one partition: the entries
// that changed, at most every PublishInterval, and all of them (a snapshot) every
// Heartbeat. Every node follows the tail of the topic, without a consumer group, and
// adds up what the others say. Counts in records are absolute, never differences, so a
// record that is lost, repeated or late is repaired by the next snapshot.
//
// A node without streams says so once and then nothing, so an idle cluster writes
// nothing. A node that stops says the same. A node that dies is forgotten, with its
// counts, NodeTimeout after its last record. A node that starts reads back
// NodeTimeout by time, and so knows the others before Start returns.
//
// The topic is not compacted. What it says is worth nothing after NodeTimeout and is
// repeated every Heartbeat, so nobody reads further back than some seconds; compaction
// would keep the last word of every dead node for good, and could not touch the active
// segment, the only one that is read. Retention is ten minutes, for people who look.
//
// # Guarantees
//
//   - One node: Acquire is exact. A stream that ended counts no more once release
//     returns.
//   - Over nodes: what one node opens or releases, all others count within a second
//     while Kafka is healthy: at most PublishInterval + pollInterval, 350 ms, and the
//     time Kafka takes to write one record and to read it.
//   - Streams that several nodes open within that time are admitted by what each of them
//     knows. The limit may be passed by what the other nodes admitted meanwhile: of n
//     nodes that all start from nothing in one instant, by (n-1) times the limit, never
//     more. Nobody is cut off for it; new streams are refused until the sum is below
//     the limit again.
//   - A dead node's streams hold their places for at most NodeTimeout, counted from its
//     last record; so do those of the earlier life of a node that was killed and
//     restarted, which counts as another node.
//   - Kafka away: own streams are counted and limited as before; those of others stay as
//     last heard until NodeTimeout, then they count as none, and the limits hold for each
//     node by itself. All is right again two heartbeats after Kafka is back, at the
//     latest.
//   - Nothing here waits for Kafka but Start and, for at most goodbyeTimeout, Close.
//   - Memory is bounded by the own streams and by maxPeers nodes with maxFolded entries
//     together; what is beyond counts as not open and is counted in
//     playhead_presence_dropped_entries_total. Entries without streams are dropped.
//
// Not guaranteed: fairness among nodes, and limits below the overshoot above. Clocks
// that differ between nodes cost exactness only in the first Heartbeat of a node's life.
//
// # Records
//
// A record's value is a JSON object; its key is the node's id:
//
//	{"v":1,"node":"9f86d081884c7d65","seq":7,"open":{"ws_1":{"key_a":{"":2,"client":1}}}}
//
// seq counts the node's records from 1. open holds streams by workspace, key and class;
// 0 means none any more. A snapshot has "snapshot", the seq of its first record, and its
// last record "last":true: what a snapshot without a gap did not name is gone. An empty
// snapshot takes leave. Records of another version, and such as cannot be read, are
// counted and skipped. Fields may be added to a version.
package presence
