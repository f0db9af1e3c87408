package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// asked is one statement as the server sent it: the text, its settings and parameters.
type asked struct {
	query  url.Values
	header http.Header
	body   []byte
}

// recorder stands between a server and its ClickHouse and keeps the statements of history
// that pass. The server cannot tell.
type recorder struct {
	server *http.Server
	dsn    string
	served chan struct{} // closed when the server has ended

	mu   sync.Mutex
	seen []asked // guarded by mu
}

// startRecorder listens in front of the ClickHouse at dsn. The caller stops it.
func startRecorder(ctx context.Context, dsn string) (*recorder, error) {
	target, err := url.Parse(dsn)
	if err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	front := *target
	front.Host = ln.Addr().String()
	r := &recorder{dsn: front.String(), served: make(chan struct{})}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = "http", target.Host },
		FlushInterval: -1,
	}
	r.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if err := r.note(req); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		proxy.ServeHTTP(w, req)
	})}
	go func() { // ends with stop, which waits for it
		defer close(r.served)
		_ = r.server.Serve(ln)
	}()
	return r, nil
}

// maxStatement bounds what is kept of a request's body: inserts are larger.
const maxStatement = 1 << 20

// note keeps a request that asks about events by the query role. Its parameters are p0,
// p1 and so on; those of the materialiser have names.
func (r *recorder) note(req *http.Request) error {
	q := req.URL.Query()
	if !q.Has("param_p0") {
		return nil
	}
	head, err := io.ReadAll(io.LimitReader(req.Body, maxStatement))
	if err != nil {
		return fmt.Errorf("recorder: %w", err)
	}
	rest := req.Body
	req.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), rest), rest}
	if len(head) == maxStatement || !strings.Contains(string(head), "FROM "+schema.TableEvents) {
		return nil
	}
	q.Del("query_id")
	header := req.Header.Clone()
	for _, name := range []string{"Authorization", "X-ClickHouse-User", "X-ClickHouse-Key", "X-ClickHouse-SSL-Certificate-Auth"} {
		header.Del(name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, asked{query: q, header: header, body: head})
	return nil
}

// take returns what has passed since the last call, in the order in which it began.
func (r *recorder) take() []asked {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

func (r *recorder) stop() error {
	err := r.server.Close()
	<-r.served
	return err
}

// straight asks a ClickHouse without a server in between.
type straight struct {
	client *http.Client
	at     *url.URL
}

func newStraight(dsn string) (*straight, error) {
	at, err := url.Parse(dsn)
	if err != nil {
		return nil, fmt.Errorf("straight to the engine: %w", err)
	}
	return &straight{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, DisableCompression: true}}, at: at}, nil
}

func (s *straight) close() { s.client.CloseIdleConnections() }

// ask sends statements as they were recorded, one after the other, and reads their answers
// to the end, undecoded. It returns the bytes of the answers.
func (s *straight) ask(ctx context.Context, statements []asked) (int64, error) {
	var size int64
	for _, a := range statements {
		u := url.URL{Scheme: "http", Host: s.at.Host, Path: "/", RawQuery: a.query.Encode()}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(a.body))
		if err != nil {
			return size, fmt.Errorf("straight to the engine: %w", err)
		}
		req.Header = a.header.Clone()
		password, _ := s.at.User.Password()
		req.Header.Set("X-ClickHouse-User", s.at.User.Username())
		req.Header.Set("X-ClickHouse-Key", password)
		n, err := s.read(req)
		if err != nil {
			return size, err
		}
		size += n
	}
	return size, nil
}

func (s *straight) read(req *http.Request) (int64, error) {
	res, err := s.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("straight to the engine: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 500))
		return 0, fmt.Errorf("straight to the engine: %d %s", res.StatusCode, text)
	}
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		return n, fmt.Errorf("straight to the engine: %w", err)
	}
	return n, nil
}
