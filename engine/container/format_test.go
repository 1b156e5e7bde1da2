// SPDX-License-Identifier: Apache-2.0

package container

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite goldens, corrupt files and generated text")

// TestLayouts_HaveNoHoles checks that the fields of each table follow each other and fill the
// structure.
func TestLayouts_HaveNoHoles(t *testing.T) {
	sizes := map[string]int{"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8, "f64": 8}
	for _, l := range layouts() {
		at := 0
		for _, f := range l.fields {
			require.Equal(t, at, f.off, "%s.%s", l.name, f.name)
			if n, fixed := sizes[f.typ]; fixed {
				require.Equal(t, n, f.size, "%s.%s", l.name, f.name)
			} else {
				require.Equal(t, "bytes", f.typ)
			}
			at += f.size
		}
		require.Equal(t, l.bytes, at, l.name)
	}
}

// TestLayouts_ChecksumsStandWhereTheTablesSay compares the constants of the code with the tables.
func TestLayouts_ChecksumsStandWhereTheTablesSay(t *testing.T) {
	for _, c := range []struct {
		l  layout
		at int
	}{
		{layoutHeader, fileHeaderCRCAt}, {layoutRecord, recordCRCAt}, {layoutSide, sideCRCAt},
		{layoutIndex, indexCRCAt}, {layoutTrailer, trailerCRCAt},
	} {
		found := false
		for _, f := range c.l.fields {
			found = found || (f.name == "crc" && f.off == c.at)
		}
		require.True(t, found, c.l.name)
	}
}

// generatedText renders the generated parts of FORMAT.md.
func generatedText() map[string]string {
	out := map[string]string{}
	for _, l := range layouts() {
		var s strings.Builder
		fmt.Fprintf(&s,
			"**%s**, %d bytes\n\n| offset | size | type | name | meaning | legal values |\n"+
				"|---|---|---|---|---|---|\n",
			l.name, l.bytes)
		for _, f := range l.fields {
			fmt.Fprintf(&s, "| %d | %d | %s | %s | %s | %s |\n", f.off, f.size, f.typ, f.name, f.meaning,
				f.legal)
		}
		out[l.name] = s.String()
	}
	var s strings.Builder
	s.WriteString("| tag | name | required | value |\n|---|---|---|---|\n")
	for _, i := range tagInfos() {
		need := "no"
		if i.required {
			need = "yes"
		}
		fmt.Fprintf(&s, "| %d | %s | %s | %s |\n", i.tag, i.name, need, i.value)
	}
	out["tags"] = s.String()
	out["versions"] = fmt.Sprintf("| version | adds | since |\n|---|---|---|\n"+
		"| %d | the first format | kvist v0.1.0 |\n\nThis build reads versions %d to %d.\n",
		v1, MinSupported, MaxSupported)
	return out
}

func TestFormat_MatchesTables(t *testing.T) {
	b, err := os.ReadFile("FORMAT.md")
	require.NoError(t, err)
	text := string(b)
	for name, want := range generatedText() {
		begin := "<!-- generated: " + name + " -->\n"
		i := strings.Index(text, begin)
		require.GreaterOrEqual(t, i, 0, "FORMAT.md lacks the part %q", name)
		i += len(begin)
		n := strings.Index(text[i:], "<!-- /generated -->")
		require.GreaterOrEqual(t, n, 0, name)
		if *update {
			text = text[:i] + want + text[i+n:]
			continue
		}
		require.Equal(t, want, text[i:i+n],
			"FORMAT.md, part %q: run go test ./engine/container -update", name)
	}
	if *update {
		require.NoError(t, os.WriteFile("FORMAT.md", []byte(text), 0o644))
	}
}
