package streamer

import (
	"errors"
	"math/rand/v2"
	"time"
)

// Spread of the time after which the clients of a stopping node come back, so that they do
// not all come at once.
const (
	minReturn = 500 * time.Millisecond
	maxReturn = 3 * time.Second
)

// historyRetryAfter is when to come back while ClickHouse does not answer.
const historyRetryAfter = 5 * time.Second

// farewell says what a client is told of the end of its stream: a failure, if it is one,
// and when to come back, if that is not for the failure to say.
func farewell(reason error) (f *failure, retry time.Duration) {
	var cancelled *cancelledError
	switch {
	case errors.Is(reason, errShutdown):
		return nil, minReturn + rand.N(maxReturn-minReturn)
	case errors.Is(reason, errKeyEnded):
		return &failure{code: codeAuth, message: "the API key was revoked or has expired"}, 0
	case errors.Is(reason, errSessionErased):
		return &failure{code: codeErased, message: "the session was erased"}, 0
	case errors.As(reason, &cancelled) && cancelled.byServer:
		return &failure{code: codeCancelled, message: cancelled.reason}, 0
	case errors.Is(reason, errHistoryAway):
		return &failure{code: codeConnection, message: "history is unavailable; resume later from the last id", retryAfter: historyRetryAfter}, 0
	case errors.Is(reason, errTapeFailed), errors.Is(reason, errLogAway):
		return &failure{code: codeConnection, message: "the log cannot be read now; resume later from the last id", retryAfter: time.Second}, 0
	default:
		return nil, 0
	}
}

// rateLimited is what a stream says that has more to send than it may.
func rateLimited(wait time.Duration) failure {
	return failure{code: codeRateLimited, message: "there are more events than the stream may send; it goes on from here", retryAfter: wait}
}
