package kafka

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"
)

// embeddedClusterID is what the embedded broker calls its cluster.
const embeddedClusterID = "playhead-dev"

// ErrDirInUse reports that another process runs an embedded broker on the directory.
var ErrDirInUse = errors.New("kafka: data directory is in use by another process")

// Embedded is a single Kafka broker in this process: kfake, which speaks transactions,
// groups and compaction and keeps everything in a directory, each batch synced to disk
// before it is acknowledged. It has no replicas and listens without TLS or SASL, so it
// belongs on a loopback address.
type Embedded struct {
	cluster *kfake.Cluster
	lock    *os.File
	door    *doorway
	disk    *durability // nil if the broker syncs by itself
	addr    string
	parts   int
}

// EmbeddedOption changes how StartEmbedded starts a broker.
type EmbeddedOption func(*embeddedOptions)

type embeddedOptions struct{ advertise string }

// Advertise has the broker tell clients of other processes to connect to addr (host:port)
// instead of where it listens: for a broker behind a proxy or a mapped port.
func Advertise(addr string) EmbeddedOption {
	return func(o *embeddedOptions) { o.advertise = addr }
}

// StartEmbedded starts a broker on the state in dir, which is made if missing and
// locked until Close or the end of the process, however it ends. listen is host:port,
// port 0 takes a free one. partitions is what topics get that are created without a
// count. Topics come from EnsureTopics, as with any broker; nothing creates them on use.
// It returns ErrDirInUse, or ErrDamaged if files in dir have lost what they held.
func StartEmbedded(dir, listen string, partitions int, log *slog.Logger, options ...EmbeddedOption) (*Embedded, error) {
	var given embeddedOptions
	for _, option := range options {
		option(&given)
	}
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("embedded kafka: listen address %q: %w", listen, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("embedded kafka: listen address %q: port: %w", listen, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("embedded kafka: %w", err)
	}
	if err := inspect(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded kafka: %w", err), lock.Close())
	}
	var door *doorway
	opts := []kfake.Opt{
		kfake.Ports(int(port)),
		kfake.ClusterID(embeddedClusterID),
		kfake.DataDir(dir),
		kfake.DefaultNumPartitions(partitions),
		kfake.WithLogger(embeddedLogger{log}),
	}
	disk, err := newDurability(dir, log)
	if err != nil {
		log.Info("embedded kafka syncs each batch by itself", "error", err)
		opts = append(opts, kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(append(opts, kfake.ListenFn(func(network, _ string) (net.Listener, error) {
		tcp, err := net.Listen(network, net.JoinHostPort(host, portText))
		if err != nil {
			return nil, err
		}
		door = openDoorway(tcp, given.advertise)
		if disk == nil {
			return door, nil
		}
		return durableListener{door, disk}, nil
	}))...)
	if err != nil {
		if disk != nil {
			err = errors.Join(err, disk.close())
		}
		return nil, errors.Join(fmt.Errorf("embedded kafka in %s: %w", dir, err), lock.Close())
	}
	return &Embedded{cluster: cluster, lock: lock, door: door, disk: disk, addr: cluster.ListenAddrs()[0], parts: partitions}, nil
}

// Addr returns the host:port that clients connect to.
func (e *Embedded) Addr() string { return e.addr }

// Config returns the default settings for clients of this broker. Those in this process
// reach it past the network stack.
func (e *Embedded) Config() Config {
	c := DefaultConfig()
	c.Brokers = []string{e.addr}
	c.Partitions = e.parts
	c.ReplicationFactor = 1
	c.dial = e.door.dial
	return c
}

// Close stops the broker and unlocks its directory. Clients should be closed before,
// or they retry until they give up. Close it once.
func (e *Embedded) Close() error {
	e.cluster.Close()
	var err error
	if e.disk != nil {
		err = e.disk.close()
	}
	return errors.Join(err, e.lock.Close())
}

// lockDir takes the lock of a data directory, which the kernel gives back when the
// process ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "playhead.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		closeErr := f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %s", ErrDirInUse, dir)
		}
		return nil, errors.Join(err, closeErr)
	}
	return f, nil
}

// embeddedLogger passes on what kfake warns of: above all, writes that did not reach
// the disk, which it answers with an error to the producer.
type embeddedLogger struct{ log *slog.Logger }

func (l embeddedLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("embedded kafka", "message", fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("embedded kafka", "message", fmt.Sprintf(format, args...))
	}
}
