package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/playhead-dev/playhead"

// sourceFile is one parsed Go file of the module.
type sourceFile struct {
	path string // relative to the module's root, with slashes
	dir  string // its package's folder, likewise
	test bool
	ast  *ast.File
}

// imports returns the import paths of f, unquoted.
func (f *sourceFile) imports() []string {
	paths := make([]string, 0, len(f.ast.Imports))
	for _, spec := range f.ast.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic("archtest: the parser let pass the import path " + spec.Path.Value)
		}
		paths = append(paths, path)
	}
	return paths
}

// tree is every Go file of the module, generated and tests included.
type tree struct {
	root  string
	fset  *token.FileSet
	files []*sourceFile
}

func loadTree(t *testing.T) *tree {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("the module's root is not two folders up: %v", err)
	}
	tr := &tree{root: root, fset: token.NewFileSet()}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && skipDir(d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		file, err := parser.ParseFile(tr.fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		tr.files = append(tr.files, &sourceFile{
			path: rel,
			dir:  strings.TrimSuffix(strings.TrimSuffix(rel, filepath.Base(rel)), "/"),
			test: strings.HasSuffix(rel, "_test.go"),
			ast:  file,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.files) == 0 {
		t.Fatal("no Go file found")
	}
	return tr
}

// skipDir reports whether a folder holds nothing of ours: what the go command skips
// too, and what tools put beside the code.
func skipDir(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") ||
		slices.Contains([]string{"testdata", "node_modules", "vendor", "bin"}, name)
}

// at renders a position as path:line.
func (tr *tree) at(f *sourceFile, pos token.Pos) string {
	return f.path + ":" + strconv.Itoa(tr.fset.Position(pos).Line)
}

// under reports whether the folder or import path p is base or lies below it.
func under(p, base string) bool { return p == base || strings.HasPrefix(p, base+"/") }
