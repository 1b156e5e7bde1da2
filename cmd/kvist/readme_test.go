// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestReadme_ThreeCommands holds that the commands of the README print what it shows. A line "..." stands for lines
// that it leaves out.
func TestReadme_ThreeCommands(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	_, text, ok := strings.Cut(string(page), "\n## Three commands\n\n```\n$ kvist ")
	require.True(t, ok)
	text, _, ok = strings.Cut(text, "\n```\n")
	require.True(t, ok)
	commands := strings.Split(text, "\n$ kvist ")
	require.Len(t, commands, 3)

	t.Chdir(t.TempDir())
	require.NoError(t, os.Symlink(filepath.Join(root, "testdata"), "testdata"))
	for _, c := range commands {
		line, want, _ := strings.Cut(c, "\n")
		var out bytes.Buffer
		require.Zero(t, run(context.Background(), strings.Fields(line), strings.NewReader(""), &out, &out), "%s: %s", line, &out)
		got, gap := strings.Split(out.String(), "\n"), false
		for _, w := range strings.Split(strings.TrimSuffix(want, "\n"), "\n") {
			if w == "..." {
				gap = true
				continue
			}
			at := slices.Index(got, w)
			require.True(t, at == 0 || at > 0 && gap, "kvist %s: want the line\n%s\nin\n%s", line, w, &out)
			got, gap = got[at+1:], false
		}
	}
}
