// SPDX-License-Identifier: Apache-2.0

package damage_test

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func TestSum_Relative(t *testing.T) {
	var s damage.Sum
	require.Zero(t, s.Relative())
	s.Add([]float32{3, 4}, []float32{3, 3})
	require.InDelta(t, 1.0/25, s.Relative(), 1e-12)
	o := damage.Sum{Err: 3, Ref: 75}
	s.Merge(o)
	require.InDelta(t, 4.0/100, s.Relative(), 1e-12)
	require.True(t, math.IsInf(damage.Sum{Err: 1}.Relative(), 1))
}

// Two KV heads, GQA 2, four rows of context and two of tail: the measurement against arithmetic by
// hand in float64, with the causal mask on the tail.
func TestFuture_AgainstByHand(t *testing.T) {
	const heads, group, n, dim = 2, 2, 2, 8
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	upload := func(x quant.Rows) backend.Side {
		c := quant.Coding{Format: quant.F32}
		b := make([]byte, c.PackedBytes(x.Len(), dim))
		require.NoError(t, quant.Encode(b, c, x, 0))
		buf, err := be.Alloc(int64(len(b)))
		require.NoError(t, err)
		require.NoError(t, buf.Upload(0, b))
		return backend.Side{Coding: c, Data: backend.Span{Buf: buf, Len: int64(len(b))}}
	}
	block := func(k, v quant.Rows, base int64) []backend.Block {
		return []backend.Block{{Rows: int32(k.Len()), K: upload(k), V: upload(v), Base: base}}
	}
	f := &damage.Future{Group: group, HeadDim: dim, HeadDimV: dim, Pos: []int64{4, 5},
		Geo: &quant.Geometry{Layers: 1, Heads: heads * group, KVHeads: heads, HeadDim: dim, HeadDimV: dim}}
	f.Q = quanttest.Rows(quanttest.Gaussian, heads*group*n, dim, 9).Data
	var sum damage.Sum
	for h := range heads {
		seed := uint64(10 * h)
		k, v := quanttest.Rows(quanttest.Gaussian, 4, dim, seed+1), quanttest.Rows(quanttest.Gaussian, 4, dim, seed+2)
		kc, vc := quanttest.Rows(quanttest.Gaussian, 4, dim, seed+3), quanttest.Rows(quanttest.Gaussian, 4, dim, seed+4)
		kt, vt := quanttest.Rows(quanttest.Gaussian, 2, dim, seed+5), quanttest.Rows(quanttest.Gaussian, 2, dim, seed+6)
		f.Exact = append(f.Exact, block(k, v, 0))
		f.Coded = append(f.Coded, block(kc, vc, 0))
		f.Tail = append(f.Tail, block(kt, vt, 4))
		for g := range group {
			for i := range n {
				q := f.Q[((h*group+g)*n+i)*dim:][:dim]
				tail := quant.Rows{Dim: dim, Data: kt.Data[:(i+1)*dim]}
				tailV := quant.Rows{Dim: dim, Data: vt.Data[:(i+1)*dim]}
				sum.Add(byHand(q, k, v, tail, tailV), byHand(q, kc, vc, tail, tailV))
			}
		}
	}
	got, err := f.Measure(context.Background(), be)
	require.NoError(t, err)
	require.InEpsilon(t, sum.Relative(), got.Relative(), 1e-5)

	f.Coded = f.Exact
	got, err = f.Measure(context.Background(), be)
	require.NoError(t, err)
	require.Zero(t, got.Relative())
	f.Q = f.Q[1:]
	_, err = f.Measure(context.Background(), be)
	require.ErrorIs(t, err, quant.ErrShape)
}

// A layer with a window, a scale and a soft cap of its own: rows outside the window of a query, in the context
// and in the tail, are seen by it no more.
func TestFuture_AsTheLayerAttends(t *testing.T) {
	const n, dim, window = 3, 8, 3
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	rows := func(n int, seed uint64) quant.Rows { return quanttest.Rows(quanttest.Gaussian, n, dim, seed) }
	k, v, kc, vc := rows(4, 1), rows(4, 2), rows(4, 3), rows(4, 4)
	kt, vt := rows(n, 5), rows(n, 6)
	a := quant.LayerAttention{Window: window, Scale: 0.9, Softcap: 1.5}
	g := &quant.Geometry{Layers: 2, Heads: 1, KVHeads: 1, HeadDim: dim, HeadDimV: dim,
		PerLayer: []quant.LayerAttention{{}, a}}
	block := func(k, v quant.Rows, base int64) [][]backend.Block {
		return [][]backend.Block{{{Rows: int32(k.Len()), K: uploaded(t, be, k), V: uploaded(t, be, v), Base: base}}}
	}
	f := &damage.Future{Group: 1, HeadDim: dim, HeadDimV: dim, Pos: []int64{4, 5, 6}, Geo: g, Layer: 1,
		Q: rows(n, 9).Data, Exact: block(k, v, 0), Coded: block(kc, vc, 0), Tail: block(kt, vt, 4)}
	got, err := f.Measure(context.Background(), be)
	require.NoError(t, err)
	var sum damage.Sum
	for i := range n {
		attend := func(k, v quant.Rows) []float32 {
			all := func(a, b quant.Rows) quant.Rows { // the window's part of context and tail
				x := append(append([]float32(nil), a.Data...), b.Data[:(i+1)*dim]...)
				return quant.Rows{Dim: dim, Data: x[len(x)-window*dim:]}
			}
			return attendAs(a, f.Q[i*dim:][:dim], all(k, kt), all(v, vt))
		}
		sum.Add(attend(k, v), attend(kc, vc))
	}
	require.InEpsilon(t, sum.Relative(), got.Relative(), 1e-5)
	require.Zero(t, f.Sums[0][2].Err, "a query of which the window lies in the tail")
	require.Positive(t, f.Sums[0][1].Err)

	f.Want, f.Layer = nil, 0
	plain, err := f.Measure(context.Background(), be)
	require.NoError(t, err)
	require.NotEqual(t, plain.Relative(), got.Relative())
}

func uploaded(t *testing.T, be backend.Backend, x quant.Rows) backend.Side {
	c := quant.Coding{Format: quant.F32}
	b := make([]byte, c.PackedBytes(x.Len(), x.Dim))
	require.NoError(t, quant.Encode(b, c, x, 0))
	buf, err := be.Alloc(int64(len(b)))
	require.NoError(t, err)
	require.NoError(t, buf.Upload(0, b))
	return backend.Side{Coding: c, Data: backend.Span{Buf: buf, Len: int64(len(b))}}
}

func attendAs(a quant.LayerAttention, q []float32, k, v quant.Rows) []float32 {
	out, z := make([]float64, len(q)), 0.0
	for r := range k.Len() {
		s := 0.0
		for i, x := range k.Row(r) {
			s += float64(q[i]) * float64(x)
		}
		w := math.Exp(a.Softcap * math.Tanh(a.Scale*s/a.Softcap))
		z += w
		for i, x := range v.Row(r) {
			out[i] += w * float64(x)
		}
	}
	res := make([]float32, len(q))
	for i := range res {
		res[i] = float32(out[i] / z)
	}
	return res
}

func byHand(q []float32, parts ...quant.Rows) []float32 {
	out, z := make([]float64, len(q)), 0.0
	for p := 0; p < len(parts); p += 2 {
		for r := range parts[p].Len() {
			s := 0.0
			for i, x := range parts[p].Row(r) {
				s += float64(q[i]) * float64(x)
			}
			w := math.Exp(s / math.Sqrt(float64(len(q))))
			z += w
			for i, x := range parts[p+1].Row(r) {
				out[i] += w * float64(x)
			}
		}
	}
	res := make([]float32, len(q))
	for i := range res {
		res[i] = float32(out[i] / z)
	}
	return res
}
