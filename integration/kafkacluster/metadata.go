package kafkacluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// metadataOf asks one broker what it knows of all topics: each learns of changes by
// itself, some moments apart.
func (c *Cluster) metadataOf(ctx context.Context, b *Broker) (*kmsg.MetadataResponse, error) {
	answer, err := c.askOne(ctx, b, kmsg.NewPtrMetadataRequest())
	if err != nil {
		return nil, err
	}
	return answer.(*kmsg.MetadataResponse), nil
}

// askOne has one broker, and no other, answer a request.
func (c *Cluster) askOne(ctx context.Context, b *Broker, ask kmsg.Request) (kmsg.Response, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.open), kgo.DisableClientMetrics(), kgo.RequestRetries(0))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	answer, err := cl.SeedBrokers()[0].Request(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("broker %d: %w", b.number, err)
	}
	return answer, nil
}

// Leader returns the broker that leads a partition, as a running one knows it.
func (c *Cluster) Leader(ctx context.Context, topic string, partition int32) (*Broker, error) {
	var errs []error
	for _, b := range c.brokers {
		if !b.Running() {
			continue
		}
		m, err := c.metadataOf(ctx, b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, t := range m.Topics {
			for _, p := range t.Partitions {
				if t.Topic != nil && *t.Topic == topic && p.Partition == partition && p.Leader > 0 {
					return c.Broker(int(p.Leader)), nil
				}
			}
		}
	}
	return nil, fmt.Errorf("no broker knows the leader of %s/%d: %w", topic, partition, errors.Join(errs...))
}
