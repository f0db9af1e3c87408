package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Right is leave to do something with a topic or a group, as Kafka's access control lists
// give it.
type Right struct {
	Operation kmsg.ACLOperation
	Resource  kmsg.ACLResourceType // topic or group
	Name      string
}

// OnTopic makes a Right. Kafka gives DESCRIBE with READ or WRITE.
func OnTopic(op kmsg.ACLOperation, name string) Right {
	return Right{op, kmsg.ACLResourceTypeTopic, name}
}

// OnGroup makes a Right to READ or DESCRIBE: no other is checked.
func OnGroup(op kmsg.ACLOperation, name string) Right {
	return Right{op, kmsg.ACLResourceTypeGroup, name}
}

func (r Right) String() string {
	return fmt.Sprintf("%s on %s %s", r.Operation, strings.ToLower(r.Resource.String()), r.Name)
}

// MissingRightsError reports what Kafka does not let us do.
type MissingRightsError struct {
	User    string // that we are known by; empty without SASL
	Missing []Right
}

func (e *MissingRightsError) Error() string {
	who := "this client"
	if e.User != "" {
		who = "user " + e.User
	}
	var rights []string
	for _, r := range e.Missing {
		rights = append(rights, r.String())
	}
	return fmt.Sprintf("kafka: %s lacks %s", who, strings.Join(rights, ", "))
}

// CheckRights asks the brokers whether we have the rights, and returns a
// *MissingRightsError that names all we have not. Topics that do not exist pass, and so
// does everything with brokers that do not tell (before 2.3, KIP-430).
func CheckRights(ctx context.Context, c Config, rights []Right) error {
	opts, err := c.Options()
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	allowed, err := topicRights(ctx, cl, rights)
	if err != nil {
		return fmt.Errorf("rights on topics: %w", err)
	}
	missing := &MissingRightsError{User: c.SASL.Username}
	for _, r := range rights {
		ok := true
		switch r.Resource {
		case kmsg.ACLResourceTypeTopic:
			bits, told := allowed[r.Name]
			ok = !told || bits&(1<<r.Operation) != 0
		case kmsg.ACLResourceTypeGroup:
			if ok, err = groupRight(ctx, cl, r); err != nil {
				return fmt.Errorf("rights on group %s: %w", r.Name, err)
			}
		}
		if !ok {
			missing.Missing = append(missing.Missing, r)
		}
	}
	if len(missing.Missing) > 0 {
		return missing
	}
	return nil
}

// topicRights returns the operations on each topic as bits (KIP-430); topics of which that
// is not told are left out.
func topicRights(ctx context.Context, cl *kgo.Client, rights []Right) (map[string]int32, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.IncludeTopicAuthorizedOperations = true
	req.Topics = []kmsg.MetadataRequestTopic{} // nil asks for all
	for _, r := range rights {
		named := func(t kmsg.MetadataRequestTopic) bool { return *t.Topic == r.Name }
		if r.Resource == kmsg.ACLResourceTypeTopic && !slices.ContainsFunc(req.Topics, named) {
			t := kmsg.NewMetadataRequestTopic()
			t.Topic = &r.Name
			req.Topics = append(req.Topics, t)
		}
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	out := make(map[string]int32)
	for _, t := range resp.Topics {
		err := kerr.ErrorForCode(t.ErrorCode)
		switch {
		case t.Topic == nil || errors.Is(err, kerr.UnknownTopicOrPartition):
		case errors.Is(err, kerr.TopicAuthorizationFailed): // there or not, it is not for us
			out[*t.Topic] = 0
		case t.AuthorizedOperations != math.MinInt32: // not told
			out[*t.Topic] = t.AuthorizedOperations
		}
	}
	return out, nil
}

// groupRight tries an operation that wants the right and changes nothing: brokers tell of
// the rights on groups only where there is a group. They look at the right first. What a
// broker cannot tell now (a new cluster has no coordinators yet) passes.
func groupRight(ctx context.Context, cl *kgo.Client, r Right) (ok bool, err error) {
	var code int16
	if r.Operation == kmsg.ACLOperationRead {
		req := kmsg.NewPtrHeartbeatRequest() // of a member that nobody knows
		req.Group = r.Name
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return refused(err)
		}
		code = resp.ErrorCode
	} else {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group = r.Name
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = r.Name
		req.Groups = append(req.Groups, g)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return refused(err)
		}
		code = resp.ErrorCode
		for _, g := range resp.Groups {
			code = g.ErrorCode
		}
	}
	return code != kerr.GroupAuthorizationFailed.Code, nil
}

// refused judges a group whose coordinator is not named to us.
func refused(err error) (ok bool, _ error) {
	if errors.Is(err, kerr.GroupAuthorizationFailed) {
		return false, nil
	}
	if _, told := errors.AsType[*kerr.Error](err); told {
		return true, nil
	}
	return false, err
}
