package httpapi

import (
	"crypto/rand"

	"github.com/playhead-dev/playhead/schema"
)

// validRequestID reports whether a client's request id may stand in headers and logs.
func validRequestID(id string) bool { return schema.CheckID(id) == nil }

// newRequestID returns req_ and 26 random characters.
func newRequestID() string { return "req_" + rand.Text() }
