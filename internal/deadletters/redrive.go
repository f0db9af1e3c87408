package deadletters

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// Errors of a Redrive that callers branch on. A *schema.RejectError besides says what keeps
// the letter from being an event.
var (
	ErrNotFound   = errors.New("there is no such dead letter")
	ErrRedriven   = errors.New("dead letter was appended again already, as another event")
	ErrCut        = errors.New("dead letter has only a part of its record, and the record is gone")
	ErrUnreadable = errors.New("dead letter is of a batch that cannot be read")
	ErrIsEvent    = errors.New("record is an event by now")
	ErrWorkspace  = errors.New("there is no such workspace")
)

// Appender appends events.
type Appender interface {
	// AppendOnce appends an event that has a message id to its session, unless an event of
	// that message id is there, however old: then it returns that one's id, and duplicate.
	AppendOnce(ctx context.Context, e *schema.Event) (id schema.EventID, duplicate bool, err error)
}

// Redriver has dead letters appended as events.
type Redriver struct {
	Book     *Book
	Writer   *Writer
	Appender Appender
	Log      *kafka.Log // the events topic
	Epoch    uint8
	// Known reports whether there is a workspace.
	Known   func(workspace string) bool
	Metrics *Metrics
	Now     func() time.Time
}

// Redrive appends a letter as an event, corrected by c, and notes that. A letter that was
// appended again before is answered with that event, and again; with another correction it
// is ErrRedriven. Two of a letter at the same time append one event, if they correct it
// alike.
func (r *Redriver) Redrive(ctx context.Context, e *Entry, c schema.Correction, by string) (made *schema.Redrive, again bool, err error) {
	made, again, err = r.redrive(ctx, e, c, by)
	outcome := "appended"
	switch {
	case err != nil:
		outcome = "failed"
	case again:
		outcome = "duplicate"
	}
	r.Metrics.redrives.WithLabelValues(outcome).Inc()
	return made, again, err
}

func (r *Redriver) redrive(ctx context.Context, e *Entry, c schema.Correction, by string) (made *schema.Redrive, again bool, err error) {
	if done := e.Redriven; done != nil {
		if c.Workspace != "" && c.Workspace != done.WorkspaceID || c.Session != "" && c.Session != done.SessionID || c.Type != "" && c.Type != done.Type {
			return done, true, ErrRedriven
		}
		return done, true, nil
	}
	switch {
	case e.Reason == schema.ReasonUnreadable:
		return nil, false, ErrUnreadable
	case e.Reason == schema.ReasonWorkspace && (c.Workspace == "" || c.Workspace == e.Workspace) && r.Known(e.Workspace):
		return nil, false, ErrIsEvent
	}
	letter, err := r.whole(ctx, e)
	if err != nil {
		return nil, false, err
	}
	event, err := letter.Event(c)
	if err != nil {
		return nil, false, err
	}
	if !r.Known(event.Workspace) {
		return nil, false, ErrWorkspace
	}
	id, again, err := r.Appender.AppendOnce(ctx, event)
	if err != nil {
		return nil, false, err
	}
	made = &schema.Redrive{
		At: e.At, EventID: id.String(), WorkspaceID: event.Workspace, SessionID: event.Session, Type: event.Type,
		AtMs: r.Now().UnixMilli(), By: by,
	}
	if err := r.Writer.Note(ctx, schema.LetterRecord{Redrive: made}); err != nil {
		return nil, false, fmt.Errorf("note that a dead letter was appended again: %w", err)
	}
	return made, again, nil
}

// whole returns the letter with all of its record: out of the events topic if the letter
// has only a part.
func (r *Redriver) whole(ctx context.Context, e *Entry) (*schema.DeadLetter, error) {
	letter, err := r.Book.Letter(ctx, e)
	if errors.Is(err, ErrGone) {
		return nil, ErrNotFound
	}
	if err != nil || letter.Whole() {
		return letter, err
	}
	if e.At.Epoch != r.Epoch {
		return nil, ErrCut
	}
	found := false
	_, err = r.Log.Read(ctx, e.At.Partition, e.At.Offset, e.At.Offset+1, func(rec *kgo.Record) error {
		found = true
		letter.Key, letter.Value = rec.Key, rec.Value
		letter.Headers = letter.Headers[:0:0]
		for _, h := range rec.Headers {
			letter.Headers = append(letter.Headers, schema.Header(h))
		}
		return nil
	})
	if _, ok := errors.AsType[*kafka.OffsetRangeError](err); ok || err == nil && !found {
		return nil, ErrCut
	}
	return letter, err
}
