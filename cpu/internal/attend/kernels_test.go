// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// each runs a test for every set of kernels of this machine, including plain Go.
func each(t *testing.T, f func(t *testing.T, k *Kernels)) {
	for _, k := range append([]*Kernels{Generic()}, Native()...) {
		t.Run("isa="+k.isa, func(t *testing.T) { f(t, k) })
	}
}

const mark = 12345.5

// fenced returns n floats, all NaN, between canaries, and a check of the canaries.
func fenced(t *testing.T, n int) (x []float32, check func()) {
	const fence = 32
	all := make([]float32, n+2*fence)
	for i := range all {
		all[i] = mark
	}
	x = all[fence : fence+n : fence+n]
	for i := range x {
		x[i] = float32(math.NaN())
	}
	return x, func() {
		t.Helper()
		for i, v := range all {
			if (i < fence || i >= fence+n) && v != mark {
				t.Fatalf("value %d of %d was written", i-fence, n)
			}
		}
	}
}

// tight copies p to the end of a page that is followed by a faulting page, if the system has such
// pages.
func tight(t *testing.T, p []byte) []byte {
	g := guarded(t, len(p))
	copy(g, p)
	return g
}

func testDims(c quant.Coding) []int {
	var dims []int
	for dim := 1; dim <= 300; dim++ {
		if c.CheckDim(dim) == nil && (dim%8 == 0 || dim%7 == 1) {
			dims = append(dims, dim)
		}
	}
	if testing.Short() {
		var few []int
		for i, d := range dims {
			if i%5 == 0 || d == 64 || d == 128 {
				few = append(few, d)
			}
		}
		return few
	}
	return dims
}

// Every coding, dim and number of rows unpacks to the values of the reference, in the layouts of
// the instruction set. No byte outside the arguments is read or written.
func TestUnpack_EqualsOracle(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, f := range quant.Formats() {
			c := quant.Coding{Format: f}
			for _, dim := range testDims(c) {
				rows := 1 + rng.IntN(70)
				packed := make([]byte, c.PackedBytes(rows, dim))
				x := quanttest.Rows(quanttest.Gaussian, rows, dim, uint64(dim))
				require.NoError(t, quant.Encode(packed, c, x, 3))
				src := tight(t, packed)
				for _, l := range []Layout{k.LayoutV(f), k.LayoutK(f)} {
					r0 := rng.IntN(rows)
					checkTile(t, k, l, c, src, rows, dim, r0, min(TileRows, rows-r0))
				}
			}
		}
	})
}

func checkTile(t *testing.T, k *Kernels, l Layout, c quant.Coding, src []byte, rows, dim, r0,
	n int) {
	t.Helper()
	padDim := k.PadDim(dim)
	tile, check := fenced(t, TileRows*padDim)
	var tmp Scratch
	k.Unpack(tile, l, c, src, rows, dim, r0, n, &tmp)
	check()
	var scales [TileRows]float32
	k.Scales(&scales, c.Scale, src[len(src)-c.ScaleBytes(rows):], r0, n, Unit(c.Format, dim))
	want := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	require.NoError(t, quanttest.DecodeRotated(want, c, src))
	for r := range n {
		for i, w := range want.Row(r0 + r) {
			got := tile[tilePlace(l, padDim, r, i)] * scales[r]
			if math.Abs(float64(got-w)) > 1e-6*math.Abs(float64(w)) {
				t.Fatalf("%s layout %d dim %d: row %d value %d: got %g, want %g", c, l, dim, r, i, got, w)
			}
		}
		for i := dim; i < padDim; i++ {
			got := tile[tilePlace(l, padDim, r, i)]
			require.False(t, got != got, "%s: padding is not finite", c)
			if !c.Format.Rotated() {
				require.Zero(t, got, "%s: padding", c)
			}
		}
	}
}

// tilePlace is the position of value i of row r in a tile.
func tilePlace(l Layout, padDim, r, i int) int {
	if l == Quads {
		p := l.place(i) // 64*block + 4*vector + element
		b, v, e := p/64, p%64/4, p%4
		return r/4*4*padDim + 256*b + 16*v + 4*(r%4) + e
	}
	return r*padDim + l.place(i)
}

// Unpacked values themselves are exact.
func TestUnpack_Exact(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		for bits := 1; bits <= 4; bits++ {
			f := quant.LM1 + quant.Format(bits-1)
			c := quant.Coding{Format: f}
			book := layout.Nested(f.Bits())
			const rows, dim = 33, 128
			packed := make([]byte, c.PackedBytes(rows, dim))
			rng := rand.New(rand.NewPCG(7, uint64(bits)))
			for i := range packed {
				packed[i] = byte(rng.Uint32())
			}
			tile := make([]float32, TileRows*k.PadDim(dim))
			var tmp Scratch
			l := k.LayoutK(f)
			k.Unpack(tile, l, c, packed, rows, dim, 1, TileRows, &tmp)
			plane := layout.PlaneBytes(rows, dim)
			for r := range TileRows {
				for i := range dim {
					code := 0
					for p := range bits {
						at := p*plane + (r+1)*dim/8 + i/8
						code = code<<1 | int(packed[at]>>(i%8)&1)
					}
					require.Equal(t, float32(book[code]), tile[tilePlace(l, k.PadDim(dim), r, i)])
				}
			}
		}
	})
}

func TestScales_EqualOracle(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		for _, name := range []string{"lm3", "lm3+s8", "u8", "u8+s8", "tqmse2", "f16"} {
			c, err := quant.ParseCoding(name)
			require.NoError(t, err)
			const dim = 64
			for rows := 1; rows <= 40; rows++ {
				x := quanttest.Rows(quanttest.MixedScales, rows, dim, uint64(rows))
				clear(x.Row(rows / 2)) // a scale of zero
				packed := make([]byte, c.PackedBytes(rows, dim))
				require.NoError(t, quant.Encode(packed, c, x, 1))
				packed = tight(t, packed)
				r0 := rows / 3
				n := min(TileRows, rows-r0)
				var got [TileRows]float32
				k.Scales(&got, c.Scale, packed[len(packed)-c.ScaleBytes(rows):], r0, n, 2)
				want := make([]float32, rows)
				require.NoError(t, quant.RowScales(want, c, packed, rows, dim))
				for i := range n {
					w := 2 * want[r0+i]
					switch {
					case name == "f16":
						w = 2
					case c.Format == quant.TQMSE2:
						w *= 8 // stored is the norm
					}
					require.InEpsilon(t, 1+w, 1+got[i], 1e-7, "%s rows %d row %d", name, rows, i)
				}
			}
		}
	})
}

// Inner products and weighted sums of any number of heads, rows and values equal those of float64,
// and do not depend on the number of heads.
func TestDotsAndAccumulate(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(5, 6))
		for _, dim := range []int{1, 8, 31, 64, 65, 128, 200, 300} {
			for heads := 1; heads <= 9; heads++ {
				layouts := []Layout{Natural}
				if k.lane {
					layouts = append(layouts, Quads)
				}
				for _, l := range layouts {
					checkDots(t, k, l, rng, dim, heads, 1+rng.IntN(TileRows))
				}
			}
		}
	})
}

func checkDots(t *testing.T, k *Kernels, l Layout, rng *rand.Rand, dim, heads, rows int) {
	t.Helper()
	padDim := k.PadDim(dim)
	tile, check := fenced(t, TileRows*padDim)
	x := make([]float64, rows*dim)
	for r := range TileRows {
		for i := range padDim {
			v := float32(rng.NormFloat64())
			tile[tilePlace(l, padDim, r, i)] = v
			if r < rows && i < dim {
				x[r*dim+i] = float64(v)
			}
		}
	}
	q, qs := make([]float32, heads*dim), make([]float32, heads*padDim)
	for i := range q {
		q[i] = float32(rng.NormFloat64())
	}
	for h := range heads {
		Arrange(qs[h*padDim:(h+1)*padDim], q[h*dim:(h+1)*dim], l)
	}
	dots, checkDots := fenced(t, heads*TileRows)
	k.Dots(dots, qs, heads, l, tile, padDim, rows)
	check()
	checkDots()
	one := make([]float32, TileRows)
	for h := range heads {
		k.Dots(one, qs[h*padDim:], 1, l, tile, padDim, rows)
		require.Equal(t, one[:rows], dots[h*TileRows:][:rows], "dots depend on the heads beside")
		for r := range rows {
			var want, size float64
			for i := range dim {
				p := float64(q[h*dim+i]) * x[r*dim+i]
				want += p
				size += math.Abs(p)
			}
			require.InDelta(t, want, float64(dots[h*TileRows+r]), float64(dim+1)*size/(1<<24))
		}
	}
	if l == Quads {
		return
	}
	w := make([]float32, heads*TileRows)
	for i := range w {
		w[i] = rng.Float32()
	}
	acc, checkAcc := fenced(t, heads*padDim)
	clear(acc)
	k.Accumulate(acc, w, heads, tile, padDim, rows)
	checkAcc()
	alone := make([]float32, padDim)
	for h := range heads {
		clear(alone)
		k.Accumulate(alone, w[h*TileRows:], 1, tile, padDim, rows)
		require.Equal(t, alone, acc[h*padDim:(h+1)*padDim], "sums depend on the heads beside")
		for i := range dim {
			var want, size float64
			for r := range rows {
				p := float64(w[h*TileRows+r]) * x[r*dim+i]
				want += p
				size += math.Abs(p)
			}
			require.InDelta(t, want, float64(acc[h*padDim+i]), float64(rows+1)*size/(1<<24))
		}
	}
	sum := make([]float64, heads*padDim)
	k.Fold(sum, append([]float32(nil), acc...))
	for i, v := range acc {
		require.Equal(t, float64(v), sum[i])
	}
}

// The online softmax equals float64, with rows that are not seen, have a score of -Inf, or are far
// below the largest.
func TestSoftmaxAndProbs(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(11, 12))
		for round := range 400 {
			checkSoftmax(t, k, rng, 1+round%5)
		}
	})
}

func checkSoftmax(t *testing.T, k *Kernels, rng *rand.Rand, heads int) {
	t.Helper()
	var tm Terms
	var scale [TileRows]float32
	for r := range TileRows {
		tm.Mul[r], tm.Noise[r], scale[r] = rng.Float32(), rng.Float32(), rng.Float32()
		tm.Add[r] = float32(rng.NormFloat64())
	}
	tm.Add[rng.IntN(TileRows)] = negInf
	h := Heads{Dots: make([]float32, heads*TileRows), Weights: make([]float32, heads*TileRows),
		Energy: make([]float32, heads), Tops: make([]float32, heads), Sums: make([]float32, heads),
		Masks: make([]uint32, heads)}
	lse := make([]float32, heads)
	s := make([]float64, heads*TileRows)
	spread := 3 * math.Pow(10, float64(rng.IntN(3)))
	for i := range heads {
		h.Energy[i], h.Masks[i], h.Tops[i] = rng.Float32(), rng.Uint32(), negInf
		lse[i] = float32(3 * spread)
		if rng.IntN(3) == 0 {
			h.Tops[i] = float32(rng.NormFloat64())
		}
		if rng.IntN(9) == 0 {
			h.Masks[i] = 0
		}
		for r := range TileRows {
			h.Dots[i*TileRows+r] = float32(rng.NormFloat64() * spread)
			if h.Masks[i]>>r&1 == 0 && rng.IntN(2) == 0 {
				h.Dots[i*TileRows+r] = float32(math.NaN())
			}
			s[i*TileRows+r] = float64(h.Dots[i*TileRows+r])*float64(tm.Mul[r]) + float64(tm.Add[r]) -
				float64(h.Energy[i])*float64(tm.Noise[r])
		}
	}
	checkProbs(t, k, h, &tm, s, lse)
	masks, tops := append([]uint32(nil), h.Masks...), append([]float32(nil), h.Tops...)
	k.Softmax(&h, 0, heads, &tm, &scale)
	for i := range heads {
		top, most := float64(tops[i]), math.Inf(-1)
		for r := range TileRows {
			if masks[i]>>r&1 != 0 {
				most = max(most, s[i*TileRows+r])
			}
		}
		if most > top+TopSlack {
			top = most
		}
		if top != float64(h.Tops[i]) {
			require.InDelta(t, top, float64(h.Tops[i]), 1e-6*(1+math.Abs(top)+spread))
		}
		var sum float64
		for r := range TileRows {
			var p float64
			if x := s[i*TileRows+r] - top; masks[i]>>r&1 != 0 && x >= minExp {
				p = math.Exp(x)
			}
			sum += p
			got := float64(h.Weights[i*TileRows+r])
			require.InDelta(t, p*float64(scale[r]), got, 1e-5*(1+spread)*p+1e-37)
			require.True(t, got == 0 || h.Masks[i]>>r&1 != 0, "a weight without its bit")
			require.True(t, h.Masks[i]&^masks[i] == 0, "a bit that was not there")
		}
		require.InDelta(t, sum, float64(h.Sums[i]), 1e-5*(1+spread)*sum+1e-37)
	}
}

func checkProbs(t *testing.T, k *Kernels, h Heads, tm *Terms, s []float64, lse []float32) {
	t.Helper()
	for power := 1; power <= 2; power++ {
		var acc, want [TileRows]float64
		k.Probs(&acc, &h, 0, len(lse), tm, lse, power)
		for i, mask := range h.Masks {
			for r := range TileRows {
				x := s[i*TileRows+r] - float64(lse[i])
				if mask>>r&1 != 0 && x >= minExp {
					want[r] += math.Exp(x * float64(power))
				}
			}
		}
		for r := range want {
			require.InDelta(t, want[r], acc[r], 1e-4*want[r]+1e-37)
		}
	}
}

// exp is within four units of the last place over its whole range.
func TestSoftmax_Exp(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		var ones [TileRows]float32
		tm := Terms{}
		for i := range ones {
			ones[i], tm.Mul[i] = 1, 1
		}
		h := Heads{Dots: make([]float32, TileRows), Weights: make([]float32, TileRows),
			Energy: []float32{0}, Tops: []float32{0}, Sums: []float32{0}, Masks: []uint32{0}}
		for x := float32(0); x > -90; {
			for r := range TileRows {
				h.Dots[r] = x
				x -= 0.0007 * (1 + float32(r))
			}
			h.Tops[0], h.Masks[0] = 0, ^uint32(0)
			k.Softmax(&h, 0, 1, &tm, &ones)
			for r, d := range h.Dots {
				want := math.Exp(float64(d))
				if d < minExp {
					want = 0
				}
				require.InDelta(t, want, float64(h.Weights[r]), 4*want/(1<<24), fmt.Sprint(d))
			}
		}
	})
}

func TestArrange_Restores(t *testing.T) {
	for _, l := range []Layout{Natural, Lanes, Quads} {
		x, y, z := make([]float32, 130), make([]float32, 192), make([]float64, 192)
		for i := range x {
			x[i] = float32(i + 1)
		}
		Arrange(y, x, l)
		for i := range z {
			z[i] = float64(y[i])
		}
		back := make([]float64, len(x))
		Restore(back, z, l)
		for i := range x {
			require.Equal(t, float64(x[i]), back[i])
		}
	}
}

func TestMix(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(7, 2))
		for _, n := range []int{0, 1, 2, 3, 31, 32} {
			for power := 1; power <= 2; power++ {
				w, rows := make([]float32, n), make([]float32, n*TileRows)
				for i := range w {
					w[i] = float32(math.Exp(rng.NormFloat64()))
				}
				for i := range rows {
					rows[i] = rng.Float32()
				}
				out, check := fenced(t, TileRows)
				k.Mix((*[TileRows]float32)(out), w, rows, power)
				check()
				for r, got := range out {
					want := 0.0
					for h, f := range w {
						want += float64(f) * math.Pow(float64(rows[h*TileRows+r]), float64(power))
					}
					// Nothing is negative: n+2 roundings of the sum at the most.
					require.InDelta(t, want, got, want*float64(n+2)*0x1p-24, "%d rows, power %d, value %d", n, power, r)
				}
			}
		}
		require.Panics(t, func() { k.Mix(new([TileRows]float32), make([]float32, 3), make([]float32, 3*TileRows-1), 2) })
	})
}

// Bounds16 encloses the numbers that Span16 finds.
func TestBounds16_Encloses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := make([]byte, 0, 80)
		for _, v := range rapid.SliceOfN(rapid.Uint16(), 1, 40).Draw(t, "numbers") {
			p = binary.LittleEndian.AppendUint16(p, v)
		}
		lo, hi := Span16(p)
		least, most := Bounds16(p)
		require.LessOrEqual(t, least, lo)
		require.GreaterOrEqual(t, most, hi)
		require.Less(t, int(most), 1<<bits.Len16(hi))
	})
}
