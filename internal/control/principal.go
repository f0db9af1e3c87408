package control

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Scopes is a set of the things a key may do. Each stands for itself: admin does not
// include the others.
type Scopes uint8

// The scopes there are. Admin manages workspaces, keys and limits; control sends
// commands into live sessions.
const (
	ScopeIngest Scopes = 1 << iota
	ScopeRead
	ScopeControl
	ScopeAdmin

	AllScopes = ScopeIngest | ScopeRead | ScopeControl | ScopeAdmin
)

// scopeName names one scope, "" if s is not exactly one.
func scopeName(s Scopes) string {
	switch s {
	case ScopeIngest:
		return "ingest"
	case ScopeRead:
		return "read"
	case ScopeControl:
		return "control"
	case ScopeAdmin:
		return "admin"
	default:
		return ""
	}
}

// ParseScopes reads a list of scope names; repeats count once. An empty list is an error.
func ParseScopes(names []string) (Scopes, error) {
	var out Scopes
	for _, name := range names {
		one := Scopes(0)
		for s := ScopeIngest; s <= ScopeAdmin; s <<= 1 {
			if scopeName(s) == name {
				one = s
			}
		}
		if one == 0 {
			return 0, fmt.Errorf("%.40q is not a scope; want ingest, read, control or admin", name)
		}
		out |= one
	}
	if out == 0 {
		return 0, fmt.Errorf("no scope given; want ingest, read, control or admin")
	}
	return out, nil
}

// Has reports whether s holds every scope of want.
func (s Scopes) Has(want Scopes) bool { return s&want == want }

// Names lists the scopes in a fixed order.
func (s Scopes) Names() []string {
	names := make([]string, 0, 4)
	for one := ScopeIngest; one <= ScopeAdmin; one <<= 1 {
		if s&one != 0 {
			names = append(names, scopeName(one))
		}
	}
	return names
}

// String joins the names with commas.
func (s Scopes) String() string { return strings.Join(s.Names(), ",") }

// MarshalJSON writes the scopes as a list of names.
func (s Scopes) MarshalJSON() ([]byte, error) { return json.Marshal(s.Names()) }

// UnmarshalJSON reads a list of names.
func (s *Scopes) UnmarshalJSON(b []byte) error {
	var names []string
	if err := json.Unmarshal(b, &names); err != nil {
		return fmt.Errorf("scopes: %w", err)
	}
	parsed, err := ParseScopes(names)
	*s = parsed
	return err
}

// Principal is who makes a request: what a key stands for.
type Principal struct {
	Workspace string
	KeyID     string
	Scopes    Scopes
	Session   string    // the only session the key may touch, "" for all
	Workflow  string    // the only workflow the key may touch, "" for all
	ExpiresAt time.Time // zero if the key does not expire
	Browser   bool      // a browser key: may travel as ?token= on streams
}

// MaySee reports whether the binding of the key allows a session of a workflow
// (workflow "" is a session of none).
func (p Principal) MaySee(session, workflow string) bool {
	return (p.Session == "" || p.Session == session) && (p.Workflow == "" || p.Workflow == workflow)
}
