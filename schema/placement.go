package schema

import "github.com/zeebo/xxh3"

// DefaultShards is the number of partitions a workspace's sessions spread over.
const DefaultShards = 4

// Placement says which Kafka partition a session lives in. All three parts are fixed
// for one log epoch: raising either number starts a new epoch.
type Placement struct {
	Partitions int // partitions of the events topic, 1 to MaxPartition+1
	Shards     int // partitions a workspace may use, at least 1
}

// Partition returns the one partition that holds the session's log. The hash is XXH3
// with seed 0 of the UTF-8 ids, which every producer can compute.
func (p Placement) Partition(workspace, session string) uint16 {
	shards := uint64(min(p.Shards, p.Partitions))
	h := xxh3.HashString(workspace)%uint64(p.Partitions) + xxh3.HashString(session)%shards
	return uint16(h % uint64(p.Partitions))
}

// WorkspacePartitions returns the partitions that can hold sessions of the workspace,
// in ascending order of shard.
func (p Placement) WorkspacePartitions(workspace string) []uint16 {
	n := min(p.Shards, p.Partitions)
	first := xxh3.HashString(workspace) % uint64(p.Partitions)
	out := make([]uint16, n)
	for i := range out {
		out[i] = uint16((first + uint64(i)) % uint64(p.Partitions))
	}
	return out
}
