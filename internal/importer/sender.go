package importer

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/schema"
)

const (
	// workspaceHeader of an answer names the workspace that the key belongs to.
	workspaceHeader = "X-Playhead-Workspace"
	// maxAnswerBytes bounds an answer: a result of 10,000 events with long errors.
	maxAnswerBytes = 32 << 20
	// maxCompression is beyond what servers take for an honest body (200 by default).
	maxCompression = 100
)

// sender makes the requests. It is safe for concurrent use by the lanes.
type sender struct {
	cfg      Config
	counts   *counters
	progress *Progress
	endpoint string
	client   *http.Client
	own      *http.Transport // the transport to close; nil if it is the caller's
	zstd     *zstd.Encoder

	// Set by hello.
	workspace string    // names the workspace in checkpoints
	began     time.Time // by the server's clock, whole seconds
}

func newSender(cfg Config, counts *counters, progress *Progress) (*sender, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("parse the server's url: %w", err)
	}
	endpoint := base.JoinPath("v1", "events")
	endpoint.RawQuery = "dedupe=history"
	if !cfg.Live {
		endpoint.RawQuery += "&lane=backfill"
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(cfg.Lanes), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	s := &sender{
		cfg: cfg, counts: counts, progress: progress, zstd: encoder, endpoint: endpoint.String(),
		client: &http.Client{
			Transport: cfg.Transport,
			// A redirect would drop the body, or hand the key to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if cfg.Transport == nil {
		s.own = &http.Transport{MaxIdleConnsPerHost: cfg.Lanes, IdleConnTimeout: time.Minute}
		s.client.Transport = s.own
	}
	return s, nil
}

func (s *sender) close() {
	if s.own != nil {
		s.own.CloseIdleConnections()
	}
	_ = s.zstd.Close()
}

// hello sends no event, and so learns whether the server is there and takes the key,
// before much is read. It retries like any request.
func (s *sender) hello(ctx context.Context) error {
	var pace pacer
	for {
		header, _, err := s.post(ctx, nil)
		status, answered := errors.AsType[*StatusError](err)
		if err == nil || (answered && status.Status == http.StatusBadRequest && status.Code != "unknown_parameter") {
			s.learn(header)
			return nil
		}
		if v, _ := judge(err); v != tryAgain {
			return fmt.Errorf("%s: %w", s.cfg.URL, err)
		}
		if err := s.pause(ctx, nil, &pace, err); err != nil {
			return err
		}
	}
}

// learn takes from an answer what names the workspace and tells the server's time.
func (s *sender) learn(header http.Header) {
	s.workspace = header.Get(workspaceHeader)
	if s.workspace == "" { // an older server: the key stands for the workspace
		sum := xxh3.HashString128(s.cfg.URL + "\n" + s.cfg.Key).Bytes()
		s.workspace = "key-" + hex.EncodeToString(sum[:])
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		s.began = date
	}
}

// deliver sends b until the server has answered for each of its events, splitting it
// where the server refuses all for the sake of one. Between attempts it ends with
// errHalted when halt is closed; a request under way ends with ctx only.
func (s *sender) deliver(ctx context.Context, halt <-chan struct{}, source string, b *batch) error {
	var (
		pace      pacer
		uncertain bool // an attempt before may have been taken
	)
	for {
		_, results, err := s.post(ctx, b)
		if err == nil {
			if err = checkResults(results, b); err != nil {
				return err
			}
			var rest *batch
			if rest, err = s.settle(source, b, results, uncertain); err != nil {
				return err
			}
			if rest == nil {
				s.progress.recovered()
				return nil
			}
			b, uncertain = rest, true
			err = fmt.Errorf("the server did not take %d events: %s", b.len(), firstError(results))
			if err := s.pause(ctx, halt, &pace, err); err != nil {
				return err
			}
			continue
		}
		v, maybe := judge(err)
		uncertain = uncertain || maybe
		switch {
		case v == tryAgain:
			if err := s.pause(ctx, halt, &pace, err); err != nil {
				return err
			}
		case v == tryHalf && b.len() > 1:
			first, second := b.split()
			if err := s.deliver(ctx, halt, source, first); err != nil {
				return err
			}
			return s.deliver(ctx, halt, source, second)
		case v == tryHalf:
			status, _ := errors.AsType[*StatusError](err)
			return s.failed(source, b.lines[0], &itemError{Code: status.Code, Message: status.Message, Param: status.Param})
		default:
			return err
		}
	}
}

// settle counts the results of b's events and returns those to send again, nil if none.
func (s *sender) settle(source string, b *batch, results []result, uncertain bool) (*batch, error) {
	var (
		again []int
		first error
	)
	for i, r := range results {
		switch {
		case r.Error == nil && r.Duplicate && !(uncertain && s.appendedSince(r.ID)):
			s.counts.duplicates.Add(1)
		case r.Error == nil:
			s.counts.accepted.Add(1)
		case itemVerdict(r.Error.Code) == tryAgain:
			again = append(again, i)
		default:
			if err := s.failed(source, b.lines[i], r.Error); first == nil {
				first = err
			}
		}
	}
	if first != nil || len(again) == 0 {
		return nil, first
	}
	return b.pick(again), nil
}

// appendedSince reports whether an event was appended after this import began. It tells
// apart, when a request is repeated because its answer was lost, what the lost attempt
// appended from what was there before.
func (s *sender) appendedSince(id string) bool {
	parsed, err := schema.ParseEventID(id)
	return err == nil && !s.began.IsZero() && parsed.TimeMs >= s.began.UnixMilli()
}

// failed counts and tells a line that the server refused. It returns an error if that
// ends the import.
func (s *sender) failed(source string, number int64, e *itemError) error {
	err := &LineError{Source: source, Line: number, Code: e.Code, Param: e.Param, Reason: e.Message}
	s.counts.failed.Add(1)
	s.progress.lineError(err)
	if s.cfg.SkipErrors {
		return nil
	}
	return err
}

// errHalted ends a lane because another one has failed.
var errHalted = errors.New("another lane has failed")

// pause waits before the next attempt, or says why there is none.
func (s *sender) pause(ctx context.Context, halt <-chan struct{}, pace *pacer, cause error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var wish time.Duration
	now := time.Now()
	if status, ok := errors.AsType[*StatusError](cause); ok {
		wish = status.RetryAfter
		if status.Status == http.StatusTooManyRequests && wish > 0 && s.cfg.RetryFor > 0 {
			pace.promised(&s.cfg, now.Add(wish))
		}
	}
	wait, ok := pace.next(&s.cfg, now, wish)
	if !ok {
		return fmt.Errorf("%w after %v: %w", ErrGaveUp, now.Sub(pace.since).Round(time.Second), cause)
	}
	s.progress.trouble(cause, pace.since, pace.deadline(&s.cfg))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-halt:
		return errHalted
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// result is what the server says about one event.
type result struct {
	ID        string     `json:"id"`
	Duplicate bool       `json:"duplicate"`
	Error     *itemError `json:"error"`
}

type itemError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Param   string `json:"param"`
}

func checkResults(results []result, b *batch) error {
	if len(results) != b.len() {
		return fmt.Errorf("the server answered for %d events of %d; is it a Playhead server?", len(results), b.len())
	}
	return nil
}

func firstError(results []result) string {
	for _, r := range results {
		if r.Error != nil && itemVerdict(r.Error.Code) == tryAgain {
			return r.Error.Message + " (" + r.Error.Code + ")"
		}
	}
	return ""
}

// post makes one request with b's events, none if b is nil. The error is a *StatusError
// for an answer that is not a success; the header is then the answer's, too.
func (s *sender) post(ctx context.Context, b *batch) (http.Header, []result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	var body []byte
	encoding := ""
	if b != nil {
		body, encoding = s.encode(b.body)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.cfg.Key)
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", s.cfg.UserAgent)
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, requestError(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(text) > maxAnswerBytes {
		return nil, nil, &StatusError{Status: http.StatusNotImplemented, Code: "answer_too_large",
			Message: fmt.Sprintf("the answer has more than %d bytes", maxAnswerBytes)}
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusMultiStatus {
		return resp.Header, nil, statusError(resp, text)
	}
	var answer struct {
		Results []result `json:"results"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		// The status is a success, so the connection or a proxy has cut the text.
		return resp.Header, nil, fmt.Errorf("read the answer: %w", err)
	}
	return resp.Header, answer.Results, nil
}

// encode compresses a body, unless it compresses so well that it looks like an attack.
func (s *sender) encode(body []byte) (encoded []byte, encoding string) {
	encoded = s.zstd.EncodeAll(body, make([]byte, 0, len(body)/4))
	if len(encoded)*maxCompression < len(body) || len(encoded) >= len(body) {
		return body, ""
	}
	return encoded, "zstd"
}

// requestError drops the method and URL, which are always the same, from err's text.
func requestError(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		if u.Timeout() {
			return fmt.Errorf("no answer in time: %w", u.Err)
		}
		return u.Err
	}
	return err
}

func statusError(resp *http.Response, text []byte) *StatusError {
	e := &StatusError{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	var envelope struct {
		Error itemError `json:"error"`
	}
	if json.Unmarshal(text, &envelope) == nil {
		e.Code, e.Message, e.Param = envelope.Error.Code, envelope.Error.Message, envelope.Error.Param
	}
	if to := resp.Header.Get("Location"); to != "" && resp.StatusCode < 400 {
		e.Code, e.Message = "redirect", "redirects are not followed; if you trust it, give the url it points to, "+schema.Quote(to)
	}
	return e
}
