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

// Paths of event types.
const (
	pathEventTypes = "/v1/event-types"
	pathEventType  = pathEventTypes + "/:name"
)

// eventTypeTimeout bounds a change of an event type.
const eventTypeTimeout = 15 * time.Second

// EventTypes is where the codes of event types are kept. *control.Store is one.
type EventTypes interface {
	EventTypes(workspace string) schema.TypeTable
	PutEventType(ctx context.Context, workspace string, t schema.TypeCode, recode bool) (created bool, err error)
	RemoveEventType(ctx context.Context, workspace, name string) error
}

// EventTypeRoutes adds the paths of type codes; app must authenticate before them:
//
//	GET    /v1/event-types         any key: all codes of the workspace
//	PUT    /v1/event-types/{name}  register a code: scope admin, or an unbound key with scope ingest, which changes none
//	DELETE /v1/event-types/{name}  take away a code that is not built in: scope admin
//
// A recorder may so register its types when it starts, with the key it appends by, and
// two recorders that disagree do not change each other's.
func EventTypeRoutes(app fiber.Router, types EventTypes) {
	h := eventTypeHandlers{types: types}
	app.Get(pathEventTypes, h.list)
	app.Put(pathEventType, h.put)
	app.Delete(pathEventType, Require(control.ScopeAdmin), h.remove)
}

type eventTypeHandlers struct{ types EventTypes }

// eventTypeView is a type as the API shows it.
type eventTypeView struct {
	Name    string `json:"name"`
	Code    uint8  `json:"code"`
	Builtin bool   `json:"builtin"`
}

func (h eventTypeHandlers) list(c *fiber.Ctx) error {
	if err := NoParams(c); err != nil {
		return err
	}
	types := h.types.EventTypes(From(c).Workspace)
	all := types.All() // at most 255
	page := struct {
		Data []eventTypeView `json:"data"`
	}{make([]eventTypeView, len(all))}
	for i, t := range all {
		page.Data[i] = eventTypeView{Name: t.Type, Code: t.Code, Builtin: types.Builtin(t.Type)}
	}
	return c.JSON(page)
}

func (h eventTypeHandlers) put(c *fiber.Ctx) error {
	who := From(c)
	admin := who.Scopes.Has(control.ScopeAdmin)
	if !admin {
		if !who.Scopes.Has(control.ScopeIngest) {
			return insufficientScope(control.ScopeAdmin)
		}
		if who.Session != "" || who.Workflow != "" {
			return Errorf(403, CodeInsufficientScope, "A key that is bound to a session or a workflow registers no codes: they are the whole workspace's.").
				WithDetail("required", control.ScopeAdmin.Names())
		}
	}
	if err := NoParams(c); err != nil {
		return err
	}
	t := schema.TypeCode{Type: strings.Clone(c.Params("name"))}
	if err := schema.CheckType(t.Type); err != nil {
		return InvalidParameter("name", "The name %v.", err)
	}
	if schema.IsReservedType(t.Type) {
		return Errorf(400, "reserved_type", "The name is %s, which Playhead and SSE clients use themselves; want another name than error, open, heartbeat or playhead.*.",
			schema.Quote(t.Type)).WithParam("name")
	}
	var body struct {
		Code *int64 `json:"code"`
	}
	if err := DecodeJSON(c, &body); err != nil {
		return err
	}
	switch {
	case body.Code == nil:
		return InvalidField("code", "Field \"code\" is missing; want 1 to 255.")
	case *body.Code < 1 || *body.Code > 255:
		return InvalidField("code", "Field \"code\" is %d; want 1 to 255.", *body.Code)
	}
	t.Code = uint8(*body.Code)
	ctx, cancel := context.WithTimeout(c.UserContext(), eventTypeTimeout)
	defer cancel()
	created, err := h.types.PutEventType(ctx, who.Workspace, t, admin)
	if err != nil {
		return eventTypeError(err)
	}
	if created {
		c.Status(fiber.StatusCreated)
	}
	return c.JSON(eventTypeView{Name: t.Type, Code: t.Code, Builtin: h.types.EventTypes(who.Workspace).Builtin(t.Type)})
}

func (h eventTypeHandlers) remove(c *fiber.Ctx) error {
	if err := NoParams(c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), eventTypeTimeout)
	defer cancel()
	if err := h.types.RemoveEventType(ctx, From(c).Workspace, strings.Clone(c.Params("name"))); err != nil {
		return eventTypeError(err)
	}
	return c.SendStatus(fiber.StatusNoContent)
}

// eventTypeError maps the errors of an EventTypes.
func eventTypeError(err error) error {
	var has schema.TypeCode
	if conflict, ok := errors.AsType[*control.TypeCodeError](err); ok {
		has = conflict.Has
	}
	switch {
	case errors.Is(err, control.ErrTypeCodeTaken):
		return Errorf(409, CodeTypeCodeTaken, "Code %d is that of %s.", has.Code, has.Type).
			WithDetail("name", has.Type).WithDetail("code", has.Code).WithParam("code")
	case errors.Is(err, control.ErrTypeBuiltin):
		return Errorf(409, CodeTypeBuiltin, "%s is built in, with code %d.", has.Type, has.Code).
			WithDetail("name", has.Type).WithDetail("code", has.Code).WithParam("name")
	case errors.Is(err, control.ErrTypeHasCode):
		return Errorf(403, CodeInsufficientScope, "%s has code %d; only a key with scope admin changes it.", has.Type, has.Code).
			WithDetail("name", has.Type).WithDetail("code", has.Code).WithDetail("required", control.ScopeAdmin.Names())
	case errors.Is(err, control.ErrNotFound):
		return NotFound("event type")
	default:
		return LogUnavailable(err)
	}
}
