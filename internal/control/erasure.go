package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Bounds of the erasures that are remembered. Each costs every node about 300 bytes of
// memory, as long as Kafka might bring back what it took away; then the eraser forgets it.
// At a bound, further erasures are refused with ErrErasureLimit.
const (
	MaxErasuresPerWorkspace = 100_000
	MaxErasures             = 500_000
)

// Errors of erasures that callers branch on.
var (
	ErrErasureLimit    = errors.New("control: as many erasures as may be remembered")
	ErrWorkspaceErased = errors.New("control: workspace was erased, and its id is not used again")
)

const (
	kindErasure     = "erasure"
	erasureIDPrefix = "era_"
)

// erasureRecord is the value of an erasure's record. It is written again, with DoneMs,
// when ClickHouse holds nothing of it any more; nothing else of it ever changes, so nodes
// that write it at the same time write the same.
type erasureRecord struct {
	V         int    `json:"v"`
	Workspace string `json:"workspace"`
	Session   string `json:"session,omitempty"` // absent: the whole workspace
	Epoch     uint8  `json:"epoch,omitempty"`   // of the session's last erased record
	Partition uint16 `json:"partition,omitempty"`
	Below     int64  `json:"below,omitempty"` // the offset behind that
	AtMs      int64  `json:"at_ms"`
	By        string `json:"by,omitempty"`
	DoneMs    int64  `json:"done_ms,omitempty"`
}

func encodeErasure(e *schema.Erasure) ([]byte, error) {
	return json.Marshal(erasureRecord{
		V: recordVersion, Workspace: e.Workspace, Session: e.Session,
		Epoch: e.Below.Epoch, Partition: e.Below.Partition, Below: e.Below.Offset,
		AtMs: e.AtMs, By: e.By, DoneMs: e.DoneMs,
	})
}

func decodeErasure(id string, value []byte) (*schema.Erasure, error) {
	var r erasureRecord
	if err := decodeValue(value, &r); err != nil {
		return nil, err
	}
	if err := schema.CheckID(r.Workspace); err != nil {
		return nil, fmt.Errorf("workspace %w", err)
	}
	e := &schema.Erasure{
		ID: id, Workspace: r.Workspace, Session: r.Session, AtMs: r.AtMs, By: r.By, DoneMs: r.DoneMs,
	}
	if r.Session == "" {
		return e, nil
	}
	if err := schema.CheckID(r.Session); err != nil {
		return nil, fmt.Errorf("session %w", err)
	}
	if r.Epoch == 0 || r.Below < 1 || r.Below > schema.MaxOffset {
		return nil, fmt.Errorf("position %d/%d is none of the log", r.Epoch, r.Below)
	}
	e.Below = schema.Position{Epoch: r.Epoch, Partition: r.Partition, Offset: r.Below}
	return e, nil
}

// erasures is the fold of the erasures' records.
type erasures struct {
	byID    map[string]*schema.Erasure
	owned   map[string]map[string]*schema.Erasure // by workspace and id
	pending map[string]map[string]*schema.Erasure // those not done, likewise
	set     schema.Erasures

	// remains are erased workspaces whose own record is still in the topic: the sweeper
	// removes it, and the keys.
	remains map[string]bool
}

func newErasures() erasures {
	return erasures{
		byID:    make(map[string]*schema.Erasure),
		owned:   make(map[string]map[string]*schema.Erasure),
		pending: make(map[string]map[string]*schema.Erasure),
		remains: make(map[string]bool),
	}
}

// whole reports whether the workspace is erased.
func (s *erasures) whole(workspace string) bool { return s.set.Find(workspace, "") != nil }

func (s *erasures) put(e *schema.Erasure) {
	s.byID[e.ID] = e
	enter(s.owned, e)
	if e.Done() {
		leave(s.pending, e)
	} else {
		enter(s.pending, e)
	}
	s.set.Add(e)
}

func (s *erasures) remove(e *schema.Erasure) {
	delete(s.byID, e.ID)
	leave(s.owned, e)
	leave(s.pending, e)
	s.set.Remove(e)
}

func enter(index map[string]map[string]*schema.Erasure, e *schema.Erasure) {
	of := index[e.Workspace]
	if of == nil {
		of = make(map[string]*schema.Erasure)
		index[e.Workspace] = of
	}
	of[e.ID] = e
}

func leave(index map[string]map[string]*schema.Erasure, e *schema.Erasure) {
	of := index[e.Workspace]
	delete(of, e.ID)
	if len(of) == 0 {
		delete(index, e.Workspace)
	}
}

// applyErasure folds an erasure's record. That of a workspace takes the workspace away,
// and with it what its keys allow.
func (s *state) applyErasure(id string, value []byte) ([]Change, error) {
	have := s.erased.byID[id]
	if value == nil {
		if have != nil {
			s.erased.remove(have)
		}
		return nil, nil
	}
	e, err := decodeErasure(id, value)
	if err != nil {
		return nil, err
	}
	if have != nil {
		if have.Workspace != e.Workspace || have.Session != e.Session || have.Below != e.Below {
			return nil, errors.New("erasure is of something else than before")
		}
		if have.Done() { // a record from before that, come late
			return nil, nil
		}
	}
	s.erased.put(e)
	if have != nil {
		return nil, nil
	}
	changes := []Change{{Kind: Erased, Workspace: e.Workspace, Session: e.Session}}
	if e.Session == "" {
		gone, err := s.applyWorkspace(e.Workspace, nil)
		if err != nil {
			return nil, err
		}
		s.erased.remains[e.Workspace] = true
		changes = append(changes, gone...)
	}
	return changes, nil
}

// ErasedBelow returns the position that the erased events of a session lie before, zero if
// none are erased. It is a schema.ErasedBelow.
func (s *Store) ErasedBelow(workspace, session string) schema.Position {
	if !s.hasErased.Load() {
		return schema.Position{}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.erased.set.Below(workspace, session)
}

// Erasure returns the erasure that counts for a session; false if there is none.
func (s *Store) Erasure(workspace, session string) (schema.Erasure, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.state.erased.set.Find(workspace, session); e != nil {
		return *e, true
	}
	return schema.Erasure{}, false
}

// Erasures returns the erasures of a workspace that are remembered, the oldest first.
func (s *Store) Erasures(workspace string) []schema.Erasure {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sorted(s.state.erased.owned[workspace])
}

// PendingErasures returns those erasures of a workspace that are not done: ClickHouse may
// still hold rows of them.
func (s *Store) PendingErasures(workspace string) []schema.Erasure {
	if !s.hasErased.Load() {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sorted(s.state.erased.pending[workspace])
}

// ErasedWorkspaces returns the workspaces that something is erased of, those only in which
// something is pending if so asked.
func (s *Store) ErasedWorkspaces(pending bool) []string {
	if !s.hasErased.Load() {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	index := s.state.erased.owned
	if pending {
		index = s.state.erased.pending
	}
	out := make([]string, 0, len(index))
	for workspace := range index {
		out = append(out, workspace)
	}
	slices.Sort(out)
	return out
}

func sorted(of map[string]*schema.Erasure) []schema.Erasure {
	out := make([]schema.Erasure, 0, len(of))
	for _, e := range of {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b schema.Erasure) int {
		return cmp.Or(cmp.Compare(a.AtMs, b.AtMs), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// EraseSession erases what the log holds of a session now. It writes the erasure's record
// into the session's partition, which says where the erasure ends, and then makes it known
// to all nodes. When it returns this node knows it, and the others will within a second.
// The session need not exist. After an error nothing is erased, or all of it.
//
// Errors: ErrNotFound (workspace), ErrErasureLimit, *SpecError.
func (s *Store) EraseSession(ctx context.Context, workspace, session, by string) (schema.Erasure, error) {
	if err := schema.CheckID(session); err != nil {
		return schema.Erasure{}, &SpecError{Field: "id", Reason: err.Error()}
	}
	if _, ok := s.Workspace(workspace); !ok {
		return schema.Erasure{}, fmt.Errorf("workspace %s: %w", schema.Quote(workspace), ErrNotFound)
	}
	if err := s.mayErase(workspace); err != nil {
		return schema.Erasure{}, err
	}
	e := s.newErasure(workspace, session, by)
	var err error
	if e.Below, err = s.markErased(ctx, e); err != nil {
		return schema.Erasure{}, err
	}
	return *e, s.writeErasure(ctx, e)
}

// EraseWorkspace erases a workspace: its keys end, and everything that was ever appended
// to it or will be, by somebody who has not heard, counts as erased. Its id is not used
// again. It returns as EraseSession does.
//
// Errors: ErrNotFound, ErrErasureLimit.
func (s *Store) EraseWorkspace(ctx context.Context, workspace, by string) (schema.Erasure, error) {
	e := s.newErasure(workspace, "", by)
	if err := s.mayErase(workspace); err != nil {
		return schema.Erasure{}, err
	}
	err := s.write(ctx, func() (key string, value []byte, err error) {
		if _, ok := s.Workspace(workspace); !ok {
			return "", nil, fmt.Errorf("workspace %s: %w", schema.Quote(workspace), ErrNotFound)
		}
		value, err = encodeErasure(e)
		return kindErasure + "/" + e.ID, value, err
	})
	return *e, err
}

func (s *Store) newErasure(workspace, session, by string) *schema.Erasure {
	return &schema.Erasure{
		ID: erasureIDPrefix + randomText(idRandomLen), Workspace: workspace, Session: session,
		AtMs: s.now().UnixMilli(), By: by,
	}
}

func (s *Store) mayErase(workspace string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case len(s.state.erased.owned[workspace]) >= MaxErasuresPerWorkspace:
		return fmt.Errorf("%w: %d of a workspace", ErrErasureLimit, MaxErasuresPerWorkspace)
	case len(s.state.erased.byID) >= MaxErasures:
		return fmt.Errorf("%w: %d", ErrErasureLimit, MaxErasures)
	}
	return nil
}

// erasureMark is the payload of an erasure's record in a session's log.
type erasureMark struct {
	ID string `json:"id"`
}

// markErased writes the record that ends a session's erasure, and returns the position
// behind it.
func (s *Store) markErased(ctx context.Context, e *schema.Erasure) (schema.Position, error) {
	s.mu.RLock()
	epoch := s.epoch
	partitions := s.state.epochs[epoch].Partitions
	s.mu.RUnlock()
	w, ok := s.Workspace(e.Workspace)
	if epoch == 0 || !ok {
		return schema.Position{}, fmt.Errorf("workspace %s in epoch %d: %w", schema.Quote(e.Workspace), epoch, ErrNotFound)
	}
	payload, err := json.Marshal(erasureMark{ID: e.ID})
	if err != nil {
		return schema.Position{}, err
	}
	mark := &schema.Event{
		Workspace: e.Workspace, Session: e.Session, Type: schema.TypeErased,
		ContentType: schema.DefaultContentType, Payload: payload,
	}
	partition := w.Placement(partitions).Partition(e.Workspace, e.Session)
	record := &kgo.Record{
		Topic: schema.TopicEvents, Partition: int32(partition), Timestamp: time.UnixMilli(e.AtMs),
		Key: schema.RecordKey(e.Workspace, e.Session), Value: payload,
		Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), mark, e.ID),
	}
	if err := s.producer.ProduceSync(ctx, record).FirstErr(); err != nil {
		return schema.Position{}, fmt.Errorf("produce %s/%d: %w", schema.TopicEvents, partition, err)
	}
	return schema.Position{Epoch: epoch, Partition: partition, Offset: record.Offset + 1}, nil
}

func (s *Store) writeErasure(ctx context.Context, e *schema.Erasure) error {
	return s.write(ctx, func() (key string, value []byte, err error) {
		value, err = encodeErasure(e)
		return kindErasure + "/" + e.ID, value, err
	})
}

// FinishErasure notes that ClickHouse holds nothing of an erasure any more. An erasure
// that is not remembered or is done is no error.
func (s *Store) FinishErasure(ctx context.Context, id string) error {
	return s.write(ctx, func() (key string, value []byte, err error) {
		s.mu.RLock()
		e := s.state.erased.byID[id]
		s.mu.RUnlock()
		if e == nil || e.Done() {
			return "", nil, nil
		}
		done := *e
		done.DoneMs = max(s.now().UnixMilli(), 1)
		value, err = encodeErasure(&done)
		return kindErasure + "/" + id, value, err
	})
}

// ForgetErasure removes the memory of a session's erasure. It is for erasures that are
// done and whose records Kafka has deleted: before that, what was erased would come back.
func (s *Store) ForgetErasure(ctx context.Context, id string) error {
	return s.write(ctx, func() (key string, value []byte, err error) {
		s.mu.RLock()
		e := s.state.erased.byID[id]
		s.mu.RUnlock()
		if e == nil || !e.Done() || e.Session == "" {
			return "", nil, nil
		}
		return kindErasure + "/" + id, nil, nil
	})
}

// sweepErased returns records that take away what the topic still holds of erased
// workspaces: at most limit.
func (s *state) sweepErased(limit int) (dead []*kgo.Record) {
	for workspace := range s.erased.remains {
		if len(dead) < limit {
			dead = append(dead, &kgo.Record{Topic: schema.TopicControl, Key: []byte(kindWorkspace + "/" + workspace)})
		}
	}
	for id, k := range s.keys {
		if len(dead) < limit && s.erased.whole(k.Workspace) {
			dead = append(dead, &kgo.Record{Topic: schema.TopicControl, Key: []byte(kindKey + "/" + id)})
		}
	}
	return dead
}
