package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// conn is one kept-alive HTTP connection to a server, for one goroutine. It does no more
// than it must: what the client uses of the shared processors the server does not get.
type conn struct {
	nc     net.Conn
	r      *bufio.Reader
	addr   string
	head   []byte
	answer bytes.Buffer
}

// requestTimeout bounds a request and its answer.
const requestTimeout = 2 * time.Minute

func dial(addr string) (*conn, error) {
	nc, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	return &conn{nc: nc, r: bufio.NewReaderSize(nc, 32<<10), addr: addr}, nil
}

func (c *conn) close() { _ = c.nc.Close() }

// do sends a request, with a JSON body unless that is nil, and returns the answer's
// status and body. The body is valid until the next call.
func (c *conn) do(method, path string, body []byte) (int, []byte, error) {
	c.head = fmt.Appendf(c.head[:0], "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n", method, path, c.addr, benchKey)
	if body != nil {
		c.head = fmt.Appendf(c.head, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.head = append(c.head, "\r\n"...)
	if err := c.nc.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	message := net.Buffers{c.head, body}
	if _, err := message.WriteTo(c.nc); err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer res.Body.Close()
	c.answer.Reset()
	if _, err := io.Copy(&c.answer, res.Body); err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return res.StatusCode, c.answer.Bytes(), nil
}

// get returns the body of a 200.
func (c *conn) get(path string) ([]byte, error) {
	status, body, err := c.do(http.MethodGet, path, nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("GET %s: %d %s", path, status, body)
	}
	return body, err
}

// append appends a body of n events and insists that all n were new.
func (c *conn) append(path string, body []byte, n int) error {
	status, answer, err := c.do(http.MethodPost, path, body)
	if err != nil {
		return err
	}
	if want := fmt.Appendf(nil, `"accepted":%d`, n); status != http.StatusOK || !bytes.Contains(answer[max(0, len(answer)-64):], want) {
		return fmt.Errorf("POST %s: %d %s", path, status, answer[:min(len(answer), 500)])
	}
	return nil
}

// createSession makes a session, so that it can be listened to before its first event.
func (c *conn) createSession(id string) error {
	status, answer, err := c.do(http.MethodPost, "/v1/sessions", fmt.Appendf(nil, `{"id":%q}`, id))
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("create session %s: %d %s", id, status, answer)
	}
	return err
}
