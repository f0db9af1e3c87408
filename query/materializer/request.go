package materializer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/playhead-dev/playhead/schema"
)

// Request asks the owner of a partition for a rebuild. It stands in the metadata of the
// partition's offset in the group schema.GroupRebuild, which has no members; the answer
// is the Rebuild of the same ID (Desk.States). A later request replaces an earlier one.
type Request struct {
	ID        string `json:"id"`
	Epoch     uint8  `json:"epoch"` // of the log; another's request means nothing
	Start     int64  `json:"start"`
	End       int64  `json:"end"` // clipped to the committed offset
	Replace   bool   `json:"replace,omitempty"`
	DryRun    bool   `json:"dry_run,omitempty"`
	Cancelled bool   `json:"cancelled,omitempty"`
}

// defaultRequestInterval is how often a materialiser looks for requests.
const defaultRequestInterval = 2 * time.Second

// PartitionState is what the group of the materialiser says about a partition.
type PartitionState struct {
	Epoch     uint8
	Committed int64
	Current   Rebuild // under way; zero if none
	Last      Rebuild // the last one that was asked for and has ended
}

// ErrRebuildRuns reports a partition that a rebuild is under way in, or asked for.
var ErrRebuildRuns = errors.New("a rebuild of this partition is under way")

// Desk is where rebuilds are asked for and followed, from any process that reaches Kafka.
type Desk struct{ adm *kadm.Client }

// NewDesk returns a Desk over adm, which stays the caller's to close.
func NewDesk(adm *kadm.Client) *Desk { return &Desk{adm: adm} }

// Members returns how many members the materialiser's group has: how many processes
// could answer a request.
func (d *Desk) Members(ctx context.Context) (int, error) {
	groups, err := d.adm.DescribeGroups(ctx, schema.GroupMaterializer)
	if err == nil {
		err = groups.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("describe group %s: %w", schema.GroupMaterializer, err)
	}
	return len(groups[schema.GroupMaterializer].Members), nil
}

// States returns the state of every partition that has a committed offset.
func (d *Desk) States(ctx context.Context) (map[uint16]PartitionState, error) {
	offsets, err := fetchGroup(ctx, d.adm, schema.GroupMaterializer)
	if err != nil {
		return nil, err
	}
	out := make(map[uint16]PartitionState)
	for p, o := range offsets {
		var m commitMetadata
		if o.metadata == "" {
			out[p] = PartitionState{Committed: o.at}
			continue
		}
		if err := json.Unmarshal([]byte(o.metadata), &m); err != nil {
			return nil, fmt.Errorf("partition %d: %w: %w", p, ErrIntent, err)
		}
		state, _, err := decodeCommitted(o.at, o.metadata, m.Epoch)
		if err != nil {
			return nil, fmt.Errorf("partition %d: %w", p, err)
		}
		out[p] = PartitionState{Epoch: m.Epoch, Committed: state.next, Current: state.rebuild, Last: state.rebuilt}
	}
	return out, nil
}

// Ask leaves a request for each partition, all under one new id, which it returns. It
// returns ErrRebuildRuns, having asked for nothing, if a partition has a request already
// that has not been answered to the end. Of two that ask in the same instant one may
// replace the other's request: Replaced tells.
func (d *Desk) Ask(ctx context.Context, requests map[uint16]Request) (id string, err error) {
	states, err := d.States(ctx)
	if err != nil {
		return "", err
	}
	had, err := readRequests(ctx, d.adm)
	if err != nil {
		return "", err
	}
	for p := range requests {
		s := states[p]
		r, asked := had[p]
		if s.Current.Cause == CauseRequest || asked && !r.Cancelled && r.Epoch == s.Epoch && r.ID != s.Last.ID {
			return "", fmt.Errorf("partition %d: %w", p, ErrRebuildRuns)
		}
	}
	id = newRebuildID()
	for p, r := range requests {
		r.ID = id
		requests[p] = r
	}
	return id, d.write(ctx, requests)
}

// Cancel withdraws requests that Ask has left; what was done stays done.
func (d *Desk) Cancel(ctx context.Context, requests map[uint16]Request) error {
	for p, r := range requests {
		r.Cancelled = true
		requests[p] = r
	}
	return d.write(ctx, requests)
}

// Replaced returns the partitions whose request is no longer the one of the id.
func (d *Desk) Replaced(ctx context.Context, id string, partitions []uint16) (out []uint16, err error) {
	requests, err := readRequests(ctx, d.adm)
	if err != nil {
		return nil, err
	}
	for _, p := range partitions {
		if requests[p].ID != id {
			out = append(out, p)
		}
	}
	return out, nil
}

func (d *Desk) write(ctx context.Context, requests map[uint16]Request) error {
	var offsets kadm.Offsets
	for p, r := range requests {
		metadata, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		offsets.Add(kadm.Offset{Topic: schema.TopicEvents, Partition: int32(p), At: r.Start, LeaderEpoch: -1, Metadata: string(metadata)})
	}
	if err := d.adm.CommitAllOffsets(ctx, schema.GroupRebuild, offsets); err != nil {
		return fmt.Errorf("leave a request in group %s: %w", schema.GroupRebuild, err)
	}
	return nil
}

// readRequests returns the requests that stand. One that is not understood (of a newer
// program) is left out.
func readRequests(ctx context.Context, adm *kadm.Client) (map[uint16]Request, error) {
	offsets, err := fetchGroup(ctx, adm, schema.GroupRebuild)
	if err != nil {
		return nil, err
	}
	out := make(map[uint16]Request)
	for p, o := range offsets {
		var r Request
		if err := json.Unmarshal([]byte(o.metadata), &r); err == nil && r.valid() {
			out[p] = r
		}
	}
	return out, nil
}

func (r Request) valid() bool {
	return r.ID != "" && len(r.ID) <= maxRebuildID && r.Start >= 0 && r.Start <= r.End && r.End <= schema.MaxOffset+1
}

// groupOffset is a committed offset of a group with its metadata.
type groupOffset struct {
	at       int64
	metadata string
}

// fetchGroup reads a group's offsets of the events topic; none if there is no such group.
func fetchGroup(ctx context.Context, adm *kadm.Client, group string) (map[uint16]groupOffset, error) {
	offsets, err := adm.FetchOffsets(ctx, group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("fetch offsets of group %s: %w", group, err)
	}
	out := make(map[uint16]groupOffset)
	for p, o := range offsets[schema.TopicEvents] {
		if o.Err == nil && o.At >= 0 {
			out[uint16(p)] = groupOffset{o.At, o.Metadata}
		}
	}
	return out, nil
}

// requestBox holds the request of one partition: whoever looks for requests puts, the
// worker gets.
type requestBox struct {
	mu  sync.Mutex // guards the rest
	req Request
	ok  bool
}

func (b *requestBox) put(r Request, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.req, b.ok = r, ok
}

// get returns the request, if it is of the epoch.
func (b *requestBox) get(epoch uint8) (Request, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.req, b.ok && b.req.Epoch == epoch
}

// followRequests hands requests to the workers, until ctx ends.
func (m *Materializer) followRequests(ctx context.Context, adm *kadm.Client) {
	var pause backoff
	for ctx.Err() == nil {
		requests, err := readRequests(ctx, adm)
		if err != nil {
			if ctx.Err() == nil && !pause.quiet() {
				m.logger.Warn("requests for rebuilds could not be read", "error", err)
			}
		} else {
			pause = backoff{}
			m.deliver(requests)
		}
		sleep(ctx, m.requestInterval)
	}
}

func (m *Materializer) deliver(requests map[uint16]Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, r := range m.owned {
		req, ok := requests[p]
		r.requests.put(req, ok)
	}
}
