package openapi

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// object is a JSON object.
type object = map[string]any

// complete writes out what openapi.yaml says in short (see its head). It panics if a name
// there stands for nothing.
func complete(doc object) {
	c := completer{
		components: doc["components"].(object), common: stringLists(doc["x-common"]), groups: stringLists(doc["x-groups"]),
		codes: make(map[string]httpapi.CodeDoc),
	}
	var all []any
	for _, code := range httpapi.Codes() {
		c.codes[code.Code] = code
		all = append(all, code.Code)
	}
	c.components["schemas"].(object)["ErrorCode"].(object)["enum"] = all
	for _, item := range doc["paths"].(object) {
		for _, op := range item.(object) {
			c.operation(op.(object))
		}
		if get, ok := item.(object)["get"].(object); ok {
			item.(object)["head"] = c.head(get)
		}
	}
	delete(doc, "x-common")
	delete(doc, "x-groups")
}

type completer struct {
	components     object
	common, groups map[string][]string
	codes          map[string]httpapi.CodeDoc
}

// operation gives an operation its parameters, security, errors and headers.
func (c *completer) operation(op object) {
	scope, _ := op["x-scope"].(string)
	keyed := scope != "none"
	counted := keyed && op["x-uncounted"] == nil
	codes := slices.Concat(c.common["all"], stringList(op["x-errors"]))
	if keyed {
		codes = slices.Concat(codes, c.common["documented"], c.common["keyed"])
		c.secure(op, scope)
	} else {
		op["security"] = []any{}
	}
	if keyed && scope != "any" {
		codes = append(codes, c.common["scoped"]...)
	}
	if counted {
		codes = append(codes, c.common["counted"]...)
	}
	if op["requestBody"] != nil {
		codes = append(codes, c.common["body"]...)
	}
	c.parameters(op)
	responses := make(object) // anchors of the YAML are shared
	for status, r := range op["responses"].(object) {
		responses[status] = c.success(r.(object), keyed, counted)
	}
	for status, of := range c.byStatus(codes) {
		responses[status] = object{"$ref": c.errorResponse(status, of, keyed, counted)}
	}
	op["responses"] = responses
	for _, name := range []string{"x-scope", "x-token", "x-uncounted", "x-errors"} {
		delete(op, name)
	}
}

// secure says which keys an operation takes, and the scopes that they need.
func (c *completer) secure(op object, scope string) {
	scopes := []any{}
	switch {
	case scope == "any":
	case strings.Contains(scope, " "): // a choice, which OpenAPI can only say in words
		more, _ := op["description"].(string)
		op["description"] = strings.TrimSpace("Scope: " + scope + ". " + more)
	default:
		scopes = append(scopes, scope)
	}
	schemes := []string{"bearer", "apiKey"}
	if op["x-token"] != nil {
		schemes = append(schemes, "token")
	}
	if op["responses"].(object)["101"] != nil {
		schemes = append(schemes, "socketKey")
	}
	var security []any
	for _, s := range schemes {
		security = append(security, object{s: scopes})
	}
	op["security"] = security
}

// parameters makes references of the names of parameters and of groups of them.
func (c *completer) parameters(op object) {
	names := stringList(op["parameters"])
	var refs []any
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if group, ok := c.groups[name]; ok {
			names = slices.Concat(group, names)
			continue
		}
		if c.components["parameters"].(object)[name] == nil {
			panic(fmt.Sprintf("openapi: %v has the parameter %s, which is none", op["operationId"], name))
		}
		refs = append(refs, object{"$ref": "#/components/parameters/" + name})
	}
	if refs != nil {
		op["parameters"] = refs
	}
}

// success adds the headers that every answer has.
func (c *completer) success(r object, keyed, counted bool) object {
	if ref, ok := r["$ref"].(string); ok {
		r = c.components["responses"].(object)[strings.TrimPrefix(ref, "#/components/responses/")].(object)
	}
	r = maps.Clone(r)
	headers := make(object)
	if own, ok := r["headers"].(object); ok {
		maps.Copy(headers, own)
	}
	maps.Copy(headers, commonHeaders(keyed, counted))
	r["headers"] = headers
	return r
}

func commonHeaders(keyed, counted bool) object {
	header := func(name string) object { return object{"$ref": "#/components/headers/" + name} }
	h := object{"X-Request-Id": header("RequestId")}
	if keyed {
		h["X-Playhead-Workspace"] = header("Workspace")
	}
	if counted {
		h["X-RateLimit-Limit"], h["X-RateLimit-Remaining"], h["X-RateLimit-Reset"] = header("RateLimit"), header("RateRemaining"), header("RateReset")
	}
	return h
}

// byStatus sorts codes of errors by their status.
func (c *completer) byStatus(codes []string) map[string][]string {
	out := make(map[string][]string)
	slices.Sort(codes)
	for _, code := range slices.Compact(codes) {
		known, ok := c.codes[code]
		if !ok {
			panic(fmt.Sprintf("openapi: %s is no code of an error", code))
		}
		status := strconv.Itoa(known.Status)
		out[status] = append(out[status], code)
	}
	return out
}

// errorResponse makes the answer of one status with one of the codes, once, and returns its
// reference.
func (c *completer) errorResponse(status string, codes []string, keyed, counted bool) string {
	name := status + "." + strings.Join(codes, ".")
	headers := commonHeaders(keyed, counted)
	switch {
	case !keyed:
		name += ".keyless"
	case !counted:
		name += ".uncounted"
	}
	switch status {
	case "401":
		headers["WWW-Authenticate"] = object{"$ref": "#/components/headers/WWWAuthenticate"}
	case "429", "503":
		headers["Retry-After"] = object{"$ref": "#/components/headers/RetryAfter"}
	}
	meanings := make([]string, len(codes))
	enum := make([]any, len(codes))
	for i, code := range codes {
		meanings[i] = fmt.Sprintf("`%s`: %s.", code, c.codes[code].Meaning)
		enum[i] = code
	}
	c.components["responses"].(object)[name] = object{
		"description": strings.Join(meanings, "\n\n"),
		"headers":     headers,
		"content": object{"application/json": object{"schema": object{
			"allOf":      []any{object{"$ref": "#/components/schemas/Error"}},
			"properties": object{"error": object{"properties": object{"code": object{"enum": enum}}}},
		}}},
	}
	return "#/components/responses/" + name
}

// head is an operation that GET answers, without bodies. A socket is refused.
func (c *completer) head(get object) object {
	op := maps.Clone(get)
	op["operationId"] = fmt.Sprint("head_", get["operationId"])
	op["summary"] = fmt.Sprint(get["summary"], ": the head alone")
	responses := make(object)
	for status, r := range get["responses"].(object) {
		if ref, ok := r.(object)["$ref"].(string); ok {
			r = c.components["responses"].(object)[strings.TrimPrefix(ref, "#/components/responses/")]
		}
		if status == "101" {
			continue
		}
		bare := maps.Clone(r.(object))
		delete(bare, "content")
		delete(bare, "links")
		responses[status] = bare
	}
	op["responses"] = responses
	return op
}

func stringLists(of any) map[string][]string {
	out := make(map[string][]string)
	for name, list := range of.(object) {
		out[name] = stringList(list)
	}
	return out
}

func stringList(of any) []string {
	list, _ := of.([]any)
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = s.(string)
	}
	return out
}
