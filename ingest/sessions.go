package ingest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// sessionIDPrefix starts the ids of sessions that were created without one. 26
// characters of random base32 follow: 130 bits.
const sessionIDPrefix = "ses_"

// maxReasonBytes bounds why a session was ended.
const maxReasonBytes = 1024

// The steps of a session's life that only one request at a time may take. They stand
// where a message id stands in a dedupe key; '~' cannot occur in one.
const (
	stepCreate = "~create"
	stepEnd    = "~end"
)

// SessionSpec says what session to create.
type SessionSpec struct {
	ID       string // generated if empty
	Kind     string // schema.KindSession if empty
	Workflow string
	Metadata map[string]string
}

// CreateSession creates a session and returns it with its id once the tail knows it.
//
// An id that exists is session_exists, with two exceptions that make clients simpler. The
// same creation again returns the session as it is, with created false, so that a
// creation may be retried. And a session that began by an append is given the kind,
// workflow and metadata asked for, so that the creator need not be faster than the
// first event.
func (a *Appender) CreateSession(ctx context.Context, caller Caller, spec SessionSpec) (id string, s schema.Session, created bool, err error) {
	switch {
	case spec.ID == "" && caller.Session != "":
		spec.ID = caller.Session
	case spec.ID == "":
		spec.ID = sessionIDPrefix + rand.Text()
	}
	if spec.Kind == "" {
		spec.Kind = schema.KindSession
	}
	if caller.Workflow != "" {
		if spec.Workflow != "" && spec.Workflow != caller.Workflow {
			return "", s, false, notFound("workflow_id")
		}
		spec.Workflow = caller.Workflow
	}
	s, created, err = a.step(ctx, caller, spec.ID, stepCreate, func(s *schema.Session, nowMs int64) (*schema.Event, error) {
		switch {
		case caller.Workflow != "" && s.Exists() && s.Workflow != caller.Workflow:
			return nil, notFound("id")
		case !s.Exists():
			return createdEvent(spec, 0), nil
		case spec.Workflow != "" && s.Workflow != "" && s.Workflow != spec.Workflow:
			return nil, sessionExists(spec.ID)
		case s.Created && s.Kind == spec.Kind && maps.Equal(s.Metadata, spec.Metadata):
			return nil, nil
		case s.Created, s.Ended():
			return nil, sessionExists(spec.ID)
		}
		if spec.Workflow == "" {
			spec.Workflow = s.Workflow
		}
		return createdEvent(spec, max(0, nowMs-s.StartedMs)), nil
	})
	return spec.ID, s, created, err
}

func sessionExists(id string) error {
	return refuse(409, codeSessionExists, "id", "A session %s exists already, with another kind, workflow or metadata.", schema.Quote(id))
}

func createdEvent(spec SessionSpec, tMs int64) *schema.Event {
	payload, _ := json.Marshal(schema.SessionCreated{Kind: spec.Kind, Metadata: spec.Metadata}) // text always marshals
	return &schema.Event{Type: schema.TypeSessionCreated, Workflow: spec.Workflow, TMs: tMs,
		ContentType: schema.DefaultContentType, Payload: payload}
}

// EndSession ends a session and returns it once the tail knows of the end, so that a
// later append through this node is refused. Ending it again changes nothing.
func (a *Appender) EndSession(ctx context.Context, caller Caller, id, reason string) (schema.Session, error) {
	s, _, err := a.step(ctx, caller, id, stepEnd, func(s *schema.Session, nowMs int64) (*schema.Event, error) {
		switch {
		case !s.Exists(), caller.Workflow != "" && s.Workflow != caller.Workflow:
			return nil, notFound("id")
		case s.Ended():
			return nil, nil
		}
		payload, _ := json.Marshal(sessionEnded{Reason: reason}) // text always marshals
		return &schema.Event{Type: schema.TypeSessionEnded, Workflow: s.Workflow, TMs: max(0, nowMs-s.StartedMs),
			ContentType: schema.DefaultContentType, Payload: payload}, nil
	})
	return s, err
}

// sessionEnded is the payload of a schema.TypeSessionEnded record.
type sessionEnded struct {
	Reason string `json:"reason,omitempty"`
}

// step appends one of Playhead's own records to a session. decide is shown the session
// and returns the record, or nil if there is nothing to do; while it is asked, no other
// request of this node takes the same step. step returns the session with the record
// applied, and whether one was written.
func (a *Appender) step(ctx context.Context, caller Caller, id, name string,
	decide func(s *schema.Session, nowMs int64) (*schema.Event, error),
) (s schema.Session, written bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.liveTimeout())
	defer cancel()
	a.backfill.begin()
	defer a.backfill.end()
	for {
		r := a.newRequest(caller, []Item{{Event: schema.Event{Session: id}}})
		r.place(ctx)
		if err := r.results[0].Err; err != nil {
			return s, false, err.WithParam("id")
		}
		t := r.targets[0]
		r.keys[0] = stepKey(caller.Workspace, id, name)
		held, ok := t.lane.take(r.keys[0], r, 0)
		if ok {
			r.owned[0] = true
			return r.takeStep(ctx, t, decide)
		}
		// Another request is taking the step, or the tail has yet to pass its record:
		// look again when it has.
		if held.req == nil {
			err = t.tail.WaitFor(ctx, held.id.Offset+1)
		} else {
			select {
			case <-held.req.done:
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		if err != nil {
			return s, false, httpapi.LogUnavailable(err)
		}
	}
}

func stepKey(workspace, session, step string) xxh3.Uint128 {
	return schema.MessageKey(workspace, session, step)
}

// takeStep is step under its claim, which it settles in any case.
func (r *request) takeStep(ctx context.Context, t *target,
	decide func(s *schema.Session, nowMs int64) (*schema.Event, error),
) (s schema.Session, written bool, err error) {
	// What was acknowledged before this request came, on any node, counts: an append and
	// then an end must not find the session unknown.
	if _, err = r.a.freshTail(ctx, t.lane); err != nil {
		err = httpapi.LogUnavailable(err)
	} else if s, err = t.tail.Session(ctx, t.key.workspace, t.key.session); err != nil {
		err = httpapi.HistoryUnavailable(retryAfter).WithCause(fmt.Errorf("session state: %w", err))
	}
	var e *schema.Event
	if err == nil {
		e, err = decide(&s, r.nowMs)
	}
	if err == nil && e != nil {
		e.Workspace, e.Session = t.key.workspace, t.key.session
		r.items[0].Event = *e
		if refused := r.admit(); refused != nil {
			err = refused
		}
	}
	if err != nil || e == nil {
		r.duplicate(0, schema.EventID{}) // nothing to write: finish gives up the claim
		r.finish()
		return s, false, err
	}
	r.produce()
	res := r.wait(ctx)[0]
	if res.Err != nil {
		return s, false, res.Err
	}
	if err := t.tail.WaitFor(ctx, res.ID.Offset+1); err != nil {
		return s, false, httpapi.LogUnavailable(fmt.Errorf("tail of partition %d: %w", t.lane.partition, err))
	}
	s, err = t.tail.Session(ctx, t.key.workspace, t.key.session)
	if err != nil {
		return s, false, httpapi.HistoryUnavailable(retryAfter).WithCause(err)
	}
	return s, true, nil
}
