package httpapi

import "time"

// Codes of errors that several paths share. Codes of one role stand in Codes only.
const (
	CodeInvalidJSON        = "invalid_json"
	CodeUnknownField       = "unknown_field"
	CodeInvalidField       = "invalid_field"
	CodeUnknownParameter   = "unknown_parameter"
	CodeInvalidParameter   = "invalid_parameter"
	CodeInvalidQuery       = "invalid_query"
	CodeBadRequest         = "bad_request"
	CodeMissingKey         = "missing_key"
	CodeInvalidKey         = "invalid_key"
	CodeExpiredKey         = "expired_key"
	CodeTokenInQuery       = "token_in_query_not_allowed"
	CodeInsufficientScope  = "insufficient_scope"
	CodeNotFound           = "not_found"
	CodeMethodNotAllowed   = "method_not_allowed"
	CodeRequestTimeout     = "request_timeout"
	CodeBodyTooLarge       = "body_too_large"
	CodeHeadersTooLarge    = "headers_too_large"
	CodeUnsupportedMedia   = "unsupported_media_type"
	CodeKeyLimit           = "key_limit_reached"
	CodeErasureLimit       = "erasure_limit_reached"
	CodeRedriven           = "dead_letter_redriven"
	CodeNotRedrivable      = "dead_letter_not_redrivable"
	CodeStillRejected      = "dead_letter_still_rejected"
	CodeTypeCodeTaken      = "type_code_taken"
	CodeTypeBuiltin        = "type_code_builtin"
	CodeRateLimited        = "rate_limited"
	CodeInternal           = "internal_error"
	CodeShuttingDown       = "shutting_down"
	CodeNotReady           = "not_ready"
	CodeOverloaded         = "overloaded"
	CodeLogUnavailable     = "log_unavailable"
	CodeHistoryUnavailable = "history_unavailable"
)

// CodeDoc documents one error code.
type CodeDoc struct {
	Code    string
	Status  int
	Meaning string
}

// Codes returns every error code of the public API, by status and then as documented.
// The API's page lists this table.
func Codes() []CodeDoc {
	return []CodeDoc{
		{CodeBadRequest, 400, "the request is not HTTP as we read it"},
		{CodeInvalidJSON, 400, "the body, or a line of it, is not JSON; details.offset says where"},
		{CodeUnknownField, 400, "a field of the body is not one we know; param names it"},
		{CodeInvalidField, 400, "a field of the body has a wrong type or value; param names it"},
		{CodeUnknownParameter, 400, "a query parameter is not one we know; param names it"},
		{CodeInvalidParameter, 400, "a query parameter or header has a wrong value; param names it"},
		{CodeInvalidQuery, 400, "the query string is not well encoded"},
		{"reserved_type", 400, "the event type is one of Playhead's own"},
		{"payload_too_deep", 400, "the JSON is nested deeper than allowed"},
		{"cursor_mismatch", 400, "the cursor was made for a page with other filters"},
		{"invalid_cursor", 400, "the text is neither an event id nor a cursor"},
		{"invalid_encoding", 400, "the body does not decode as its Content-Encoding says"},
		{CodeMissingKey, 401, "no API key was sent"},
		{CodeInvalidKey, 401, "the API key is not known, or was revoked"},
		{CodeExpiredKey, 401, "the API key has expired"},
		{CodeTokenInQuery, 401, "this path takes no key in its URL; send it in a header"},
		{CodeInsufficientScope, 403, "the API key lacks the scope in details.required"},
		{CodeNotFound, 404, "there is nothing here, or nothing of yours"},
		{CodeMethodNotAllowed, 405, "the path exists with other methods; see Allow"},
		{CodeRequestTimeout, 408, "the request did not arrive in time"},
		{"session_ended", 409, "the session has ended and takes no more events"},
		{"session_exists", 409, "a session of this id exists already"},
		{CodeKeyLimit, 409, "the workspace has as many live keys as it may"},
		{CodeErasureLimit, 409, "as many erasures are remembered as may be"},
		{CodeRedriven, 409, "the dead letter was appended again already, as another event; details.event_id says which"},
		{CodeNotRedrivable, 409, "the dead letter cannot be appended again; details.why is unreadable, incomplete or is_event"},
		{CodeTypeCodeTaken, 409, "the code is another event type's; details.name says whose"},
		{CodeTypeBuiltin, 409, "the event type's code is built in and stays; details.code says it"},
		{CodeBodyTooLarge, 413, "the body, or what it decompresses to, is larger than allowed"},
		{"event_too_large", 413, "one event is larger than allowed"},
		{"too_many_events", 413, "the batch holds more events than allowed"},
		{CodeUnsupportedMedia, 415, "the Content-Type or Content-Encoding is not one we read"},
		{CodeStillRejected, 422, "the dead letter is no event with these corrections either; details.reason says why"},
		{"scan_too_large", 422, "the page would read too much; narrow it by startTime and endTime"},
		{"upgrade_required", 426, "the path speaks WebSocket"},
		{CodeRateLimited, 429, "too many requests; see Retry-After"},
		{"export_limit_exceeded", 429, "as many exports run as may, of the workspace or on the node"},
		{"stream_limit_exceeded", 429, "too many open streams for the key or the workspace"},
		{CodeHeadersTooLarge, 431, "request line and headers are larger than allowed"},
		{CodeInternal, 500, "a mistake of ours; the request id finds it in our logs"},
		{"export_unsupported", 501, "this node speaks no HTTP to ClickHouse, which exports need"},
		{CodeOverloaded, 503, "as much work is under way as this node takes; see Retry-After"},
		{CodeLogUnavailable, 503, "the log did not take or give the events in time; nothing is known to be lost; retry with the same message ids"},
		{CodeHistoryUnavailable, 503, "history cannot be read now; see Retry-After"},
		{CodeNotReady, 503, "a part is not ready; details.checks says which"},
		{CodeShuttingDown, 503, "this node is stopping; another one may answer"},
	}
}

// Retry hints of answers that ask to come back.
const (
	shutdownRetryAfter = 2 * time.Second
	readyRetryAfter    = time.Second
)

// ShuttingDown is the answer of a node that is stopping.
func ShuttingDown() *Error {
	return Errorf(503, CodeShuttingDown, "This node is shutting down.").WithRetryAfter(shutdownRetryAfter)
}

// HistoryUnavailable is the answer while the breaker around ClickHouse is open;
// retryAfter is when it tries again.
func HistoryUnavailable(retryAfter time.Duration) *Error {
	return Errorf(503, CodeHistoryUnavailable, "History cannot be read right now.").WithRetryAfter(retryAfter)
}

// LogUnavailable is the answer when Kafka did not answer in time.
func LogUnavailable(cause error) *Error {
	return Errorf(503, CodeLogUnavailable, "The log did not answer in time. Retry with the same message ids.").
		WithCause(cause).WithRetryAfter(time.Second)
}

// NotFound is the one answer for what does not exist and for what belongs to others,
// so that nothing can be enumerated. what is the kind of thing, such as "session".
func NotFound(what string) *Error {
	return Errorf(404, CodeNotFound, "There is no such %s.", what)
}

// InvalidParameter is the answer to a query parameter or header with a wrong value;
// format says what was given and what is allowed.
func InvalidParameter(name, format string, args ...any) *Error {
	return Errorf(400, CodeInvalidParameter, format, args...).WithParam(name)
}

// InvalidField is the answer to a field of a body with a wrong value.
func InvalidField(name, format string, args ...any) *Error {
	return Errorf(400, CodeInvalidField, format, args...).WithParam(name)
}
