package conform

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"time"

	"github.com/gofiber/fiber/v2"
)

// Exchange gives an app the bytes that a client sends on one connection before it hangs up,
// and returns what the app says. A panic of the app is one of the caller's. For apps that
// hijack no connection.
func Exchange(app *fiber.App, sent []byte) []byte {
	app.Handler() // builds the routes, once
	conn := &scripted{in: bytes.NewReader(sent)}
	_ = app.Server().ServeConn(conn) // what it could not read it has said on the connection
	return conn.out.Bytes()
}

// scripted is a connection whose client has said all that it will.
type scripted struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *scripted) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *scripted) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// plainPath matches paths that every reader of HTTP reads alike.
var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9_:-][A-Za-z0-9_.:-]*)+$`)

// CheckExchange returns what is wrong with the answers to whatever a client sent: one that is
// not HTTP, a 5xx, or, where it is plain what was asked, one that is not as in the document.
// No answer at all is none to be wrong.
func CheckExchange(sent, got []byte) error {
	in, out := bufio.NewReader(bytes.NewReader(sent)), bufio.NewReader(bytes.NewReader(got))
	for n := 1; ; n++ {
		if _, err := out.Peek(1); errors.Is(err, io.EOF) {
			return nil
		}
		req, unknown := http.ReadRequest(in)
		if unknown != nil { // nor whether the answer has a body
			req = &http.Request{Method: http.MethodHead}
		}
		res, err := http.ReadResponse(out, req) //nolint:bodyclose // nothing is behind it: it is read from memory
		if err != nil {
			return fmt.Errorf("answer %d of %q is not HTTP: %w", n, got, err)
		}
		switch {
		case res.StatusCode == http.StatusContinue:
			n--
			continue
		case res.StatusCode >= 500:
			return fmt.Errorf("answer %d is %d: %q", n, res.StatusCode, got)
		case res.StatusCode == http.StatusSwitchingProtocols, unknown != nil:
			return nil
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return fmt.Errorf("the body of answer %d of %q: %w", n, got, err)
		}
		if req.Body != nil {
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				in.Reset(bytes.NewReader(nil))
			}
		}
		a := Answer{Method: req.Method, Path: req.URL.Path, Status: res.StatusCode, Header: res.Header, Body: body}
		if a.Status == http.StatusNotFound || a.Status == http.StatusMethodNotAllowed {
			a.Path = "/" // the app may not have the path; it is an error all the same
		}
		if !plainPath.MatchString(req.URL.Path) || a.Method == http.MethodHead && !Knows(a.Method, a.Path) {
			continue
		}
		if err := Check(a); err != nil {
			return err
		}
	}
}
