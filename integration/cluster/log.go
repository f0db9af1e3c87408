package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
)

// Log is the Kafka under test: one broker or several, each a process behind a Link whose
// address it tells clients.
type Log interface {
	// Start starts the brokers and returns when the topics are there.
	Start(ctx context.Context) error
	// Addrs are what clients connect to: the links' addresses.
	Addrs() []string
	// Brokers are the processes, one a Link, in the same order.
	Brokers() []Broker
	Links() []*Link
	// Replicas is how many brokers hold each partition.
	Replicas() int
	// Close ends everything that Start has started.
	Close() error
}

// Broker is one of a Log's. *Process is one.
type Broker interface {
	Up() error
	Kill()
	Pause()
	Resume()
	Wanted() bool
}

// BrokerCommand is the first argument by which a program that uses this package becomes
// an embedded broker: it then calls BrokerMain with the other arguments.
const BrokerCommand = "cluster-broker"

// BrokerMain runs Playhead's embedded broker in this process until ctx ends.
func BrokerMain(ctx context.Context, args []string, stderr io.Writer) error {
	if len(args) != 4 {
		return errors.New("broker: want the arguments directory, listen, advertise, partitions")
	}
	partitions, err := strconv.Atoi(args[3])
	if err != nil {
		return fmt.Errorf("broker: partitions: %w", err)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	broker, err := kafka.StartEmbedded(args[0], args[1], partitions, log, kafka.Advertise(args[2]))
	if err != nil {
		return err
	}
	// Here and not by the nodes: the embedded broker's control topic is not compacted.
	if err := kafka.EnsureTopics(ctx, broker.Config()); err != nil {
		return errors.Join(err, broker.Close())
	}
	<-ctx.Done()
	return broker.Close()
}

// embeddedLog is Playhead's embedded broker as a Log.
type embeddedLog struct {
	process *Process
	link    *Link
}

// sessionTimeoutMs is the shortest time that the broker under test lets a member of a
// group be silent. Kafka's own default is 6 s; faults are to be noticed sooner.
const sessionTimeoutMs = "1000"

// NewEmbeddedLog prepares the embedded broker with its data in dir/kafka. command is a
// program and its first arguments that end up in BrokerMain.
func NewEmbeddedLog(dir string, command []string, partitions int) (Log, error) {
	listen := freeAddr()
	link, err := OpenLink("kafka", listen)
	if err != nil {
		return nil, err
	}
	link.label = kafkaClient
	args := append(command[1:len(command):len(command)], filepath.Join(dir, "kafka"), listen, link.Addr(), strconv.Itoa(partitions))
	process, err := newProcess("kafka", filepath.Join(dir, "kafka.log"), command[0], args, nil)
	if err != nil {
		return nil, errors.Join(err, link.Close())
	}
	return &embeddedLog{process, link}, nil
}

// kafkaClient reads a client's name from its first request (kafka.apache.org/protocol,
// "Request Header v1": length, kind, version, correlation id, client id).
func kafkaClient(b []byte) string {
	const head = 4 + 2 + 2 + 4
	if len(b) < head+2 {
		return ""
	}
	n := int(int16(binary.BigEndian.Uint16(b[head:])))
	if n < 0 || len(b) < head+2+n {
		return ""
	}
	return string(b[head+2 : head+2+n])
}

func (e *embeddedLog) Start(ctx context.Context) error {
	if err := e.process.Up(); err != nil {
		return err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(e.Addrs()...), kgo.DisableClientMetrics())
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	admin := kadm.NewClient(cl)
	return await(ctx, 30*time.Second, "the broker takes its configuration", func(ctx context.Context) error {
		value := sessionTimeoutMs
		answers, err := admin.AlterBrokerConfigs(ctx, []kadm.AlterConfig{{Name: "group.min.session.timeout.ms", Value: &value}})
		if err != nil {
			return err
		}
		for _, a := range answers {
			err = errors.Join(err, a.Err)
		}
		return err
	})
}

func (e *embeddedLog) Addrs() []string   { return []string{e.link.Addr()} }
func (e *embeddedLog) Brokers() []Broker { return []Broker{e.process} }
func (e *embeddedLog) Links() []*Link    { return []*Link{e.link} }
func (e *embeddedLog) Replicas() int     { return 1 }

func (e *embeddedLog) Close() error {
	return errors.Join(e.process.close(), e.link.Close())
}

// await calls check until it returns nil, for as long as within.
func await(ctx context.Context, within time.Duration, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond): // between two looks at the condition
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s: %w", within, what, err)
		}
	}
}
