// Package cluster runs Playhead the way an operator would, several nodes over one Kafka
// and one ClickHouse, each in a process of its own, puts it under load, breaks it, and
// judges what clients were told against what the system holds.
//
// Every connection (client to node, node to Kafka, node to ClickHouse) goes through a Link,
// a proxy that can delay, throttle, hold, cut and refuse, and that can strike at the very
// bytes of a request (Tripwire). Every process can be killed, paused and started again.
//
//	clients ─▶ front (round robin) ─▶ link ─▶ node ─▶ link ─▶ Kafka
//	                                          └────▶ link ─▶ ClickHouse
//
// The Load appends, listens and pages; its Journal is what clients were told. The Audit
// reads Kafka by franz-go and ClickHouse by SQL and compares. Of Playhead's own code the
// Audit uses the reading of event ids, and nothing else.
package cluster
