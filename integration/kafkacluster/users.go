package kafkacluster

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// scramIterations is the fewest that Kafka takes.
const scramIterations = 4096

// AddUser makes a user of the secure door, with no rights (see Allow), and returns when
// every broker knows it. Give it another password than before, if it was there.
func (c *Cluster) AddUser(ctx context.Context, name, password string) error {
	altered, err := c.admin.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{
		User: name, Mechanism: kadm.ScramSha512, Iterations: scramIterations, Password: password,
	}})
	if err == nil {
		err = altered.Error()
	}
	if err != nil {
		return fmt.Errorf("add user %s: %w", name, err)
	}
	ask := kmsg.NewPtrDescribeUserSCRAMCredentialsRequest()
	user := kmsg.NewDescribeUserSCRAMCredentialsRequestUser()
	user.Name = name
	ask.Users = append(ask.Users, user)
	return c.everywhere(ctx, ask, func(answer kmsg.Response) bool {
		for _, r := range answer.(*kmsg.DescribeUserSCRAMCredentialsResponse).Results {
			return r.ErrorCode == 0
		}
		return false
	})
}

// ACL gives a user leave to do something.
type ACL struct {
	User      string
	Resource  kmsg.ACLResourceType
	Name      string
	Prefixed  bool // Name begins the names that are meant
	Operation kmsg.ACLOperation
}

func (a ACL) principal() string { return "User:" + a.User }

func (a ACL) pattern() kmsg.ACLResourcePatternType {
	if a.Prefixed {
		return kmsg.ACLResourcePatternTypePrefixed
	}
	return kmsg.ACLResourcePatternTypeLiteral
}

// anyHost is where a user may come from.
const anyHost = "*"

// Allow gives leave, and returns when every broker knows.
func (c *Cluster) Allow(ctx context.Context, acls ...ACL) error {
	req := kmsg.NewPtrCreateACLsRequest()
	for _, a := range acls {
		creation := kmsg.NewCreateACLsRequestCreation()
		creation.ResourceType, creation.ResourceName, creation.ResourcePatternType = a.Resource, a.Name, a.pattern()
		creation.Principal, creation.Host = a.principal(), anyHost
		creation.Operation, creation.PermissionType = a.Operation, kmsg.ACLPermissionTypeAllow
		req.Creations = append(req.Creations, creation)
	}
	answer, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return fmt.Errorf("allow: %w", err)
	}
	for i, r := range answer.Results {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return fmt.Errorf("allow %+v: %w", acls[i], err)
		}
	}
	return c.awaitACLs(ctx, acls, true)
}

// Revoke takes leave back, and returns when every broker knows.
func (c *Cluster) Revoke(ctx context.Context, acls ...ACL) error {
	req := kmsg.NewPtrDeleteACLsRequest()
	for _, a := range acls {
		filter := kmsg.NewDeleteACLsRequestFilter()
		principal, host := a.principal(), anyHost
		filter.ResourceType, filter.ResourceName, filter.ResourcePatternType = a.Resource, &a.Name, a.pattern()
		filter.Principal, filter.Host = &principal, &host
		filter.Operation, filter.PermissionType = a.Operation, kmsg.ACLPermissionTypeAllow
		req.Filters = append(req.Filters, filter)
	}
	answer, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	for i, r := range answer.Results {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return fmt.Errorf("revoke %+v: %w", acls[i], err)
		}
	}
	return c.awaitACLs(ctx, acls, false)
}

func (c *Cluster) awaitACLs(ctx context.Context, acls []ACL, there bool) error {
	for _, a := range acls {
		ask := kmsg.NewPtrDescribeACLsRequest()
		principal, host := a.principal(), anyHost
		ask.ResourceType, ask.ResourceName, ask.ResourcePatternType = a.Resource, &a.Name, a.pattern()
		ask.Principal, ask.Host = &principal, &host
		ask.Operation, ask.PermissionType = a.Operation, kmsg.ACLPermissionTypeAllow
		if err := c.everywhere(ctx, ask, func(answer kmsg.Response) bool {
			r := answer.(*kmsg.DescribeACLsResponse)
			return r.ErrorCode == 0 && len(r.Resources) > 0 == there
		}); err != nil {
			return err
		}
	}
	return nil
}

// everywhere asks each running broker until its answer is right: what the controller has
// decided reaches each by itself.
func (c *Cluster) everywhere(ctx context.Context, ask kmsg.Request, right func(kmsg.Response) bool) error {
	for _, b := range c.brokers {
		for b.Running() {
			answer, err := c.askOne(ctx, b, ask)
			if err != nil {
				return err
			}
			if right(answer) {
				break
			}
			if !pause(ctx) {
				return fmt.Errorf("broker %d has not heard: %w", b.number, context.Cause(ctx))
			}
		}
	}
	return nil
}
