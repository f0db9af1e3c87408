package kafkacluster

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// Brokers is how many brokers a cluster has.
const Brokers = 3

// metadataMinAge is the least that the client takes.
const metadataMinAge = 10 * time.Millisecond

// startTimeout bounds a start on a machine that does other things too.
const startTimeout = 3 * time.Minute

// startTries is how often a start looks for other ports, should somebody have taken one.
const startTries = 3

// Cluster is a running cluster. The methods that ask it are safe for concurrent use; those
// that change it are for one goroutine at a time.
type Cluster struct {
	dir     string
	brokers []*Broker
	client  *kgo.Client
	admin   *kadm.Client
}

// Start formats and starts a cluster with all its files in dir, which must exist, and
// returns when every broker serves. ctx bounds the start. The caller closes the cluster and
// then removes dir.
func Start(ctx context.Context, installation Installation, dir string) (*Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var failed error
	for try := range startTries {
		c, err := start(ctx, installation, filepath.Join(dir, fmt.Sprint("cluster", try)))
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, errPortTaken) {
			return nil, err
		}
		failed = err
	}
	return nil, failed
}

func start(ctx context.Context, installation Installation, dir string) (_ *Cluster, err error) {
	c := &Cluster{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.prepare(installation); err != nil {
		return nil, err
	}
	id := newClusterID()
	var formats errgroup.Group
	for _, b := range c.brokers {
		formats.Go(func() error { return b.format(ctx, id) })
	}
	if err := formats.Wait(); err != nil {
		return nil, err
	}
	for _, b := range c.brokers {
		if err := b.Start(); err != nil {
			return nil, err
		}
	}
	return c, c.Await(ctx)
}

// newClusterID returns an id as Kafka makes them: 16 bytes in base64 that do not begin with
// a dash, or the tool that formats takes them for an option.
func newClusterID() string {
	id := make([]byte, 16)
	rand.Read(id)
	id[0] &= 0x7f
	return base64.RawURLEncoding.EncodeToString(id)
}

// prepare makes directories, certificates and configurations.
func (c *Cluster) prepare(installation Installation) error {
	ports, err := freePorts(3 * Brokers)
	if err != nil {
		return err
	}
	for i := range Brokers {
		addr := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
		b := &Broker{
			number: i + 1, dir: filepath.Join(c.dir, fmt.Sprint("broker", i+1)), installation: installation,
			open: addr(ports[3*i]), secure: addr(ports[3*i+1]), controller: addr(ports[3*i+2]),
		}
		if err := os.MkdirAll(b.dir, 0o700); err != nil {
			return err
		}
		c.brokers = append(c.brokers, b)
	}
	if err := writeCertificates(c.CAFile(), c.keyStore()); err != nil {
		return err
	}
	for _, b := range c.brokers {
		if err := c.configuration(b).write(b.properties()); err != nil {
			return err
		}
	}
	// A cache of metadata would tell of topics that are gone.
	c.client, err = kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.DisableClientMetrics(), kgo.MetadataMinAge(metadataMinAge))
	if err != nil {
		return err
	}
	c.admin = kadm.NewClient(c.client)
	return nil
}

// Close kills all brokers. Their files stay.
func (c *Cluster) Close() error {
	var errs []error
	for _, b := range c.brokers {
		errs = append(errs, b.Kill())
	}
	if c.client != nil {
		c.client.Close()
	}
	return errors.Join(errs...)
}

// Brokers are the addresses where anybody may do everything.
func (c *Cluster) Brokers() (addrs []string) {
	for _, b := range c.brokers {
		addrs = append(addrs, b.open)
	}
	return addrs
}

// SecureBrokers are the addresses behind TLS and SASL/SCRAM-SHA-512; see AddUser and CAFile.
func (c *Cluster) SecureBrokers() (addrs []string) {
	for _, b := range c.brokers {
		addrs = append(addrs, b.secure)
	}
	return addrs
}

// Broker returns the broker of a number from 1.
func (c *Cluster) Broker(number int) *Broker { return c.brokers[number-1] }

// Admin asks and changes the cluster, with every right. It is the cluster's to close.
func (c *Cluster) Admin() *kadm.Client { return c.admin }

// errPortTaken reports that somebody else got a broker's port.
var errPortTaken = errors.New("kafka: a port is in use by another process")

// Await returns when every broker serves and every partition is with all its replicas; an
// error if a broker has ended.
func (c *Cluster) Await(ctx context.Context) error {
	for {
		err := c.whole(ctx)
		if err == nil {
			return nil
		}
		for _, b := range c.brokers {
			if b.Running() {
				continue
			}
			text := tail(b.log())
			if strings.Contains(text, "Address already in use") {
				return errPortTaken
			}
			return fmt.Errorf("kafka broker %d does not run; its log ends with:\n%s", b.number, text)
		}
		if !pause(ctx) {
			return fmt.Errorf("kafka cluster is not whole: %w (%w)", err, context.Cause(ctx))
		}
	}
}

// whole returns why the cluster is not.
func (c *Cluster) whole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, b := range c.brokers {
		m, err := c.metadataOf(ctx, b)
		if err != nil {
			return err
		}
		if len(m.Brokers) < len(c.brokers) {
			return fmt.Errorf("broker %d knows of %d brokers, want %d", b.number, len(m.Brokers), len(c.brokers))
		}
		for _, t := range m.Topics {
			for _, p := range t.Partitions {
				if len(p.ISR) < len(p.Replicas) || p.Leader < 0 {
					return fmt.Errorf("%s/%d has leader %d and replicas %v, in sync %v", *t.Topic, p.Partition, p.Leader, p.Replicas, p.ISR)
				}
			}
		}
	}
	return nil
}

// askTimeout bounds one look at the cluster, pollInterval lies between two.
const (
	askTimeout   = 5 * time.Second
	pollInterval = 50 * time.Millisecond
)

// pause waits between two looks; false if ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(pollInterval):
		return true
	case <-ctx.Done():
		return false
	}
}
