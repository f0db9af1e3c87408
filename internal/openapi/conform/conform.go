// Package conform holds answers of a server against the document of package openapi. It is
// for tests: nothing that is shipped imports it.
package conform

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/playhead-dev/playhead/internal/openapi"
)

// Answer is what a server answered to a request.
type Answer struct {
	Method, Path string // of the request; the path without its query
	Status       int
	Header       http.Header
	Body         []byte // of JSON answers; others may leave it out
}

// Check returns how an answer differs from the document: a status, a code, a header or a
// member that is not in it, or is missing. What is not of the API has to be an error.
//
// Safe for concurrent use.
func Check(a Answer) error {
	s, err := load()
	if err != nil {
		return err
	}
	if err := s.check(a); err != nil {
		return fmt.Errorf("%s %s = %d %.600s\nis not as in the document: %w", a.Method, a.Path, a.Status, a.Body, err)
	}
	return nil
}

// Knows reports whether the document has an operation for the request.
func Knows(method, path string) bool {
	s, err := load()
	return err == nil && s.find(method, path) != nil
}

const docURL = "https://playhead.dev/openapi.json"

// spec is the document, read.
type spec struct {
	paths    []pathItem
	root     map[string]any
	compiler *jsonschema.Compiler

	mu      sync.Mutex // guards compiler and schemas
	schemas map[string]*jsonschema.Schema
}

type pathItem struct {
	template string
	segments []string
	methods  map[string]any
}

var load = sync.OnceValues(func() (*spec, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi.Document()))
	if err != nil {
		return nil, err
	}
	s := &spec{root: doc.(map[string]any), compiler: jsonschema.NewCompiler(), schemas: make(map[string]*jsonschema.Schema)}
	s.compiler.AssertFormat()
	if err := s.compiler.AddResource(docURL, doc); err != nil {
		return nil, err
	}
	for template, methods := range s.root["paths"].(map[string]any) {
		s.paths = append(s.paths, pathItem{template, strings.Split(template, "/"), methods.(map[string]any)})
	}
	// Of two that fit, the one with fewer parameters is meant (OpenAPI 3.1, "Paths Object").
	slices.SortFunc(s.paths, func(a, b pathItem) int {
		if c := strings.Count(a.template, "{") - strings.Count(b.template, "{"); c != 0 {
			return c
		}
		return strings.Compare(a.template, b.template)
	})
	return s, nil
})

// find returns the operation of a request, and nil if there is none.
func (s *spec) find(method, path string) *operation {
	segments := strings.Split(strings.TrimRight(path, "/"), "/")
	for _, p := range s.paths {
		if !p.fits(segments) {
			continue
		}
		method = strings.ToLower(method)
		if p.methods[method] == nil {
			return nil
		}
		return &operation{pointer("paths", p.template, method), p.methods[method].(map[string]any)}
	}
	return nil
}

func (p *pathItem) fits(segments []string) bool {
	return slices.EqualFunc(p.segments, segments, func(want, have string) bool {
		return want == have || strings.HasPrefix(want, "{") && have != ""
	})
}

type operation struct {
	at  string // JSON pointer
	doc map[string]any
}

func (s *spec) check(a Answer) error {
	op := s.find(a.Method, a.Path)
	if op == nil {
		if a.Status == http.StatusNoContent && a.Method == http.MethodOptions { // a preflight
			return nil
		}
		if a.Status < 400 {
			return errors.New("there is no such operation")
		}
		return s.validate(pointer("components", "schemas", "Error"), a.Body)
	}
	at := op.at + pointer("responses", strconv.Itoa(a.Status))
	response, ok := op.doc["responses"].(map[string]any)[strconv.Itoa(a.Status)].(map[string]any)
	switch {
	case !ok && a.Status == http.StatusMethodNotAllowed: // of a node without the operation's role
		return s.validate(pointer("components", "schemas", "Error"), a.Body)
	case !ok:
		return errors.New("the operation has no such status")
	}
	if response, at, ok = s.follow(response, at); !ok {
		return fmt.Errorf("%s refers to nothing", at)
	}
	if err := s.checkHeaders(response, at, a.Header); err != nil {
		return err
	}
	content, _ := response["content"].(map[string]any)
	if a.Method == http.MethodHead || content == nil {
		return nil
	}
	media, _, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("Content-Type %q: %w", a.Header.Get("Content-Type"), err)
	}
	if content[media] == nil {
		return fmt.Errorf("the answer is no %s", media)
	}
	if media != "application/json" {
		return nil
	}
	return s.validate(at+pointer("content", media, "schema"), a.Body)
}

// follow returns what a reference stands for, and where it is.
func (s *spec) follow(o map[string]any, at string) (map[string]any, string, bool) {
	ref, ok := o["$ref"].(string)
	if !ok {
		return o, at, true
	}
	at = strings.TrimPrefix(ref, "#")
	var v any = s.root
	for step := range strings.SplitSeq(strings.TrimPrefix(at, "/"), "/") {
		v = v.(map[string]any)[step] // names of components have nothing to escape
	}
	o, ok = v.(map[string]any)
	return o, at, ok
}

func (s *spec) checkHeaders(response map[string]any, at string, got http.Header) error {
	headers, _ := response["headers"].(map[string]any)
	for name, h := range headers {
		header, where, ok := s.follow(h.(map[string]any), at+pointer("headers", name))
		if !ok {
			return fmt.Errorf("%s refers to nothing", where)
		}
		values := got.Values(name)
		if len(values) == 0 {
			if header["required"] == true {
				return fmt.Errorf("the header %s is missing", name)
			}
			continue
		}
		// A number is one if it is written as one.
		text, err := json.Marshal(values[0])
		if _, ierr := strconv.ParseInt(values[0], 10, 64); err == nil && ierr == nil {
			text = []byte(values[0])
		}
		if err := s.validate(where+"/schema", text); err != nil {
			return fmt.Errorf("header %s: %w", name, err)
		}
	}
	return nil
}

// validate holds JSON against the schema at a pointer.
func (s *spec) validate(at string, body []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("the body is not JSON: %w", err)
	}
	schema, err := s.schema(at)
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

func (s *spec) schema(at string) (*jsonschema.Schema, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.schemas[at]; known != nil {
		return known, nil
	}
	compiled, err := s.compiler.Compile(docURL + "#" + at)
	if err == nil {
		s.schemas[at] = compiled
	}
	return compiled, err
}

// pointer makes a JSON pointer of names (RFC 6901), as it stands in a URL's fragment.
func pointer(names ...string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D")
	var b strings.Builder
	for _, name := range names {
		b.WriteByte('/')
		b.WriteString(escape.Replace(name))
	}
	return b.String()
}
