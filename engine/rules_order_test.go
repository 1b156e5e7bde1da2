// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// "return x, f(&x)" returns x as it was before f, or as it is after: the language does not say in
// which order variables and calls are evaluated.
func TestHouseRules_ReturnsDoNotRelyOnOrder(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), "_") ||
			strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		for _, at := range ordered(f) {
			t.Errorf("%s: a result is read beside a call that may change it", set.Position(at))
		}
		return nil
	})
	require.NoError(t, err)
}

// ordered finds returns of a variable x, or of a part of it, beside a call that takes &x, the
// address of a part, or a method of a part of x.
func ordered(f *ast.File) (found []token.Pos) {
	ast.Inspect(f, func(n ast.Node) bool {
		r, ok := n.(*ast.ReturnStmt)
		if !ok {
			return true
		}
		for i, x := range r.Results {
			v := variable(x)
			for j, y := range r.Results {
				if _, whole := x.(*ast.Ident); v != "" && i != j && mayChange(y, v, whole) {
					found = append(found, r.Pos())
				}
			}
		}
		return true
	})
	return found
}

// variable is the name that a variable, a field or an element of it begins with.
func variable(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return variable(e.X)
	case *ast.IndexExpr:
		return variable(e.X)
	}
	return ""
}

func mayChange(e ast.Expr, v string, whole bool) (found bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false // what it changes is seen through slices and maps: too common to refuse
		case *ast.CallExpr:
			for _, arg := range n.Args {
				u, ok := arg.(*ast.UnaryExpr)
				found = found || ok && u.Op == token.AND && variable(u.X) == v
			}
			if m, ok := n.Fun.(*ast.SelectorExpr); ok && whole {
				part, ok := m.X.(*ast.SelectorExpr)
				found = found || ok && variable(part) == v
			}
		}
		return true
	})
	return found
}

func TestOrdered_FindsThem(t *testing.T) {
	count := func(body string) int {
		f, err := parser.ParseFile(token.NewFileSet(), "a.go", "package a\nfunc _() {\n"+body+"\n}", 0)
		require.NoError(t, err)
		return len(ordered(f))
	}
	for _, bad := range []string{"return x, f(&x)", "return f(&x), x", "return x.a, f(1, &x.b)",
		"return x, x.part.fill()", "return x[0], f(&x)"} {
		require.Equal(t, 1, count(bad), bad)
	}
	for _, good := range []string{"err := f(&x); return x, err", "return x, f(x)", "return x, x.Validate()",
		"return x, f(&y)", "return x.a, x.b.Close()", "return f(&x)"} {
		require.Zero(t, count(good), good)
	}
}
