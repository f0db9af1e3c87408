package query

import (
	"context"
	"sync"

	"github.com/playhead-dev/playhead/schema"
)

// maxBaseBatch is how many sessions' states one statement reads.
const maxBaseBatch = 256

// baseGroup is what the sessions of one statement have in common.
type baseGroup struct {
	workspace string
	partition uint16
	to        schema.Position
}

// baseBatches joins questions for the states of sessions, so that a flood of sessions
// nobody has heard of (an import, a busy hour) costs a statement for many of them. One
// statement a group is under way; who comes meanwhile shares the next. A lone question
// is asked at once.
type baseBatches struct {
	read func(ctx context.Context, g baseGroup, sessions []string) (map[string]schema.Session, error)

	mu sync.Mutex
	// groups holds the batches that wait, oldest first, of each group that has a
	// statement under way; a group without one is absent.
	groups map[baseGroup][]*baseBatch
}

// baseBatch is one statement's sessions and, once done is closed, their states.
type baseBatch struct {
	sessions []string
	lead     chan struct{} // gets a token for the one caller that is to ask
	done     chan struct{}
	states   map[string]schema.Session
	err      error
}

func newBaseBatches(read func(context.Context, baseGroup, []string) (map[string]schema.Session, error)) *baseBatches {
	return &baseBatches{read: read, groups: make(map[baseGroup][]*baseBatch)}
}

// get returns the state of one session. The statement is shared, so it does not end with
// ctx: a caller that is cancelled while it runs waits for it, as long as a statement may
// take.
func (b *baseBatches) get(ctx context.Context, g baseGroup, session string) (schema.Session, error) {
	if err := ctx.Err(); err != nil {
		return schema.Session{}, err
	}
	batch := b.join(g, session)
	select {
	case <-batch.done:
	case <-batch.lead:
		b.ask(context.WithoutCancel(ctx), g, batch)
	}
	if batch.err != nil {
		return schema.Session{}, batch.err
	}
	s, ok := batch.states[session]
	if !ok {
		return schema.NewSession(), nil
	}
	return s.Clone(), nil // the same session may have been asked for twice
}

// join adds a session to the group's last waiting batch, or to a new one.
func (b *baseBatches) join(g baseGroup, session string) *baseBatch {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting, busy := b.groups[g]
	if n := len(waiting); n > 0 && len(waiting[n-1].sessions) < maxBaseBatch {
		waiting[n-1].sessions = append(waiting[n-1].sessions, session)
		return waiting[n-1]
	}
	batch := &baseBatch{sessions: []string{session}, lead: make(chan struct{}, 1), done: make(chan struct{})}
	if busy {
		b.groups[g] = append(waiting, batch)
	} else {
		b.groups[g] = nil
		batch.lead <- struct{}{}
	}
	return batch
}

// ask reads a batch's states and hands the lead on to the next batch.
func (b *baseBatches) ask(ctx context.Context, g baseGroup, batch *baseBatch) {
	batch.states, batch.err = b.read(ctx, g, batch.sessions)
	close(batch.done)
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := b.groups[g]
	if len(waiting) == 0 {
		delete(b.groups, g)
		return
	}
	b.groups[g] = waiting[1:]
	waiting[0].lead <- struct{}{}
}
