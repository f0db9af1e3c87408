package control

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// How long revoked and expired keys stay listed, and how they are cleared away.
const (
	keepDeadKeys  = 24 * time.Hour
	sweepInterval = time.Minute
	maxSweep      = 1000 // keys removed in one sweep
)

// maxShards bounds what a workspace may be made with.
const maxShards = 1024

// validate reports the first part of w that is wrong, as a *SpecError, or nil.
func (w Workspace) validate() error {
	bad := func(field, format string, args ...any) error {
		return &SpecError{Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	if err := schema.CheckID(w.ID); err != nil {
		return bad("id", "%v", err)
	}
	if err := schema.CheckText(w.Name, maxKeyNameLen); err != nil {
		return bad("name", "%v", err)
	}
	if !w.Plan.Valid() {
		return bad("plan", "is %s; want free, pro or enterprise", schema.Quote(string(w.Plan)))
	}
	if w.Shards < 1 || w.Shards > maxShards {
		return bad("shards", "is %d; want 1 to %d", w.Shards, maxShards)
	}
	return w.Limits.Validate()
}

// CreateWorkspace makes a workspace and returns it as stored. An empty ID is given one
// (ws_…), Plan is free, Shards schema.DefaultShards unless set. Limits are taken as they
// are: zero is without limit (see DefaultLimits). Errors: *SpecError, ErrWorkspaceExists,
// ErrWorkspaceErased.
func (s *Store) CreateWorkspace(ctx context.Context, w Workspace) (Workspace, error) {
	if w.ID == "" {
		w.ID = "ws_" + randomText(idRandomLen)
	}
	if w.Plan == "" {
		w.Plan = PlanFree
	}
	if w.Shards == 0 {
		w.Shards = schema.DefaultShards
	}
	if err := w.validate(); err != nil {
		return Workspace{}, err
	}
	return w, s.write(ctx, func() (key string, value []byte, err error) {
		if e, ok := s.Erasure(w.ID, ""); ok && e.Session == "" {
			return "", nil, fmt.Errorf("%w: %s", ErrWorkspaceErased, w.ID)
		}
		if _, ok := s.Workspace(w.ID); ok {
			return "", nil, fmt.Errorf("%w: %s", ErrWorkspaceExists, w.ID)
		}
		value, err = encodeWorkspace(w)
		return kindWorkspace + "/" + w.ID, value, err
	})
}

// UpdateWorkspace replaces name, plan and limits of a workspace; its Shards stay.
// Errors: *SpecError, ErrNotFound.
func (s *Store) UpdateWorkspace(ctx context.Context, w Workspace) error {
	return s.write(ctx, func() (key string, value []byte, err error) {
		have, ok := s.Workspace(w.ID)
		if !ok {
			return "", nil, fmt.Errorf("workspace %s: %w", schema.Quote(w.ID), ErrNotFound)
		}
		w.Shards = have.Shards
		if err := w.validate(); err != nil {
			return "", nil, err
		}
		value, err = encodeWorkspace(w)
		return kindWorkspace + "/" + w.ID, value, err
	})
}

// ChangeLimits lets change alter the limits of a workspace and returns the workspace as
// stored then. No other change through this store comes between reading and writing;
// of changes on two nodes in the same instant the later record holds, whole. change must
// not block. Errors: *SpecError, ErrNotFound.
func (s *Store) ChangeLimits(ctx context.Context, workspace string, change func(*Limits)) (Workspace, error) {
	var w Workspace
	err := s.write(ctx, func() (key string, value []byte, err error) {
		have, ok := s.Workspace(workspace)
		if !ok {
			return "", nil, fmt.Errorf("workspace %s: %w", schema.Quote(workspace), ErrNotFound)
		}
		w = have
		change(&w.Limits)
		if w == have {
			return "", nil, nil
		}
		if err := w.Limits.Validate(); err != nil {
			return "", nil, err
		}
		value, err = encodeWorkspace(w)
		return kindWorkspace + "/" + w.ID, value, err
	})
	return w, err
}

// CreateKey makes a key and returns it with its text, which is not kept anywhere.
// A spec that makes a browser key (see KeySpec.Browser) gets a text that says so.
// Errors: *SpecError, ErrNotFound (workspace), ErrKeyLimit, ErrKeyExists (spec.Text).
func (s *Store) CreateKey(ctx context.Context, spec KeySpec) (Key, string, error) {
	if err := spec.Validate(); err != nil {
		return Key{}, "", err
	}
	text, browser := spec.Text, spec.Browser()
	if text == "" {
		prefix := KeyPrefix
		if browser {
			prefix = BrowserKeyPrefix
		}
		text = prefix + randomText(keyRandomLen)
	}
	now := s.now().UTC().Truncate(time.Millisecond)
	k := storedKey{hash: hashKey(text), Key: Key{
		ID: "key_" + randomText(idRandomLen), Workspace: spec.Workspace, Name: spec.Name, Scopes: spec.Scopes,
		Session: spec.Session, Workflow: spec.Workflow, Browser: browser, CreatedAt: now, CreatedBy: spec.CreatedBy,
	}}
	if spec.ExpiresIn > 0 {
		k.ExpiresAt = now.Add(spec.ExpiresIn).Truncate(time.Millisecond)
	}
	err := s.write(ctx, func() (key string, value []byte, err error) {
		if err := s.mayAddKey(k, now); err != nil {
			return "", nil, err
		}
		value, err = encodeKey(k)
		return kindKey + "/" + k.ID, value, err
	})
	if err != nil {
		return Key{}, "", err
	}
	return k.Key, text, nil
}

func (s *Store) mayAddKey(k storedKey, now time.Time) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	w, ok := s.state.workspaces[k.Workspace]
	if !ok {
		return fmt.Errorf("workspace %s: %w", schema.Quote(k.Workspace), ErrNotFound)
	}
	if w.Limits.Keys > 0 && s.state.perOwner[k.Workspace] >= w.Limits.Keys && s.liveKeys(k.Workspace, now) >= w.Limits.Keys {
		return fmt.Errorf("%w: %d", ErrKeyLimit, w.Limits.Keys)
	}
	for _, id := range s.state.byHash[k.hash] {
		if other := s.state.keys[id]; other.Live(now) && !s.state.erased.whole(other.Workspace) {
			return ErrKeyExists
		}
	}
	return nil
}

// liveKeys counts; the caller holds mu.
func (s *Store) liveKeys(workspace string, now time.Time) (n int) {
	for _, k := range s.state.keys {
		if k.Workspace == workspace && k.Live(now) {
			n++
		}
	}
	return n
}

// RevokeKey ends a key of a workspace: no request with it passes any more, and watchers
// are told, so that its streams end. Revoking twice is no error. Error: ErrNotFound.
func (s *Store) RevokeKey(ctx context.Context, workspace, id string) error {
	return s.write(ctx, func() (key string, value []byte, err error) {
		s.mu.RLock()
		k, ok := s.state.keys[id]
		s.mu.RUnlock()
		if !ok || k.Workspace != workspace {
			return "", nil, fmt.Errorf("key %s: %w", schema.Quote(id), ErrNotFound)
		}
		if !k.RevokedAt.IsZero() {
			return "", nil, nil
		}
		k.RevokedAt = s.now()
		value, err = encodeKey(k)
		return kindKey + "/" + id, value, err
	})
}

// Epoch returns the log epoch that EnsureEpoch settled on, 0 before.
func (s *Store) Epoch() uint8 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.epoch
}

// EnsureEpoch returns the epoch of this life of the events topic: the latest one if it
// began with the same topic id and number of partitions, otherwise the next, which it
// records. A broker without topic ids (before 2.8) gives zeros: then a topic that was
// deleted and made anew is not told apart.
func (s *Store) EnsureEpoch(ctx context.Context, topicID [16]byte, partitions int) (uint8, error) {
	want := epochRecord{
		V: recordVersion, TopicID: hex.EncodeToString(topicID[:]), Partitions: partitions, StartedMs: s.now().UnixMilli(),
	}
	for {
		s.mu.Lock()
		latest := s.state.latest
		if latest > 0 && s.state.epochs[latest].same(want) {
			s.epoch = latest
			s.mu.Unlock()
			return latest, nil
		}
		s.mu.Unlock()
		if latest == 255 {
			return 0, fmt.Errorf("log epoch: 255 lives of the topic are used up")
		}
		// Another node may take the number first; then the loop sees its record.
		err := s.write(ctx, func() (key string, value []byte, err error) {
			value, err = json.Marshal(want)
			return kindEpoch + "/" + strconv.Itoa(int(latest)+1), value, err
		})
		if err != nil {
			return 0, fmt.Errorf("log epoch: %w", err)
		}
	}
}

// write runs prepare with the right to write, produces the record it returns (none if
// key is "") and waits until it is folded.
func (s *Store) write(ctx context.Context, prepare func() (key string, value []byte, err error)) error {
	select {
	case <-s.writing:
		defer func() { s.writing <- struct{}{} }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	key, value, err := prepare()
	if err != nil || key == "" {
		return err
	}
	offset, err := s.produce(ctx, &kgo.Record{Topic: schema.TopicControl, Key: []byte(key), Value: value})
	if err != nil {
		return err
	}
	return s.waitFolded(ctx, offset)
}

// produce writes records and returns the last one's offset.
func (s *Store) produce(ctx context.Context, records ...*kgo.Record) (int64, error) {
	results := s.producer.ProduceSync(ctx, records...)
	if err := results.FirstErr(); err != nil {
		return 0, fmt.Errorf("produce %s: %w", schema.TopicControl, err)
	}
	last := int64(0)
	for _, r := range results {
		last = max(last, r.Record.Offset)
	}
	return last, nil
}

// Sync returns once the fold holds all that was in the topic when the call began: what is
// not known then was not there.
func (s *Store) Sync(ctx context.Context) error {
	_, end, err := s.topic.Bounds(ctx, 0)
	if err != nil {
		return err
	}
	return s.waitFolded(ctx, end-1)
}

func (s *Store) waitFolded(ctx context.Context, offset int64) error {
	for {
		s.mu.RLock()
		next, moved := s.next, s.moved
		s.mu.RUnlock()
		if next > offset {
			return nil
		}
		select {
		case s.kick <- struct{}{}:
		default:
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for offset %d of %s: %w", offset, schema.TopicControl, context.Cause(ctx))
		}
	}
}

// runSweeper removes keys that have been dead for a day, so that browser keys do not
// pile up in the topic and in every node's memory. All nodes do it that may write; removing
// twice is harmless.
func (s *Store) runSweeper(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := s.sweep(ctx)
		if errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed) {
			s.log.Info("dead keys are left to other nodes, as this one may not write", "error", err)
			return
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("dead keys could not be removed", "error", err)
		}
	}
}

func (s *Store) sweep(ctx context.Context) error {
	before := s.now().Add(-keepDeadKeys)
	var dead []*kgo.Record
	s.mu.RLock()
	for id, k := range s.state.keys {
		if !k.Live(before) && (k.RevokedAt.IsZero() || k.RevokedAt.Before(before)) && len(dead) < maxSweep {
			dead = append(dead, &kgo.Record{Topic: schema.TopicControl, Key: []byte(kindKey + "/" + id)})
		}
	}
	dead = append(dead, s.state.sweepErased(maxSweep-len(dead))...)
	s.mu.RUnlock()
	if len(dead) == 0 {
		return nil
	}
	_, err := s.produce(ctx, dead...)
	return err
}
