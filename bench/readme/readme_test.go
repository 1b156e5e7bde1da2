// SPDX-License-Identifier: Apache-2.0

package readme

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestMarkers(t *testing.T) {
	m := Markers{"table", "make it"}
	path := filepath.Join(t.TempDir(), "a.md")
	require.NoError(t, os.WriteFile(path, []byte("a\n<!-- table: begin (make it) -->\nold\n<!-- table: end -->\nb\n"), 0o600))
	for range 2 {
		require.NoError(t, m.Update(path, "new\n"))
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "a\n<!-- table: begin (make it) -->\nnew\n<!-- table: end -->\nb\n", string(text))
	}
	for _, text := range []string{"", "<!-- table: begin (make it) -->\n", "<!-- table: end -->\n<!-- table: begin (make it) -->\n"} {
		_, err := m.Splice(text, "")
		require.ErrorIs(t, err, quant.ErrCorrupt)
	}
	require.Error(t, m.Update(path+"none", ""))
}
