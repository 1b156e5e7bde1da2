// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGenerated_Registers: AVX2 has 16 vector registers. The generator would take the others, which
// need AVX-512, without a word.
func TestGenerated_Registers(t *testing.T) {
	src, err := os.ReadFile("scan_amd64.s")
	require.NoError(t, err)
	upper := regexp.MustCompile(`\b[XY](1[6-9]|2[0-9]|3[01])\b|\bZ[0-9]|\bK[0-7]\b`)
	functions := 0
	for _, body := range strings.Split(string(src), "\nTEXT ")[1:] {
		name, code, _ := strings.Cut(body, "(SB)")
		if strings.HasSuffix(name, "AVX2") {
			functions++
			require.Empty(t, upper.FindString(code), "%s", name)
		}
	}
	require.Greater(t, functions, 14)
}

// TestGenerated_Fresh: the generator gives the committed bytes.
func TestGenerated_Fresh(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the generator: once, in the whole suite")
	}
	for _, tool := range []string{"go", "sh"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s: %v", tool, err)
		}
	}
	build := exec.Command("go", "build", "-o", os.DevNull, ".")
	build.Dir = "_gen"
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("the generator's modules are not at hand: %v\n%s", err, out)
	}
	dir := t.TempDir()
	out, err := exec.Command("sh", "generate.sh", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, name := range []string{"scan_amd64.s", "stubs_amd64.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		got, err := os.ReadFile(name)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got),
			"%s is not what the generator writes: run go generate ./cpu/scan", name)
	}
}
