package engine

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// request is what a client asked for, in the terms of ClickHouse's HTTP interface.
type request struct {
	id       string // query_id, or one made up
	database string
	settings map[string]string
	params   params

	text   string // of the query parameter
	format string // default_format; "" where the client named none
	body   io.Reader

	compress        bool // the result in frames
	httpCompression bool // the result in acceptEncoding
	acceptEncoding  string
	waitEnd         bool
	clientRevision  uint64
	readOnly        bool // GET
}

// maxStatementBytes bounds the SQL of a statement; rows after an INSERT do not count.
const maxStatementBytes = 4 << 20

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]{0,127}$`)

// parseRequest reads everything but the body.
func parseRequest(r *http.Request, database string) (*request, error) {
	req := &request{
		database: database, settings: map[string]string{}, params: params{},
		acceptEncoding: r.Header.Get("Accept-Encoding"),
		format:         r.Header.Get("X-ClickHouse-Format"),
		readOnly:       r.Method == http.MethodGet || r.Method == http.MethodHead,
	}
	if db := r.Header.Get("X-ClickHouse-Database"); db != "" {
		req.database = db
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data") {
		return nil, newException(codeNotImplemented, "NOT_IMPLEMENTED", "External tables are not supported by the embedded engine")
	}
	var decompress bool
	for name, values := range r.URL.Query() {
		value := values[len(values)-1]
		switch {
		case name == "query":
			req.text = value
		case name == "database":
			req.database = value
		case name == "query_id":
			req.id = value
		case name == "default_format":
			req.format = value
		case name == "compress":
			req.compress = isTrue(value)
		case name == "decompress":
			decompress = isTrue(value)
		case name == "wait_end_of_query":
			req.waitEnd = isTrue(value)
		case name == "client_protocol_version":
			v, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return nil, newException(codeBadArguments, "BAD_ARGUMENTS", "client_protocol_version: %q is not a number", value)
			}
			req.clientRevision = v
		case name == "session_id", name == "role":
			return nil, newException(codeNotImplemented, "NOT_IMPLEMENTED", "%s is not supported by the embedded engine", name)
		case name == "user", name == "password", name == "quota_key", name == "buffer_size", name == "stacktrace",
			name == "session_timeout", name == "session_check", name == "close_session":
		case name == "async_insert", name == "wait_for_async_insert":
			// Every insert is synchronous here: acknowledged means stored.
		case strings.HasPrefix(name, "param_"):
			req.params[strings.TrimPrefix(name, "param_")] = value
		case settingName.MatchString(name):
			req.settings[name] = value
		default:
			return nil, newException(codeUnknownSetting, "UNKNOWN_SETTING", "Unknown setting %q", name)
		}
	}
	req.httpCompression = isTrue(req.settings["enable_http_compression"])
	if req.id == "" {
		req.id = rand.Text()
	}
	body, err := decodeBody(r, decompress)
	req.body = body
	return req, err
}

func isTrue(s string) bool { return s == "1" || strings.EqualFold(s, "true") }

// readStatement finds the statement in the query parameter, the body, or both, and returns with it the rows
// that follow an INSERT.
func (req *request) readStatement() (statement, io.Reader, error) {
	if req.text != "" {
		if st := parseStatement(req.text); st.hasData {
			return st, io.MultiReader(strings.NewReader(st.data), req.body), nil
		}
	}
	head, err := io.ReadAll(io.LimitReader(req.body, maxStatementBytes+1))
	if err != nil {
		return statement{}, nil, bodyError(err)
	}
	text := string(head)
	if req.text != "" && text != "" {
		text = req.text + "\n" + text
	} else if req.text != "" {
		text = req.text
	}
	if st := parseStatement(text); st.hasData {
		return st, io.MultiReader(strings.NewReader(st.data), req.body), nil
	} else if len(text) <= maxStatementBytes {
		return st, nil, nil
	}
	return statement{}, nil, newException(codeSyntaxError, "SYNTAX_ERROR", "Statement is longer than %d bytes", maxStatementBytes)
}

func bodyError(err error) error {
	var e *exception
	if errors.As(err, &e) {
		return err
	}
	return newException(codeNetworkError, "NETWORK_ERROR", "Read request body: %s", err)
}

// authenticate takes the three places where ClickHouse's clients put a password.
func authenticate(r *http.Request, password string) error {
	user, given, ok := r.BasicAuth()
	if !ok {
		user, given = r.Header.Get("X-ClickHouse-User"), r.Header.Get("X-ClickHouse-Key")
	}
	if !ok && user == "" {
		q := r.URL.Query()
		user, given = q.Get("user"), q.Get("password")
	}
	if user != "" && user != "default" || subtle.ConstantTimeCompare([]byte(given), []byte(password)) != 1 {
		return newException(codeAuthentication, "AUTHENTICATION_FAILED", "default: Authentication failed: password is incorrect, or there is no user with such name")
	}
	return nil
}
