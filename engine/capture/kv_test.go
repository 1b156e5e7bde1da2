// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

func TestKV_Small(t *testing.T) {
	s := mustOpen(t, smallKV().bytes(t))
	equal(t, "is a KV capture", s.Info().KV, true)
	g := s.Info().Geometry
	inv := g.Rope.InvFreq
	equal(t, "frequencies", len(inv), 4)
	g.Rope.InvFreq = nil
	want := quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 4,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 10000}}
	if g.Layers != want.Layers || g.Heads != want.Heads || g.KVHeads != want.KVHeads ||
		g.HeadDim != want.HeadDim || g.HeadDimV != want.HeadDimV ||
		g.Rope.Layout != want.Rope.Layout || g.Rope.RotaryDim != 8 || g.Rope.Theta != 10000 {
		t.Fatalf("geometry %+v, want %+v", g, want)
	}
	if !slices.Equal(s.Info().Layers, []int{1, 3}) {
		t.Fatalf("layers %v", s.Info().Layers)
	}
	equal(t, "model", s.Info().Model, "toy")
	equal(t, "metadata", s.Info().Metadata["rope_applied"], "true")
	equal(t, "tokens", s.Info().Tokens, 3)
	equal(t, "tokens after", s.Info().TokensNext, 2)
	equal(t, "type of k 1", dtype(s, 1, capture.K), quant.Float16)
	equal(t, "type of k 3", dtype(s, 3, capture.K), quant.BFloat16)
	equal(t, "type of v 3", dtype(s, 3, capture.V), quant.Float32)
	equal(t, "type of q 3", dtype(s, 3, capture.Q), quant.DTypeInvalid)
	equal(t, "type of k 2", dtype(s, 2, capture.K), quant.DTypeInvalid)
	equal(t, "q of 1", has(s, 1, capture.Q), true)
	equal(t, "q of 3", has(s, 3, capture.Q), false)
	equal(t, "next of 1", has(s, 1, capture.QNext), true)
	equal(t, "next of 3", has(s, 3, capture.QNext), false)
	o, ok := s.OWeight(1)
	equal(t, "o_weight", ok && o.Heads() == 1 && o.Rows() == 6 && o.Dim() == 16, true)
	_, ok = s.OWeight(3)
	equal(t, "o_weight of 3", ok, false)

	var side []string
	for _, i := range s.SideTensors() {
		side = append(side, i.Name)
	}
	slices.Sort(side)
	if !slices.Equal(side, []string{"layers.1.o_weight", "layers.3.bias", "layers.3.kept", "note",
		"rope_inv_freq", "surprisal", "tokens"}) {
		t.Fatalf("side tensors %v", side)
	}
	checkSource(t, s, s.Info().Size)
}

func TestKV_RowsAreThoseOfTheTensor(t *testing.T) {
	s := mustOpen(t, smallKV().bytes(t))
	for _, layer := range s.Info().Layers {
		for p := capture.K; p <= capture.QNext; p++ {
			x, ok := s.KV(layer, p)
			if !ok {
				continue
			}
			info, _ := s.Lookup(x.Name())
			all := make([]byte, info.Bytes)
			noError(t, s.ReadAt(x.Name(), 0, all))
			for head := range x.Heads() {
				for first := 0; first <= x.Rows(); first++ {
					n := x.Rows() - first
					got := make([]byte, n*x.RowBytes())
					noError(t, x.Read(head, first, n, got))
					from := (head*x.Rows() + first) * x.RowBytes()
					equal(t, x.Name(), string(got), string(all[from:from+len(got)]))
				}
			}
		}
	}
}

func TestKV_RowArguments(t *testing.T) {
	s := mustOpen(t, smallKV().bytes(t))
	k, _ := s.KV(1, capture.K)
	f := make([]float32, 8)
	wantCategory(t, k.ReadF32(2, 0, 1, f), quant.ErrShape, "head 2, want [0, 2)")
	wantCategory(t, k.ReadF32(-1, 0, 1, f), quant.ErrShape)
	wantCategory(t, k.ReadF32(0, 3, 1, f), quant.ErrShape, "1 rows from row 3, it has 3")
	wantCategory(t, k.ReadF32(0, math.MaxInt, 1, f), quant.ErrShape)
	wantCategory(t, k.ReadF32(0, 0, -1, f), quant.ErrShape)
	wantCategory(t, k.ReadF32(0, 0, 2, f), quant.ErrShape,
		"dst has 8 values, want 2 rows of 8 = 16")
	wantCategory(t, k.Read(0, 0, 1, make([]byte, 8)), quant.ErrShape,
		"dst has 8 bytes, want 1 rows of 16 = 16")
	wantCategory(t, capture.Tensor{}.Read(0, 0, 0, nil), quant.ErrShape, "of no file")
	noError(t, k.ReadF32(1, 3, 0, nil))
	noError(t, s.Close())
	wantCategory(t, k.ReadF32(0, 0, 1, f), quant.ErrClosed)
	wantCategory(t, s.ReadTokens(false, 0, nil), quant.ErrClosed)
}

func TestKV_SideData(t *testing.T) {
	f := smallKV()
	s := mustOpen(t, f.bytes(t))
	pos := make([]int64, 2)
	noError(t, s.ReadPositions(false, 1, pos))
	if !slices.Equal(pos, []int64{6, 7}) {
		t.Fatalf("positions %v, want 6 7", pos)
	}
	noError(t, s.ReadPositions(true, 0, pos))
	if !slices.Equal(pos, []int64{8, 9}) {
		t.Fatalf("positions after %v, want 8 9", pos)
	}
	tok := make([]int32, 3)
	noError(t, s.ReadTokens(false, 0, tok))
	b := make([]byte, 12)
	noError(t, s.ReadAt("tokens", 0, b))
	for i := range tok {
		equal(t, "token", tok[i], int32(binary.LittleEndian.Uint32(b[4*i:])))
	}
	sur := make([]float32, 1)
	noError(t, s.ReadSurprisal(false, 2, sur))
	noError(t, s.ReadAt("surprisal", 8, b[:4]))
	equal(t, "surprisal", math.Float32bits(sur[0]), binary.LittleEndian.Uint32(b))
	wantFormatError(t, s.ReadTokens(true, 0, tok[:2]), quant.ErrUnsupported, `"tokens_next" is not in`)
	wantCategory(t, s.ReadTokens(false, 2, tok), quant.ErrShape, "3 tokens from token 2, there are 3")
	_, next := s.Lookup("tokens_next")
	equal(t, "has tokens after", next, false)

	kept, bias := make([]uint8, 3), make([]float32, 3)
	noError(t, s.ReadKept(1, 0, 0, kept))
	equal(t, "kept by default", string(kept), "\x01\x01\x01")
	noError(t, s.ReadKept(3, 1, 0, kept))
	noError(t, s.ReadAt("layers.3.kept", 3, b[:3]))
	equal(t, "kept", string(kept), string(b[:3]))
	bias[0] = 9
	noError(t, s.ReadBias(1, 0, 0, bias))
	equal(t, "bias by default", bias[0], 0)
	noError(t, s.ReadBias(3, 1, 1, bias[:2]))
	noError(t, s.ReadAt("layers.3.bias", 16, b[:8]))
	equal(t, "bias", math.Float32bits(bias[1]), binary.LittleEndian.Uint32(b[4:]))
	wantCategory(t, s.ReadKept(0, 0, 0, kept), quant.ErrShape, "layer 0 is not in the file")
	wantCategory(t, s.ReadKept(3, 2, 0, kept), quant.ErrShape, "kv_head 2, want [0, 2)")
}

func TestKV_Positions(t *testing.T) {
	f := smallKV()
	f.add("positions", "I32", 3)
	var m memFile
	w, err := capture.NewWriter(&m, f.decls, f.meta)
	noError(t, err)
	b := binary.LittleEndian.AppendUint32(nil, 10)
	b = binary.LittleEndian.AppendUint32(b, 0xffffffff)
	noError(t, w.WriteAt("positions", 0, binary.LittleEndian.AppendUint32(b, 40)))
	m.b = append(m.b, make([]byte, int(w.Size())-len(m.b))...)
	s := mustOpen(t, m.b)
	pos := make([]int64, 2)
	noError(t, s.ReadPositions(true, 0, pos))
	if !slices.Equal(pos, []int64{41, 42}) {
		t.Fatalf("positions after %v, want 41 42", pos)
	}
	err = s.ReadPositions(false, 0, pos)
	fe := wantFormatError(t, err, quant.ErrUnsupported, "position -1 of token 1, want 0 or more")
	equal(t, "tensor", fe.Tensor, "positions")
}

func TestKV_Bad(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *file)
		want error
		text string
	}{
		{"no k", func(f *file) { f.set("layers.3.k", "") }, quant.ErrCorrupt,
			`"layers.3.v" at byte`},
		{"no v", func(f *file) { f.set("layers.3.v", "") }, quant.ErrCorrupt,
			`tensor "layers.3.v" is missing`},
		{"only q", func(f *file) { f.add("layers.2.q", "F16", 4, 3, 8) }, quant.ErrCorrupt,
			`tensor "layers.2.k" is missing`},
		{"only kept", func(f *file) { f.add("layers.2.kept", "U8", 2, 3) }, quant.ErrCorrupt,
			`tensor "layers.2.k" is missing`},
		{"k_next alone", func(f *file) { f.set("layers.1.v_next", "") }, quant.ErrCorrupt,
			`tensor "layers.1.v_next" is missing`},
		{"q_next alone", func(f *file) { f.add("layers.3.q_next", "F16", 4, 2, 8) },
			quant.ErrCorrupt, `tensor "layers.3.k_next" is missing`},
		{"no layers", func(f *file) { f.decls = nil }, quant.ErrCorrupt, `no tensor "layers.N.k"`},
		{"layer beyond the model", func(f *file) { f.meta["layers"] = "3" }, quant.ErrCorrupt,
			"layer 3, the model has 3"},
		{"kv_heads", func(f *file) { f.meta["kv_heads"] = "1" }, quant.ErrCorrupt,
			"shape [2 3 8], want [1 3 8] = [kv_heads, tokens, head_dim]"},
		{"head_dim", func(f *file) { f.meta["head_dim"] = "16" }, quant.ErrCorrupt, "want [2 3 16]"},
		{"head_dim_v", func(f *file) { f.meta["head_dim_v"] = "8" }, quant.ErrCorrupt,
			"shape [2 3 4], want [2 3 8] = [kv_heads, tokens, head_dim_v]"},
		{"tokens of another layer", func(f *file) { f.set("layers.3.k", "F16", 2, 4, 8) },
			quant.ErrCorrupt, `"layers.3.k"`},
		{"tokens of v", func(f *file) { f.set("layers.1.v", "F32", 2, 4, 4) }, quant.ErrCorrupt,
			`"layers.1.v"`},
		{"heads of q", func(f *file) { f.set("layers.1.q", "F16", 2, 3, 8) }, quant.ErrCorrupt,
			"shape [2 3 8], want [4 3 8] = [heads, tokens, head_dim]"},
		{"tokens of q_next", func(f *file) { f.set("layers.1.q_next", "F16", 4, 3, 8) },
			quant.ErrCorrupt, "[heads, tokens_next, head_dim]"},
		{"two dims", func(f *file) { f.set("layers.1.k", "F16", 6, 8) }, quant.ErrCorrupt,
			"shape [6 8], want [heads, tokens, dim]"},
		{"i8", func(f *file) { f.set("layers.1.k", "I8", 2, 3, 8) }, quant.ErrUnsupported,
			"not supported: element type I8, want F16, BF16, F32, F64, F8_E4M3 or F8_E5M2"},
		{"o_weight of i8", func(f *file) { f.set("layers.1.o_weight", "I8", 6, 16) },
			quant.ErrUnsupported, "element type I8,"},
		{"batch", func(f *file) { f.set("layers.1.k", "F16", 1, 2, 3, 8) }, quant.ErrUnsupported,
			"not supported: shape [1 2 3 8] is a batch, want one sequence"},
		{"no heads", func(f *file) {
			f.set("layers.1.k", "F16", 0, 3, 8)
			f.set("layers.1.v", "F16", 0, 3, 4)
		}, quant.ErrUnsupported, "shape [0 3 8] holds no values"},
		{"heads of another layer", func(f *file) {
			f.set("layers.3.k", "F16", 1, 3, 8)
			f.set("layers.3.v", "F16", 1, 3, 4)
		}, quant.ErrUnsupported, "not supported: layer 1 is k [2 3 8], v [2 3 4], q [4 3 8], " +
			"2 tokens after, layer 3 k [1 3 8], v [1 3 4]: layers that differ"},
		{"head_dim of another layer", func(f *file) {
			f.set("layers.3.k", "F16", 2, 3, 16)
			f.set("layers.3.v", "F16", 2, 3, 4)
		}, quant.ErrUnsupported, "want equal layers"},
		{"tokens of all of another layer", func(f *file) {
			f.set("layers.3.k", "F16", 2, 2, 8)
			f.set("layers.3.v", "F16", 2, 2, 4)
		}, quant.ErrUnsupported, "layers that differ in heads, tokens or head_dim"},
		{"kv_heads of each layer", func(f *file) { f.meta["kv_heads"] = "[2, 1]" },
			quant.ErrUnsupported, `kv_heads is "[2, 1]", a value for each layer`},
		{"head_dim of 70000", func(f *file) { f.meta["head_dim"] = "70000" }, quant.ErrUnsupported,
			"not supported: head_dim is 70000, want at most 65536"},
		{"head_dim_v of 70000", func(f *file) {
			f.set("layers.1.v", "F16", 2, 3, 70000)
			f.set("layers.3.v", "F16", 2, 3, 70000)
		}, quant.ErrUnsupported, "head_dim_v 70000, want at most 65536"},
		{"theta absurd", func(f *file) {
			f.meta["rope_theta"] = "1e-300"
			f.set("rope_inv_freq", "")
		}, quant.ErrUnsupported, "rope theta 1e-300"},
		{"o_weight", func(f *file) { f.set("layers.1.o_weight", "F16", 6, 32) }, quant.ErrCorrupt,
			"want [hidden, heads * head_dim_v = 16]"},
		{"kept", func(f *file) { f.set("layers.3.kept", "U8", 2, 4) }, quant.ErrCorrupt,
			"[kv_heads, tokens]"},
		{"kept of bool", func(f *file) { f.set("layers.3.kept", "BOOL", 2, 3) },
			quant.ErrUnsupported, "element type BOOL, want U8"},
		{"bias", func(f *file) { f.set("layers.3.bias", "F32", 3) }, quant.ErrCorrupt,
			`"layers.3.bias"`},
		{"tokens", func(f *file) { f.set("tokens", "I32", 4) }, quant.ErrCorrupt,
			"shape [4], want [3] = [tokens]"},
		{"tokens of i64", func(f *file) { f.set("tokens", "I64", 3) }, quant.ErrUnsupported,
			"element type I64, want I32"},
		{"tokens_next", func(f *file) { f.add("tokens_next", "I32", 3) }, quant.ErrCorrupt,
			"shape [3], want [2] = [tokens_next]"},
		{"inv_freq", func(f *file) { f.set("rope_inv_freq", "F32", 3) }, quant.ErrCorrupt,
			"shape [3], want [4] = [rotary_dim/2]"},
		{"heads no multiple", func(f *file) {
			f.meta["heads"] = "3"
			f.set("layers.1.q", "")
			f.set("layers.1.q_next", "")
			f.set("layers.1.o_weight", "")
		}, quant.ErrCorrupt, "3 heads, want a multiple of 2 kv_heads"},
		{"rotary_dim", func(f *file) { f.meta["rotary_dim"] = "10"; f.set("rope_inv_freq", "") },
			quant.ErrCorrupt, "rotary_dim 10"},
		{"rope not applied", func(f *file) { f.meta["rope_applied"] = "false" },
			quant.ErrUnsupported, `rope_applied is "false": K without RoPE`},
		{"rope_applied missing", func(f *file) { delete(f.meta, "rope_applied") },
			quant.ErrUnsupported, `rope_applied is "": K without RoPE`},
		{"rope_layout", func(f *file) { f.meta["rope_layout"] = "neox" }, quant.ErrUnsupported,
			`rope_layout is "neox"`},
		{"rope_layout missing", func(f *file) { delete(f.meta, "rope_layout") }, quant.ErrCorrupt,
			`key "rope_layout" is missing`},
		{"theta missing", func(f *file) { delete(f.meta, "rope_theta"); f.set("rope_inv_freq", "") },
			quant.ErrCorrupt, `key "rope_theta" is missing`},
		{"theta", func(f *file) { f.meta["rope_theta"] = "nan" }, quant.ErrCorrupt,
			`rope_theta is "nan"`},
		{"heads missing", func(f *file) { delete(f.meta, "heads") }, quant.ErrCorrupt,
			`key "heads" is missing`},
		{"heads zero", func(f *file) { f.meta["heads"] = "0" }, quant.ErrCorrupt, `heads is "0"`},
		{"heads text", func(f *file) { f.meta["heads"] = "4x" }, quant.ErrCorrupt, `heads is "4x"`},
		{"layers huge", func(f *file) { f.meta["layers"] = "99999999999999999999" },
			quant.ErrUnsupported, "layers is 99999999999999999999, want at most 16384"},
		{"first_position", func(f *file) { f.meta["first_position"] = "-1" }, quant.ErrCorrupt,
			`first_position is "-1"`},
		{"too many tokens", func(f *file) {
			f.decls = nil
			f.add("layers.0.k", "F16", 2, quant.MaxTokens+1, 0)
			f.add("layers.0.v", "F16", 2, 0, 4)
		}, quant.ErrTooLarge, "1099511627777 tokens"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := smallKV()
			c.edit(f)
			_, err := openBytes(f.bytes(t), capture.Limits{})
			wantFormatError(t, err, c.want, c.text)
		})
	}
}

func TestKV_FrequencyIsNotANumber(t *testing.T) {
	f := smallKV()
	b := f.bytes(t)
	info, _ := mustOpen(t, b).Lookup("rope_inv_freq")
	binary.LittleEndian.PutUint32(b[info.Offset+8:], 0x7fc00000)
	_, err := openBytes(b, capture.Limits{})
	wantFormatError(t, err, quant.ErrCorrupt, "value 2 is NaN, want a finite number")
}

func TestKV_Variants(t *testing.T) {
	f := smallKV()
	delete(f.meta, "rope_theta") // the frequencies suffice
	g := mustOpen(t, f.bytes(t)).Info().Geometry
	equal(t, "theta", g.Rope.Theta, 0)

	f = smallKV()
	f.meta["rope_layout"], f.meta["rotary_dim"] = "interleaved", "4"
	f.set("rope_inv_freq", "")
	g = mustOpen(t, f.bytes(t)).Info().Geometry
	equal(t, "layout", g.Rope.Layout, quant.RopeInterleaved)
	equal(t, "rotary_dim", g.Rope.RotaryDim, 4)

	f = smallKV()
	f.meta["rope_layout"] = "none"
	delete(f.meta, "rope_applied")
	g = mustOpen(t, f.bytes(t)).Info().Geometry
	equal(t, "no rope", g.Rope.Layout == quant.RopeNone && g.Rope.InvFreq == nil, true)

	f = smallKV()
	f.add("layers.01.k", "F16", 2, 3, 8) // not a name of a layer
	equal(t, "side tensors", len(mustOpen(t, f.bytes(t)).SideTensors()), 8)

	f = &file{meta: smallKV().meta} // no tokens at all
	f.add("layers.0.k", "F16", 2, 0, 8)
	f.add("layers.0.v", "F16", 2, 0, 8)
	s := mustOpen(t, f.bytes(t))
	equal(t, "tokens", s.Info().Tokens, 0)
	k, ok := s.KV(0, capture.K)
	equal(t, "k is there", ok, true)
	noError(t, k.ReadF32(0, 0, 0, nil))
	noError(t, s.ReadPositions(false, 0, nil))
}

func TestKVMetadata_RoundTrip(t *testing.T) {
	g := quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 4,
		Rope: quant.Rope{Layout: quant.RopeInterleaved, RotaryDim: 6, Theta: 123456.789}}
	for _, layout := range []quant.RopeLayout{quant.RopeInterleaved, quant.RopeHalf, quant.RopeNone} {
		if g.Rope.Layout = layout; layout == quant.RopeNone {
			g.Rope = quant.Rope{}
		}
		f := smallKV()
		f.set("rope_inv_freq", "")
		f.meta = capture.KVMetadata(g, "m", 77)
		s := mustOpen(t, f.bytes(t))
		got := s.Info().Geometry
		if got.Layers != g.Layers || got.Heads != g.Heads || got.KVHeads != g.KVHeads ||
			got.HeadDim != g.HeadDim || got.HeadDimV != g.HeadDimV ||
			got.Rope.Layout != g.Rope.Layout || got.Rope.RotaryDim != g.Rope.RotaryDim ||
			got.Rope.Theta != g.Rope.Theta {
			t.Fatalf("geometry %+v, want %+v", got, g)
		}
		equal(t, "first position", s.Info().FirstPosition, 77)
		equal(t, "model", s.Info().Model, "m")
	}
}

func TestKV_RealCapture(t *testing.T) {
	s, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	noError(t, err)
	defer s.Close()
	equal(t, "is a KV capture", s.Info().KV, true)
	g := s.Info().Geometry
	equal(t, "layers", g.Layers, 30)
	equal(t, "heads", g.Heads, 9)
	equal(t, "kv_heads", g.KVHeads, 3)
	equal(t, "head_dim_v", g.HeadDimV, 64)
	equal(t, "theta", g.Rope.Theta, 100000)
	equal(t, "tokens", s.Info().Tokens, 1024)
	equal(t, "tokens after", s.Info().TokensNext, 256)
	if !slices.Equal(s.Info().Layers, []int{0, 9, 19, 29}) {
		t.Fatalf("layers %v", s.Info().Layers)
	}
	for _, n := range s.Info().Layers {
		equal(t, "next", has(s, n, capture.QNext) && has(s, n, capture.Q), true)
		k, _ := s.KV(n, capture.K)
		rows, raw := make([]float32, 1024*64), make([]byte, 1024*128)
		noError(t, k.ReadF32(2, 0, 1024, rows))
		noError(t, k.Read(2, 0, 1024, raw))
		var energy float64
		for i, v := range rows {
			equal(t, "value", v, quant.F16ToF32(binary.LittleEndian.Uint16(raw[2*i:])))
			energy += float64(v) * float64(v)
		}
		if !(energy > 0) || math.IsInf(energy, 0) {
			t.Fatalf("layer %d: energy %v of K", n, energy)
		}
	}
	sur := make([]float32, 1024)
	noError(t, s.ReadSurprisal(false, 0, sur))
	for i, v := range sur {
		if !(v >= 0) {
			t.Fatalf("surprisal %d is %v", i, v)
		}
	}
	checkCopy(t, s)
}
