package openapi_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/openapi"
)

func document(t *testing.T) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(openapi.Document(), &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// walk calls fn with every object of a JSON value and its JSON pointer.
func walk(v any, at string, fn func(at string, o map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		fn(at, v)
		for name, member := range v {
			walk(member, at+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), fn)
		}
	case []any:
		for _, item := range v {
			walk(item, at+"/-", fn)
		}
	}
}

func TestReferencesLeadSomewhereAndComponentsAreUsed(t *testing.T) {
	doc := document(t)
	used := map[string]bool{}
	walk(doc, "", func(at string, o map[string]any) {
		ref, ok := o["$ref"].(string)
		if !ok {
			return
		}
		used[ref] = true
		var v any = doc
		for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
			m, _ := v.(map[string]any)
			v = m[step]
		}
		if v == nil {
			t.Errorf("%s refers to %s, which is not there", at, ref)
		}
	})
	// What describes a line of a body, and what complete writes out.
	inWords := []string{"#/components/schemas/ExportedEvent", "#/components/responses/EventPage", "#/components/responses/Export",
		"#/components/responses/EventStream", "#/components/responses/StreamIsOver", "#/components/responses/Socket"}
	for kind, of := range doc["components"].(map[string]any) {
		for name := range of.(map[string]any) {
			ref := "#/components/" + kind + "/" + name
			if kind != "securitySchemes" && !used[ref] && !slices.Contains(inWords, ref) {
				t.Errorf("%s is not used", ref)
			}
		}
	}
}

// TestEveryCodeIsAnAnswerOfSomeOperation holds the codes of the operations against those
// that there are.
func TestEveryCodeIsAnAnswerOfSomeOperation(t *testing.T) {
	answered := map[string]bool{httpapi.CodeMethodNotAllowed: true} // of no operation, but in place of one
	for name := range document(t)["components"].(map[string]any)["responses"].(map[string]any) {
		for code := range strings.SplitSeq(name, ".") {
			answered[code] = true
		}
	}
	for _, code := range httpapi.Codes() {
		if !answered[code.Code] {
			t.Errorf("no operation answers %s", code.Code)
		}
	}
}

// TestEverySchemaIsOne compiles all schemas of the document by the rules of JSON Schema
// 2020-12.
func TestEverySchemaIsOne(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(openapi.Document())))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:doc", doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	walk(doc, "", func(at string, o map[string]any) {
		schema, ok := o["schema"].(map[string]any)
		if !ok || strings.Contains(at, "/-") { // in a list: a schema within one
			return
		}
		n++
		if _, err := c.Compile("mem:doc#" + strings.NewReplacer("{", "%7B", "}", "%7D").Replace(at) + "/schema"); err != nil {
			t.Errorf("%s: %v", at, err)
		}
		if schema["default"] != nil && schema["enum"] != nil && !slices.Contains(schema["enum"].([]any), schema["default"]) {
			t.Errorf("%s: the default is %v, which is not allowed", at, schema["default"])
		}
	})
	for name := range doc.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any) {
		n++
		if _, err := c.Compile("mem:doc#/components/schemas/" + name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n < 100 {
		t.Errorf("%d schemas were found; the walk is wrong", n)
	}
}

func TestOperationsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]string{}
	ids := map[string]bool{}
	walk(document(t), "", func(at string, o map[string]any) {
		if id, ok := o["operationId"].(string); ok && o["responses"] != nil {
			if seen[id] != "" {
				t.Errorf("%s and %s are both %s", seen[id], at, id)
			}
			seen[id] = at
			ids[id] = true
		}
	})
	walk(document(t), "", func(at string, o map[string]any) {
		if id, ok := o["operationId"].(string); ok && !ids[id] {
			t.Errorf("%s leads to %s, which is no operation", at, id)
		}
	})
	if len(seen) < 60 {
		t.Errorf("%v: the walk is wrong", slices.Sorted(maps.Keys(seen)))
	}
}

func TestDocumentIsServedWithATag(t *testing.T) {
	app := httpapi.NewApp(httpapi.DefaultConfig(), slog.New(slog.DiscardHandler))
	openapi.Route(app)
	ask := func(path, ifNoneMatch string) (int, http.Header, string) {
		t.Helper()
		req := httptest.NewRequest(http.MethodGet, path, nil)
		req.Header.Set("If-None-Match", ifNoneMatch)
		res, err := app.Test(req, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Header, string(body)
	}
	status, header, body := ask(openapi.Path, "")
	tag := header.Get("ETag")
	if status != 200 || body != string(openapi.Document()) || header.Get("Content-Type") != "application/json" || len(tag) < 10 {
		t.Fatalf("the document is answered %d, %v, %.100s", status, header, body)
	}
	f := func(ifNoneMatch string, want int) {
		t.Helper()
		status, header, body := ask(openapi.Path, ifNoneMatch)
		if status != want || header.Get("ETag") != tag || status == 304 && body != "" {
			t.Errorf("If-None-Match %q is answered %d, %v, %.100q; want %d", ifNoneMatch, status, header, body, want)
		}
	}
	f(tag, 304)
	f("W/"+tag, 304)
	f(`"other", `+tag, 304)
	f("*", 304)
	f(`"other"`, 200)
	f(tag[:len(tag)-2], 200)
	if status, _, _ := ask(openapi.Path+"?x=1", tag); status != 400 {
		t.Errorf("an unknown parameter is answered %d, want 400", status)
	}
}
