package control

import "github.com/playhead-dev/playhead/schema"

// Plan names what a workspace pays for; it decides the size of a history page.
type Plan string

// The plans there are.
const (
	PlanFree       Plan = "free"
	PlanPro        Plan = "pro"
	PlanEnterprise Plan = "enterprise"
)

// Page sizes of the plans, in events.
const (
	freePageSize = 50
	paidPageSize = 100
)

// Valid reports whether p is a plan.
func (p Plan) Valid() bool { return p == PlanFree || p == PlanPro || p == PlanEnterprise }

// Workspace owns sessions, keys and limits. Its Shards are fixed when it is made:
// with another number its sessions would be looked for in other Kafka partitions.
type Workspace struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Plan   Plan   `json:"plan"`
	Limits Limits `json:"limits"`
	Shards int    `json:"shards"`
}

// PageSize returns the largest history page of the workspace, in events.
func (w Workspace) PageSize() int {
	switch {
	case w.Limits.MaxPageSize > 0:
		return w.Limits.MaxPageSize
	case w.Plan == PlanFree:
		return freePageSize
	default:
		return paidPageSize
	}
}

// Placement returns where the workspace's sessions lie among partitions.
func (w Workspace) Placement(partitions int) schema.Placement {
	return schema.Placement{Partitions: partitions, Shards: w.Shards}
}
