package main

import (
	"context"
	"errors"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/deadletters"
	"github.com/playhead-dev/playhead/schema"
)

// dropErased has this process forget what was erased of a session, or of a workspace if
// session is "": its tapes, and the session's streams. A workspace's streams end with their
// keys.
func (n *node) dropErased(workspace, session string) {
	n.tapes.Erase(workspace, session)
	if hub := n.hub.Load(); hub != nil && session != "" {
		hub.EndErased(workspace, session)
	}
}

// erasures makes erasures as clients ask for them: when one is answered, this node shows
// nothing of it any more.
type erasures struct {
	*control.Store
	n *node
}

func (e erasures) EraseSession(ctx context.Context, workspace, session, by string) (schema.Erasure, error) {
	if err := e.n.eraseLetters(ctx, workspace, session); err != nil {
		return schema.Erasure{}, err
	}
	x, err := e.Store.EraseSession(ctx, workspace, session, by)
	if err != nil {
		return x, err
	}
	e.n.dropErased(workspace, session)
	// An append that follows must find the ids of its messages free.
	tape, err := e.n.tapes.Open(ctx, x.Below.Partition)
	if err != nil {
		return x, err
	}
	return x, tape.WaitFor(ctx, x.Below.Offset)
}

// eraseLetters hides the dead letters that say that they are of a session. The erasure itself
// does so too, but is forgotten when the log has lost what it erased, which the topic of the
// dead letters may keep longer. Should the erasure fail then, they are hidden for nothing:
// who asks for it wants that.
func (n *node) eraseLetters(ctx context.Context, workspace, session string) error {
	err := n.letters.Note(ctx, schema.LetterRecord{Erasure: &schema.LetterErasure{
		WorkspaceID: workspace, SessionID: session, AtMs: time.Now().UnixMilli(),
	}})
	if errors.Is(err, deadletters.ErrRefused) { // there is no such topic: nor are there letters
		n.logger.Error("dead letters of an erased session are not marked", "error", err)
		return nil
	}
	return err
}

func (e erasures) EraseWorkspace(ctx context.Context, workspace, by string) (schema.Erasure, error) {
	x, err := e.Store.EraseWorkspace(ctx, workspace, by)
	if err == nil {
		e.n.dropErased(workspace, "")
	}
	return x, err
}

// SessionExists asks the tape once it has passed all that was in the log when the call
// began.
func (e erasures) SessionExists(ctx context.Context, workspace, session string) (bool, error) {
	tape, _, err := e.n.tapes.Current(ctx, e.n.placement(workspace).Partition(workspace, session))
	if err != nil {
		return false, err
	}
	s, err := tape.Session(ctx, workspace, session)
	return err == nil && s.Exists(), err
}
