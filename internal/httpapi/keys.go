package httpapi

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
)

// Bounds of /v1/keys.
const (
	defaultKeyPage = 100
	maxKeyPage     = 1000
	maxKeyAge      = 10 * 365 * 24 * time.Hour
	keyTimeout     = 15 * time.Second
)

// Keys is where keys are kept. *control.Store is one.
type Keys interface {
	CreateKey(ctx context.Context, spec control.KeySpec) (key control.Key, text string, err error)
	RevokeKey(ctx context.Context, workspace, id string) error
	Key(workspace, id string) (control.Key, bool)
	Keys(workspace string) []control.Key
}

// KeyRoutes adds the paths of API keys:
//
//	POST   /v1/keys       make a key: scope admin, or any key but a browser key for less than it may itself
//	GET    /v1/keys       list the workspace's keys, without their texts: scope admin
//	DELETE /v1/keys/{id}  revoke: scope admin, or the key itself, or the key that made it
//
// Revoking a key leaves the keys it made alone. app must authenticate before them.
func KeyRoutes(app fiber.Router, keys Keys) {
	h := keyHandlers{keys: keys, now: time.Now}
	app.Post("/v1/keys", h.create)
	app.Get("/v1/keys", Require(control.ScopeAdmin), h.list)
	app.Delete("/v1/keys/:id", h.revoke)
}

type keyHandlers struct {
	keys Keys
	now  func() time.Time
}

// keyRequest is the body of POST /v1/keys.
type keyRequest struct {
	Name       string   `json:"name"`
	Scopes     []string `json:"scopes"`
	SessionID  *string  `json:"session_id"`
	WorkflowID *string  `json:"workflow_id"`
	ExpiresIn  *int64   `json:"expires_in"` // seconds
}

func (r keyRequest) spec(p control.Principal) (control.KeySpec, error) {
	spec := control.KeySpec{
		Workspace: p.Workspace, CreatedBy: p.KeyID,
		Name: r.Name,
	}
	for _, binding := range []struct {
		field string
		given *string
		into  *string
	}{{"session_id", r.SessionID, &spec.Session}, {"workflow_id", r.WorkflowID, &spec.Workflow}} {
		if binding.given == nil {
			continue
		}
		if *binding.into = *binding.given; *binding.into == "" { // no binding at all, where one was meant
			return spec, InvalidField(binding.field, "Field %q is empty; leave it out, or name what the key is bound to.", binding.field)
		}
	}
	scopes, err := control.ParseScopes(r.Scopes)
	if err != nil {
		return spec, InvalidField("scopes", "Field \"scopes\": %v.", err)
	}
	spec.Scopes = scopes
	if r.ExpiresIn != nil {
		limit := int64(maxKeyAge / time.Second)
		if *r.ExpiresIn < 1 || *r.ExpiresIn > limit {
			return spec, InvalidField("expires_in", "Field \"expires_in\" is %d; want 1 to %d seconds.", *r.ExpiresIn, limit)
		}
		spec.ExpiresIn = time.Duration(*r.ExpiresIn) * time.Second
	}
	return spec, nil
}

func (h keyHandlers) create(c *fiber.Ctx) error {
	p := From(c)
	if err := NoParams(c); err != nil {
		return err
	}
	var body keyRequest
	if err := DecodeJSON(c, &body); err != nil {
		return err
	}
	spec, err := body.spec(p)
	if err != nil {
		return err
	}
	if !p.Scopes.Has(control.ScopeAdmin) {
		if err := narrow(p, &spec, h.now()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), keyTimeout)
	defer cancel()
	key, text, err := h.keys.CreateKey(ctx, spec)
	if err != nil {
		return keyError(err)
	}
	view := viewKey(key)
	view.Text = text
	return c.Status(fiber.StatusCreated).JSON(view)
}

// narrow checks that spec asks for less than p may itself, after giving it p's own
// binding and expiry where it names none.
func narrow(p control.Principal, spec *control.KeySpec, now time.Time) error {
	if p.Browser {
		return Errorf(403, CodeInsufficientScope, "A browser key makes no keys.").
			WithDetail("required", []string{"admin"})
	}
	if missing := spec.Scopes &^ p.Scopes; missing != 0 {
		return insufficientScope(missing).WithParam("scopes")
	}
	less := spec.Scopes != p.Scopes
	inherit := func(own string, asked *string, field string) error {
		switch {
		case own == "" && *asked != "":
			less = true
		case own != "" && *asked == "":
			*asked = own
		case own != *asked:
			return Errorf(403, CodeInsufficientScope, "This key is bound to another %s.", strings.TrimSuffix(field, "_id")).
				WithDetail("required", []string{"admin"}).WithParam(field)
		}
		return nil
	}
	if err := errors.Join(inherit(p.Session, &spec.Session, "session_id"), inherit(p.Workflow, &spec.Workflow, "workflow_id")); err != nil {
		return err
	}
	if p.ExpiresAt.IsZero() {
		less = less || spec.ExpiresIn > 0
	} else {
		left := p.ExpiresAt.Sub(now)
		switch {
		case spec.ExpiresIn == 0:
			spec.ExpiresIn = max(left, time.Millisecond)
		case spec.ExpiresIn > left:
			return InvalidField("expires_in", "The new key would outlive the key that makes it, which ends in %d seconds.", int64(left/time.Second))
		default:
			less = true
		}
	}
	if !less {
		return Errorf(403, CodeInsufficientScope, "A key without scope admin makes keys for less than it may itself: fewer scopes, a binding, or an end.").
			WithDetail("required", []string{"admin"})
	}
	return nil
}

func (h keyHandlers) list(c *fiber.Ctx) error {
	return listPage(c, h.keys.Keys(From(c).Workspace), defaultKeyPage, maxKeyPage,
		func(k control.Key) string { return k.ID }, viewKey)
}

func (h keyHandlers) revoke(c *fiber.Ctx) error {
	p := From(c)
	if err := NoParams(c); err != nil {
		return err
	}
	id := strings.Clone(c.Params("id"))
	key, ok := h.keys.Key(p.Workspace, id)
	if !ok || !p.Scopes.Has(control.ScopeAdmin) && key.ID != p.KeyID && key.CreatedBy != p.KeyID {
		return NotFound("key")
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), keyTimeout)
	defer cancel()
	if err := h.keys.RevokeKey(ctx, p.Workspace, id); err != nil {
		return keyError(err)
	}
	return c.SendStatus(fiber.StatusNoContent)
}

// keyError maps the errors of a Keys.
func keyError(err error) error {
	if spec, ok := errors.AsType[*control.SpecError](err); ok {
		return InvalidField(spec.Field, "Field %q %s.", spec.Field, spec.Reason)
	}
	switch {
	case errors.Is(err, control.ErrNotFound):
		return NotFound("key")
	case errors.Is(err, control.ErrKeyLimit):
		return Errorf(409, CodeKeyLimit, "The workspace has as many live keys as it may. Revoke some.")
	default:
		return LogUnavailable(err)
	}
}

// keyView is a key as the API shows it.
type keyView struct {
	ID         string         `json:"id"`
	Text       string         `json:"key,omitempty"` // once, when the key is made
	Name       string         `json:"name,omitempty"`
	Scopes     control.Scopes `json:"scopes"`
	SessionID  string         `json:"session_id,omitempty"`
	WorkflowID string         `json:"workflow_id,omitempty"`
	Browser    bool           `json:"browser"`
	CreatedAt  *time.Time     `json:"created_at"`
	CreatedBy  string         `json:"created_by,omitempty"`
	ExpiresAt  *time.Time     `json:"expires_at"`
	RevokedAt  *time.Time     `json:"revoked_at"`
}

func viewKey(k control.Key) keyView {
	return keyView{
		ID: k.ID, Name: k.Name, Scopes: k.Scopes, SessionID: k.Session, WorkflowID: k.Workflow, Browser: k.Browser,
		CreatedAt: timeOrNull(k.CreatedAt), CreatedBy: k.CreatedBy,
		ExpiresAt: timeOrNull(k.ExpiresAt), RevokedAt: timeOrNull(k.RevokedAt),
	}
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
