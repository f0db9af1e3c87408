package control

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// How keys look, and what a browser key may be.
const (
	KeyPrefix        = "pk_live_"
	BrowserKeyPrefix = "pk_tmp_"
	MaxBrowserKeyAge = time.Hour

	keyRandomLen   = 32
	idRandomLen    = 16
	minKeyTextLen  = 16
	maxKeyTextLen  = 256
	maxKeyNameLen  = 256
	randomAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
)

// Key describes an API key without its text.
type Key struct {
	ID        string
	Workspace string
	Name      string
	Scopes    Scopes
	Session   string
	Workflow  string
	Browser   bool
	CreatedAt time.Time
	CreatedBy string    // id of the key that made it, "" for the process itself
	ExpiresAt time.Time // zero: never
	RevokedAt time.Time // zero: not revoked
}

// Principal returns what a request with this key is allowed.
func (k Key) Principal() Principal {
	return Principal{
		Workspace: k.Workspace, KeyID: k.ID, Scopes: k.Scopes,
		Session: k.Session, Workflow: k.Workflow, ExpiresAt: k.ExpiresAt, Browser: k.Browser,
	}
}

// Live reports whether the key is neither revoked nor expired at now.
func (k Key) Live(now time.Time) bool {
	return k.RevokedAt.IsZero() && (k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt))
}

// KeySpec says what key to make.
type KeySpec struct {
	Workspace string
	Name      string        // free text for people, at most 256 bytes
	Scopes    Scopes        // at least one
	Session   string        // bind to one session
	Workflow  string        // bind to one workflow
	ExpiresIn time.Duration // 0: never
	CreatedBy string        // id of the key that asks, "" for the process itself
	// Text is the key's own text; "" makes one. Given texts are at least 16 characters
	// of A-Z a-z 0-9 _ . -
	Text string
}

// Browser reports whether the spec makes a browser key: scope read only, bound to a
// session or a workflow, living at most an hour.
func (s KeySpec) Browser() bool {
	return s.Scopes == ScopeRead && (s.Session != "" || s.Workflow != "") &&
		s.ExpiresIn > 0 && s.ExpiresIn <= MaxBrowserKeyAge
}

// SpecError says which part of a KeySpec or a Workspace is wrong.
type SpecError struct {
	Field  string // as in the API: scopes, session_id, …
	Reason string // reads on after the field's name
}

func (e *SpecError) Error() string { return e.Field + " " + e.Reason }

// Validate reports the first part of s that is wrong, as a *SpecError, or nil.
func (s KeySpec) Validate() error {
	bad := func(field, format string, args ...any) error {
		return &SpecError{Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	if s.Scopes == 0 || s.Scopes&^AllScopes != 0 {
		return bad("scopes", "must name at least one of ingest, read, control, admin")
	}
	if s.Session != "" {
		if err := schema.CheckID(s.Session); err != nil {
			return bad("session_id", "%v", err)
		}
	}
	if s.Workflow != "" {
		if err := schema.CheckID(s.Workflow); err != nil {
			return bad("workflow_id", "%v", err)
		}
	}
	if s.ExpiresIn < 0 {
		return bad("expires_in", "is %v; want a positive number of seconds", s.ExpiresIn)
	}
	if s.Scopes.Has(ScopeAdmin) && (s.Session != "" || s.Workflow != "") {
		return bad("scopes", "cannot hold admin in a key that is bound to a session or a workflow")
	}
	if err := schema.CheckText(s.Name, maxKeyNameLen); err != nil {
		return bad("name", "%v", err)
	}
	if s.Text != "" {
		if err := CheckKeyText(s.Text); err != nil {
			return bad("key", "%v", err)
		}
	}
	return nil
}

// CheckKeyText reports why s cannot be the text of a key, or nil, without quoting it.
func CheckKeyText(s string) error {
	if len(s) < minKeyTextLen || len(s) > maxKeyTextLen {
		return fmt.Errorf("has %d characters; want %d to %d", len(s), minKeyTextLen, maxKeyTextLen)
	}
	for i := range len(s) {
		c := s[i]
		if !strings.ContainsRune(randomAlphabet, rune(c)) && c != '_' && c != '-' && c != '.' {
			return errors.New("holds a character other than A-Z a-z 0-9 _ . -")
		}
	}
	return nil
}

type keyHash = [sha256.Size]byte

func hashKey(text string) keyHash { return sha256.Sum256([]byte(text)) }

// randomText returns n characters of A-Z a-z 0-9, each equally likely: bytes that
// would favour the first letters are thrown away.
func randomText(n int) string {
	const limit = 256 - 256%len(randomAlphabet)
	out := make([]byte, 0, n)
	var buf [64]byte
	for len(out) < n {
		rand.Read(buf[:]) // never fails: crypto/rand ends the process instead
		for _, b := range buf {
			if int(b) < limit && len(out) < n {
				out = append(out, randomAlphabet[int(b)%len(randomAlphabet)])
			}
		}
	}
	return string(out)
}
