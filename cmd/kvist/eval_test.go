// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/model/modeltest"
)

// command runs one command line in this process.
func command(t *testing.T, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return status, out.String(), errs.String()
}

func TestChooseMethods_NamesAndPatterns(t *testing.T) {
	names := func(s string) []string {
		list, err := chooseMethods(s)
		require.NoError(t, err)
		var out []string
		for _, m := range list {
			out = append(out, m.Name())
		}
		return out
	}
	want := []string{"kivi2"} // named first, then once only
	for _, m := range methods.Standard() {
		if n := m.Name(); strings.HasPrefix(n, "kivi") && n != "kivi2" {
			want = append(want, n)
		}
	}
	require.Greater(t, len(want), 1)
	require.Equal(t, want, names("kivi2 kivi*"))
	require.Len(t, names("standard f16"), len(methods.Standard()))
	require.Equal(t, []string{"snapkv:25%", "fp8"}, names(" snapkv:25%  fp8 "))
	require.NotEmpty(t, names(defaultMethods))
	for _, bad := range []string{"", "nosuch", "nosuch*", "[*"} {
		_, err := chooseMethods(bad)
		require.Error(t, err, bad)
	}
}

func TestParseLayers_Forms(t *testing.T) {
	got, err := parseLayers("all", 3)
	require.NoError(t, err)
	require.Nil(t, got)
	got, err = parseLayers("2, 0", 3)
	require.NoError(t, err)
	require.Equal(t, []int{2, 0}, got)
	for _, bad := range []string{"", "3", "-1", "1,1", "x", "0,,1"} {
		_, err := parseLayers(bad, 3)
		require.Error(t, err, bad)
	}
}

func TestEval_WrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{"eval"}, {"eval", "smollm2", "--next", "1"}, {"eval", "smollm2", "--needles", "-1"},
		{"eval", "smollm2", "--methods", "nosuch"}, {"eval", "smollm2", "text", "--standard"},
		{"eval", "smollm2", "--threads", "-1"}, {"eval", "smollm2", "--name", "a/b"},
		{"eval", "smollm2", "--needles", "9", "--context", "100"},
		{"capture", "smollm2", "x"}, {"capture", "smollm2"}, {"capture", "m", "x", "-o", "y",
			"--dtype", "f8"},
		{"capture", "m", "x", "-o", "y", "--context", "0"}, {"capture", "m", "x", "-o", "y",
			"--next", "-1"},
	} {
		status, out, errs := command(t, "", args...)
		require.Equal(t, exitUsage, status, "%v: %s", args, errs)
		require.Empty(t, out)
		require.Equal(t, 1, strings.Count(errs, "\n"), "one line: %s", errs)
	}
	missing := filepath.Join(t.TempDir(), "none.gguf")
	status, _, _ := command(t, "text", "capture", missing, "-", "-o", filepath.Join(t.TempDir(),
		"o"))
	require.Equal(t, exitFailed, status)
	bad := filepath.Join(t.TempDir(), "bad.gguf")
	require.NoError(t, os.WriteFile(bad, []byte("not a model, but long enough for a header"),
		0o600))
	status, _, errs := command(t, "", "eval", bad, "--methods", "f16")
	require.Equal(t, exitDamaged, status, errs)
	for text, want := range map[string]int{"no JSON": exitDamaged, "{}": exitDamaged,
		`{"format":"kvist-quality/1","methods":[{"name":"x","texts":[{}]}]}`: exitDamaged} {
		status, _, errs = command(t, text, "eval", "--from", "-")
		require.Equal(t, want, status, errs)
	}
	status, out, _ := command(t, "", "eval", "--list-methods")
	require.Equal(t, exitOK, status)
	require.Contains(t, out, "kivi4")
}

// results are what eval draws: two families, one of them ours.
func results() *quality.Results {
	r := &quality.Results{Model: "a <model> & more", Context: 10, Next: 5}
	for i, m := range []quality.MethodResult{{Name: "kvist:3", Family: "kvist"}, {Name: "kivi4",
		Family: "kivi"},
		{Name: "kivi2", Family: "kivi"}, {Name: "f16", Family: "f16"}} {
		m.BitsPerValue = []float64{3, 5, 3, 16}[i]
		m.KL = quality.Interval{Mean: []float64{0.002, 0.004, 0.2, 1e-8}[i]}
		m.Source = "<script>"
		r.Methods = append(r.Methods, m)
	}
	return r
}

func TestPlotKL_WellFormed(t *testing.T) {
	for name, r := range map[string]*quality.Results{"two families": results(),
		"nothing to show": {}} {
		var svg bytes.Buffer
		require.NoError(t, plotKL(&svg, r), name)
		d := xml.NewDecoder(&svg)
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err, name)
		}
	}
	c := curves(results())
	require.Len(t, c, 2, "f16 is not shown")
	require.Equal(t, "kvist", c[0].family)
	require.Equal(t, 3.0, c[1].points[0].X, "sorted by bits")
}

func TestEvalPage_EscapesAndNeedsNothing(t *testing.T) {
	var page bytes.Buffer
	require.NoError(t, evalPage(&page, results()))
	s := page.String()
	require.Contains(t, s, "a &lt;model&gt; &amp; more")
	require.NotContains(t, s, "<script")
	require.Contains(t, s, "<svg")
	for _, outside := range []string{"src=", "<link", "@import", "url(http"} {
		require.NotContains(t, s, outside)
	}
}

func TestEval_InTheModel(t *testing.T) {
	modeltest.SmolLM2(t)
	dir := t.TempDir()
	text := filepath.Join(dir, "story.txt")
	require.NoError(t, os.WriteFile(text, []byte(texts.All()[0].Body), 0o600))
	svg, page := filepath.Join(dir, "p.svg"), filepath.Join(dir, "p.html")
	status, out, errs := command(t, "", "eval", "smollm2", text, "--context", "256", "--next", "16",
		"--methods", "f16 tqmse2 lm2+len:sinks=4", "--needles", "8", "--decode", "--window", "64",
		"--chunk", "64",
		"--json", "--plot", svg, "--html", page, "--results", filepath.Join(dir, "r"), "--name",
		"small")
	require.Equal(t, exitOK, status, errs)
	var r quality.Results
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Equal(t, quality.ResultsFormat, r.Format)
	require.Len(t, r.Methods, 3)
	require.Less(t, r.Methods[0].KL.Mean, 1e-5)
	require.Greater(t, r.Methods[1].KL.Mean, 0.01)
	require.Greater(t, r.Methods[1].Decoding.KL.Mean, r.Methods[0].Decoding.KL.Mean)
	require.Equal(t, 8, r.Methods[1].Retrieval.Asked)
	require.NotContains(t, r.Command, dir, "no paths of the machine in results")
	for _, f := range []string{svg, page, filepath.Join(dir, "r", "small.md"), filepath.Join(dir,
		"r", "small.json"),
		filepath.Join(dir, "r", "small.svg")} {
		st, err := os.Stat(f)
		require.NoError(t, err)
		require.Positive(t, st.Size())
	}
	// Shown again from its JSON: the same page, tables and numbers.
	again := filepath.Join(dir, "again")
	status, out2, errs := command(t, "", "eval", "--from", filepath.Join(dir, "r", "small.json"),
		"--json", "--results", again, "--name", "small")
	require.Equal(t, exitOK, status, errs)
	require.Equal(t, out, out2)
	for _, name := range []string{"small.md", "small.json", "small.svg"} {
		want, err := os.ReadFile(filepath.Join(dir, "r", name))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(again, name))
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	}
	// A second time: the plot is not replaced without --force.
	status, _, errs = command(t, "", "eval", "smollm2", text, "--context", "64", "--next", "4",
		"--methods", "f16", "--plot", svg)
	require.Equal(t, exitFailed, status)
	require.Contains(t, errs, "--force")
	status, out, errs = command(t, "", "eval", "smollm2", text, "--context", "64", "--next", "4",
		"--methods", "f16")
	require.Equal(t, exitOK, status, errs)
	require.Contains(t, out, "exact (f32)")
}

func TestCapture_IsAcceptedByCompress(t *testing.T) {
	modeltest.SmolLM2(t)
	dir := t.TempDir()
	body := texts.All()[1].Body
	at := func(name string) string { return filepath.Join(dir, name) }
	status, out, errs := command(t, body, "capture", "smollm2", "-", "-o", at("c.safetensors"),
		"--context", "96", "--next", "16", "--layers", "0,9", "--dtype", "f32", "--o-weight",
		"--json")
	require.Equal(t, exitOK, status, errs)
	var sum capturedJSON
	require.NoError(t, json.Unmarshal([]byte(out), &sum))
	require.Equal(t, []int{0, 9}, sum.Layers)
	f, err := os.Open(at("c.safetensors"))
	require.NoError(t, err)
	defer f.Close()
	src, err := capture.New("c", f, sum.Bytes, capture.Limits{})
	require.NoError(t, err)
	require.True(t, src.Info().KV)
	status, _, errs = command(t, "", "compress", at("c.safetensors"), "-o", at("c.kvist"),
		"--bits", "5")
	require.Equal(t, exitOK, status, errs)
	status, out, errs = command(t, "", "verify", at("c.kvist"), "--against", at("c.safetensors"))
	require.Equal(t, exitOK, status, errs+out)
	status, _, errs = command(t, "", "decompress", at("c.kvist"), "-o", at("back.safetensors"))
	require.Equal(t, exitOK, status, errs)
	// Through pipes the bytes are the same.
	status, out, errs = command(t, body, "capture", "smollm2", "-", "-o", "-",
		"--context", "96", "--next", "16", "--layers", "0,9", "--dtype", "f32", "--o-weight")
	require.Equal(t, exitOK, status, errs)
	want, err := os.ReadFile(at("c.safetensors"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, []byte(out)))
	require.Contains(t, errs, "96 tokens of context")
	// What is there stays; a text that is too short, a layer that is not there.
	status, _, errs = command(t, body, "capture", "smollm2", "-", "-o", at("c.safetensors"))
	require.Equal(t, exitFailed, status)
	require.Contains(t, errs, "--force")
	status, _, errs = command(t, "short", "capture", "smollm2", "-", "-o", at("d.safetensors"))
	require.Equal(t, exitFailed, status)
	require.Contains(t, errs, "tokens")
	status, _, _ = command(t, body, "capture", "smollm2", "-", "-o", at("d.safetensors"),
		"--layers", "30")
	require.Equal(t, exitUsage, status)
	require.NoFileExists(t, at("d.safetensors"))
}
