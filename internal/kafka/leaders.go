package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// errNoLeader reports a partition that is between leaders.
var errNoLeader = errors.New("partition has no leader")

// leaders remembers which broker leads each partition.
type leaders struct {
	refresh sync.Mutex // one metadata request at a time; taken before mu

	mu  sync.RWMutex // guards ids and gen
	ids []int32      // by partition; -1 is none
	gen int          // counts set
}

func (s *leaders) set(ids []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids = ids
	s.gen++
}

func (s *leaders) generation() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.gen
}

// leader returns the broker that led the partition when last heard.
func (l *Log) leader(partition uint16) (int32, error) {
	s := &l.leaders
	s.mu.RLock()
	defer s.mu.RUnlock()
	if int(partition) >= len(s.ids) {
		return 0, &permanentError{fmt.Errorf("partition %d does not exist; the topic has %d", partition, len(s.ids))}
	}
	if s.ids[partition] < 0 {
		return 0, errNoLeader
	}
	return s.ids[partition], nil
}

// refreshLeaders asks for the leaders again, unless somebody did since seen.
func (l *Log) refreshLeaders(ctx context.Context, seen int) error {
	l.leaders.refresh.Lock()
	defer l.leaders.refresh.Unlock()
	if l.leaders.generation() != seen {
		return nil
	}
	return l.attempt(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		t, err := l.fetchMetadata(ctx, l.meta)
		if err != nil {
			return err
		}
		if t.TopicID != l.topicID {
			return ErrTopicRecreated
		}
		l.leaders.set(leadersOf(t, l.partitions))
		return nil
	})
}

// fetchMetadata asks any broker about the Log's topic.
func (l *Log) fetchMetadata(ctx context.Context, cl *kgo.Client) (*kmsg.MetadataResponseTopic, error) {
	return topicMetadata(ctx, cl, l.topic)
}

// topicMetadata asks any broker about one topic, past the client's cache, which may be
// seconds old. It also tells the client where the brokers are, without which requests
// to one broker fail.
func topicMetadata(ctx context.Context, cl *kgo.Client, topic string) (*kmsg.MetadataResponseTopic, error) {
	req := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = &topic
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	for i := range resp.Topics {
		t := &resp.Topics[i]
		if t.Topic == nil || *t.Topic != topic {
			continue
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, err
		}
		return t, nil
	}
	return nil, errors.New("metadata: topic is missing from the answer")
}

func leadersOf(t *kmsg.MetadataResponseTopic, partitions int) []int32 {
	ids := make([]int32, partitions)
	for i := range ids {
		ids[i] = -1
	}
	for _, p := range t.Partitions {
		if int(p.Partition) < partitions && kerr.ErrorForCode(p.ErrorCode) == nil {
			ids[p.Partition] = p.Leader
		}
	}
	return ids
}
