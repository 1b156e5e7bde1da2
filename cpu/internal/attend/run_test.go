// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// A run has the bits of the steps that it stands for, for every pair of formats and forms of scales, and
// reads nothing outside of the sides.
func TestRun(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(31, 32))
		for i := range 4 * 4 * 4 {
			kc, vc := quant.Coding{Format: quant.LM1 + quant.Format(i%4)}, quant.Coding{Format: quant.LM1 + quant.Format(i/4%4)}
			if i&16 != 0 {
				kc.Scale = quant.ScaleLog8
			}
			if i&32 != 0 {
				vc.Scale = quant.ScaleLog8
			}
			for heads := 1; heads <= RunHeads; heads++ {
				checkRun(t, k, rng, kc, vc, heads)
			}
		}
	})
}

// A run needs blocks of whole tiles in bit planes, of 64 values.
func TestRun_WhichForms(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		for _, x := range []struct {
			k, v            quant.Format
			rows, dim, dimV int
			want            int
		}{
			{quant.LM3, quant.LM2, 32, 64, 64, 32}, {quant.LM1, quant.LM4, 96, 64, 64, 96},
			{quant.LM3, quant.LM2, 33, 64, 64, 0}, {quant.LM3, quant.LM2, 0, 64, 64, 0},
			{quant.U8, quant.LM2, 32, 64, 64, 0}, {quant.LM2, quant.F16, 32, 64, 64, 0},
			{quant.LM2, quant.TQMSE2, 32, 64, 64, 0}, {quant.LM2, quant.LM2, 32, 128, 64, 0},
			{quant.LM2, quant.LM2, 32, 64, 128, 0},
		} {
			f := k.TileForm(quant.Coding{Format: x.k}, quant.Coding{Format: x.v}, x.rows, x.dim, x.dimV, 0)
			require.Equal(t, x.want, f.Rows(), "%v", x)
		}
	})
	f := Generic().TileForm(quant.Coding{Format: quant.LM2}, quant.Coding{Format: quant.LM2}, 32, 64, 64, 0)
	require.Zero(t, f.Rows())
}

// randomSide returns a side of random codes and of scales between 0 and 2, some 0.
func randomSide(t *testing.T, rng *rand.Rand, c quant.Coding, rows int) []byte {
	t.Helper()
	p := randomBytes(rng, c.PackedBytes(rows, byteBlock))
	at := len(p) - c.ScaleBytes(rows)
	if c.Scale == quant.ScaleLog8 {
		binary.LittleEndian.PutUint32(p[at:], math.Float32bits(2*rng.Float32()))
		p[at+4+rng.IntN(rows)] = 255
		return tight(t, p)
	}
	for r := range rows {
		binary.LittleEndian.PutUint16(p[at+2*r:], uint16(rng.IntN(0x4000)))
	}
	return tight(t, p)
}

func checkRun(t *testing.T, k *Kernels, rng *rand.Rand, kc, vc quant.Coding, heads int) {
	t.Helper()
	const dim = byteBlock
	rows, scale, noise := TileRows*(1+rng.IntN(3)), rng.Float32(), 1e-5*rng.Float32()*float32(rng.IntN(2))
	kSide, vSide := randomSide(t, rng, kc, rows), randomSide(t, rng, vc, rows)
	form := k.TileForm(kc, vc, rows, dim, dim, noise)
	cut := make([]byte, heads*QueryBytes(dim))
	q := make([]float32, dim)
	want := Heads{Dots: make([]float32, heads*TileRows), Weights: make([]float32, heads*TileRows),
		Energy: make([]float32, heads), Tops: make([]float32, heads), Sums: make([]float32, heads),
		Masks: make([]uint32, heads)}
	for h := range heads {
		for i := range q {
			q[i] = float32(rng.NormFloat64())
		}
		k.CutQuery(cut[h*QueryBytes(dim):], q)
		want.Energy[h], want.Tops[h] = rng.Float32(), float32(rng.NormFloat64())
		if rng.IntN(2) == 0 {
			want.Tops[h] = negInf
		}
	}
	w := &Weights{make([]byte, heads*DigitBytes), make([]float32, heads)}
	sum := make([]float32, heads*dim)
	acc, checkAcc := fenced(t, heads*dim)
	clear(acc)
	var r Run
	got := r.Begin(k, cut, heads, scale)
	copy(got.Energy[:], want.Energy)
	copy(got.Tops[:], want.Tops)
	put := func(i int) {
		if i < rows/TileRows {
			r.Put(i, &form, kSide, vSide, i*TileRows)
		}
	}
	put(0)
	put(1)
	r.Dots(0)
	for i := range rows / TileRows {
		put(i + 2)
		tops := got.Tops
		bad, rose := r.Weigh(i, i+2 < rows/TileRows)
		require.False(t, bad)
		require.Equal(t, tops != got.Tops, rose)
		r.Add(acc, i, i+1 < rows/TileRows)

		var tm Terms
		var vScale [TileRows]float32
		r0 := i * TileRows
		k.Scales(&tm.Mul, kc.Scale, kSide[len(kSide)-kc.ScaleBytes(rows):], r0, TileRows, Unit(kc.Format, dim)*scale)
		k.Scales(&vScale, vc.Scale, vSide[len(vSide)-vc.ScaleBytes(rows):], r0, TileRows, Unit(vc.Format, dim))
		k.Square(&tm.Noise, &tm.Mul, noise)
		for h := range want.Masks {
			want.Masks[h] = ^uint32(0)
		}
		k.DotPlanes(want.Dots, cut, heads, kc.Format, kSide, rows, r0)
		require.True(t, k.SoftmaxCut(w, &want, 0, heads, &tm, &vScale))
		k.AddPlanes(sum, w, heads, vc.Format, vSide, rows, r0)
		sameBits(t, want.Tops, got.Tops[:heads])
		sameBits(t, want.Sums, got.Sums[:heads])
		sameBits(t, sum, acc)
	}
	checkAcc()
	r.End()
}

// Weights of scales that AddPlanes does not take are refused, wherever such a scale is.
func TestRun_Refuses(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		c := quant.Coding{Format: quant.LM2}
		form := k.TileForm(c, c, TileRows, byteBlock, byteBlock, 0)
		side := make([]byte, c.PackedBytes(TileRows, byteBlock))
		var r Run
		r.Begin(k, make([]byte, QueryBytes(byteBlock)), 1, 1)
		for row := range TileRows {
			at := c.Format.Bits()*layout.PlaneBytes(TileRows, byteBlock) + 2*row
			for _, odd := range []uint16{0x7c00, 0xfc00, 0x7e00, 0xb800, 0x8001} {
				binary.LittleEndian.PutUint16(side[at:], odd)
				r.Put(0, &form, side, side, 0)
				r.Dots(0)
				bad, _ := r.Weigh(0, false)
				require.True(t, bad, "%#x", odd)
			}
			binary.LittleEndian.PutUint16(side[at:], 0x3c00)
			r.Put(0, &form, side, side, 0)
			r.Dots(0)
			bad, _ := r.Weigh(0, false)
			require.False(t, bad)
		}
		require.Panics(t, func() { r.Put(0, &form, side, side, 1) })
		require.Panics(t, func() { r.Put(0, &form, side, side, -1) })
		require.Panics(t, func() { r.Put(0, &form, side[1:], side, 0) })
	})
}
