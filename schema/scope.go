package schema

// Scope is what a stream reads: one session, the sessions of one workflow, or all of a
// workspace. At most one of Session and Workflow is set.
type Scope struct {
	Workspace string
	Session   string // "" unless it is one session's
	Workflow  string // "" unless it is one workflow's
}

// Holds reports whether e is of the scope. An event belongs to the workflow it was
// appended under: one from before its session was given a workflow belongs to none.
func (s Scope) Holds(e *Event) bool {
	return e.Workspace == s.Workspace &&
		(s.Session == "" || e.Session == s.Session) &&
		(s.Workflow == "" || e.Workflow == s.Workflow)
}

// Partitions returns the Kafka partitions that the scope's events lie in, given the
// workspace's placement: one for a session, several otherwise.
func (s Scope) Partitions(p Placement) []uint16 {
	if s.Session != "" {
		return []uint16{p.Partition(s.Workspace, s.Session)}
	}
	return p.WorkspacePartitions(s.Workspace)
}
