package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// LoadConfig says how many clients there are and how busy.
type LoadConfig struct {
	Seed    uint64
	Prefix  string // of the names of sessions, for a second load
	Writers int    // each with sessions of its own, one at a time
	Unnamed int    // writers whose events have no message ids, and are never sent twice
	// Pause between two appends of a writer, on average. An append has up to Batch events.
	Pause time.Duration
	Batch int
	// Length is how many events a session has before it is ended, on average.
	Length int

	SessionListeners   int // each follows one session after the other, from anywhere
	WorkspaceListeners int // each follows everything, by server-sent events
	SocketListeners    int // likewise by WebSocket
	Pagers             int // each asks for pages, counts, states and single events
	PageFollowers      int // each follows everything, by pages

	// Patience is how long a client waits for an answer, or for a sign of life.
	Patience time.Duration
}

// DefaultLoad is a load that two processors bear beside the nodes.
func DefaultLoad(seed uint64) LoadConfig {
	return LoadConfig{
		Seed: seed, Writers: 6, Unnamed: 1, Pause: 40 * time.Millisecond, Batch: 8, Length: 400,
		SessionListeners: 3, WorkspaceListeners: 1, SocketListeners: 1, Pagers: 1, PageFollowers: 1,
		Patience: 4 * time.Second,
	}
}

// Later is a load like c on sessions of its own, for what another load's sessions lie
// beside: without clients that follow the whole workspace.
func (c LoadConfig) Later() LoadConfig {
	c.Prefix = "later-"
	c.Seed++
	c.WorkspaceListeners, c.SocketListeners, c.PageFollowers = 0, 0, 0
	return c
}

// Load is clients at work on a Cluster.
type Load struct {
	Journal *Journal

	cfg     LoadConfig
	client  *client
	cluster *Cluster

	life      context.Context // of every request; ends when the load is given up
	giveUp    context.CancelFunc
	writing   context.CancelFunc
	listening context.CancelFunc
	writers   sync.WaitGroup
	listeners sync.WaitGroup
}

// StartLoad starts all clients. Finish ends them.
func StartLoad(c *Cluster, cfg LoadConfig) *Load {
	l := &Load{Journal: newJournal(), cfg: cfg, client: newClient(c, cfg.Patience), cluster: c}
	write, stopWriting := context.WithCancel(context.Background())
	listen, stopListening := context.WithCancel(context.Background())
	l.writing, l.listening = stopWriting, stopListening
	l.life, l.giveUp = context.WithCancel(context.Background())
	for i := range cfg.Writers + cfg.Unnamed {
		l.writers.Go(func() {
			newWriter(l, i, i < cfg.Writers).run(write)
		})
	}
	for i := range cfg.WorkspaceListeners {
		l.listeners.Go(func() { l.followWorkspace(listen, fmt.Sprintf("workspace stream %d", i)) })
	}
	for i := range cfg.SocketListeners {
		l.listeners.Go(func() { l.followSocket(listen, fmt.Sprintf("workspace socket %d", i)) })
	}
	for i := range cfg.PageFollowers {
		l.listeners.Go(func() { l.followPages(listen, fmt.Sprintf("workspace pages %d", i)) })
	}
	for i := range cfg.SessionListeners {
		l.listeners.Go(func() { l.followSessions(listen, fmt.Sprintf("session stream %d", i), l.random(1000+i)) })
	}
	for i := range cfg.Pagers {
		l.listeners.Go(func() { l.ask(listen, l.random(2000+i)) })
	}
	return l
}

// random is client i's own source.
func (l *Load) random(i int) *rand.Rand { return rand.New(rand.NewPCG(l.cfg.Seed, uint64(i))) }

// Finish stops the writers once each has been acknowledged what it sent, and the listeners
// once each has got all that there is. What is not done within the time is in the error;
// the Audit finds what is missing.
func (l *Load) Finish(ctx context.Context, within time.Duration) error {
	l.writing()
	err := waitFor(ctx, &l.writers, within, "the writers have been acknowledged all that they sent")
	if err == nil {
		err = l.awaitListeners(ctx, within)
	}
	l.listening()
	l.giveUp()
	return errors.Join(err, waitFor(ctx, &l.listeners, within, "the listeners end"), waitFor(ctx, &l.writers, within, "the writers end"))
}

// awaitListeners waits until every listener has got as many events as there are.
func (l *Load) awaitListeners(ctx context.Context, within time.Duration) error {
	records, err := l.cluster.readLog(ctx)
	if err != nil {
		return err
	}
	total := 0
	for _, s := range l.Journal.all() {
		total += len(records.sessions[s.name])
	}
	return await(ctx, within, "the listeners have got everything", func(context.Context) error {
		l.Journal.mu.Lock()
		hearings := l.Journal.hearings
		l.Journal.mu.Unlock()
		for _, h := range hearings {
			want := total
			if h.session != nil {
				want = len(h.wants(records.sessions[h.session.name]))
			}
			if got := h.count(); got < want {
				return fmt.Errorf("%s has got %d of %d events", h.name, got, want)
			}
		}
		return nil
	})
}

// Complaints are the answers that nothing excuses, joined.
func (l *Load) Complaints() error {
	l.Journal.mu.Lock()
	defer l.Journal.mu.Unlock()
	var errs []error
	for _, c := range l.Journal.complaints {
		errs = append(errs, errors.New(c))
	}
	return errors.Join(errs...)
}

// waitFor waits for goroutines.
func waitFor(ctx context.Context, wg *sync.WaitGroup, within time.Duration, what string) error {
	done := make(chan struct{})
	go func() { // ends with the goroutines
		wg.Wait()
		close(done)
	}()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return fmt.Errorf("not within %v: %s", within, what)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pause waits, until ctx ends at most.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// jitter is d on average, between 0 and twice as much.
func jitter(r *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(2*d) + 1))
}
