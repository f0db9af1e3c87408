package httpapi_test

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// root is the repository, seen from this package.
const root = "../.."

func readDocs(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// docTable returns the rows of the page's table with this header line, each cut into
// cells without backticks.
func docTable(t *testing.T, docs, header string) [][]string {
	t.Helper()
	_, rest, found := strings.Cut(docs, "\n"+header+"\n")
	if !found {
		t.Fatalf("docs/api.md has no table %q", header)
	}
	var rows [][]string
	lines := bufio.NewScanner(strings.NewReader(rest))
	for lines.Scan() && strings.HasPrefix(lines.Text(), "|") {
		cells := strings.Split(strings.Trim(lines.Text(), "| "), "|")
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "`", "")
		}
		rows = append(rows, cells)
	}
	if len(rows) < 2 {
		t.Fatalf("table %q of docs/api.md is empty", header)
	}
	return rows[1:] // without the line below the header
}

func TestDocsListEveryErrorCode(t *testing.T) {
	var got, want []string
	for _, row := range docTable(t, readDocs(t), "| code | status | meaning |") {
		got = append(got, strings.Join(row, " | "))
	}
	for _, c := range httpapi.Codes() {
		want = append(want, fmt.Sprintf("%s | %d | %s", c.Code, c.Status, c.Meaning))
	}
	diff(t, "error codes", got, want)
}

func TestDocsListEveryLimitWithItsDefault(t *testing.T) {
	var got, want []string
	for _, row := range docTable(t, readDocs(t), "| field of `limits` | default | bounds |") {
		got = append(got, row[0]+" "+strings.ReplaceAll(row[1], ",", ""))
	}
	limits := reflect.ValueOf(control.DefaultLimits())
	for i := range limits.NumField() {
		want = append(want, fmt.Sprint(limits.Type().Field(i).Tag.Get("json"), " ", limits.Field(i)))
	}
	diff(t, "limits", got, want)
}

// TestDocsListTheHeadersOfCORS asks a server what pages may send and read.
func TestDocsListTheHeadersOfCORS(t *testing.T) {
	s := serveCORS(t, nil, page)
	a := s.do(t, "OPTIONS", "/ok", "", "Origin", page, "Access-Control-Request-Method", "GET")
	b := s.do(t, "GET", "/ok", "", "Origin", page)
	docs := readDocs(t)
	for _, row := range docTable(t, docs, "| header | value |") {
		name, list := row[0], a.header.Get(row[0])
		if list == "" {
			list = b.header.Get(name)
		}
		if list == "" {
			t.Errorf("docs/api.md lists %s, which no answer carries", name)
		}
		switch name {
		case "Access-Control-Allow-Origin", "Access-Control-Max-Age":
		default:
			if text := strings.TrimPrefix(row[1], "of a preflight: "); text != list {
				t.Errorf("docs/api.md: %s is %q, want %q", name, text, list)
			}
		}
	}
}

func TestDocsListEveryTypeCode(t *testing.T) {
	var got, want []string
	for _, row := range docTable(t, readDocs(t), "| code | type |") {
		got = append(got, strings.Join(row, " "))
	}
	for _, c := range schema.TypeCodes() {
		want = append(want, fmt.Sprintf("%d %s", c.Code, c.Type))
	}
	diff(t, "type codes", got, want)
}

func TestDocsShowRealIDsAndCursors(t *testing.T) {
	docs := readDocs(t)
	for _, row := range docTable(t, docs, "| epoch | partition | offset | time | id |") {
		var n [4]int64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseInt(row[i], 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		id := schema.EventID{
			Position: schema.Position{Epoch: uint8(n[0]), Partition: uint16(n[1]), Offset: n[2]},
			TimeMs:   n[3],
		}
		if id.String() != row[4] {
			t.Errorf("docs/api.md: id of %v is %s, want %s", row[:4], row[4], id)
		}
	}
	cursors := regexp.MustCompile(`evt_[0-9A-Z]{26}[0-9A-Za-z_.~-]*`).FindAllString(docs, -1)
	if len(cursors) < 20 {
		t.Fatalf("docs/api.md shows %d ids; the pattern is wrong", len(cursors))
	}
	for _, s := range cursors {
		if c, err := schema.ParseCursor(s); err != nil || c.String() != s {
			t.Errorf("docs/api.md: cursor %q reads as %q, %v", s, c, err)
		}
	}
}

// TestDocsQuoteTheGoldenRecord holds the example of a Kafka record against schema's
// golden file.
func TestDocsQuoteTheGoldenRecord(t *testing.T) {
	docs := readDocs(t)
	golden, err := os.ReadFile(filepath.Join(root, "schema", "testdata", "record_full.txt"))
	if err != nil {
		t.Fatal(err)
	}
	headers, _, _ := strings.Cut(string(golden), "\n\n")
	for line := range strings.Lines(headers) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if want := fmt.Sprintf("\n%-16s%s\n", name, value); !strings.Contains(docs, want) {
			t.Errorf("docs/api.md does not show the golden record's line %q", strings.TrimSpace(want))
		}
	}
}

func TestDocsListEveryMetric(t *testing.T) {
	var got []string
	for _, row := range docTable(t, readDocs(t), "| metric | type | labels | meaning |") {
		got = append(got, row[0])
	}
	diff(t, "metrics", got, slices.Sorted(maps.Keys(metricNames(t))))
}

// metricNames reads the names of all metrics out of the sources, since no one process
// shows those whose labels have not occurred. A name is a string playhead_…; where that
// ends in "_", the same file calls small functions with what follows.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	const prefix = "playhead_"
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	names := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir(), !strings.HasSuffix(path, ".go"), strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		stem := ""
		var called []string
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				s := stringOf(n)
				switch rest, ok := strings.CutPrefix(s, prefix); {
				case !ok:
				case strings.HasSuffix(s, "_"):
					stem = s
				case name.MatchString(rest):
					names[s] = true
				}
			case *ast.CallExpr:
				if _, local := n.Fun.(*ast.Ident); local && len(n.Args) > 1 {
					if s := stringOf(n.Args[0]); name.MatchString(s) {
						called = append(called, s)
					}
				}
			}
			return true
		})
		for _, s := range called {
			if stem != "" {
				names[stem+s] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// stringOf returns the value of a string literal, "" if n is none.
func stringOf(n ast.Expr) string {
	lit, ok := n.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return s
}

// diff compares what the page lists with what the program has, in order.
func diff(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, s := range want {
		if !slices.Contains(got, s) {
			t.Errorf("docs/api.md lacks %s: %s", what, s)
		}
	}
	for _, s := range got {
		if !slices.Contains(want, s) {
			t.Errorf("docs/api.md lists %s that the program does not have: %s", what, s)
		}
	}
	if !t.Failed() && !slices.Equal(got, want) {
		t.Errorf("docs/api.md lists %s in another order, or one twice", what)
	}
}
