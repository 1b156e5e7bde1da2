// SPDX-License-Identifier: Apache-2.0

package texts_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/quality/texts"
)

func TestAll_Roles(t *testing.T) {
	eval, calib := texts.WithRole(texts.RoleEval), texts.WithRole(texts.RoleCalib)
	require.GreaterOrEqual(t, len(eval), 8)
	require.GreaterOrEqual(t, len(calib), 4)
	require.Equal(t, texts.All(), append(eval, calib...), "eval first, then calib, nothing else")
	require.Empty(t, texts.WithRole("train"))
}

func TestAll_EveryTextIsUsable(t *testing.T) {
	names, kinds := map[string]bool{}, map[string]bool{}
	for _, x := range texts.All() {
		t.Run(x.Name, func(t *testing.T) {
			require.False(t, names[x.Name], "name used twice")
			require.False(t, kinds[x.Kind], "kind %q used twice", x.Kind)
			names[x.Name], kinds[x.Kind] = true, true
			require.True(t, strings.HasPrefix(x.Name, x.Role+"-"), "role %q", x.Role)
			require.GreaterOrEqual(t, len(x.Body), 6000)
			require.LessOrEqual(t, len(x.Body), 9000)
			require.True(t, utf8.ValidString(x.Body))
			require.False(t, strings.ContainsAny(x.Body, "\r\x00\ufeff"), "CR, NUL or BOM")
			require.True(t, strings.HasSuffix(x.Body, "\n"))
			require.Equal(t, strings.TrimSpace(x.Body)+"\n", x.Body, "space around the text")
		})
	}
}

// Every file of the folder is in the table: a text that is embedded but not listed would be
// forgotten silently.
func TestAll_ListsEveryFile(t *testing.T) {
	paths, err := filepath.Glob("*.txt")
	require.NoError(t, err)
	var want, got []string
	for _, p := range paths {
		want = append(want, strings.TrimSuffix(p, ".txt"))
	}
	for _, x := range texts.All() {
		got = append(got, x.Name)
		raw, err := os.ReadFile(x.Name + ".txt")
		require.NoError(t, err)
		require.Equal(t, string(raw), x.Body)
	}
	require.ElementsMatch(t, want, got)
}

// A passage that occurs twice is predicted from its first copy, whatever became of the rest of
// the cache: none is shared between texts, and none is repeated inside one.
func TestAll_NoPassageTwice(t *testing.T) {
	const n = 60
	type place struct {
		name string
		at   int
	}
	seen := map[string]place{}
	for _, x := range texts.All() {
		for at := 0; at+n <= len(x.Body); at++ {
			s := x.Body[at : at+n]
			first, dup := seen[s]
			// Inside one text source code may repeat an idiom; 60 bytes of it are tolerated,
			// between texts they are not.
			if dup && first.name != x.Name {
				t.Fatalf("%s at %d repeats %s at %d: %q", x.Name, at, first.name, first.at, s)
			}
			if dup && !strings.HasPrefix(x.Kind, "code") {
				t.Fatalf("%s at %d repeats itself at %d: %q", x.Name, at, first.at, s)
			}
			if !dup {
				seen[s] = place{x.Name, at}
			}
		}
	}
	require.Greater(t, len(seen), 80_000)
}

func TestAll_CallerOwnsTheSlice(t *testing.T) {
	a := texts.All()
	want := a[0]
	a[0] = texts.Text{}
	require.Equal(t, want, texts.All()[0])
}
