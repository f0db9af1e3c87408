package archtest

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// onlyInCmd lists what ends the process or reads its environment: cmd's business, so
// that every other package can be used twice in one process and tested in parallel.
var onlyInCmd = map[string][]string{
	"os": {
		"Exit", "Getenv", "LookupEnv", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv",
		"UserHomeDir", "UserCacheDir", "UserConfigDir",
	},
	"log":     {"Fatal", "Fatalf", "Fatalln"},
	"syscall": {"Exit", "Getenv", "Setenv"},
	"flag":    {"Parse", "String", "StringVar", "Bool", "BoolVar", "Int", "IntVar", "Duration", "DurationVar"},
	"net/http": {
		"ProxyFromEnvironment", // reads HTTP_PROXY and its like
		"DefaultClient", "DefaultTransport", "Get", "Post", "PostForm", "Head",
	},
}

func TestOnlyCmdExitsOrReadsTheEnvironment(t *testing.T) {
	tr := loadTree(t)
	for _, f := range tr.files {
		if f.test || f.ast.Name.Name == "main" { // commands: those of cmd, and integration/bench
			continue
		}
		if strings.HasPrefix(f.dir, "integration/") && slices.Contains(f.imports(), "testing") { // what tests share
			continue
		}
		names := map[string]string{} // as the file calls it -> import path
		for _, spec := range f.ast.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if _, watched := onlyInCmd[path]; !watched {
				continue
			}
			name := path[strings.LastIndex(path, "/")+1:]
			if spec.Name != nil {
				name = spec.Name.Name
			}
			names[name] = path
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			if path, ok := names[pkg.Name]; ok && slices.Contains(onlyInCmd[path], sel.Sel.Name) {
				t.Errorf("%s: uses %s.%s; only cmd may: take it as an argument", tr.at(f, sel.Pos()), path, sel.Sel.Name)
			}
			return true
		})
	}
}

// TestPackageVariablesAreNotReassigned finds assignments to package variables outside
// their declaration. It goes by names, file by file, which the parser resolves well
// enough: a local of the same name shadows.
func TestPackageVariablesAreNotReassigned(t *testing.T) {
	tr := loadTree(t)
	vars := map[string]map[string]bool{} // folder and package -> names
	key := func(f *sourceFile) string { return f.dir + " " + f.ast.Name.Name }
	for _, f := range tr.files {
		if f.test {
			continue
		}
		for _, decl := range f.ast.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, spec := range gen.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if vars[key(f)] == nil {
						vars[key(f)] = map[string]bool{}
					}
					vars[key(f)][name.Name] = true
				}
			}
		}
	}
	for _, f := range tr.files {
		if f.test {
			continue
		}
		check := func(target ast.Expr) {
			id, ok := root(target)
			if !ok || id.Name == "_" || !vars[key(f)][id.Name] || shadowed(f, id) {
				return
			}
			t.Errorf("%s: changes the package variable %s; pass it as an argument or keep it in a struct", tr.at(f, id.Pos()), id.Name)
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok == token.DEFINE {
					return true
				}
				for _, target := range n.Lhs {
					check(target)
				}
			case *ast.IncDecStmt:
				check(n.X)
			}
			return true
		})
	}
}

// root returns the identifier that an assignable expression starts from.
func root(e ast.Expr) (*ast.Ident, bool) {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x, true
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil, false
		}
	}
}

// shadowed reports whether id names something declared inside a function of its file. The
// parser's own resolution answers that; go/types would have to load every dependency.
func shadowed(f *sourceFile, id *ast.Ident) bool {
	return id.Obj != nil && f.ast.Scope.Lookup(id.Name) != id.Obj
}

func TestPackagesAreNamedForTheirJob(t *testing.T) {
	banned := []string{"util", "utils", "common", "commons", "helper", "helpers", "misc", "shared", "base", "lib"}
	seen := map[string]bool{}
	for _, f := range loadTree(t).files {
		folder := f.dir[strings.LastIndex(f.dir, "/")+1:]
		for _, name := range []string{strings.TrimSuffix(f.ast.Name.Name, "_test"), folder} {
			if slices.Contains(banned, name) && !seen[f.dir] {
				seen[f.dir] = true
				t.Errorf("%s: package name %q says nothing; name it for its job", f.dir, name)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range loadTree(t).files {
		if !f.test {
			documented[f.dir] = documented[f.dir] || f.ast.Doc != nil
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no package comment", dir)
		}
	}
}
