package control

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
)

// pollInterval is how often the store looks for records of other nodes, which bounds
// how long a change takes to be known everywhere.
const pollInterval = 250 * time.Millisecond

// stuckPause is how long to wait for an end of the topic that was told but is not there.
const stuckPause = 50 * time.Millisecond

// ChangeKind says what happened.
type ChangeKind int

// Kinds of changes.
const (
	KeyRevoked       ChangeKind = iota + 1 // also when a key is removed, or its workspace
	WorkspaceChanged                       // made, changed or removed
	EpochStarted
	Erased // a session, or a workspace if Session is ""
)

// Change is one thing that a folded record changed.
type Change struct {
	Kind      ChangeKind
	Workspace string // of KeyRevoked, WorkspaceChanged and Erased
	Session   string // of Erased
	KeyID     string // of KeyRevoked
	Epoch     uint8  // of EpochStarted
}

// state is the fold of the control topic.
type state struct {
	workspaces map[string]Workspace
	keys       map[string]storedKey
	byHash     map[keyHash][]string // ids of the keys with one text: more than one only when nodes raced
	epochs     map[uint8]epochRecord
	latest     uint8          // highest epoch
	perOwner   map[string]int // keys by workspace
	erased     erasures
	types      typeClaims
}

func newState() state {
	return state{
		workspaces: make(map[string]Workspace), keys: make(map[string]storedKey),
		byHash: make(map[keyHash][]string), epochs: make(map[uint8]epochRecord), perOwner: make(map[string]int),
		erased: newErasures(),
		types:  typeClaims{byID: make(map[string]*typeClaim), byWorkspace: make(map[string]*workspaceTypes)},
	}
}

// apply folds one record into the state and returns what that changed. An error changes
// nothing.
func (s *state) apply(key, value []byte) (kind string, changes []Change, err error) {
	kind, id, err := splitRecordKey(key)
	if err != nil {
		return "", nil, err
	}
	switch kind {
	case kindWorkspace:
		changes, err = s.applyWorkspace(id, value)
	case kindKey:
		changes, err = s.applyKey(id, value)
	case kindEpoch:
		changes, err = s.applyEpoch(id, value)
	case kindErasure:
		changes, err = s.applyErasure(id, value)
	case kindEventType:
		err = s.types.apply(id, value)
	default:
		err = errUnknownKind
	}
	return kind, changes, err
}

func (s *state) applyWorkspace(id string, value []byte) ([]Change, error) {
	changes := []Change{{Kind: WorkspaceChanged, Workspace: id}}
	if value == nil {
		if _, had := s.workspaces[id]; had {
			changes = append(changes, s.orphans(id)...)
		}
		delete(s.workspaces, id)
		delete(s.erased.remains, id)
		return changes, nil
	}
	w, err := decodeWorkspace(id, value)
	if err != nil {
		return nil, err
	}
	if s.erased.whole(id) { // changed by a node that had not heard
		s.erased.remains[id] = true
		return nil, nil
	}
	s.workspaces[id] = w
	return changes, nil
}

// orphans returns the end of every key of a workspace that is removed. Those revoked
// before are left out; those that have expired are not, as the fold has no clock.
func (s *state) orphans(workspace string) (changes []Change) {
	for id, k := range s.keys {
		if k.Workspace == workspace && k.RevokedAt.IsZero() {
			changes = append(changes, Change{Kind: KeyRevoked, Workspace: workspace, KeyID: id})
		}
	}
	return changes
}

func (s *state) applyKey(id string, value []byte) ([]Change, error) {
	old, had := s.keys[id]
	if value == nil {
		if !had {
			return nil, nil
		}
		s.forget(old)
		return []Change{{Kind: KeyRevoked, Workspace: old.Workspace, KeyID: id}}, nil
	}
	k, err := decodeKey(id, value)
	if err != nil {
		return nil, err
	}
	if had {
		s.forget(old)
	}
	s.keys[id] = k
	s.byHash[k.hash] = append(s.byHash[k.hash], id)
	s.perOwner[k.Workspace]++
	if !k.RevokedAt.IsZero() && (!had || old.RevokedAt.IsZero()) {
		return []Change{{Kind: KeyRevoked, Workspace: k.Workspace, KeyID: id}}, nil
	}
	return nil, nil
}

func (s *state) forget(k storedKey) {
	delete(s.keys, k.ID)
	ids := slices.DeleteFunc(s.byHash[k.hash], func(id string) bool { return id == k.ID })
	if len(ids) == 0 {
		delete(s.byHash, k.hash)
	} else {
		s.byHash[k.hash] = ids
	}
	if s.perOwner[k.Workspace]--; s.perOwner[k.Workspace] <= 0 {
		delete(s.perOwner, k.Workspace)
	}
}

// applyEpoch keeps the first record of an epoch: two nodes that see different topics
// must not both believe they own the number.
func (s *state) applyEpoch(id string, value []byte) ([]Change, error) {
	if value == nil {
		return nil, errors.New("epochs cannot be removed")
	}
	n, r, err := decodeEpoch(id, value)
	if err != nil {
		return nil, err
	}
	if have, ok := s.epochs[n]; ok {
		if !have.same(r) {
			return nil, errors.New("epoch is taken by another topic")
		}
		return nil, nil
	}
	s.epochs[n] = r
	s.latest = max(s.latest, n)
	return []Change{{Kind: EpochStarted, Epoch: n}}, nil
}

// foldTo reads the topic until offset end is folded; math.MaxInt64 reads all there is.
// Only the opener and then the follower call it, never both.
func (s *Store) foldTo(ctx context.Context, end int64) error {
	for s.position() < end {
		var changes []Change
		next, err := s.topic.Read(ctx, 0, s.position(), math.MaxInt64, func(r *kgo.Record) error {
			changes = append(changes, s.foldRecord(r)...)
			return nil
		})
		if out, ok := errors.AsType[*kafka.OffsetRangeError](err); ok && out.Offset < out.Start {
			// Somebody deleted records; what they said is still in memory.
			s.log.Warn("control topic lost its beginning", "offset", out.Offset, "log_start_offset", out.Start)
			next, err = out.Start, nil
		}
		stuck := next <= s.position()
		s.advance(next)
		s.notify(changes)
		switch {
		case err != nil:
			return err
		case end == math.MaxInt64:
			return nil
		case stuck: // a new leader that has not caught up with what the old one told
			select {
			case <-time.After(stuckPause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// foldRecord applies one record, or counts why not.
func (s *Store) foldRecord(r *kgo.Record) []Change {
	s.mu.Lock()
	kind, changes, err := s.state.apply(r.Key, r.Value)
	keys := len(s.state.keys)
	s.hasErased.Store(s.state.erased.set.Len() > 0)
	s.mu.Unlock()
	if err != nil {
		reason := "corrupt"
		switch {
		case errors.Is(err, errUnknownKind):
			reason = "unknown_kind"
		case errors.Is(err, errUnknownVersion):
			reason = "unknown_version"
		}
		s.metrics.skipped.WithLabelValues(reason).Inc()
		s.log.Warn("control record skipped", "offset", r.Offset, "reason", reason, "error", err)
		return nil
	}
	s.metrics.changes.WithLabelValues(kind).Inc()
	s.metrics.keys.Set(float64(keys))
	return changes
}

// follow keeps the fold current until the store is closed. It owns the fold after Open.
func (s *Store) follow(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.kick:
		}
		err := s.foldTo(ctx, math.MaxInt64)
		if ctx.Err() != nil {
			return
		}
		s.setPollError(err)
		if failed := err != nil; failed != failing {
			failing = failed
			if failed {
				s.log.Warn("control topic cannot be read; going on with what is known", "error", err)
			} else {
				s.log.Info("control topic is read again")
			}
		}
	}
}
