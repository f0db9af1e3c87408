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

// Limits bounds what the keys of a workspace may use. In every field 0 means without
// limit, except MaxPageSize, where it means the plan's size.
type Limits struct {
	StreamsPerKey           int     `json:"streams_per_key"`
	StreamsPerWorkspace     int     `json:"streams_per_workspace"`
	SessionCreatesPerSecond float64 `json:"session_creates_per_second"` // a key; the burst is twice the rate
	AppendsPerSecond        float64 `json:"appends_per_second"`         // a key; the burst is twice the rate
	ReadsPerSecond          float64 `json:"reads_per_second"`           // a key; the burst is twice the rate
	MaxPageSize             int     `json:"max_page_size"`
	Keys                    int     `json:"keys"` // live keys of the workspace
}

// DefaultLimits returns the limits of a workspace that was given none (docs/api.md, "Limits").
func DefaultLimits() Limits {
	return Limits{
		StreamsPerKey:           50,
		StreamsPerWorkspace:     500,
		SessionCreatesPerSecond: 30,
		AppendsPerSecond:        1000,
		ReadsPerSecond:          200,
		Keys:                    10_000,
	}
}

// Unlimited returns limits that refuse nothing: those of the workspace that
// `playhead dev` makes. Keys are bounded even so, as each costs memory on every node.
func Unlimited() Limits { return Limits{Keys: 100_000} }

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
