// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The generator of the kernel families writes the committed bytes.
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
	build.Dir = "internal/_gen"
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("the generator's modules are not at hand: %v\n%s", err, out)
	}
	for _, family := range []string{"attend", "codec"} {
		dir := t.TempDir()
		out, err := exec.Command("sh", "internal/generate.sh", family, dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
		for _, name := range []string{family + "_amd64.s", "stubs_amd64.go"} {
			want, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			got, err := os.ReadFile(filepath.Join("internal", family, name))
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got),
				"%s is not what the generator writes: run go generate ./cpu/internal/%s", name, family)
		}
	}
}
