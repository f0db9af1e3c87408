package schema_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func TestSessionsLieInTheirWorkspacesPartitions(t *testing.T) {
	for _, p := range []schema.Placement{{1, 1}, {1, 4}, {3, 4}, {16, 4}, {16, 16}, {7, 1}, {schema.MaxPartition + 1, 4}} {
		for w := range 20 {
			workspace := fmt.Sprint("ws", w)
			all := p.WorkspacePartitions(workspace)
			if len(all) != min(p.Partitions, p.Shards) {
				t.Fatalf("%+v: %d partitions", p, len(all))
			}
			used := map[uint16]bool{}
			for s := range 500 {
				got := p.Partition(workspace, fmt.Sprint("session", s))
				if !slices.Contains(all, got) {
					t.Fatalf("%+v: session in partition %d, workspace has %v", p, got, all)
				}
				used[got] = true
			}
			if len(used) != len(all) {
				t.Errorf("%+v: 500 sessions use %d of the %d partitions of %s", p, len(used), len(all), workspace)
			}
		}
	}
}
