package httpapi

import (
	"errors"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/schema"
)

// DecodeJSON reads the request's body, one JSON value, into into, a pointer to a
// struct. Unknown, repeated and wrongly typed fields are 400 and named in param; names
// are case sensitive. Strings in into do not alias the request.
func DecodeJSON(c *fiber.Ctx, into any) error {
	body, err := PlainBody(c)
	if err != nil {
		return err
	}
	err = json.Unmarshal(body, into, json.RejectUnknownMembers(true))
	switch {
	case err == nil && jsontext.Value(body).Kind() == 'n': // Unmarshal takes it for an object without members
		return Errorf(400, CodeInvalidJSON, "The body is a JSON null; an object is wanted.")
	case err == nil:
		return nil
	}
	if semantic, ok := errors.AsType[*json.SemanticError](err); ok {
		name := fieldName(semantic.JSONPointer)
		if errors.Is(err, json.ErrUnknownName) {
			return Errorf(400, CodeUnknownField, "Field %s is not one of this body.", schema.Quote(name)).WithParam(cut(name))
		}
		if name == "" {
			return Errorf(400, CodeInvalidJSON, "The body is a JSON %s; an object is wanted.", kindName(semantic.JSONKind))
		}
		return InvalidField(cut(name), "Field %s is a JSON %s; want %s.", schema.Quote(name), kindName(semantic.JSONKind), wanted(semantic.GoType))
	}
	answer := Errorf(400, CodeInvalidJSON, "The body is not JSON.").WithCause(err)
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		answer.WithDetail("offset", syntactic.ByteOffset)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			name := fieldName(syntactic.JSONPointer)
			return Errorf(400, CodeInvalidJSON, "Field %s is given twice.", schema.Quote(name)).WithParam(cut(name))
		}
	}
	return answer
}

// PlainBody returns the request's body, which dies with the request. One that is
// compressed is 415: fiber's own Body would decompress it without bound.
func PlainBody(c *fiber.Ctx) ([]byte, error) {
	if enc := c.Get(fiber.HeaderContentEncoding); enc != "" && enc != "identity" {
		return nil, Errorf(415, CodeUnsupportedMedia, "This path takes no compressed body.").WithParam(fiber.HeaderContentEncoding)
	}
	return c.BodyRaw(), nil
}

// fieldName turns a JSON pointer into a.b.0 form.
func fieldName(p jsontext.Pointer) string {
	var parts []string
	for token := range p.Tokens() {
		parts = append(parts, token)
	}
	return strings.Join(parts, ".")
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "boolean"
	case '"':
		return "string"
	case '0':
		return "number"
	case '{':
		return "object"
	case '[':
		return "array"
	default:
		return "value"
	}
}

func wanted(t reflect.Type) string {
	if t == nil {
		return "another type"
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number in range"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Map, reflect.Struct:
		return "an object"
	default:
		return "another type"
	}
}
