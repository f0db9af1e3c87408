package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/playhead-dev/playhead/internal/settings"
	"github.com/playhead-dev/playhead/schema"
)

// Defaults and bounds of Config.
const (
	DefaultBroker            = "127.0.0.1:9092"
	DefaultClientID          = "playhead"
	DefaultPartitions        = 8
	DefaultReplicationFactor = 3
	DefaultMaxBatchBytes     = 2 << 20
	DefaultFetchMaxBytes     = 4 << 20
	DefaultReadConnections   = 4
	DefaultRetryTimeout      = 15 * time.Second

	minMaxBatchBytes = 1<<20 + 128<<10 // one event of 1 MiB with all its headers
	maxMaxBatchBytes = 100 << 20
	minFetchMaxBytes = 64 << 10
	maxFetchMaxBytes = 256 << 20
	maxReadConns     = 256
	minRetryTimeout  = time.Second
	maxRetryTimeout  = 10 * time.Minute
)

// SASL mechanisms.
const (
	SASLPlain       = "plain"
	SASLScramSHA256 = "scram-sha-256"
	SASLScramSHA512 = "scram-sha-512"
)

// Config says how to reach Kafka and how the topics are made.
type Config struct {
	// Brokers are the addresses (host:port) to learn the cluster from; any of them will
	// do. Default 127.0.0.1:9092. At least one.
	Brokers []string `yaml:"brokers"`
	// ClientID names this program in the brokers' logs and quotas. Default playhead.
	ClientID string `yaml:"client_id"`
	// TLS encrypts the connections. Default off.
	TLS TLSConfig `yaml:"tls"`
	// SASL authenticates the connections. Default off.
	SASL SASLConfig `yaml:"sasl"`

	// Partitions is how many partitions playhead.events gets when it is created; an
	// existing topic keeps its own. Default 8, 1 to 65536. More let more nodes share the
	// work, fewer cost less memory. Raising it later begins a new log epoch.
	Partitions int `yaml:"partitions"`
	// ReplicationFactor is how many brokers hold each partition when topics are created.
	// Default 3, 0 to 100 (`playhead dev` uses 1). From 3 on, min.insync.replicas is 2, so
	// that an acknowledged append survives the loss of a broker. 0 leaves both to the
	// brokers' own settings (default.replication.factor, KIP-464).
	ReplicationFactor int `yaml:"replication_factor"`
	// Retention is how long the log keeps events when the topic is created. Default 0:
	// the broker's own setting. -1ns keeps them for good. Shorter than the materialiser's
	// longest outage, and events are lost to history.
	Retention time.Duration `yaml:"retention"`
	// MaxBatchBytes is the largest batch of records the topics accept and producers send,
	// in bytes. Default 2 MiB, 1.125 MiB to 100 MiB: an event of 1 MiB must fit in.
	MaxBatchBytes int `yaml:"max_batch_bytes"`

	// FetchMaxBytes bounds one fetch of a Log, compressed. Default 4 MiB, 64 KiB to
	// 256 MiB. A Read holds two of them at most; larger ones read faster.
	FetchMaxBytes int `yaml:"fetch_max_bytes"`
	// ReadConnections is how many fetches a Log runs at once, each on a connection of
	// its own; more wait. Default 4, 1 to 256.
	ReadConnections int `yaml:"read_connections"`
	// RetryTimeout is how long calls of a Log retry a broker that is gone or moved before
	// they give up. Default 15 s, 1 s to 10 min.
	RetryTimeout time.Duration `yaml:"retry_timeout"`

	// dial replaces the network's: Embedded sets it, for clients in its own process.
	dial func(ctx context.Context, network, host string) (net.Conn, error)
}

// TLSConfig encrypts connections to the brokers.
type TLSConfig struct {
	// Enabled turns TLS on. Default false.
	Enabled bool `yaml:"enabled"`
	// CAFile holds the certificates to trust, in PEM. Default: those of the system.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile hold our own certificate and key in PEM, if brokers ask for
	// one; both or neither.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName is the name to expect in the brokers' certificates. Default: the host
	// of each address.
	ServerName string `yaml:"server_name"`
	// InsecureSkipVerify accepts any certificate. For experiments only.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify"`
}

// SASLConfig authenticates connections to the brokers.
type SASLConfig struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512. Default "": no authentication.
	Mechanism string `yaml:"mechanism"`
	// Username and Password are the credentials.
	Username string `yaml:"username"`
	Password string `yaml:"password"`
	// PasswordFile holds the password instead, so that it stays out of the
	// configuration; a final newline is not part of it. One of the two, not both.
	PasswordFile string `yaml:"password_file"`
}

// DefaultConfig returns the settings that hold unless set.
func DefaultConfig() Config {
	return Config{
		Brokers:           []string{DefaultBroker},
		ClientID:          DefaultClientID,
		Partitions:        DefaultPartitions,
		ReplicationFactor: DefaultReplicationFactor,
		MaxBatchBytes:     DefaultMaxBatchBytes,
		FetchMaxBytes:     DefaultFetchMaxBytes,
		ReadConnections:   DefaultReadConnections,
		RetryTimeout:      DefaultRetryTimeout,
	}
}

// Validate reports every setting that is wrong, joined. It reads no files.
func (c Config) Validate() error {
	errs := []error{settings.Want(len(c.Brokers) > 0, "brokers", "empty", "one or more host:port")}
	for i, b := range c.Brokers {
		_, port, err := net.SplitHostPort(b)
		errs = append(errs, settings.Want(err == nil && port != "", fmt.Sprintf("brokers[%d]", i), fmt.Sprintf("%q", b), "host:port"))
	}
	errs = append(errs,
		settings.InRange("partitions", c.Partitions, 1, schema.MaxPartition+1),
		settings.InRange("replication_factor", c.ReplicationFactor, 0, 100),
		settings.Want(c.Retention >= -1, "retention", c.Retention, "0, -1ns or a duration"),
		settings.InRange("max_batch_bytes", c.MaxBatchBytes, minMaxBatchBytes, maxMaxBatchBytes),
		settings.InRange("fetch_max_bytes", c.FetchMaxBytes, minFetchMaxBytes, maxFetchMaxBytes),
		settings.InRange("read_connections", c.ReadConnections, 1, maxReadConns),
		settings.InRange("retry_timeout", c.RetryTimeout, minRetryTimeout, maxRetryTimeout),
	)
	errs = append(errs, c.TLS.problems()...)
	errs = append(errs, c.SASL.problems()...)
	return errors.Join(errs...)
}

func (t TLSConfig) problems() (errs []error) {
	if !t.Enabled && t != (TLSConfig{}) {
		errs = append(errs, errors.New("tls.enabled is false; want true with any other tls setting"))
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		errs = append(errs, fmt.Errorf("tls.cert_file is %q and tls.key_file is %q; want both or neither", t.CertFile, t.KeyFile))
	}
	return errs
}

func (s SASLConfig) problems() (errs []error) {
	switch s.Mechanism {
	case "":
		if s != (SASLConfig{}) {
			errs = append(errs, errors.New(`sasl.mechanism is ""; want plain, scram-sha-256 or scram-sha-512 with any other sasl setting`))
		}
		return errs
	case SASLPlain, SASLScramSHA256, SASLScramSHA512:
	default:
		errs = append(errs, fmt.Errorf("sasl.mechanism is %q; want plain, scram-sha-256 or scram-sha-512", s.Mechanism))
	}
	if s.Username == "" {
		errs = append(errs, errors.New(`sasl.username is ""; want a name`))
	}
	if (s.Password == "") == (s.PasswordFile == "") {
		errs = append(errs, errors.New("sasl.password and sasl.password_file: want exactly one of them"))
	}
	return errs
}

// Options returns what every client of ours needs: seed brokers, client id, TLS, SASL,
// the bound of a batch, and the way to an embedded broker. It reads the files that the
// settings name.
func (c Config) Options() ([]kgo.Opt, error) {
	d, err := newDecompressor()
	if err != nil {
		return nil, err
	}
	// Client metrics (KIP-714) keep megabytes of compression buffers alive in every client.
	opts := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.DisableClientMetrics(), kgo.WithDecompressor(d)}
	if c.ClientID != "" {
		opts = append(opts, kgo.ClientID(c.ClientID))
	}
	if c.dial != nil {
		opts = append(opts, kgo.Dialer(c.dial))
	}
	if c.TLS.Enabled {
		t, err := c.TLS.load()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(t))
	}
	if c.SASL.Mechanism != "" {
		m, err := c.SASL.load()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.SASL(m))
	}
	return opts, nil
}

func (t TLSConfig) load() (*tls.Config, error) {
	out := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         t.ServerName,
		InsecureSkipVerify: t.InsecureSkipVerify, //nolint:gosec // asked for by name
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tls.ca_file: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca_file %s holds no certificate in PEM", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("tls.cert_file and tls.key_file: %w", err)
		}
		out.Certificates = []tls.Certificate{cert}
	}
	return out, nil
}

func (s SASLConfig) load() (sasl.Mechanism, error) {
	password := s.Password
	if s.PasswordFile != "" {
		b, err := os.ReadFile(s.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("sasl.password_file: %w", err)
		}
		password = strings.TrimRight(string(b), "\r\n")
	}
	switch s.Mechanism {
	case SASLPlain:
		return plain.Auth{User: s.Username, Pass: password}.AsMechanism(), nil
	case SASLScramSHA256:
		return scram.Auth{User: s.Username, Pass: password}.AsSha256Mechanism(), nil
	case SASLScramSHA512:
		return scram.Auth{User: s.Username, Pass: password}.AsSha512Mechanism(), nil
	default:
		return nil, fmt.Errorf("sasl.mechanism %q is not known", s.Mechanism)
	}
}
