// SPDX-License-Identifier: Apache-2.0

package container

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The dump shows a field with its own bytes only.
func TestDump_FieldsHaveTheirSize(t *testing.T) {
	for _, g := range goldens() {
		r, err := openBytes(readGolden(t, g.name), Limits{})
		require.NoError(t, err)
		var s strings.Builder
		require.NoError(t, Dump(&s, r, DumpOptions{}))
		require.Contains(t, s.String(), `# magic: "\x93KVIST\r\n"`+"\n")
		require.Contains(t, s.String(), `# marker: "KIDX"`+"\n")
		for line := range strings.Lines(s.String()) {
			require.Less(t, len(line), 120, "%s", line)
		}
	}
}

// A name cannot forge a line of the dump.
func TestDump_NamesStayInTheirLine(t *testing.T) {
	f := goldens()[0].f
	f.aux = append(f.aux[:0:0], f.aux...)
	f.aux = append(f.aux, &Aux{Name: "a\n## trailer", DType: "U8", Shape: []int64{1}, Data: []byte{1}})
	r, err := openBytes(f.write(t), Limits{})
	require.NoError(t, err)
	var s strings.Builder
	require.NoError(t, Dump(&s, r, DumpOptions{}))
	require.Equal(t, 1, strings.Count(s.String(), "\n## trailer"))
	require.Contains(t, s.String(), `name: a\n## trailer`)
}
