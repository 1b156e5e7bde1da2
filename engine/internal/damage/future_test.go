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
