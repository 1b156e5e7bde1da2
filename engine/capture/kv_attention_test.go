// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"encoding/binary"
	"maps"
	"math"
	"reflect"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// layersKV returns smallKV as kv-capture/2 of four layers that differ in everything.
func layersKV() *file {
	f := smallKV()
	f.set("rope_inv_freq", "")
	maps.Copy(f.meta, map[string]string{"format": "kv-capture/2", "layer_windows": "512, 512,0,0",
		"layer_rope_theta":  "10000,10000,1e6,0",
		"layer_rope_layout": "half,half,half,none", "layer_rotary_dim": "8,8,4,0",
		"layer_scale": "0,0,0.0625,0", "layer_softcap": "0,50,0,0"})
	delete(f.meta, "rope_theta")
	return f
}

func TestKV_LayersThatDiffer(t *testing.T) {
	s := mustOpen(t, layersKV().bytes(t))
	equal(t, "format", s.Info().Metadata["format"], "kv-capture/2")
	local := quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 10000}
	want := quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 4, Rope: local,
		PerLayer: []quant.LayerAttention{{Rope: local, Window: 512},
			{Rope: local, Window: 512, Softcap: 50},
			{Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 4, Theta: 1e6}, Scale: 0.0625}, {}}}
	if got := s.Info().Geometry; !reflect.DeepEqual(got, want) {
		t.Fatalf("geometry %+v, want %+v", got, want)
	}
}

// Layers that say they differ and do not are alike.
func TestKV_LayersOfOneKind(t *testing.T) {
	f := smallKV()
	f.meta["format"], f.meta["layer_windows"] = "kv-capture/2", "0,0,0,0"
	g := mustOpen(t, f.bytes(t)).Info().Geometry
	equal(t, "alike", g.PerLayer == nil && len(g.Rope.InvFreq) == 4, true)
}

// layerGeometries are geometries that captures must carry unchanged.
func layerGeometries() map[string]quant.Geometry {
	half := func(theta float64, freqs ...float32) quant.Rope {
		return quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: theta, InvFreq: freqs}
	}
	part := quant.Rope{Layout: quant.RopeHalf, RotaryDim: 4, InvFreq: []float32{1, 0.5}}
	other := half(500)
	other.Layout = quant.RopeInterleaved
	g := func(all ...quant.LayerAttention) quant.Geometry {
		x := quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 4, PerLayer: all}
		return x.Canonical()
	}
	type a = quant.LayerAttention
	return map[string]quant.Geometry{
		"alike":          {Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 4, Rope: half(1e4)},
		"frequencies":    {Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 4, Rope: half(0, 1, 2, 3, 4)},
		"windows":        g(a{Rope: half(1e4), Window: 7}, a{Rope: half(1e4)}, a{Rope: half(1e4), Window: 7}, a{Rope: half(1e4)}),
		"bases":          g(a{Rope: half(1e4)}, a{Rope: half(1e6)}, a{Rope: half(1e4)}, a{Rope: half(123456.789)}),
		"some scaled":    g(a{Rope: half(1e4)}, a{Rope: half(1e6, 1, .5, .25, .125)}, a{Rope: half(1e4)}, a{Rope: part}),
		"not turning":    g(a{Rope: half(1e4, 0, 0, 0, 0)}, a{Rope: half(1e6)}, a{}, a{Rope: other}),
		"no rope at all": g(a{Window: 3}, a{}, a{Softcap: 30}, a{Scale: 1.0 / 3}),
		"all alike but":  g(a{Rope: half(1e4), Softcap: 50}, a{Rope: half(1e4), Softcap: 50}, a{Rope: half(1e4), Softcap: 50}, a{Rope: half(1e4), Softcap: 50}),
	}
}

func TestKVMetadata_LayersRoundTrip(t *testing.T) {
	for name, g := range layerGeometries() {
		t.Run(name, func(t *testing.T) {
			f := smallKV()
			f.set("rope_inv_freq", "")
			f.meta = capture.KVMetadata(g, "m", 77)
			want := "kv-capture/1"
			if g.PerLayer != nil {
				want = "kv-capture/2"
			}
			equal(t, "format", f.meta["format"], want)
			shape, freqs := capture.KVFrequencies(g)
			if shape != nil {
				f.add("rope_inv_freq", "F32", shape...)
			}
			var m memFile
			w, err := capture.NewWriter(&m, f.decls, f.meta)
			noError(t, err)
			if shape != nil {
				b, err := binary.Append(nil, binary.LittleEndian, freqs)
				noError(t, err)
				noError(t, w.WriteAt("rope_inv_freq", 0, b))
			}
			m.b = append(m.b, make([]byte, int(w.Size())-len(m.b))...)
			got := mustOpen(t, m.b).Info().Geometry
			if name == "not turning" { // a base beside such frequencies has no meaning
				g.Rope.Theta, g.PerLayer[0].Rope.Theta = 0, 0
			}
			if !reflect.DeepEqual(got, g) {
				t.Fatalf("geometry %+v,\nwant %+v\nof %v", got, g, f.meta)
			}
		})
	}
}

func TestKV_BadLayers(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *file)
		want error
		text string
	}{
		{"in /1", func(f *file) { f.meta["format"] = "kv-capture/1" }, quant.ErrCorrupt,
			`in a file of kv-capture/1, want kv-capture/2`},
		{"in /3", func(f *file) { f.meta["format"] = "kv-capture/3" }, quant.ErrVersion, `"kv-capture/3"`},
		{"too few", func(f *file) { f.meta["layer_windows"] = "1,2,3" }, quant.ErrCorrupt,
			"layer_windows has 3 values, want one for each of 4 layers"},
		{"none", func(f *file) { f.meta["layer_scale"] = "" }, quant.ErrCorrupt, "layer_scale has 1 values"},
		{"window negative", func(f *file) { f.meta["layer_windows"] = "1,-2,3,4" }, quant.ErrCorrupt,
			`layer_windows has "-2"`},
		{"window text", func(f *file) { f.meta["layer_windows"] = "1,all,3,4" }, quant.ErrCorrupt,
			`layer_windows has "all"`},
		{"window huge", func(f *file) { f.meta["layer_windows"] = "1,2,3,1099511627777" },
			quant.ErrUnsupported, "1099511627777"},
		{"scale NaN", func(f *file) { f.meta["layer_scale"] = "0,nan,0,0" }, quant.ErrCorrupt,
			`layer_scale has "nan"`},
		{"scale negative", func(f *file) { f.meta["layer_scale"] = "0,-1,0,0" }, quant.ErrCorrupt,
			`layer_scale has "-1"`},
		{"scale huge", func(f *file) { f.meta["layer_scale"] = "0,1e30,0,0" }, quant.ErrUnsupported,
			"not supported: attention scale 1e+30"},
		{"softcap Inf", func(f *file) { f.meta["layer_softcap"] = "0,inf,0,0" }, quant.ErrCorrupt,
			`layer_softcap has "inf"`},
		{"layout", func(f *file) { f.meta["layer_rope_layout"] = "half,neox,half,none" },
			quant.ErrUnsupported, `layer_rope_layout has "neox"`},
		{"layout without rope", func(f *file) { f.meta["rope_layout"] = "none" }, quant.ErrCorrupt,
			`layer_rope_layout has "half", and rope_layout is none`},
		{"rotary_dim beyond", func(f *file) { f.meta["layer_rotary_dim"] = "8,10,4,0" }, quant.ErrCorrupt,
			`layer_rotary_dim has "10"`},
		{"rotary_dim odd", func(f *file) { f.meta["layer_rotary_dim"] = "8,3,4,0" }, quant.ErrCorrupt,
			"layer 1: "},
		{"theta missing", func(f *file) { f.meta["layer_rope_theta"] = "1e4,1e4,0,0" }, quant.ErrCorrupt,
			"layer 2 has RoPE, and neither"},
		{"rows of frequencies", func(f *file) { f.add("rope_inv_freq", "F32", 3, 4) }, quant.ErrCorrupt,
			"[layers, rotary_dim/2]"},
		{"frequencies of a layer without rope", func(f *file) { f.add("rope_inv_freq", "F32", 4, 4) },
			quant.ErrCorrupt, "behind the 2 frequencies of the layer"},
		{"half as many frequencies", func(f *file) { f.add("rope_inv_freq", "F32", 4, 2) }, quant.ErrCorrupt,
			"shape [4 2], want [4 4]"},
		{"residual_ms of f16", func(f *file) { f.add("layers.3.residual_ms", "F16", 6) },
			quant.ErrUnsupported, "element type F16, want F32"},
		{"residual_ms of two dims", func(f *file) { f.add("layers.3.residual_ms", "F32", 6, 1) },
			quant.ErrCorrupt, "want [hidden]"},
		{"residual_ms and o_weight", func(f *file) { f.add("layers.1.residual_ms", "F32", 5) },
			quant.ErrCorrupt, "hidden size 5, o_weight of the layer has 6"},
		{"residual_ms of two layers", func(f *file) {
			f.add("layers.1.residual_ms", "F32", 6)
			f.add("layers.3.residual_ms", "F32", 7)
		}, quant.ErrCorrupt, "hidden size 7, an earlier layer has 6"},
		{"residual_ms alone", func(f *file) { f.add("layers.2.residual_ms", "F32", 6) }, quant.ErrCorrupt,
			`tensor "layers.2.k" is missing`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := layersKV()
			c.edit(f)
			_, err := openBytes(f.bytes(t), capture.Limits{})
			wantFormatError(t, err, c.want, c.text)
		})
	}
}

func TestKV_Residual(t *testing.T) {
	f := smallKV()
	f.add("layers.1.residual_ms", "F32", 6)
	b := f.bytes(t)
	s := mustOpen(t, b)
	equal(t, "channels", s.ResidualDim(1), 6)
	equal(t, "channels of a layer without", s.ResidualDim(3), 0)
	equal(t, "channels of no layer", s.ResidualDim(2), 0)
	got := make([]float32, 6)
	noError(t, s.ReadResidual(1, got))
	info, _ := s.Lookup("layers.1.residual_ms")
	for i, v := range got {
		equal(t, "value", math.Float32bits(v), binary.LittleEndian.Uint32(b[info.Offset+4*int64(i):]))
	}
	wantCategory(t, s.ReadResidual(1, got[:5]), quant.ErrShape, "dst has 5 values, want 6")
	wantCategory(t, s.ReadResidual(3, got), quant.ErrShape, "is not in the file")
	for _, bits := range []uint32{0x7fc00000, 0xbf800000, 0x7f800000} {
		binary.LittleEndian.PutUint32(b[info.Offset+8:], bits)
		wantFormatError(t, mustOpen(t, b).ReadResidual(1, got), quant.ErrCorrupt, "value 2 is ")
	}
}
