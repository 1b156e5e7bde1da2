// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/kvist-project/kvist"

// allowed lists, for every package of the module, which packages of the module it may import.
// Arrows go one way: quant below everything, engine/backend a leaf above it, cpu and cuda beside
// each other, engine/auto the one place where they meet. A new package needs a row.
var allowed = map[string][]string{
	"quant":           {"quant/layout"},
	"quant/layout":    {},
	"quant/frame":     {"quant"},
	"quant/trellis":   {"quant"},
	"quant/quanttest": {"quant", "quant/layout"},
	"importance":      {"quant"},
	"kernels":         {},
	"kernels/emu":     {},
	"cuda": {"quant", "quant/frame", "engine/backend", "engine/backend/args", "engine/backend/selftest",
		"kernels"},
	"cpu":        {"quant", "quant/frame", "quant/layout", "engine/backend", "engine/backend/args"},
	"cpu/matmul": {"quant"},
	"cpu/scan":   {"quant", "quant/trellis"},
	"engine": {
		"quant", "quant/frame",
		"importance",
		"engine/backend",
		"engine/internal/plan",
		"engine/internal/parallel",
		"engine/container",
		"engine/store",
	},
	"engine/store/internal/expiry": {},
	"engine/store":                 {"quant", "engine/store/internal/expiry"},
	"engine/store/storetest":       {"quant", "engine/store"},
	"engine/store/remote":          {"quant", "engine/store", "engine/store/internal/expiry"},
	"engine/store/packed":          {"quant"},
	"engine/atomicfile":            {},
	"engine/backend":               {"quant", "quant/frame"},
	"engine/backend/args":          {"quant", "quant/frame", "engine/backend"},
	"engine/backend/selftest":      {"quant", "engine/backend"},
	"engine/backend/backendtest":   {"quant", "quant/frame", "quant/quanttest", "engine/backend"},
	"engine/internal/plan":         {"quant"},
	"engine/container":             {"quant", "quant/frame"},
	"engine/gguf":                  {"quant", "engine/atomicfile"},
	"engine/gguf/gguftest":         {"quant", "engine/gguf"},
	"engine/capture":               {"quant", "engine/atomicfile", "engine/internal/half", "engine/gguf"},
	"engine/llamastate":            {"quant", "engine/capture"},
	"engine/profile":               {"quant", "engine/container", "engine/atomicfile"},
	"engine/internal/archive":      {"quant"},
	// Rooms, from what stands on nothing to what users call. From segment down nothing knows captures or
	// profiles, and of the container only blocks, for records.
	"engine/internal/half":     {"quant"},
	"engine/internal/memo":     {},
	"engine/internal/parallel": {},
	"engine/internal/progress": {},
	"engine/internal/input":    {"quant", "quant/frame", "engine/backend", "engine/internal/half"},
	"engine/internal/captured": {"quant", "engine/capture", "engine/container", "engine/internal/input"},
	"engine/internal/blocks":   {"quant", "quant/frame", "engine/backend", "engine/container", "engine/internal/input", "engine/internal/half"},
	"engine/internal/weigh":    {"quant", "importance", "engine/backend", "engine/internal/input", "engine/internal/memo"},
	"engine/internal/damage": {"quant", "quant/frame", "engine/backend", "engine/internal/plan", "engine/internal/archive", "engine/internal/blocks", "engine/internal/input",
		"engine/internal/memo"},
	"engine/internal/segment": {"quant", "quant/frame", "engine/backend", "engine/internal/plan", "engine/internal/blocks", "engine/internal/damage", "engine/internal/weigh",
		"engine/internal/input", "engine/internal/memo"},
	"engine/internal/cold": {"quant", "engine/backend", "engine/internal/blocks", "engine/container", "engine/internal/damage", "engine/profile", "engine/internal/weigh",
		"engine/internal/archive", "engine/internal/input", "engine/internal/parallel", "engine/internal/progress"},
	"engine/report": {"quant", "cpu", "engine/internal/archive", "engine/backend", "engine/internal/blocks", "engine/capture", "engine/container", "engine/internal/damage",
		"engine/internal/cold", "engine/internal/progress", "engine/profile", "engine/internal/ahead", "engine/internal/captured", "engine/internal/half",
		"engine/internal/input"},
	"engine/internal/ahead": {"quant", "engine/backend", "engine/internal/blocks", "engine/container", "engine/internal/damage",
		"engine/internal/input"},
	"engine/kvfile": {"quant", "quant/frame", "importance", "cpu", "engine/atomicfile", "engine/internal/archive", "engine/internal/cold", "engine/backend", "engine/internal/blocks", "engine/capture",
		"engine/container", "engine/internal/damage", "engine/internal/plan", "engine/profile", "engine/internal/segment", "engine/internal/weigh",
		"engine/internal/ahead", "engine/internal/captured", "engine/internal/half", "engine/internal/input", "engine/internal/memo",
		"engine/internal/parallel", "engine/internal/progress", "engine/report"},
	"engine/tensorio": {"quant"},
	"engine/tune": {"quant", "importance", "engine/atomicfile", "engine/backend", "engine/capture", "engine/container",
		"engine/internal/damage", "engine/kvfile", "engine/internal/plan", "engine/profile", "engine/report", "engine/internal/segment",
		"engine/internal/weigh", "engine/internal/archive", "engine/internal/captured", "engine/internal/cold",
		"engine/internal/input", "engine/internal/parallel", "engine/internal/progress"},
	// An index of vectors has codes and kernels of its own, which no backend has.
	"engine/vectors": {"quant", "quant/trellis", "cpu/matmul", "cpu/scan", "engine/atomicfile", "engine/container"},
	// Only the model runner and the index of vectors multiply matrices themselves; a cache asks its backend.
	"engine/model":           {"quant", "cpu/matmul", "engine/capture", "engine/atomicfile", "engine/gguf"},
	"engine/model/modeltest": {"engine/model"},
	// Answers of a model on the serving cache. Policy is here; cmd/kvist/internal/serve knows only HTTP.
	"engine/runner": {"quant", "engine", "engine/atomicfile", "engine/backend", "engine/model", "engine/store"},
	// The cache knows archive form by an interface alone.
	"engine/archiver": {"quant", "engine", "engine/profile", "engine/internal/archive", "engine/internal/cold"},
	"engine/auto":     {"quant", "engine/backend", "cpu", "cuda"},
	"bench":           {},
	// A method knows nothing of the model that it is measured in, nor of a search for settings.
	"bench/methods":       {"quant", "cpu", "cpu/matmul", "engine/"},
	"bench/quality":       {"quant", "engine", "engine/", "bench/methods"},
	"bench/quality/texts": {},
	"bench/perf":          {"quant", "cpu/matmul", "engine", "engine/"},
	"bench/tuning":        {"quant", "cpu", "engine/", "bench/methods", "bench/quality"},
}

// free are the trees that may import anything of the module (nothing imports them but each other).
var free = []string{"cmd/", "bench/archivetable", "bench/capturetable", "bench/cputable", "bench/embeddings", "bench/modelspeed", "bench/modeltable", "bench/readme", "bench/serveload", "bench/servingtable",
	"bench/truncatetable"}

// suites may use testify outside _test.go files.
var suites = []string{"quant/quanttest", "engine/backend/backendtest", "engine/store/storetest"}

type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Standard   bool
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command to list packages with")
	}
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,Standard",
		module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else {
			require.NoError(t, err)
		}
		all = append(all, p)
	}
}

func isFree(rel string) bool {
	return slices.ContainsFunc(
		free,
		func(f string) bool { return strings.HasPrefix(rel+"/", f) || strings.HasPrefix(rel, f) },
	)
}

func TestImports_OneWay(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		seen[rel] = true
		ok, known := allowed[rel]
		if strings.Contains(rel, "/internal/") && !known {
			// Internals belong to their parent and may import what it may, and its other internals.
			parent := rel[:strings.Index(rel, "/internal/")]
			ok, known = append(slices.Clone(allowed[parent]), parent+"/internal/"), true
		}
		if !known && !isFree(rel) {
			t.Errorf("package %s has no row in the table of allowed imports", rel)
		}
		for _, imp := range p.Imports {
			checkImport(t, rel, imp, ok)
		}
	}
	for rel := range allowed {
		require.True(t, seen[rel], "the table names %s, which does not exist", rel)
	}
}

func checkImport(t *testing.T, rel, imp string, ok []string) {
	t.Helper()
	if in, found := strings.CutPrefix(imp, module+"/"); found {
		fits := slices.ContainsFunc(ok, func(a string) bool {
			return in == a || strings.HasPrefix(in, a) && strings.HasSuffix(a, "/") ||
				strings.HasPrefix(in, rel+"/internal/")
		})
		if !fits && !isFree(rel) {
			t.Errorf("%s must not import %s", rel, in)
		}
		return
	}
	domain, _, _ := strings.Cut(imp, "/")
	switch {
	case !strings.Contains(domain, "."), domain == "golang.org" && !strings.HasPrefix(rel, "quant"):
	case strings.Contains(imp, "ebitengine/purego"):
		require.Equal(t, "cuda/internal/driver", rel, "purego")
	case strings.HasPrefix(imp, "gorgonia.org/tensor"):
		require.Equal(t, "engine/tensorio", rel, "gorgonia.org/tensor")
	case strings.Contains(imp, "stretchr/testify"):
		if !slices.Contains(suites, rel) {
			t.Errorf("%s imports %s outside tests", rel, imp)
		}
	default:
		if !isFree(rel) {
			t.Errorf("library package %s must not import %s", rel, imp)
		}
	}
}

// House rules on the code of the library: an SPDX line on top, no init, no panic with a text, causes
// wrapped with %w, errors of a function not anonymous, the environment read in stated places only.
func TestHouseRules(t *testing.T) {
	getenv := []string{"cpu/isa.go", "cuda/kernel.go", "engine/model/find.go", "engine/model/modeltest/modeltest.go", "kernels/emu/emu.go"}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() &&
			(strings.HasPrefix(d.Name(), "_") || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel := filepath.ToSlash(strings.TrimPrefix(path, "../"))
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Contains(src[:min(len(src), 200)],
			[]byte("SPDX-License-Identifier: Apache-2.0")) {
			t.Errorf("%s: no SPDX line on top", rel)
		}
		if strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, src, 0)
		if err != nil {
			return err
		}
		checkFile(t, rel, set, f, slices.Contains(getenv, rel) || strings.HasPrefix(rel, "cmd/"))
		return nil
	})
	require.NoError(t, err)
}

func checkFile(t *testing.T, rel string, set *token.FileSet, f *ast.File, mayGetenv bool) {
	t.Helper()
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if fn.Name.Name == "init" && fn.Recv == nil {
			t.Errorf("%s: func init", set.Position(fn.Pos()))
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			where := set.Position(call.Pos())
			switch name(call.Fun) {
			case "panic":
				if _, text := literal(call); text && !strings.Contains(rel, "test/") {
					t.Errorf("%s: panic with a text", where)
				}
			case "errors.New":
				if strings.HasPrefix(rel, "cmd/") {
					break
				}
				t.Errorf("%s: errors.New inside a function: wrap a category", where)
			case "fmt.Errorf":
				if s, ok := literal(call); ok && !strings.Contains(s, "%w") &&
					!strings.HasPrefix(rel, "cmd/") && !strings.Contains(rel, "test/") {
					t.Errorf("%s: fmt.Errorf without %%w: %q", where, s)
				}
			case "os.Getenv", "os.LookupEnv":
				if !mayGetenv {
					t.Errorf("%s: reads the environment", where)
				}
			}
			return true
		})
	}
}

func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return name(e.X) + "." + e.Sel.Name
	}
	return ""
}

func literal(call *ast.CallExpr) (string, bool) {
	if len(call.Args) == 0 {
		return "", false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}
