// SPDX-License-Identifier: Apache-2.0

package visible_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
)

// acting are the characters that must not reach a terminal.
func acting() (all []rune) {
	add := func(from, to rune) {
		for r := from; r <= to; r++ {
			if r != '\n' && r != '\t' {
				all = append(all, r)
			}
		}
	}
	add(0, 0x1f)
	add(0x7f, 0x9f)
	add(0x061c, 0x061c)
	add(0x200e, 0x200f)
	add(0x2028, 0x202e)
	add(0x2066, 0x2069)
	return all
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"plain, été, 漢字, עברית":             "plain, été, 漢字, עברית",
		"a\x1b[31mb":                        `a\x1b[31mb`,
		"nul\x00":                           `nul\x00`,
		"\x7f":                              `\u007f`,
		"\u009b31m":                         `\u009b31m`,
		"\u202eevil\u2066":                  `\u202eevil\u2066`,
		"\x9b31m":                           `\x9b31m`, // a byte, not a character
		"\xe2\x82":                          `\xe2\x82`,
		"\ufffd":                            "\ufffd",
		"two\nlines\tand":                   "two\nlines\tand",
		"back\rto":                          `back\x0dto`,
		"family \U0001f468\u200d\U0001f469": "family \U0001f468\u200d\U0001f469",
	} {
		require.Equal(t, want, visible.Text(in), "%q", in)
	}
	for _, r := range acting() {
		s := visible.Text("a" + string(r) + "b")
		require.Regexp(t, `^a\\(x|u00|u)[0-9a-f]{2,4}b$`, s, "%U", r)
	}
	require.Equal(t, `a\nb\tc\x1b`, visible.Line("a\nb\tc\x1b"))
}

func TestCut(t *testing.T) {
	require.Equal(t, "abc", visible.Cut("abc", 3))
	require.Equal(t, "ab... (2 more bytes)", visible.Cut("abcd", 2))
	require.Equal(t, "a... (2 more bytes)", visible.Cut("aé", 2), "no half characters")
	require.Equal(t, "\x80\x80... (8 more bytes)", visible.Cut(strings.Repeat("\x80", 10), 6),
		"bytes that are no character are cut somewhere near")
}

// However a text is split over writes, the same comes out.
func TestWriter_AnySplit(t *testing.T) {
	text := "é\x1b[0m 漢\u202e字\U0001f468 \xff\xe2\x82 end\xf0\x9f"
	want := visible.Text(text)
	for i := range len(text) + 1 {
		for j := i; j <= len(text); j++ {
			var b bytes.Buffer
			w := visible.NewWriter(&b)
			for _, part := range []string{text[:i], text[i:j], text[j:]} {
				n, err := w.Write([]byte(part))
				require.NoError(t, err)
				require.Equal(t, len(part), n)
			}
			require.NoError(t, w.Flush())
			require.NoError(t, w.Flush(), "once more changes nothing")
			require.Equal(t, want, b.String(), "split at %d and %d", i, j)
		}
	}
}

type full struct{}

var errFull = errors.New("no space")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestWriter_KeepsErrors(t *testing.T) {
	w := visible.NewWriter(full{})
	_, err := w.Write([]byte("x"))
	require.ErrorIs(t, err, errFull)
	_, err = w.Write([]byte("\xe2"))
	require.NoError(t, err, "held back")
	require.ErrorIs(t, w.Flush(), errFull)
}

// JSON that goes through a Writer holds the same strings, and nothing that acts.
func TestWriter_JSONStaysJSON(t *testing.T) {
	var all strings.Builder
	for _, r := range acting() {
		fmt.Fprintf(&all, "%c", r)
	}
	var b bytes.Buffer
	w := visible.NewWriter(&b)
	require.NoError(t, json.NewEncoder(w).Encode(map[string]string{"k": all.String()}))
	require.NoError(t, w.Flush())
	require.Equal(t, b.String(), visible.Text(b.String()), "nothing acts")
	var back map[string]string
	require.NoError(t, json.Unmarshal(b.Bytes(), &back))
	require.Equal(t, all.String(), back["k"])
}

type named string

type inner struct {
	Name   named
	hidden string
}

type outer struct {
	inner
	List    []inner
	Map     map[string]any
	Pointer *inner
	Nil     *inner
	Numbers []float32
	Any     any
	Pair    [2]string
}

func TestMap(t *testing.T) {
	in := outer{inner: inner{Name: "a", hidden: "h"}, List: []inner{{Name: "b"}},
		Map: map[string]any{"c": "d", "e": []string{"f"}}, Pointer: &inner{Name: "g"},
		Numbers: []float32{1}, Any: inner{Name: "i"}, Pair: [2]string{"j", "k"}}
	up := visible.Map(&in, strings.ToUpper)
	require.Equal(t, &outer{inner: inner{Name: "A", hidden: "h"}, List: []inner{{Name: "B"}},
		Map: map[string]any{"C": "D", "E": []string{"F"}}, Pointer: &inner{Name: "G"},
		Numbers: []float32{1}, Any: inner{Name: "I"}, Pair: [2]string{"J", "K"}}, up)
	require.Equal(t, named("b"), in.List[0].Name, "the original stays")
	require.Equal(t, named("g"), in.Pointer.Name)
	require.Nil(t, visible.Map[any](nil, strings.ToUpper))
}

// Cutting may make keys equal: none may be lost.
func TestMap_KeysStayApart(t *testing.T) {
	got := visible.Map(map[string]int{"xa": 1, "xb": 2, "xc": 3}, func(s string) string { return s[:1] })
	require.Equal(t, map[string]int{"x": 1, "x'": 2, "x''": 3}, got)
}
