package httpapi

import (
	"context"
	"errors"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
)

// Paths of limits.
const (
	pathLimits      = "/v1/limits"
	pathAdmin       = "/admin/"
	pathAdminLimits = pathAdmin + "v1/limits"
)

// limitsTimeout bounds a change of limits.
const limitsTimeout = 15 * time.Second

// Workspaces is where workspaces and their limits are kept. *control.Store is one.
type Workspaces interface {
	Workspace(id string) (control.Workspace, bool)
	ChangeLimits(ctx context.Context, workspace string, change func(*control.Limits)) (control.Workspace, error)
}

// StreamCounts knows how many streams are open, on all nodes together.
type StreamCounts interface {
	Open(workspace, key string) (ofWorkspace, ofKey int)
}

// LimitRoutes adds the paths of limits; app must authenticate before them:
//
//	GET   /v1/limits        any key: the workspace's limits, and what is left of them for this key
//	PATCH /admin/v1/limits  scope admin: changes limits of the key's workspace, on all nodes within a second
//
// With nil streams the counts of open streams are null.
func LimitRoutes(app fiber.Router, workspaces Workspaces, limiter *Limiter, streams StreamCounts) {
	h := limitHandlers{workspaces: workspaces, limiter: limiter, streams: streams}
	app.Get(pathLimits, h.get)
	app.Patch(pathAdminLimits, Require(control.ScopeAdmin), h.change)
}

type limitHandlers struct {
	workspaces Workspaces
	limiter    *Limiter
	streams    StreamCounts
}

// limitsView is the answer of both paths. What is null has no limit, or is not known.
type limitsView struct {
	WorkspaceID string               `json:"workspace_id"`
	KeyID       string               `json:"key_id"`
	Plan        control.Plan         `json:"plan"`
	PageSize    int                  `json:"page_size"`
	Limits      control.Limits       `json:"limits"`
	Requests    map[string]quotaView `json:"requests"`
	OpenStreams *openStreams         `json:"open_streams"`
}

// quotaView is what this node lets a key do of one class; null fields: without limit.
type quotaView struct {
	Limit     *int   `json:"limit"`
	Remaining *int   `json:"remaining"`
	Reset     *int64 `json:"reset"` // seconds
}

type openStreams struct {
	Workspace int `json:"workspace"`
	Key       int `json:"key"`
}

func (h limitHandlers) get(c *fiber.Ctx) error {
	q, err := Query(c)
	if err != nil {
		return err
	}
	if err := CheckParams(q, func(string) bool { return false }); err != nil {
		return err
	}
	w, ok := h.workspaces.Workspace(From(c).Workspace)
	if !ok { // removed since the key was looked up
		return NotFound("workspace")
	}
	return c.JSON(h.view(From(c), w))
}

func (h limitHandlers) view(who control.Principal, w control.Workspace) limitsView {
	v := limitsView{
		WorkspaceID: w.ID, KeyID: who.KeyID, Plan: w.Plan, PageSize: w.PageSize(), Limits: w.Limits,
		Requests: make(map[string]quotaView),
	}
	for _, class := range []Class{ClassCreate, ClassAppend, ClassRead, ClassBackfill} {
		var left quotaView
		if q := h.limiter.Peek(who, class); q.Limited {
			reset := wholeSeconds(q.Reset)
			left = quotaView{Limit: &q.Limit, Remaining: &q.Remaining, Reset: &reset}
		}
		v.Requests[class.String()] = left
	}
	if h.streams != nil {
		var open openStreams
		open.Workspace, open.Key = h.streams.Open(who.Workspace, who.KeyID)
		v.OpenStreams = &open
	}
	return v
}

// limitsPatch is the body of PATCH /admin/v1/limits: the fields of control.Limits, each
// left as it is if absent or null.
type limitsPatch struct {
	StreamsPerKey           *int     `json:"streams_per_key"`
	StreamsPerWorkspace     *int     `json:"streams_per_workspace"`
	EventStreamsPerKey      *int     `json:"event_streams_per_key"`
	EventsPerMinute         *int     `json:"events_per_minute"`
	SessionCreatesPerSecond *float64 `json:"session_creates_per_second"`
	AppendsPerSecond        *float64 `json:"appends_per_second"`
	BackfillEventsPerSecond *float64 `json:"backfill_events_per_second"`
	ReadsPerSecond          *float64 `json:"reads_per_second"`
	MaxPageSize             *int     `json:"max_page_size"`
	Keys                    *int     `json:"keys"`
}

func (p limitsPatch) apply(l *control.Limits) {
	change(&l.StreamsPerKey, p.StreamsPerKey)
	change(&l.StreamsPerWorkspace, p.StreamsPerWorkspace)
	change(&l.EventStreamsPerKey, p.EventStreamsPerKey)
	change(&l.EventsPerMinute, p.EventsPerMinute)
	change(&l.SessionCreatesPerSecond, p.SessionCreatesPerSecond)
	change(&l.AppendsPerSecond, p.AppendsPerSecond)
	change(&l.BackfillEventsPerSecond, p.BackfillEventsPerSecond)
	change(&l.ReadsPerSecond, p.ReadsPerSecond)
	change(&l.MaxPageSize, p.MaxPageSize)
	change(&l.Keys, p.Keys)
}

func change[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

func (h limitHandlers) change(c *fiber.Ctx) error {
	who := From(c)
	if err := NoParams(c); err != nil {
		return err
	}
	var patch limitsPatch
	if err := DecodeJSON(c, &patch); err != nil {
		return err
	}
	if patch.Keys != nil && *patch.Keys == 0 {
		return InvalidField("keys", "Field \"keys\" is 0; want 1 or more: keys are always bounded, as every node holds them.")
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), limitsTimeout)
	defer cancel()
	w, err := h.workspaces.ChangeLimits(ctx, who.Workspace, patch.apply)
	if spec, ok := errors.AsType[*control.SpecError](err); ok {
		return InvalidField(spec.Field, "Field %q %s.", spec.Field, spec.Reason)
	}
	switch {
	case errors.Is(err, control.ErrNotFound):
		return NotFound("workspace")
	case err != nil:
		return LogUnavailable(err)
	}
	return c.JSON(h.view(who, w))
}
