package main

import (
	"context"
	"slices"
	"time"

	"github.com/playhead-dev/playhead/internal/deadletters"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// openLetters opens what writes dead letters: the materialiser's, and notes about them.
func (n *node) openLetters() (err error) {
	n.letterMetrics = deadletters.NewMetrics(n.reg)
	if n.letters, err = deadletters.NewWriter(n.cfg.Kafka, n.letterMetrics, n.logger); err != nil {
		return err
	}
	n.onStop("dead letters", func(context.Context) error { n.letters.Close(); return nil })
	return nil
}

// knownWorkspace reports whether there is a workspace, as far as this node has heard. An
// erased one counts: its events are not nobody's, they are gone.
func (n *node) knownWorkspace(id string) bool {
	if _, ok := n.control.Workspace(id); ok {
		return true
	}
	_, erased := n.control.Erasure(id, "")
	return erased
}

// letterKeeper is where the materialiser's dead letters go.
type letterKeeper struct{ n *node }

// Keep leaves out the letters of workspaces that were made before the call after all: this
// node may hear of one later than the log has its first event.
func (k letterKeeper) Keep(ctx context.Context, letters []*schema.DeadLetter) error {
	ofNobody := func(l *schema.DeadLetter) bool { return l.Reason == schema.ReasonWorkspace }
	if slices.ContainsFunc(letters, ofNobody) {
		if err := k.n.control.Sync(ctx); err != nil {
			return err
		}
		letters = slices.DeleteFunc(slices.Clone(letters), func(l *schema.DeadLetter) bool {
			return ofNobody(l) && k.n.knownWorkspace(l.Workspace)
		})
	}
	return k.n.letters.Keep(ctx, letters)
}

// openDeadLetters adds the paths of dead letters, which append.
func (n *node) openDeadLetters() {
	book := deadletters.NewBook(n.cfg.DeadLetters, n.cfg.Kafka, n.control.Erasure, n.letterMetrics, n.logger)
	n.onStop("book of dead letters", func(context.Context) error { book.Close(); return nil })
	httpapi.DeadLetterRoutes(n.app, deadLetters{book, &deadletters.Redriver{
		Book: book, Writer: n.letters, Appender: n.appends, Log: n.log, Epoch: n.control.Epoch(),
		Known: n.workspaceExists, Metrics: n.letterMetrics, Now: time.Now,
	}, n})
}

func (n *node) workspaceExists(id string) bool {
	_, ok := n.control.Workspace(id)
	return ok
}

// deadLetters is what the paths of dead letters ask.
type deadLetters struct {
	*deadletters.Book
	*deadletters.Redriver
	n *node
}

func (d deadLetters) Operator(workspace string) bool {
	return workspace != "" && workspace == d.n.cfg.DeadLetters.OperatorWorkspace
}
