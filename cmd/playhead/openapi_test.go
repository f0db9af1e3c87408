package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/internal/openapi"
	"github.com/playhead-dev/playhead/query"
)

// testKey is of the node of apiNode, with every scope.
const testKey = "pk_test_0123456789abcdef0123456789abcdef"

// apiNode is a node of every role on an embedded broker, which no ClickHouse answers: enough
// for its routes, and for what they refuse.
func apiNode(t *testing.T) *node {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", devPartitions, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := DefaultConfig()
	cfg.Kafka = broker.Config()
	cfg.Kafka.Partitions = devPartitions
	cfg.ClickHouse.DSN = "http://127.0.0.1:1/playhead"
	n := newNode(cfg, log)
	t.Cleanup(func() {
		if err := n.stopAfter(nil); err != nil {
			t.Error(err)
		}
	})
	if err := n.openLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.clickhouse, err = query.Open(t.Context(), cfg.ClickHouse); err != nil {
		t.Fatal(err)
	}
	n.onStop("clickhouse", func(context.Context) error { return n.clickhouse.Close() })
	n.queryMetrics = query.NewMetrics(n.reg)
	n.history = query.NewHistory(n.clickhouse, cfg.Query, log, n.queryMetrics)
	if err := n.openTapes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.openHTTP(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.ensureWorkspace(t.Context(), control.Workspace{ID: "ws_test", Name: "test", Plan: control.PlanPro, Limits: control.Unlimited()}, testKey); err != nil {
		t.Fatal(err)
	}
	return n
}

// apiOperation is an operation of the document.
type apiOperation struct {
	Parameters []struct {
		Ref string `json:"$ref"`
	} `json:"parameters"`
	Security []map[string][]string `json:"security"`

	method, path string // with {} for each parameter
	name         string // method and path as they are in the document
	query        []string
}

type apiParameter struct {
	Name  string `json:"name"`
	In    string `json:"in"`
	Style string `json:"style"`
}

var pathParameter = regexp.MustCompile(`\{[^}]*\}|:[a-z_]+(<[^>]*>)?`)

// apiOperations reads the document, in the order of its paths.
func apiOperations(t *testing.T) []apiOperation {
	t.Helper()
	var doc struct {
		Paths      map[string]map[string]json.RawMessage `json:"paths"`
		Components struct {
			Parameters map[string]apiParameter `json:"parameters"`
		} `json:"components"`
	}
	if err := json.Unmarshal(openapi.Document(), &doc); err != nil {
		t.Fatal(err)
	}
	var out []apiOperation
	for path, methods := range doc.Paths {
		for method, raw := range methods {
			op := apiOperation{method: strings.ToUpper(method), path: pathParameter.ReplaceAllString(path, "{}")}
			op.name = op.method + " " + path
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatal(err)
			}
			for _, p := range op.Parameters {
				of := doc.Components.Parameters[strings.TrimPrefix(p.Ref, "#/components/parameters/")]
				switch {
				case of.In == "query" && of.Style == "deepObject":
					op.query = append(op.query, of.Name+"[k]")
				case of.In == "query":
					op.query = append(op.query, of.Name)
				}
			}
			out = append(out, op)
		}
	}
	slices.SortFunc(out, func(a, b apiOperation) int { return strings.Compare(a.name, b.name) })
	return out
}

// routesOf returns the routes of an app, as the document has them.
func routesOf(n *node) []string {
	var out []string
	for _, r := range n.app.GetRoutes(true) {
		out = append(out, r.Method+" "+pathParameter.ReplaceAllString(r.Path, "{}"))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestDocumentsHaveEveryRoute holds openapi.json and the table of docs/api.md against the
// routes of a node with every role.
func TestDocumentsHaveEveryRoute(t *testing.T) {
	want := routesOf(apiNode(t))
	var got []string
	for _, op := range apiOperations(t) {
		got = append(got, op.method+" "+op.path)
	}
	compareRoutes(t, "openapi.json", got, want)

	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	compareRoutes(t, "the table of docs/api.md", routesOfPage(t, string(page)), want)
}

// routesOfPage reads the table of paths. Every GET is a HEAD as well.
func routesOfPage(t *testing.T, page string) []string {
	t.Helper()
	_, table, found := strings.Cut(page, "\n| path | scope | what |\n")
	if !found {
		t.Fatal("docs/api.md has no table of paths")
	}
	quoted := regexp.MustCompile("`((?:[A-Z]+ )?/[^`]*)`")
	var out []string
	for lines := bufio.NewScanner(strings.NewReader(table)); lines.Scan() && strings.HasPrefix(lines.Text(), "|"); {
		cell, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "|"), "|")
		method := ""
		for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
			path := m[1]
			if before, after, ok := strings.Cut(m[1], " "); ok {
				method, path = before, after
			}
			path = pathParameter.ReplaceAllString(path, "{}")
			out = append(out, method+" "+path)
			if method == http.MethodGet {
				out = append(out, "HEAD "+path)
			}
		}
	}
	return out
}

func compareRoutes(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, route := range want {
		if !slices.Contains(got, route) {
			t.Errorf("%s lacks %s", what, route)
		}
	}
	for _, route := range got {
		if !slices.Contains(want, route) {
			t.Errorf("%s has %s, which is no route", what, route)
		}
	}
}

// TestDocumentHasEveryParameter asks each operation about every name of a query parameter
// that occurs in the document or the sources. A request that also has the parameter "~" is
// refused in any case, for the first name that is not known: so nothing is done.
func TestDocumentHasEveryParameter(t *testing.T) {
	n := apiNode(t)
	operations := apiOperations(t)
	names := parameterNames(t)
	for _, op := range operations {
		names = append(names, op.query...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) < 40 {
		t.Fatalf("only %d names of parameters were found: %q", len(names), names)
	}
	for _, op := range operations {
		if len(op.Security) == 0 && op.path != openapi.Path {
			continue // operations read no query
		}
		for _, name := range names {
			param := refusedParameter(t, n, op, name)
			if op.method == http.MethodHead {
				continue // says no more than that it is refused
			}
			if documented, taken := slices.Contains(op.query, name), param == "~"; documented != taken {
				t.Errorf("%s: parameter %s is documented: %t, taken: %t", op.name, name, documented, taken)
			}
		}
		documented := slices.ContainsFunc(op.Security, func(s map[string][]string) bool { return s["token"] != nil })
		if taken := takesToken(t, n, op); documented != taken {
			t.Errorf("%s: a key in the URL is documented: %t, taken: %t", op.name, documented, taken)
		}
	}
}

// ask sends a request of an operation to the node.
func (op apiOperation) ask(t *testing.T, n *node, rawQuery, key string) (status int, code, param string) {
	t.Helper()
	const id = "dl_00000000000000000000000000" // as long as a dead letter's, where paths look at that
	req := httptest.NewRequest(op.method, strings.ReplaceAll(op.path, "{}", id)+"?"+rawQuery, nil)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	// Sockets look at the handshake first; others do not look at it.
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
	} {
		req.Header.Set(name, value)
	}
	res, err := n.app.Test(req, -1)
	if err != nil {
		t.Fatalf("%s: %v", op.name, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s: %v", op.name, err)
	}
	var answer struct{ Error struct{ Code, Param string } }
	if len(body) > 0 {
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatalf("%s: %v in %s", op.name, err, body)
		}
	}
	return res.StatusCode, answer.Error.Code, answer.Error.Param
}

// refusedParameter returns which of two parameters the operation does not know: name, or
// "~", which none does.
func refusedParameter(t *testing.T, n *node, op apiOperation, name string) string {
	t.Helper()
	status, code, param := op.ask(t, n, url.Values{name: {"1"}, "~": {"1"}}.Encode(), testKey)
	want := http.StatusBadRequest
	if op.method == http.MethodHead && strings.HasSuffix(op.path, "/ws") || op.name == "HEAD /v1/calls/{id}/stream" {
		want = http.StatusUpgradeRequired
	}
	if status != want || op.method != http.MethodHead && code != httpapi.CodeUnknownParameter {
		t.Fatalf("%s: a parameter that none knows is answered %d %s, want %d %s", op.name, status, code, want, httpapi.CodeUnknownParameter)
	}
	return param
}

func takesToken(t *testing.T, n *node, op apiOperation) bool {
	t.Helper()
	status, code, _ := op.ask(t, n, "~=1&token=pk_tmp_none", "")
	if len(op.Security) == 0 {
		return false
	}
	if status != http.StatusUnauthorized {
		t.Fatalf("%s: an unknown key in the URL is answered %d %s", op.name, status, code)
	}
	if op.method == http.MethodHead { // as its GET
		return slices.ContainsFunc(op.Security, func(s map[string][]string) bool { return s["token"] != nil })
	}
	return code != httpapi.CodeTokenInQuery
}

// parameterNames reads the names of query parameters out of the functions that say which a
// path takes: those whose names are isXParam or takesParam, and the tables of filters and of
// dead letters.
func parameterNames(t *testing.T) []string {
	t.Helper()
	judge := regexp.MustCompile(`^is[A-Z]\w*Param$|^takesParam$|^(filter|letter)Params$`)
	var out []string
	for _, file := range sources(t) {
		for _, decl := range file.Decls {
			name := ""
			switch d := decl.(type) {
			case *ast.FuncDecl:
				name = d.Name.Name
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if v, ok := spec.(*ast.ValueSpec); ok {
						name = v.Names[0].Name
					}
				}
			}
			if !judge.MatchString(name) {
				continue
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				if s := literal(n); s != "" && !strings.ContainsAny(s, "[] ") {
					out = append(out, s)
				}
				return true
			})
		}
	}
	return append(out, "filters[k]", "filters", "filters[k", httpapi.ParamLane)
}

// sources are the files of the roles and of httpapi, without tests.
func sources(t *testing.T) []*ast.File {
	t.Helper()
	var out []*ast.File
	for _, dir := range []string{"schema", "ingest", "streamer", "query", filepath.Join("internal", "httpapi")} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			out = append(out, file)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// literal returns the value of a string literal, "" if n is none.
func literal(n ast.Node) string {
	lit, ok := n.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, _ := strconv.Unquote(lit.Value)
	return s
}

// TestCodesAreThoseOfTheSources holds the table of error codes against the calls that make
// errors: each code with its status, and none that nothing answers.
func TestCodesAreThoseOfTheSources(t *testing.T) {
	files := sources(t)
	constants := map[string]string{}
	for _, file := range files {
		for _, decl := range file.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok || d.Tok != token.CONST {
				continue
			}
			for _, spec := range d.Specs {
				v := spec.(*ast.ValueSpec)
				for i, value := range v.Values {
					if s := literal(value); s != "" && strings.HasPrefix(strings.ToLower(v.Names[i].Name), "code") {
						constants[v.Names[i].Name] = s
					}
				}
			}
		}
	}
	made := map[string]bool{}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 3 {
				return true
			}
			if status, code, ok := errorMade(call, constants); ok {
				made[fmt.Sprintf("%d %s", status, code)] = true
			}
			return true
		})
	}
	want := map[string]bool{}
	for _, c := range httpapi.Codes() {
		want[fmt.Sprintf("%d %s", c.Status, c.Code)] = true
	}
	for code := range made {
		if !want[code] {
			t.Errorf("the sources answer %s, which httpapi.Codes does not list", code)
		}
	}
	for code := range want {
		if !made[code] {
			t.Errorf("httpapi.Codes lists %s, which nothing answers", code)
		}
	}
}

// errorMade reads the status and code of a call that makes an error: Errorf(status, code, …)
// and refuse(status, code, …), or bad(code, …), which is 400.
func errorMade(call *ast.CallExpr, constants map[string]string) (status int, code string, ok bool) {
	name := nameOf(call.Fun)
	args := call.Args
	switch name {
	case "Errorf", "refuse":
		if status = statusOf(args[0]); status == 0 {
			return 0, "", false
		}
		args = args[1:]
	case "bad":
		status = http.StatusBadRequest
		if constants[nameOf(args[0])] == "" {
			return 0, "", false // of another package
		}
	default:
		return 0, "", false
	}
	if code = literal(args[0]); code == "" {
		code = constants[nameOf(args[0])]
	}
	return status, code, code != ""
}

func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	default:
		return ""
	}
}

// statusOf reads a status, written as a number or as a constant of fiber or net/http.
func statusOf(e ast.Expr) int {
	if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.INT {
		status, _ := strconv.Atoi(lit.Value)
		return status
	}
	name := nameOf(e)
	for status := 400; status < 600; status++ {
		if text := strings.ReplaceAll(http.StatusText(status), " ", ""); text != "" && name == "Status"+text {
			return status
		}
	}
	return 0
}
