// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestByName(t *testing.T) {
	for name, want := range map[string]string{
		"f16":                                "",
		"kivi2":                              "",
		"kivi3:window=64":                    "",
		"gear2:rank=8,share=1%":              "",
		"gear2:rank=4,share=2%":              "gear2",
		"uniform:k=lm3,v=lm3":                "lm3",
		"uniform:k=lm3+len+s8,v=lm2,sinks=4": "",
		"snapkv:25%":                         "",
		"snapkv:12.5%,window=32,pool=7":      "",
		"kvist:2.75":                         "",
		"kvist:k=lm4,v=lm4":                  "",
		"kvist:3,k=lm2+len+s8,lm4+len+s8,sinks=8": "",
		"kvist:bits=3,sinks=8":                    "kvist:3,sinks=8",
		"kvist:share=0.1":                         "",
		"kvist:2.75,weights=random":               "",
		"kvist-archive:1.8":                       "",
		"kvist:1.8,form=archive":                  "kvist-archive:1.8",
	} {
		m, err := ByName(name)
		require.NoError(t, err, name)
		if want == "" {
			want = name
		}
		require.Equal(t, want, m.Name())
		again, err := ByName(m.Name())
		require.NoError(t, err, name)
		require.Equal(t, want, again.Name())
	}
	for _, name := range []string{
		"", ":", "nothing", "kivi", "kivi9", "kivi2:x=1", "kivi2:window=-1", "kivi2:window",
		"kivi2:window=1,window=2", "tqprod5", "tqprod1", "snapkv", "snapkv:25", "snapkv:0%",
		"snapkv:101%", "snapkv:NaN%", "snapkv:25%,pool=4", "uniform", "uniform:k=lm3",
		"uniform:k=lm3,v=lm9", "fp8:sinks=4", "kvist", "kvist:", "kvist:x", "kvist:k=lm4",
		"kvist:2.75,bytes=5", "kvist:2,weights=random,weights=random", "kvist:2,weights=1",
		"kvist:bits=2 sinks=8", "gear2:share=100%,rank=x", "lm3+out2",
		"kvist-archive", "kvist-archive:", "kvist-archive:2,max-error=1",
		"kivi2:" + strings.Repeat("a=1,", 100),
	} {
		_, err := ByName(name)
		require.Error(t, err, name)
		require.True(t, errorIsCategory(err), "%s: %v", name, err)
	}
}

func errorIsCategory(err error) bool {
	return strings.HasPrefix(err.Error(), "kvist/methods: ") &&
		(errors.Is(err, quant.ErrUnsupported) || errors.Is(err, quant.ErrShape))
}

func FuzzByName(f *testing.F) {
	for _, m := range All() {
		f.Add(m.Name())
	}
	f.Add("kvist:3,k=lm2+len+s8,lm4,sinks=8")
	f.Add("kvist-archive:1.8,chunks=4")
	f.Add("gear2:rank=8,share=1%")
	f.Add("uniform:k=lm3,v=,sinks=99999999999")
	f.Fuzz(func(t *testing.T, name string) {
		if strings.Contains(name, "profile=") {
			t.Skip("a name of a profile opens a file")
		}
		m, err := ByName(name)
		if err != nil {
			require.True(t, errorIsCategory(err), "%v", err)
			return
		}
		again, err := ByName(m.Name())
		require.NoError(t, err, m.Name())
		require.Equal(t, m.Name(), again.Name())
		require.NotEmpty(t, m.Source())
	})
}

// Every name of the standard table is a method, and no two are the same.
func TestStandard_Names(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Standard() {
		require.False(t, seen[m.Name()], m.Name())
		seen[m.Name()] = true
	}
	require.Len(t, seen, 37)
}
