package materializer

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/schema"
)

// ErrFenced reports that this process is no longer the member of the group that owns
// the partition: another one goes on from the last commit.
var ErrFenced = errors.New("fenced: the partition belongs to another member of the group")

// commits keeps the state of the partitions in the group's offsets.
type commits struct {
	group groupMember
	epoch uint8
}

// groupMember is what a worker needs of the group's member, and simulations stand in for.
type groupMember interface {
	// GroupMetadata returns who the member is now.
	GroupMetadata() (memberID string, generation int32)
	// FetchOffsets returns the offsets committed in a group.
	FetchOffsets(ctx context.Context, group string) (kadm.OffsetResponses, error)
	// commit commits offsets as who the member is now. before is called with the request in
	// the moment of sending; its error keeps the request from being sent, and is returned.
	commit(ctx context.Context, offsets map[string]map[int32]kgo.EpochOffset,
		before func(*kmsg.OffsetCommitRequest) error) (*kmsg.OffsetCommitResponse, error)
}

// kafkaMember is the member of the group that a Kafka client is.
type kafkaMember struct {
	cl  *kgo.Client
	adm *kadm.Client
}

func (m kafkaMember) GroupMetadata() (memberID string, generation int32) { return m.cl.GroupMetadata() }

func (m kafkaMember) FetchOffsets(ctx context.Context, group string) (kadm.OffsetResponses, error) {
	return m.adm.FetchOffsets(ctx, group)
}

func (m kafkaMember) commit(ctx context.Context, offsets map[string]map[int32]kgo.EpochOffset,
	before func(*kmsg.OffsetCommitRequest) error,
) (resp *kmsg.OffsetCommitResponse, err error) {
	m.cl.CommitOffsetsSync(kgo.PreCommitFnContext(ctx, before), offsets,
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, r *kmsg.OffsetCommitResponse, e error) {
			resp, err = r, e
		})
	return resp, err
}

// load reads the committed state of a partition. ok is false if there is none in this
// epoch. It is to be called after the partition was assigned: from then on, no member
// of an earlier generation can commit any more.
func (c *commits) load(ctx context.Context, partition uint16) (state committed, ok bool, err error) {
	offsets, err := c.group.FetchOffsets(ctx, schema.GroupMaterializer)
	if err != nil {
		return state, false, fmt.Errorf("fetch committed offsets: %w", err)
	}
	o, ok := offsets.Lookup(schema.TopicEvents, int32(partition))
	if !ok || o.Err == nil && o.At < 0 {
		return state, false, nil
	}
	if o.Err != nil {
		return state, false, fmt.Errorf("fetch committed offset of partition %d: %w", partition, o.Err)
	}
	return decodeCommitted(o.At, o.Metadata, c.epoch)
}

// commit replaces the committed state of a partition, if member is still who we are in
// the group and ctx, the partition's, has not ended: both are looked at in the moment
// of sending, and the broker looks at the generation. It returns ErrFenced if not.
//
// The client puts its present generation on the request, not the one in which the
// partition was assigned; that is right, as cooperative rebalancing leaves us partitions
// from one generation to the next, and safe, as a member that has lost its partitions
// ends their contexts before it joins again.
func (c *commits) commit(ctx context.Context, member string, partition uint16, state committed) error {
	metadata, err := state.encode(c.epoch)
	if err != nil {
		return err
	}
	before := func(req *kmsg.OffsetCommitRequest) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if req.MemberID != member {
			return ErrFenced
		}
		for i := range req.Topics {
			for j := range req.Topics[i].Partitions {
				req.Topics[i].Partitions[j].Metadata = &metadata
			}
		}
		return nil
	}
	offsets := map[string]map[int32]kgo.EpochOffset{
		schema.TopicEvents: {int32(partition): {Epoch: -1, Offset: state.next}},
	}
	resp, err := c.group.commit(ctx, offsets, before)
	if err = commitError(resp, err); err != nil {
		return fmt.Errorf("commit offset %d of partition %d: %w", state.next, partition, err)
	}
	return nil
}

// commitError finds what went wrong with a commit of one partition.
func commitError(resp *kmsg.OffsetCommitResponse, err error) error {
	if err != nil {
		return err
	}
	answers := 0
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			answers++
			if err := kerr.ErrorForCode(p.ErrorCode); fenced(err) {
				return fmt.Errorf("%w (%w)", ErrFenced, err)
			} else if err != nil {
				return err
			}
		}
	}
	if answers == 0 {
		return errors.New("broker's answer leaves the partition out")
	}
	return nil
}

// fenced reports whether a broker's error says that we are not the member we think.
func fenced(err error) bool {
	for _, f := range []error{
		kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.FencedInstanceID,
		kerr.FencedMemberEpoch, kerr.StaleMemberEpoch,
	} {
		if errors.Is(err, f) {
			return true
		}
	}
	return false
}

// Committed returns a function that reads the committed offset of every partition that
// has one in the epoch, for query.Watermarks. It may be used by any process.
func Committed(adm *kadm.Client, epoch uint8) func(context.Context) (map[uint16]int64, error) {
	return func(ctx context.Context) (map[uint16]int64, error) {
		offsets, err := adm.FetchOffsets(ctx, schema.GroupMaterializer)
		if errors.Is(err, kerr.GroupIDNotFound) {
			return nil, nil // nothing was ever committed
		}
		if err != nil {
			return nil, fmt.Errorf("fetch committed offsets: %w", err)
		}
		out := make(map[uint16]int64)
		for p, o := range offsets[schema.TopicEvents] {
			if o.Err != nil || o.At < 0 {
				continue
			}
			state, ok, err := decodeCommitted(o.At, o.Metadata, epoch)
			if err != nil {
				return nil, fmt.Errorf("partition %d: %w", p, err)
			}
			if ok {
				out[uint16(p)] = state.next
			}
		}
		return out, nil
	}
}
