package httpapi

import (
	"fmt"
	"math"
	"time"
)

// Error is an answer that is not a success. The zero Details, Param, RetryAfter and
// Cause are left out. It is a value to return from a handler; the error handler of
// NewApp writes it.
type Error struct {
	Status     int            // HTTP status, 400 to 599
	Code       string         // one of Codes
	Message    string         // a plain sentence for the client
	Param      string         // the parameter, header or field that is wrong
	Details    map[string]any // machine-readable particulars
	RetryAfter time.Duration  // when to come back; sent as whole seconds, rounded up
	Cause      error          // for the log, never sent
}

// Errorf returns an error with a formatted message, which goes to the client: no
// internal causes, no secrets in it.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Error gives the code and message, and the cause for logs.
func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Cause)
	}
	return e.Code + ": " + e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// WithParam names the parameter, header or field that is wrong.
func (e *Error) WithParam(name string) *Error {
	e.Param = name
	return e
}

// WithDetail adds one machine-readable particular.
func (e *Error) WithDetail(name string, value any) *Error {
	if e.Details == nil {
		e.Details = make(map[string]any)
	}
	e.Details[name] = value
	return e
}

// WithCause keeps the internal cause for the log.
func (e *Error) WithCause(cause error) *Error {
	e.Cause = cause
	return e
}

// WithRetryAfter says when the client may come back.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// retryAfterSeconds is the value of Retry-After (RFC 9110, 10.2.3): at least 1.
func (e *Error) retryAfterSeconds() int {
	return max(1, int(math.Ceil(e.RetryAfter.Seconds())))
}

// envelope is the JSON form of an error.
type envelope struct {
	Error envelopeBody `json:"error"`
}

type envelopeBody struct {
	Code      string         `json:"code"`
	Message   string         `json:"message"`
	Details   map[string]any `json:"details"`
	Param     string         `json:"param,omitempty"`
	RequestID string         `json:"request_id"`
}

// Body returns the envelope as it is sent, for answers that carry errors inside, such
// as one item of a batch: {"code","message","details","param"?}, without request id.
func (e *Error) Body() map[string]any {
	details := e.Details
	if details == nil {
		details = map[string]any{}
	}
	body := map[string]any{"code": e.Code, "message": e.Message, "details": details}
	if e.Param != "" {
		body["param"] = e.Param
	}
	return body
}

func (e *Error) envelope(requestID string) envelope {
	details := e.Details
	if details == nil {
		details = map[string]any{}
	}
	return envelope{Error: envelopeBody{
		Code: e.Code, Message: e.Message, Details: details, Param: e.Param, RequestID: requestID,
	}}
}
