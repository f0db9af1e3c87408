package kafkacluster

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
)

// scramIterations is the fewest that Kafka takes.
const scramIterations = 4096

// AddUser makes a user, or gives it another password, for the secure door. It has no
// rights until Allow gives it some.
func (c *Cluster) AddUser(ctx context.Context, name, password string) error {
	altered, err := c.admin.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{
		User: name, Mechanism: kadm.ScramSha512, Iterations: scramIterations, Password: password,
	}})
	if err != nil {
		return fmt.Errorf("add user %s: %w", name, err)
	}
	return altered.Error()
}

// Allow gives a user rights: a builder with resources and operations.
func (c *Cluster) Allow(ctx context.Context, user string, rights *kadm.ACLBuilder) error {
	rights.Allow(user)
	rights.PrefixUser()
	created, err := c.admin.CreateACLs(ctx, rights)
	if err != nil {
		return fmt.Errorf("allow %s: %w", user, err)
	}
	for _, r := range created {
		if r.Err != nil {
			return fmt.Errorf("allow %s: %w", user, r.Err)
		}
	}
	return nil
}
