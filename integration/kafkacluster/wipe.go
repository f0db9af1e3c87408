package kafkacluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Wipe removes all topics, consumer groups and access control lists, and returns when every
// broker has forgotten them. Users stay.
func (c *Cluster) Wipe(ctx context.Context) error {
	if err := c.wipeTopics(ctx); err != nil {
		return fmt.Errorf("wipe topics: %w", err)
	}
	if err := c.wipeGroups(ctx); err != nil {
		return fmt.Errorf("wipe groups: %w", err)
	}
	everything := kadm.NewACLs().AnyResource().ResourcePatternType(kadm.ACLPatternAny).
		Operations(kadm.OpAny).Allow().AllowHosts().Deny().DenyHosts()
	if _, err := c.admin.DeleteACLs(ctx, everything); err != nil {
		return fmt.Errorf("wipe access control lists: %w", err)
	}
	return nil
}

func (c *Cluster) wipeTopics(ctx context.Context) error {
	topics, err := c.topicsOf(ctx, c.brokers[0])
	if err != nil {
		return err
	}
	deleted, err := c.admin.DeleteTopics(ctx, topics...)
	if err != nil {
		return err
	}
	for _, d := range deleted {
		if d.Err != nil && !errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("%s: %w", d.Topic, d.Err)
		}
	}
	for _, b := range c.brokers {
		for {
			left, err := c.topicsOf(ctx, b)
			if err != nil {
				return err
			}
			if len(left) == 0 {
				break
			}
			if !pause(ctx) {
				return fmt.Errorf("broker %d still has %v: %w", b.number, left, context.Cause(ctx))
			}
		}
	}
	return nil
}

// topicsOf returns the topics that a broker knows of, but for Kafka's own.
func (c *Cluster) topicsOf(ctx context.Context, b *Broker) (names []string, err error) {
	m, err := c.metadataOf(ctx, b)
	if err != nil {
		return nil, err
	}
	for _, t := range m.Topics {
		if t.Topic != nil && !t.IsInternal && !strings.HasPrefix(*t.Topic, "__") {
			names = append(names, *t.Topic)
		}
	}
	return names, nil
}

// wipeGroups removes the groups; members that were killed are sent away first, instead of
// being waited for.
func (c *Cluster) wipeGroups(ctx context.Context) error {
	for {
		groups, err := c.admin.ListGroups(ctx)
		if err == nil && len(groups) == 0 {
			return nil
		}
		if err == nil {
			err = c.deleteGroups(ctx, groups.Groups())
		}
		if !pause(ctx) {
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

func (c *Cluster) deleteGroups(ctx context.Context, names []string) error {
	described, err := c.admin.DescribeGroups(ctx, names...)
	if err != nil {
		return err
	}
	for _, g := range described {
		if len(g.Members) == 0 {
			continue
		}
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group = g.Group
		for _, m := range g.Members {
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID = m.MemberID
			leave.Members = append(leave.Members, member)
		}
		if _, err := leave.RequestWith(ctx, c.client); err != nil {
			return err
		}
	}
	_, err = c.admin.DeleteGroups(ctx, names...)
	return err
}
