// SPDX-License-Identifier: Apache-2.0

package page_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/page"
	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
	"github.com/kvist-project/kvist/engine/report"
)

func sample() *report.Report {
	x := 0.0123
	return &report.Report{File: "a.kvist", Kind: "cache", Version: "v1", Model: "m",
		Config: "bits=3 k=lm3,lm4",
		Bytes:  1234567, Values: 3000000, BitsPerValue: 3.29, OriginalBytes: 6000000, Ratio: 4.86,
		Tokens:        3,
		SegmentTokens: 512, Heads: 2, KVHeads: 1, HeadDim: 64, HeadDimV: 64,
		Layers: []report.Layer{{Number: 7, Name: "layer 7", Tokens: 3, Dim: 64}},
		Sections: []report.Section{{Name: "K codes", Bytes: 1000000}, {Name: "something new",
			Bytes: 234567}},
		Codings: []report.Coding{{Side: "K", Level: "FULL", Coding: "lm3", Values: 10,
			Bytes: 4, BitsPerValue: 3.2}},
		Map: report.Map{TokensPerColumn: 1, Kinds: []report.Kind{{Level: "FULL",
			K: "lm3", V: "lm2"}},
			Rows: []report.MapRow{{Kind: []int{0, 0, 0}, KBits: []float32{3.125, 16, 0},
				VBits: []float32{2, 2, 900}}}},
		Errors: &report.Errors{KError: &x,
			Layers: []report.LayerErrors{{Name: "layer 7", KError: &x}}},
	}
}

func write(t *testing.T, r *report.Report) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, page.Write(&b, r, "v0"))
	return b.String()
}

func TestWrite_ShowsTheNumbers(t *testing.T) {
	s := write(t, sample())
	for _, want := range []string{"3.29", "4.86×", "1.23\u00a0MB", "1.23\u00a0%",
		"1\u202f000\u202f000", "something new", "lm3, lm4"} {
		require.Contains(t, s, want)
	}
	require.NotContains(t, s, "future-attention error", "it was not measured")
	require.NotContains(t, s, "ZgotmplZ", "html/template refused a value")
}

var dataScript = regexp.MustCompile(`(?s)<script type="application/json" id="data">(.*?)</script>`)

func TestWrite_MapSurvivesPacking(t *testing.T) {
	m := dataScript.FindStringSubmatch(write(t, sample()))
	require.NotNil(t, m)
	var v struct{ Rows []struct{ Kind, K, V string } }
	require.NoError(t, json.Unmarshal([]byte(m[1]), &v))
	unpack := func(s string) (x []uint16) {
		b, err := base64.StdEncoding.DecodeString(s)
		require.NoError(t, err)
		for ; len(b) > 0; b = b[2:] {
			x = append(x, binary.LittleEndian.Uint16(b))
		}
		return x
	}
	require.Equal(t, []uint16{0, 0, 0}, unpack(v.Rows[0].Kind))
	require.Equal(t, []uint16{313, 1600, 0}, unpack(v.Rows[0].K))
	require.Equal(t, []uint16{200, 200, 65535}, unpack(v.Rows[0].V), "held at the largest")
}

func TestWrite_Why(t *testing.T) {
	r := sample()
	m := dataScript.FindStringSubmatch(write(t, r))
	require.NotContains(t, m[1], "coarser", "nothing is said where nothing is known")
	row := &r.Map.Rows[0]
	row.Weight, row.Damage = []float32{0.5, 1, 3}, []float32{1e-6, 0, 1e-2}
	row.Coarser, row.Finer = []float32{1.5, 2, 0}, []float32{0.25, 0, 1}
	m = dataScript.FindStringSubmatch(write(t, r))
	var v struct {
		Rows []struct{ Weight, Damage, Coarser, Finer string }
	}
	require.NoError(t, json.Unmarshal([]byte(m[1]), &v))
	first := func(s string) uint16 {
		b, err := base64.StdEncoding.DecodeString(s)
		require.NoError(t, err)
		require.Len(t, b, 6)
		return binary.LittleEndian.Uint16(b)
	}
	require.Equal(t, uint16(50), first(v.Rows[0].Weight))
	require.Equal(t, uint16(600), first(v.Rows[0].Damage))
	require.Equal(t, uint16(150), first(v.Rows[0].Coarser))
	require.Equal(t, uint16(25), first(v.Rows[0].Finer))
}

// Names come out of files: none of them may become markup or script.
func TestWrite_HostileNames(t *testing.T) {
	evil := `</script><script>alert(1)</script><img src=x onerror=alert(2)>"'` + "\u2028"
	r := sample()
	r.File, r.Model, r.Config, r.Layers[0].Name = evil, evil, evil, evil
	r.Errors.Layers[0].Name, r.Codings[0].Coding, r.Map.Kinds[0].K, r.Sections[0].Name = evil, evil,
		evil, evil
	s := write(t, r)
	require.NotContains(t, s, "<script>alert")
	require.NotContains(t, s, "<img")
	require.Equal(t, 2, strings.Count(s, "</script>"), "the data and the program, no more")
	m := dataScript.FindStringSubmatch(s)
	var v struct{ Layers []struct{ Name string } }
	require.NoError(t, json.Unmarshal([]byte(m[1]), &v))
	require.Equal(t, visible.Line(evil), v.Layers[0].Name)
}

// Neither the page nor the strings that its script reads hold a character that acts.
func TestWrite_NothingActs(t *testing.T) {
	evil := "a\x1b]0;x\a\x00\x7f\u009b31m\u202eb\u2066c\u200f\u061c\xff\nd"
	r := visible.Map(sample(), func(s string) string { return s + evil })
	s := write(t, r)
	require.Equal(t, visible.Text(s), s)
	require.Contains(t, s, visible.Line(evil), "it is shown instead")
	m := dataScript.FindStringSubmatch(s)
	var v any
	require.NoError(t, json.Unmarshal([]byte(m[1]), &v))
	visible.Map(v, func(s string) string {
		require.Equal(t, visible.Line(s), s)
		return s
	})
}

func TestWrite_LongNamesAreCut(t *testing.T) {
	r := sample()
	r.Model = strings.Repeat("m", 1<<20)
	s := write(t, r)
	require.Less(t, len(s), 100_000)
	require.Contains(t, s, "more bytes)")
}

func TestWrite_Empty(t *testing.T) {
	s := write(t, &report.Report{Kind: "rows"})
	require.Contains(t, s, "0 tensors")
	require.NotContains(t, s, "NaN")
}

type fullDisk struct{}

var errFull = errors.New("no space")

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestWrite_KeepsTheErrorOfTheWriter(t *testing.T) {
	require.ErrorIs(t, page.Write(fullDisk{}, sample(), "v0"), errFull)
}
