package httpapi

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/schema"
)

// Paths of erasures.
const (
	pathAdminErasures  = pathAdmin + "v1/erasures"
	pathAdminWorkspace = pathAdmin + "v1/workspaces/:id"
)

// Bounds of the paths of erasures.
const (
	defaultErasurePage = 100
	maxErasurePage     = 1000
	erasureTimeout     = 15 * time.Second
)

// Erasures is where erasures are made and remembered.
type Erasures interface {
	// EraseSession and EraseWorkspace return once this node shows nothing of it any more.
	EraseSession(ctx context.Context, workspace, session, by string) (schema.Erasure, error)
	EraseWorkspace(ctx context.Context, workspace, by string) (schema.Erasure, error)
	// Erasure returns the one that counts for a session; false if there is none.
	Erasure(workspace, session string) (schema.Erasure, bool)
	// Erasures lists those of a workspace, the oldest first.
	Erasures(workspace string) []schema.Erasure
	// SessionExists reports whether the log holds a session that is not erased. An error
	// says that this cannot be told now.
	SessionExists(ctx context.Context, workspace, session string) (bool, error)
}

// ErasureRoutes adds the paths of erasures, all of scope admin; app must authenticate
// before them:
//
//	DELETE /v1/sessions/{id}          erases a session
//	DELETE /admin/v1/workspaces/{id}  erases the key's own workspace
//	GET    /admin/v1/erasures         lists the workspace's erasures
func ErasureRoutes(app fiber.Router, erasures Erasures) {
	h := erasureHandlers{erasures: erasures}
	admin := Require(control.ScopeAdmin)
	app.Delete("/v1/sessions/:id", admin, h.eraseSession)
	app.Delete(pathAdminWorkspace, admin, h.eraseWorkspace)
	app.Get(pathAdminErasures, admin, h.list)
}

type erasureHandlers struct{ erasures Erasures }

// erasureView is an erasure as the API shows it.
type erasureView struct {
	ID          string  `json:"id"`
	WorkspaceID string  `json:"workspace_id"`
	SessionID   *string `json:"session_id"`   // null: the whole workspace
	ErasedBelow *string `json:"erased_below"` // id that the session's erased events sort below, and others above; null: all are erased
	Status      string  `json:"status"`
	ErasedAt    string  `json:"erased_at"`
	ErasedBy    string  `json:"erased_by"`
	DoneAt      *string `json:"done_at"`
}

// Statuses of an erasure.
const (
	erasurePending = "pending"
	erasureDone    = "done"
)

func viewErasure(e schema.Erasure) erasureView {
	v := erasureView{
		ID: e.ID, WorkspaceID: e.Workspace, Status: erasurePending,
		ErasedAt: time.UnixMilli(e.AtMs).UTC().Format(schema.TimeFormat), ErasedBy: e.By,
	}
	if e.Session != "" {
		// Its own record's: no event has that offset, so that the time in it decides nothing.
		mark := schema.EventID{Position: e.Below, TimeMs: e.AtMs}
		mark.Offset--
		below := mark.String()
		v.SessionID, v.ErasedBelow = &e.Session, &below
	}
	if e.Done() {
		at := time.UnixMilli(e.DoneMs).UTC().Format(schema.TimeFormat)
		v.Status, v.DoneAt = erasureDone, &at
	}
	return v
}

// send answers 200 for an erasure that is done and 202 for one that is not.
func (v erasureView) send(c *fiber.Ctx) error {
	status := fiber.StatusAccepted
	if v.Status == erasureDone {
		status = fiber.StatusOK
	}
	return c.Status(status).JSON(v)
}

func (h erasureHandlers) eraseSession(c *fiber.Ctx) error {
	who, id := From(c), strings.Clone(c.Params("id"))
	if err := NoParams(c); err != nil {
		return err
	}
	if schema.CheckID(id) != nil {
		return NotFound("session")
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), erasureTimeout)
	defer cancel()
	// What cannot be told does not keep anything from being erased.
	exists, err := h.erasures.SessionExists(ctx, who.Workspace, id)
	if err == nil && !exists {
		if e, ok := h.erasures.Erasure(who.Workspace, id); ok {
			return viewErasure(e).send(c)
		}
		return NotFound("session")
	}
	e, err := h.erasures.EraseSession(ctx, who.Workspace, id, who.KeyID)
	if err != nil {
		return erasureError(err, "session")
	}
	return viewErasure(e).send(c)
}

func (h erasureHandlers) eraseWorkspace(c *fiber.Ctx) error {
	who, id := From(c), strings.Clone(c.Params("id"))
	if err := NoParams(c); err != nil {
		return err
	}
	if id != who.Workspace {
		return NotFound("workspace")
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), erasureTimeout)
	defer cancel()
	e, err := h.erasures.EraseWorkspace(ctx, id, who.KeyID)
	if err != nil {
		return erasureError(err, "workspace")
	}
	return viewErasure(e).send(c)
}

// erasureError maps the errors of an Erasures.
func erasureError(err error, what string) error {
	switch {
	case errors.Is(err, control.ErrNotFound):
		return NotFound(what)
	case errors.Is(err, control.ErrErasureLimit):
		return Errorf(409, CodeErasureLimit, "As many erasures are remembered as may be (%d of a workspace, %d in all).",
			control.MaxErasuresPerWorkspace, control.MaxErasures)
	default:
		return LogUnavailable(err)
	}
}

func (h erasureHandlers) list(c *fiber.Ctx) error {
	return listPage(c, h.erasures.Erasures(From(c).Workspace), defaultErasurePage, maxErasurePage,
		func(e schema.Erasure) string { return e.ID }, viewErasure)
}
