// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The most lines of a file, and the most files that the methods of a type are spread over.
const (
	mostLines = 400
	mostFiles = 4
)

// Code that is easy to find: files are short, and what a type does stands in few of them.
func TestSizes(t *testing.T) {
	files := map[string]map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "testdata" {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := bytes.Count(src, []byte("\n")); n > mostLines {
			t.Errorf("%s: %d lines, want at most %d", path, n, mostLines)
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv != nil {
				of := filepath.ToSlash(filepath.Dir(path)) + "." + receiver(fn.Recv.List[0].Type)
				if files[of] == nil {
					files[of] = map[string]bool{}
				}
				files[of][path] = true
			}
		}
		return nil
	})
	require.NoError(t, err)
	require.Contains(t, files, "container.Header", "the walk found no methods")
	for of, in := range files {
		if n := len(in); n > mostFiles {
			t.Errorf("methods of %s are in %d files, want at most %d", of, n, mostFiles)
		}
	}
}

// receiver names the type of a receiver.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
