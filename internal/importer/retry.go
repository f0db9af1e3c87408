package importer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

// ErrGaveUp says that the server did not answer usefully for as long as Config.RetryFor.
var ErrGaveUp = errors.New("gave up")

// StatusError is an answer that is not a success.
type StatusError struct {
	Status     int
	Code       string // of Playhead's error envelope; empty if the answer had none
	Message    string
	Param      string
	RetryAfter time.Duration // 0 if the server did not say
}

// Error is the status, and the server's own words if it had some.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("the server answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Code != "" {
		text += fmt.Sprintf(": %s (%s)", e.Message, e.Code)
	}
	return text
}

// verdict is what to do about a request that failed.
type verdict int

const (
	giveUp   verdict = iota // no repetition will help
	tryAgain                // the same request later
	tryHalf                 // something in the batch is refused: find it
)

// judge decides about a request that ended with err. uncertain says that the server may
// have taken the events although it did not say so.
func judge(err error) (v verdict, uncertain bool) {
	status, ok := errors.AsType[*StatusError](err)
	if !ok {
		return judgeTransport(err)
	}
	switch status.Status {
	case http.StatusBadRequest:
		if status.Code == "unknown_parameter" || status.Code == "invalid_parameter" {
			return giveUp, false // about the request, whatever the batch holds
		}
		return tryHalf, false
	case http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return tryHalf, false
	case http.StatusTooManyRequests, http.StatusTooEarly:
		return tryAgain, false
	case http.StatusRequestTimeout:
		return tryAgain, true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return giveUp, false
	}
	if status.Status >= 500 {
		return tryAgain, true
	}
	return giveUp, false
}

// judgeTransport decides about a request that got no answer.
func judgeTransport(err error) (v verdict, uncertain bool) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return giveUp, false
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return giveUp, false
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok { // not TLS at all
		return giveUp, false
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return giveUp, false
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return tryAgain, false
	}
	return tryAgain, true
}

// itemVerdict is judge for one event's error inside an answer.
func itemVerdict(code string) verdict {
	switch code {
	case "log_unavailable", "history_unavailable", "overloaded", "rate_limited", "not_ready",
		"shutting_down", "request_timeout", "internal_error":
		return tryAgain
	}
	return giveUp
}

// pacer spaces the attempts of one request. Its zero value is before the first failure.
type pacer struct {
	since   time.Time // of the first failure
	backoff time.Duration
}

// promised restarts the pacer: the server has said that it takes the request at a time.
func (p *pacer) promised(cfg *Config, at time.Time) { p.since, p.backoff = at, cfg.MinBackoff/2 }

// next returns how long to pause after a failure at now, and false if it is time to give
// up. wish is the server's Retry-After, 0 if none. The last pause is cut short, so that
// one attempt is made at the very end.
func (p *pacer) next(cfg *Config, now time.Time, wish time.Duration) (time.Duration, bool) {
	if p.since.IsZero() {
		p.since, p.backoff = now, cfg.MinBackoff
	} else {
		p.backoff = min(2*p.backoff, cfg.MaxBackoff)
	}
	left := p.deadline(cfg).Sub(now)
	if left <= 0 {
		return 0, false
	}
	// Half of it fixed, half of it random: lanes that failed together come back apart.
	pause := p.backoff/2 + rand.N(p.backoff/2+1)
	return min(max(pause, wish), left), true
}

// deadline is when the pacer gives up; meaningless before the first failure.
func (p *pacer) deadline(cfg *Config) time.Time { return p.since.Add(cfg.RetryFor) }

// retryAfter reads the header's two forms (RFC 9110, 10.2.3); 0 if absent or senseless.
func retryAfter(header string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(header); err == nil {
		return time.Duration(max(0, min(seconds, 1<<20))) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
