// Package httpapi is the edge that every HTTP path of Playhead shares: the error
// envelope and its codes, request ids, authentication, strict reading of queries and
// bodies, health and metrics, and the paths of /v1/keys.
//
// Handlers return errors; one error handler turns them into the envelope
//
//	{"error":{"code","message","details","param"?,"request_id"}}
//
// An *Error is answered as it says; anything else is 500 internal_error, its cause
// logged under the request id and never sent.
package httpapi
