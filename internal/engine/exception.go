package engine

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// Codes of ClickHouse (src/Common/ErrorCodes.cpp) that the listener raises itself or maps to an HTTP status.
const (
	codeBadArguments     = 36
	codeNotImplemented   = 48
	codeUnknownFormat    = 73
	codeUnknownTable     = 60
	codeSyntaxError      = 62
	codeUnknownDatabase  = 81
	codeReadonly         = 164
	codeTimeoutExceeded  = 159
	codeTooManyQueries   = 202
	codeQueryIDRunning   = 216
	codeAuthentication   = 516
	codeQueryCancelled   = 394
	codeUnknownException = 1002
	codeUnknownSetting   = 115
	codeMemoryLimit      = 241
	codeNetworkError     = 210
)

// exception is an error with a ClickHouse code: of the engine, or of the listener in its place.
type exception struct {
	code int
	text string // as ClickHouse prints it, "Code: 60. DB::Exception: …"
}

func (e *exception) Error() string { return e.text }

// newException words an error of the listener the way the engine words its own.
func newException(code int, name, format string, args ...any) *exception {
	return &exception{code: code, text: fmt.Sprintf("Code: %d. DB::Exception: %s. (%s)", code, fmt.Sprintf(format, args...), name)}
}

var exceptionCode = regexp.MustCompile(`Code: (\d+)\. `)

// parseException finds the code in a message of the engine. A message without one is code 1002.
func parseException(msg string) *exception {
	msg = strings.TrimSpace(msg)
	if m := exceptionCode.FindStringSubmatchIndex(msg); m != nil {
		if code, err := strconv.Atoi(msg[m[2]:m[3]]); err == nil {
			return &exception{code: code, text: msg[m[0]:]}
		}
	}
	return newException(codeUnknownException, "UNKNOWN_EXCEPTION", "%s", strings.TrimSuffix(msg, "."))
}

// asException gives any error a code.
func asException(err error) *exception {
	var e *exception
	if errors.As(err, &e) {
		return e
	}
	return newException(codeUnknownException, "UNKNOWN_EXCEPTION", "%s", err)
}

// status maps a code to the HTTP status that ClickHouse's HTTPHandler answers with it.
func (e *exception) status() int {
	switch e.code {
	case codeAuthentication:
		return http.StatusForbidden
	case codeUnknownTable, codeUnknownDatabase, 46 /* function */, 47 /* identifier */, 50 /* type */, 82 /* database exists */, 107 /* file */, 127 /* storage */ :
		return http.StatusNotFound
	case codeSyntaxError, codeBadArguments, 6, 26, 27, 38, 41, 43, 53, 72, codeUnknownFormat, 117, 1001, codeUnknownSetting, 456, 457:
		return http.StatusBadRequest
	case codeNotImplemented:
		return http.StatusNotImplemented
	case codeTooManyQueries:
		return http.StatusServiceUnavailable
	case codeTimeoutExceeded:
		return http.StatusRequestTimeout
	}
	return http.StatusInternalServerError
}
