// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

// writeWindowed writes a capture of three layers, the first two of which see 64 tokens.
func writeWindowed(t *testing.T, path string, tokens int64) {
	local := quant.LayerAttention{Window: 64, Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 32, Theta: 1e4}}
	wide := quant.LayerAttention{Scale: 0.25, Softcap: 50, Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 32, Theta: 1e6}}
	g := quant.Geometry{Layers: 3, Heads: 2, KVHeads: 1, HeadDim: 32, HeadDimV: 32,
		PerLayer: []quant.LayerAttention{local, local, wide}}
	var decls []capture.Decl
	for _, l := range []string{"0", "1", "2"} {
		for part, shape := range map[string][]int64{"k": {1, tokens, 32}, "v": {1, tokens, 32}, "q": {2, tokens, 32},
			"k_next": {1, 20, 32}, "v_next": {1, 20, 32}, "q_next": {2, 20, 32}} {
			decls = append(decls, capture.Decl{Name: "layers." + l + "." + part, DTypeName: "F16", Shape: shape})
		}
	}
	f, err := os.Create(path)
	require.NoError(t, err)
	w, err := capture.NewWriter(f, decls, capture.KVMetadata(g, "windows", 0))
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range w.Tensors() {
		b := make([]byte, d.Bytes)
		for i := 0; i < len(b); i += 2 {
			h := quant.F32ToF16(float32(rng.NormFloat64()))
			b[i], b[i+1] = byte(h), byte(h>>8)
		}
		require.NoError(t, w.WriteAt(d.Name, 0, b))
	}
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
}

// Every verb shows layers that differ, and what lies outside of their windows.
func TestWindows_AreShown(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeWindowed(t, at("in.safetensors"), 300)
	run := func(args ...string) string {
		t.Helper()
		status, stdout, stderr := command(t, "", args...)
		require.Equal(t, exitOK, status, stderr)
		return stdout
	}
	const local = "layers 0-1: see 64 tokens, RoPE half of 32 with base 10000, scale 0.176777\n"
	const wide = "layers 2: see all tokens, RoPE half of 32 with base 1e+06, scale 0.25, soft cap 50\n"
	for _, form := range []string{"hot", "archive"} {
		out := run("compress", at("in.safetensors"), "-o", at("c.kvist"), "--force", "--form", form, "--bits", "2")
		require.Contains(t, out, "seen       47.3 % of values can be seen by later queries: ")
		out = run("inspect", at("c.kvist"))
		require.Contains(t, out, local)
		require.Contains(t, out, wide)
		require.Contains(t, out, "47.3 % of values: the others lie outside their layers' windows; ")
		require.Contains(t, out, "DROPPED")
		run("verify", at("c.kvist"), "--against", at("in.safetensors"))
		run("decompress", at("c.kvist"), "-o", at("back.safetensors"), "--force")
		require.Contains(t, run("inspect", at("back.safetensors")), local)
		out = run("report", at("c.kvist"), "-o", "-", "--json", "--against", at("in.safetensors"))
		var rep report.Report
		require.NoError(t, json.Unmarshal([]byte(out), &rep))
		require.Equal(t, int64(237), rep.Layers[0].Outside)
		require.Equal(t, int64(64), rep.Layers[1].AttentionWindow)
		require.Zero(t, rep.Layers[2].Outside)
		require.Len(t, rep.Attention, 2)
		require.Equal(t, 2*32*(63+63+300), int(rep.SeenValues))
		require.NotNil(t, rep.Errors.FutureError)
		require.Contains(t, run("report", at("c.kvist"), "-o", "-"), "bits a value that a later query can see")
	}
	run("compress", at("in.safetensors"), "-o", at("c.kvist"), "--force", "--form", "hot", "--bits", "2")
	out := run("inspect", at("c.kvist"), "--why", "--against", at("in.safetensors"))
	require.Regexp(t, `0 +0 +0 +237 of 0-236 +0 +[0-9.]+ +DROPPED +outside the layer's window`, out)
	require.NotRegexp(t, `2 +0 +0 .*outside`, out)
	run("report", at("c.kvist"), "-o", at("why.html"), "--against", at("in.safetensors"), "--why")

	run("calibrate", at("in.safetensors"), "-o", at("p.kvprofile"))
	require.Contains(t, run("inspect", at("p.kvprofile")), local)
	require.Contains(t, run("inspect", at("in.safetensors")), wide)
}
