package control

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// Errors that callers branch on.
var (
	ErrUnknownKey      = errors.New("control: unknown key")
	ErrExpiredKey      = errors.New("control: key has expired")
	ErrNotFound        = errors.New("control: not found")
	ErrWorkspaceExists = errors.New("control: workspace exists")
	ErrKeyExists       = errors.New("control: a key with this text exists")
	ErrKeyLimit        = errors.New("control: workspace has as many keys as it may")
)

// produceTimeout bounds one write to the control topic.
const produceTimeout = 10 * time.Second

// Store is the fold of the control topic in memory. Reads never block on Kafka; writes
// return when Kafka has acknowledged them and the fold of this process holds them, so a
// key works on this node as soon as CreateKey returns, and on the others within a
// second. While Kafka is away reads go on with what is known. Safe for concurrent use.
type Store struct {
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics

	topic    *kafka.Log
	producer *kgo.Client
	kick     chan struct{} // asks the follower to read now; one waiting kick is enough
	writing  chan struct{} // a token: one write at a time, so that checks hold for it
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	hasErased atomic.Bool // spares most questions about erasures the lock

	mu       sync.RWMutex // guards what follows; no lock is taken under it
	state    state
	next     int64         // offset after the last folded record
	moved    chan struct{} // closed and replaced when next grows
	pollErr  error
	epoch    uint8
	watchers map[int]func(Change)
	watchID  int
}

// Open reads playhead.control, which must exist, to its end and follows it from there.
// ctx bounds the opening. The caller closes the store.
func Open(ctx context.Context, cfg kafka.Config, opts ...Option) (*Store, error) {
	o := options{log: slog.New(slog.DiscardHandler), now: time.Now}
	for _, opt := range opts {
		opt(&o)
	}
	cfg.ReadConnections = 1
	clientOpts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	topic, err := kafka.OpenTopic(ctx, cfg, schema.TopicControl)
	if err != nil {
		return nil, err
	}
	producer, err := kgo.NewClient(append(clientOpts,
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0),
		kgo.RecordDeliveryTimeout(produceTimeout), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		topic.Close()
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	s := &Store{
		log: o.log, now: o.now, metrics: newMetrics(o.reg),
		topic: topic, producer: producer,
		kick: make(chan struct{}, 1), writing: make(chan struct{}, 1),
		state: newState(), moved: make(chan struct{}), watchers: make(map[int]func(Change)),
		cancel: func() {},
	}
	s.writing <- struct{}{}
	if err := s.load(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("load %s: %w", schema.TopicControl, err)
	}
	var life context.Context
	life, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(func() { s.follow(life) })
	s.wg.Go(func() { s.runSweeper(life) })
	return s, nil
}

// load folds what the topic held when Open was called.
func (s *Store) load(ctx context.Context) error {
	start, end, err := s.topic.Bounds(ctx, 0)
	if err != nil {
		return err
	}
	s.advance(start)
	return s.foldTo(ctx, end)
}

// Close stops following. Reads go on answering from memory. Closing twice is harmless.
func (s *Store) Close() {
	s.cancel()
	s.topic.Close()
	s.producer.Close()
	s.wg.Wait()
}

// Ready returns why the store may lag behind the topic, or nil.
func (s *Store) Ready(context.Context) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pollErr
}

// Authenticate returns who the text of a key stands for, or ErrUnknownKey (also for
// revoked keys) or ErrExpiredKey.
func (s *Store) Authenticate(key string) (Principal, error) {
	hash := hashKey(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	now, expired := s.now(), false
	for _, id := range s.state.byHash[hash] {
		k := s.state.keys[id]
		// The map found the hash already; comparing it again in constant time costs
		// nothing and stays right should the map's key ever become a prefix.
		if subtle.ConstantTimeCompare(k.hash[:], hash[:]) != 1 {
			continue
		}
		if _, ok := s.state.workspaces[k.Workspace]; !ok {
			continue
		}
		if k.Live(now) {
			return k.Principal(), nil
		}
		expired = expired || k.RevokedAt.IsZero()
	}
	if expired {
		return Principal{}, ErrExpiredKey
	}
	return Principal{}, ErrUnknownKey
}

// Live reports whether a key may go on: it is there, neither revoked nor expired, and so
// is its workspace.
func (s *Store) Live(keyID string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	k, ok := s.state.keys[keyID]
	if !ok || !k.Live(s.now()) {
		return false
	}
	_, ok = s.state.workspaces[k.Workspace]
	return ok
}

// Workspace returns a workspace; false if there is none of that id.
func (s *Store) Workspace(id string) (Workspace, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	w, ok := s.state.workspaces[id]
	return w, ok
}

// Workspaces returns all workspaces by id.
func (s *Store) Workspaces() []Workspace {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Workspace, 0, len(s.state.workspaces))
	for _, w := range s.state.workspaces {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b Workspace) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Keys returns the keys of a workspace, the oldest first. Revoked and expired ones stay
// listed for a day.
func (s *Store) Keys(workspace string) []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Key
	for _, k := range s.state.keys {
		if k.Workspace == workspace {
			out = append(out, k.Key)
		}
	}
	slices.SortFunc(out, func(a, b Key) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// Key returns one key of a workspace; false if there is none.
func (s *Store) Key(workspace, id string) (Key, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	k, ok := s.state.keys[id]
	return k.Key, ok && k.Workspace == workspace
}

// Watch calls fn with every change folded from now on, and perhaps with some folded just
// before, in order, on the store's own goroutine: fn must not block, nor write to the
// store. stop ends it; a call under way may end after stop returned.
//
// To end what a key opened when the key ends, without a gap: note it down where fn finds
// it by the key's id, then ask Live, and end it if that is false; end it in fn on
// KeyRevoked; and end it at Principal.ExpiresAt, which no record announces. A key that is
// revoked after its request was authenticated is then either told to fn or no longer Live.
func (s *Store) Watch(fn func(Change)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchID++
	id := s.watchID
	s.watchers[id] = fn
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, id)
	}
}

func (s *Store) notify(changes []Change) {
	if len(changes) == 0 {
		return
	}
	s.mu.RLock()
	fns := make([]func(Change), 0, len(s.watchers))
	for _, fn := range s.watchers {
		fns = append(fns, fn)
	}
	s.mu.RUnlock()
	for _, c := range changes {
		for _, fn := range fns {
			fn(c)
		}
	}
}

func (s *Store) position() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.next
}

// advance notes how far the fold is and wakes those who wait for it.
func (s *Store) advance(next int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next <= s.next {
		return
	}
	s.next = next
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *Store) setPollError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pollErr = err
}
