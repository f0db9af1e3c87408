package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds an answer that is read whole.
const maxAnswer = 64 << 20

// client asks the cluster as its clients do: by the front, each request on a connection
// of its own, so that each may land on another node.
type client struct {
	front map[string]string // address by role
	http  *http.Client
}

// newClient gives each request that long.
func newClient(c *Cluster, patience time.Duration) *client {
	cl := &client{front: make(map[string]string), http: &http.Client{
		Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	}}
	for role, l := range c.front {
		cl.front[role] = l.Addr()
	}
	return cl
}

// answer is what a node said.
type answer struct {
	status     int
	body       []byte
	header     http.Header
	retryAfter time.Duration
}

// do asks whoever has the role.
func (c *client) do(ctx context.Context, role, method, path, contentType, body string) (answer, error) {
	return c.at(ctx, c.front[role], method, path, contentType, body)
}

func (c *client) at(ctx context.Context, addr, method, path, contentType, body string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+Key)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return answer{}, fmt.Errorf("answer: %w", err)
	}
	a := answer{status: res.StatusCode, body: b, header: res.Header}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		a.retryAfter = time.Duration(s) * time.Second
	}
	return a, nil
}

// outcome is what an answer means to a client.
type outcome int

const (
	outcomeDone  outcome = iota
	outcomeAgain         // not now, or not known: the same again
	outcomeWrong         // an answer that nothing that breaks excuses
)

// judge says what an answer to a good request means. Whatever breaks, a good request is
// served, or refused for now with when to come back.
func judge(a answer, err error) (outcome, string) {
	switch {
	case err != nil:
		return outcomeAgain, ""
	case a.status >= 200 && a.status < 300:
		return outcomeDone, ""
	case a.status == http.StatusServiceUnavailable, a.status == http.StatusTooManyRequests:
		if a.retryAfter == 0 {
			return outcomeWrong, fmt.Sprintf("%d without a Retry-After: %.300s", a.status, a.body)
		}
		return outcomeAgain, ""
	case a.status == http.StatusRequestTimeout: // the link was too slow for the request
		return outcomeAgain, ""
	default:
		return outcomeWrong, fmt.Sprintf("%d %.300s", a.status, a.body)
	}
}
