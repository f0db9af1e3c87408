package conform

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"sync"
)

// Transport checks the answers that pass through it to a server of the API.
type Transport struct {
	Next   http.RoundTripper
	Report func(error) // what is not as in the document; from any goroutine
}

// RoundTrip implements http.RoundTripper. A JSON body is read before it returns; others
// pass as they come.
func (t Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.Next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	a := Answer{Method: req.Method, Path: req.URL.EscapedPath(), Status: res.StatusCode, Header: res.Header}
	if media, _, merr := mime.ParseMediaType(res.Header.Get("Content-Type")); merr == nil && media == "application/json" {
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			return nil, err
		}
		a.Body = body
		res.Body = io.NopCloser(bytes.NewReader(body))
	}
	if err := Check(a); err != nil {
		t.Report(err)
	}
	return res, nil
}

// Watcher remembers what was not as in the document. Safe for concurrent use.
type Watcher struct {
	mu   sync.Mutex // guards errs
	errs []error
}

// maxRemembered bounds a Watcher's errors: more of them tell nothing.
const maxRemembered = 20

// Watch checks whatever passes through a transport from now on: for TestMain, which has
// net/http's default one watched, and asks Err after the tests.
func Watch(transport *http.RoundTripper) *Watcher {
	w := new(Watcher)
	*transport = Transport{Next: *transport, Report: w.report}
	return w
}

func (w *Watcher) report(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) < maxRemembered {
		w.errs = append(w.errs, err)
	}
}

// Err returns what was not as in the document.
func (w *Watcher) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.errs...)
}
