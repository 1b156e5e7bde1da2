// SPDX-License-Identifier: Apache-2.0

package readme

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// root is the root of the repository.
const root = "../.."

func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(text)
}

func TestReadme_FitsItsLimits(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(page(t, "README.md"), "\n"), "\n")
	require.LessOrEqual(t, len(lines), 150)
	for i, l := range lines {
		require.LessOrEqual(t, utf8.RuneCountInString(l), 100, "line %d: %s", i+1, l)
	}
}

// The README shows the function of the example, byte for byte.
func TestReadme_ShowsTheExample(t *testing.T) {
	code, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(code), "\n// compress ")
	require.True(t, ok)
	fn, _, ok := strings.Cut("// compress "+rest, "\n}\n")
	require.True(t, ok)
	require.LessOrEqual(t, strings.Count(fn, "\n")+2, 12, "lines of the example")
	text := page(t, "README.md")
	want, err := Markers{"example", "bench/readme/example_test.go"}.Splice(text, "```go\n"+fn+"\n}\n```\n")
	require.NoError(t, err)
	require.Equal(t, want, text)
}

var link = regexp.MustCompile(`\]\(([^)]+)\)|(?m:^\[[a-z]+\]: (.+)$)`)

// path matches a file or a folder of the repository in backticks.
var path = regexp.MustCompile("`((?:bench|cmd|cpu|cuda|engine|importance|kernels|quant|testdata)/[\\w./-]+)`")

// Links and paths of the pages lead to files that exist.
func TestPages_LinksExist(t *testing.T) {
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "bench/README.md", "engine/README.md", "cmd/kvist/README.md",
		"cmd/kvist/deploy/README.md"} {
		text, found := page(t, name), 0
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			to := m[1] + m[2]
			if strings.HasPrefix(to, "https://") || strings.HasPrefix(to, "#") {
				continue
			}
			require.FileExists(t, filepath.Join(root, filepath.Dir(name), to), name)
			found++
		}
		for _, m := range path.FindAllStringSubmatch(text, -1) {
			_, err := os.Stat(filepath.Join(root, m[1]))
			require.NoError(t, err, name)
			found++
		}
		require.Positive(t, found, name)
	}
}

// Every make target that a page names exists.
func TestPages_TargetsExist(t *testing.T) {
	makefile := page(t, "Makefile")
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "bench/README.md"} {
		for _, m := range regexp.MustCompile("(?m)(?:`|^)make ([a-z0-9-]+)").FindAllStringSubmatch(page(t, name), -1) {
			require.True(t, strings.Contains(makefile, "\n"+m[1]+":"), "%s: no target %s", name, m[1])
		}
	}
}
