package ingest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// createSession is POST /v1/sessions: 201 with the session, 200 if the same creation
// was made before.
func (a *API) createSession(c *fiber.Ctx) error {
	spec, err := a.readSpec(c)
	if err != nil {
		return a.refused(err)
	}
	id, s, created, err := a.appender.CreateSession(c.UserContext(), caller(c), spec)
	if err != nil {
		return a.refused(err)
	}
	status := fiber.StatusOK
	if created {
		status = fiber.StatusCreated
	}
	c.Set(fiber.HeaderLocation, "/v1/sessions/"+id)
	return c.Status(status).JSON(s.View(id))
}

// endSession is POST /v1/sessions/{id}/end: 200 with the session.
func (a *API) endSession(c *fiber.Ctx) error {
	id, err := sessionParam(c)
	if err != nil {
		return a.refused(err)
	}
	reason, err := a.readReason(c)
	if err != nil {
		return a.refused(err)
	}
	s, err := a.appender.EndSession(c.UserContext(), caller(c), id, reason)
	if err != nil {
		return a.refused(err)
	}
	return c.JSON(s.View(id))
}

func (a *API) readSpec(c *fiber.Ctx) (spec SessionSpec, err error) {
	fields := []string{"id", "kind", "workflow_id", "metadata"}
	err = a.readFields(c, fields, func(d *bodyDecoder, name string, value jsontext.Value) *httpapi.Error {
		switch name {
		case "id":
			return d.setID(&spec.ID, nil, name, value)
		case "workflow_id":
			return d.setID(&spec.Workflow, nil, name, value)
		case "metadata":
			var e schema.Event
			err := d.setMetadata(&e, value)
			spec.Metadata = e.Metadata
			return err
		case "kind":
			spec.Kind = string(d.unquote(value))
			if value.Kind() != '"' || !schema.IsKind(spec.Kind) {
				return d.invalid(name, fmt.Sprintf("is %s; want %s, %s or %s", describe(value), schema.KindSession, schema.KindCall, schema.KindConversation))
			}
			return nil
		default:
			return d.bad(httpapi.CodeUnknownField, name, "is not a field of a session; the fields are "+strings.Join(fields, ", "))
		}
	})
	return spec, err
}

func (a *API) readReason(c *fiber.Ctx) (reason string, err error) {
	err = a.readFields(c, []string{"reason"}, func(d *bodyDecoder, name string, value jsontext.Value) *httpapi.Error {
		if name != "reason" {
			return d.bad(httpapi.CodeUnknownField, name, "is not a field of this body; the only one is reason")
		}
		if value.Kind() != '"' {
			return d.notString(name, value)
		}
		reason = string(d.unquote(value))
		if len(reason) > maxReasonBytes {
			return d.invalid(name, fmt.Sprintf("has %d bytes; at most %d are allowed", len(reason), maxReasonBytes))
		}
		return nil
	})
	return reason, err
}

// readFields reads a body that is one JSON object, or nothing at all, member by member.
// null is the same as absent.
func (a *API) readFields(c *fiber.Ctx, fields []string, set func(d *bodyDecoder, name string, value jsontext.Value) *httpapi.Error) error {
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	if err := httpapi.CheckParams(q, func(string) bool { return false }); err != nil {
		return err
	}
	body, err := a.bodies.Decode(c.UserContext(), c.Get(fiber.HeaderContentEncoding), c.Request().Body())
	if err != nil {
		return acceptPost(c, err)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if format, err := ParseFormat(c.Get(fiber.HeaderContentType)); err != nil || format != FormatJSON {
		return refuse(415, httpapi.CodeUnsupportedMedia, "Content-Type", "Content-Type is %s; want application/json.",
			schema.Quote(c.Get(fiber.HeaderContentType)))
	}
	d := &bodyDecoder{limits: a.decoder.limits, json: new(jsontext.Decoder)}
	d.reset(body)
	var item Item
	if d.json.PeekKind() != '{' {
		raw, err := d.json.ReadValue()
		if err != nil {
			return d.syntaxError(err)
		}
		return refuse(400, httpapi.CodeInvalidField, "", "The body is %s; want an object with any of %s.", describe(raw), strings.Join(fields, ", "))
	}
	if err := d.readObject(&item, func(_ *Item, name []byte, value jsontext.Value) *httpapi.Error {
		field := string(name)
		if value.Kind() == 'n' && slices.Contains(fields, field) {
			return nil
		}
		return set(d, field, value)
	}); err != nil {
		return err
	}
	if item.Err != nil {
		return item.Err
	}
	if err := d.end(); err != nil {
		return err
	}
	return nil
}
