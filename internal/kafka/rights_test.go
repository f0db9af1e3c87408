package kafka_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/internal/kafka"
)

func TestRightsThatAreMissingAreNamed(t *testing.T) {
	const read, write, describe = kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe
	acl := func(r kafka.Right) kfake.ACL {
		return kfake.ACL{Resource: r.Resource, Name: r.Name, Operation: r.Operation, Pattern: kmsg.ACLResourcePatternTypeLiteral, Allow: true}
	}
	_, c := startFake(t, 1, 1, kfake.SeedTopics(1, "a", "b"), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "root", "pass"),
		kfake.User("PLAIN", "some", "pass",
			acl(kafka.OnTopic(read, "a")), acl(kafka.OnTopic(write, "a")), acl(kafka.OnTopic(describe, "b")), acl(kafka.OnTopic(read, "later")),
			acl(kafka.OnGroup(read, "g")), acl(kafka.OnGroup(describe, "h"))),
	)
	as := func(user string) kafka.Config {
		c := c
		c.SASL = kafka.SASLConfig{Mechanism: kafka.SASLPlain, Username: user, Password: "pass"}
		return c
	}
	for _, tt := range []struct {
		right  kafka.Right
		lacked bool
	}{
		{kafka.OnTopic(read, "a"), false},
		{kafka.OnTopic(write, "a"), false},
		{kafka.OnTopic(describe, "a"), false}, // comes with read
		{kafka.OnTopic(describe, "b"), false},
		{kafka.OnTopic(read, "b"), true},
		{kafka.OnTopic(write, "b"), true},
		{kafka.OnTopic(read, "c"), true},      // whether there or not
		{kafka.OnTopic(read, "later"), false}, // not there yet
		{kafka.OnGroup(read, "g"), false},
		{kafka.OnGroup(describe, "g"), false},
		{kafka.OnGroup(describe, "h"), false},
		{kafka.OnGroup(describe, "i"), true},
		{kafka.OnGroup(read, "i"), true}, // describe alone is enough for kfake, not for Kafka (integration)
	} {
		t.Run(tt.right.String(), func(t *testing.T) {
			if err := kafka.CheckRights(t.Context(), as("root"), []kafka.Right{tt.right}); err != nil {
				t.Errorf("who may do everything: %v", err)
			}
			err := kafka.CheckRights(t.Context(), as("some"), []kafka.Right{tt.right})
			if !tt.lacked {
				if err != nil {
					t.Errorf("CheckRights: %v, want nothing missing", err)
				}
				return
			}
			missing, ok := errors.AsType[*kafka.MissingRightsError](err)
			if !ok || !slices.Equal(missing.Missing, []kafka.Right{tt.right}) || !strings.Contains(err.Error(), "user some lacks "+tt.right.String()) {
				t.Errorf("CheckRights: %v, want %s missing", err, tt.right)
			}
		})
	}
	all := []kafka.Right{kafka.OnTopic(read, "a"), kafka.OnTopic(write, "b"), kafka.OnTopic(read, "b"), kafka.OnGroup(read, "i")}
	err := kafka.CheckRights(t.Context(), as("some"), all)
	if want := "kafka: user some lacks WRITE on topic b, READ on topic b, READ on group i"; err == nil || err.Error() != want {
		t.Errorf("CheckRights: %v, want %q", err, want)
	}
}

func TestRightsPassWithoutAccessControl(t *testing.T) {
	_, c := startFake(t, 1, 1)
	ensure(t, c)
	if err := kafka.CheckRights(t.Context(), c, []kafka.Right{
		kafka.OnTopic(kmsg.ACLOperationWrite, "playhead.events"), kafka.OnGroup(kmsg.ACLOperationRead, "g"), kafka.OnGroup(kmsg.ACLOperationDescribe, "g"),
	}); err != nil {
		t.Error(err)
	}
}
