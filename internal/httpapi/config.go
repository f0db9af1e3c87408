package httpapi

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/internal/settings"
)

// Bounds and defaults of Config.
const (
	DefaultListen          = "127.0.0.1:8080"
	DefaultBodyLimit       = 16 << 20
	DefaultHeaderLimit     = 16 << 10
	DefaultMaxBodyBytes    = 1 << 30
	DefaultHeaderTimeout   = 15 * time.Second
	DefaultReadTimeout     = 60 * time.Second
	DefaultWriteTimeout    = 60 * time.Second
	DefaultIdleTimeout     = 120 * time.Second
	DefaultMaxConnections  = 256 << 10
	minBodyLimit           = 64 << 10
	maxBodyLimit           = 1 << 30
	maxMaxBodyBytes        = 1 << 40
	minHeaderLimit         = 8 << 10
	maxHeaderLimit         = 1 << 20
	maxAcceptRate          = 1_000_000
	minTimeout, maxTimeout = time.Second, time.Hour
)

// Config holds the settings of the HTTP edge.
type Config struct {
	// Listen is the address to accept connections on. Default 127.0.0.1:8080; port 0
	// takes a free one. Any address but loopback wants TLS in front.
	Listen string `yaml:"listen"`
	// BodyLimit is the largest request body as sent, in bytes; above it the answer is
	// 413. Default 16 MiB, 64 KiB to 1 GiB. A body is read whole before its handler runs.
	// More than 64 KiB is read only with a key that has the scope ingest.
	BodyLimit int `yaml:"body_limit"`
	// MaxBodyBytes is how much the bodies beyond 64 KiB that are being read or handled may
	// have together, in bytes, as announced: one without a Content-Length counts as BodyLimit
	// until it has come. Above it the answer is 503 overloaded. Default 1 GiB, BodyLimit to
	// 1 TiB. It is the worst case of memory for them; smaller ones take 64 KiB for each
	// connection that sends one.
	MaxBodyBytes int `yaml:"max_body_bytes"`
	// HeaderLimit is the size of the read buffer, which request line and headers must
	// fit into, in bytes; above it the answer is 431. Default 16 KiB, 8 KiB to 1 MiB.
	// Costs as much for each connection while it sends a request.
	HeaderLimit int `yaml:"header_limit"`
	// HeaderTimeout is how long request line and headers may take to arrive: from their first
	// byte on, of the first request from when the connection was let in. Default 15 s, 1 s to 1 h.
	// Short ones cut off clients on bad links, long ones let who says nothing, or a byte now
	// and then, hold connections. WebSocket handshakes are requests like any other.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// ReadTimeout is how long the body of a request may take to arrive, once its headers have.
	// Default 60 s, 1 s to 1 h. Short ones cut off large bodies on slow links, long ones let
	// idle senders hold connections, and memory (MaxBodyBytes).
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// WriteTimeout is how long a whole answer may take to be sent, counted from the end
	// of its handler. Default 60 s, 1 s to 1 h. Streams hijack their connection and set
	// deadlines of their own.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// IdleTimeout is how long a kept-alive connection may wait for its next request.
	// Default 120 s, 1 s to 1 h.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// MaxConnections is how many connections are served at once, streams included;
	// later ones are answered 503. Default 262,144, at least 1.
	MaxConnections int `yaml:"max_connections"`
	// AcceptRate is how many connections a second are let in. Default 0: 1,000 for each
	// processor; at most 1,000,000. A thousand listeners that come back at once are so spread
	// over half a second, in which those that are here are served; a low one keeps
	// newcomers waiting.
	AcceptRate int `yaml:"accept_rate"`
	// CORS says which web pages may use the API. Default none.
	CORS CORSConfig `yaml:"cors"`

	// BaseContext is the context every request's UserContext is, so that blocking
	// handlers end with the process. Nil: context.Background.
	BaseContext context.Context `yaml:"-"`
	// Keys tells whose large bodies are read. Nil: everybody's.
	Keys Authenticator `yaml:"-"`
	// Stopping, if set and true, answers everything but health and metrics with 503.
	Stopping func() bool `yaml:"-"`
	// Registerer takes the metrics of the edge. Nil: not registered anywhere.
	Registerer prometheus.Registerer `yaml:"-"`
}

// DefaultConfig returns the settings that hold unless set.
func DefaultConfig() Config {
	return Config{
		Listen:         DefaultListen,
		BodyLimit:      DefaultBodyLimit,
		MaxBodyBytes:   DefaultMaxBodyBytes,
		HeaderLimit:    DefaultHeaderLimit,
		HeaderTimeout:  DefaultHeaderTimeout,
		ReadTimeout:    DefaultReadTimeout,
		WriteTimeout:   DefaultWriteTimeout,
		IdleTimeout:    DefaultIdleTimeout,
		MaxConnections: DefaultMaxConnections,
		CORS:           CORSConfig{AllowedOrigins: []string{}, MaxAge: DefaultCORSMaxAge},
	}
}

// Validate reports every setting that is out of range, joined.
func (c Config) Validate() error {
	return errors.Join(
		settings.Want(c.Listen != "", "listen", `""`, "host:port"),
		settings.Want(c.BodyLimit >= minBodyLimit && c.BodyLimit <= maxBodyLimit, "body_limit", c.BodyLimit, "65536 to 1073741824 bytes"),
		settings.Want(c.MaxBodyBytes >= c.BodyLimit && c.MaxBodyBytes <= maxMaxBodyBytes, "max_body_bytes", c.MaxBodyBytes, "body_limit to 1099511627776 bytes"),
		settings.Want(c.HeaderLimit >= minHeaderLimit && c.HeaderLimit <= maxHeaderLimit, "header_limit", c.HeaderLimit, "8192 to 1048576 bytes"),
		settings.InRange("header_timeout", c.HeaderTimeout, minTimeout, maxTimeout),
		settings.InRange("read_timeout", c.ReadTimeout, minTimeout, maxTimeout),
		settings.InRange("write_timeout", c.WriteTimeout, minTimeout, maxTimeout),
		settings.InRange("idle_timeout", c.IdleTimeout, minTimeout, maxTimeout),
		settings.Want(c.AcceptRate >= 0 && c.AcceptRate <= maxAcceptRate, "accept_rate", c.AcceptRate, "0 to 1000000 connections a second"),
		settings.Want(c.MaxConnections >= 1, "max_connections", c.MaxConnections, "1 or more"),
		c.CORS.Validate(),
	)
}
