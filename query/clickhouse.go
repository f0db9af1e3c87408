package query

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Defaults and limits of ClickHouseConfig.
const (
	DefaultMaxOpenConns = 16
	DefaultMaxIdleConns = 8
	DefaultDialTimeout  = 5 * time.Second
	DefaultReadTimeout  = time.Minute

	maxOpenConns = 1024
	maxTimeout   = time.Hour
)

// ClickHouseConfig says where ClickHouse is and how much of it we use.
type ClickHouseConfig struct {
	// DSN is the server's address: clickhouse://user:password@host:9000/database for the
	// native protocol, http:// or https:// for the HTTP one. Several hosts, separated by
	// commas, are tried in order. Settings may follow as query parameters. Required.
	// It may hold a password: it is never logged.
	DSN string `yaml:"dsn"`

	// TLS is used with https:// and, if Enabled, with clickhouse://.
	TLS ClickHouseTLS `yaml:"tls"`

	// MaxOpenConns bounds the statements running at the same time, pages, exports and
	// materialiser together; callers beyond it wait up to DialTimeout. Default 16, 1 to
	// 1024. The embedded engine runs one statement a connection.
	MaxOpenConns int `yaml:"max_open_conns"`

	// MaxIdleConns is how many connections are kept between statements. Default 8, 1 to
	// MaxOpenConns. Lower costs a dial a statement under load; higher costs sockets.
	MaxIdleConns int `yaml:"max_idle_conns"`

	// DialTimeout bounds connecting, and waiting for a free connection. Default 5 s,
	// at most 1 h.
	DialTimeout time.Duration `yaml:"dial_timeout"`

	// ReadTimeout bounds the wait for the next bytes of an answer where the call's
	// context has no nearer deadline. Default 1 min, at most 1 h. A server that hangs is
	// noticed after this long.
	ReadTimeout time.Duration `yaml:"read_timeout"`

	// Table is how the table of events is kept: for how long, and where.
	Table TableConfig `yaml:"table"`
}

// ClickHouseTLS configures TLS to ClickHouse. The zero value uses the system's roots.
type ClickHouseTLS struct {
	Enabled            bool   `yaml:"enabled"`              // use TLS with clickhouse:// (https:// always does)
	CAFile             string `yaml:"ca_file"`              // PEM roots that replace the system's; "" keeps those
	CertFile           string `yaml:"cert_file"`            // PEM client certificate; goes with KeyFile
	KeyFile            string `yaml:"key_file"`             // PEM client key; goes with CertFile
	ServerName         string `yaml:"server_name"`          // name to verify; "" takes the DSN's host
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"` // accept any certificate: for tests only
}

// DefaultClickHouseConfig returns the defaults; DSN has none.
func DefaultClickHouseConfig() ClickHouseConfig {
	return ClickHouseConfig{
		MaxOpenConns: DefaultMaxOpenConns,
		MaxIdleConns: DefaultMaxIdleConns,
		DialTimeout:  DefaultDialTimeout,
		ReadTimeout:  DefaultReadTimeout,
		Table:        DefaultTableConfig(),
	}
}

// Validate reports every problem of c, joined; nil if there is none. It reads no file.
func (c ClickHouseConfig) Validate() error {
	var errs []error
	bad := func(key string, value any, want string) {
		errs = append(errs, fmt.Errorf("clickhouse.%s is %v; want %s", key, value, want))
	}
	switch c.scheme() {
	case "http", "https", "clickhouse":
		if _, err := parseDSN(c.DSN); err != nil {
			errs = append(errs, fmt.Errorf("clickhouse.dsn: %w", err))
		}
	default:
		// The value may hold a password, so it is not repeated.
		errs = append(errs, errors.New("clickhouse.dsn must begin with http://, https:// or clickhouse://"))
	}
	if c.scheme() == "http" && c.TLS.Enabled {
		bad("tls.enabled", true, "false with an http:// DSN (use https://)")
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls.cert_file", fmt.Sprintf("%q and key_file %q", c.TLS.CertFile, c.TLS.KeyFile), "both or neither")
	}
	if c.MaxOpenConns < 1 || c.MaxOpenConns > maxOpenConns {
		bad("max_open_conns", c.MaxOpenConns, fmt.Sprintf("1 to %d", maxOpenConns))
	}
	if c.MaxIdleConns < 1 || c.MaxIdleConns > c.MaxOpenConns {
		bad("max_idle_conns", c.MaxIdleConns, "1 to max_open_conns")
	}
	if c.DialTimeout <= 0 || c.DialTimeout > maxTimeout {
		bad("dial_timeout", c.DialTimeout, fmt.Sprintf("more than 0, at most %v", maxTimeout))
	}
	if c.ReadTimeout <= 0 || c.ReadTimeout > maxTimeout {
		bad("read_timeout", c.ReadTimeout, fmt.Sprintf("more than 0, at most %v", maxTimeout))
	}
	return errors.Join(append(errs, c.Table.Validate())...)
}

func (c ClickHouseConfig) scheme() string {
	scheme, _, _ := strings.Cut(c.DSN, "://")
	return scheme
}

// Exception codes of ClickHouse (ErrorCodes.cpp) that no retry mends: they mean that
// the DSN is wrong.
const (
	codeUnknownDatabase      = 81
	codeUnknownUser          = 192
	codeWrongPassword        = 193
	codeAuthenticationFailed = 516
)

// Open returns a pool of connections to ClickHouse, safe for concurrent use; the caller
// closes it. It asks the server for one sign of life, for at most DialTimeout, to report
// a wrong password or database at once. A server that is away is no error: the pool
// connects when it comes back, and every call until then fails by itself.
//
// Asynchronous inserts are off on every connection, as the server's default (26.x) would
// acknowledge and deduplicate by other rules than the materialiser counts on.
func Open(ctx context.Context, c ClickHouseConfig) (driver.Conn, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("open clickhouse: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	var exception *clickhouse.Exception
	if err := conn.Ping(ctx); errors.As(err, &exception) {
		switch exception.Code {
		case codeUnknownDatabase, codeUnknownUser, codeWrongPassword, codeAuthenticationFailed:
			return nil, errors.Join(fmt.Errorf("open clickhouse: %w", err), conn.Close())
		}
	}
	return conn, nil
}

func (c ClickHouseConfig) options() (*clickhouse.Options, error) {
	opts, err := parseDSN(c.DSN)
	if err != nil {
		return nil, fmt.Errorf("clickhouse.dsn: %w", err)
	}
	if opts.TLS != nil || c.TLS.Enabled {
		if opts.TLS, err = c.TLS.config(opts.TLS); err != nil {
			return nil, err
		}
	}
	opts.MaxOpenConns = c.MaxOpenConns
	opts.MaxIdleConns = c.MaxIdleConns
	opts.DialTimeout = c.DialTimeout
	opts.ReadTimeout = c.ReadTimeout
	opts.ClientInfo.Products = append(opts.ClientInfo.Products, struct{ Name, Version string }{"playhead", "1"})
	opts.Settings["async_insert"] = 0
	return opts, nil
}

// parseDSN reads a DSN; https:// implies secure=true, which the driver wants spelt out.
func parseDSN(dsn string) (*clickhouse.Options, error) {
	if strings.HasPrefix(dsn, "https://") {
		if u, err := url.Parse(dsn); err == nil && !u.Query().Has("secure") {
			q := u.Query()
			q.Set("secure", "true")
			u.RawQuery = q.Encode()
			dsn = u.String()
		}
	}
	return clickhouse.ParseDSN(dsn) // its errors hide the password
}

// config builds on base, which holds what the DSN's own parameters said, or is nil.
func (t ClickHouseTLS) config(base *tls.Config) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if base != nil {
		conf.ServerName, conf.InsecureSkipVerify = base.ServerName, base.InsecureSkipVerify
	}
	if t.ServerName != "" {
		conf.ServerName = t.ServerName
	}
	conf.InsecureSkipVerify = conf.InsecureSkipVerify || t.InsecureSkipVerify
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("clickhouse.tls.ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("clickhouse.tls.ca_file %s holds no PEM certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("clickhouse.tls.cert_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}
