// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// eachBytes runs a test for every set of kernels with tiles of bytes, including plain Go.
func eachBytes(t *testing.T, f func(t *testing.T, k *Kernels)) {
	each(t, func(t *testing.T, k *Kernels) {
		if k.bytes == nil {
			t.Skip("no tiles of bytes")
		}
		f(t, k)
	})
}

var byteFormats = []quant.Format{quant.LM1, quant.LM2, quant.LM3, quant.LM4, quant.U8}

// fencedBytes returns n bytes between canaries, and a check of the canaries.
func fencedBytes(t *testing.T, n int) (p []byte, check func()) {
	const fence, mark = 128, 0xa5
	all := make([]byte, n+2*fence)
	for i := range all {
		all[i] = mark
	}
	return all[fence : fence+n : fence+n], func() {
		t.Helper()
		for i, b := range all {
			if (i < fence || i >= fence+n) && b != mark {
				t.Fatalf("byte %d of %d was written", i-fence, n)
			}
		}
	}
}

// centroid returns the integer of value i of row r in a packed side.
func centroid(f quant.Format, packed []byte, rows, dim, r, i int) int {
	if f == quant.U8 {
		return int(packed[r*dim+i]) - 128
	}
	code := 0
	for p := range f.Bits() {
		b := packed[p*layout.PlaneBytes(rows, dim)+r*layout.RowPlaneBytes(dim)+i/8]
		code = code<<1 | int(b>>(i%8)&1)
	}
	return int(layout.Nested(f.Bits())[code])
}

// byteOf returns the integer of value i of row r in a tile.
func byteOf(tile []byte, values bool, dim, r, i int) int {
	if values {
		return int(int8(tile[r/4*4*dim+256*(i/64)+4*(i%64)+r%4]))
	}
	for w, row := range rowOrder {
		if int(row) == r%8 {
			return int(tile[r/8*8*dim+512*(i/64)+64*(i%64/8)+8*w+i%8]) - keyBias
		}
	}
	panic("no such row")
}

func randomBytes(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// Every format, dim and range of rows unpacks to the centroids of the reference. No byte outside
// the arguments is read or written.
func TestUnpackBytes_EqualsOracle(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(21, 22))
		for _, f := range byteFormats {
			for _, dim := range []int{64, 128, 192, 256, 512} {
				for n := 1; n <= TileRows; n++ {
					rows := n + rng.IntN(40)
					r0 := rng.IntN(rows - n + 1)
					checkUnpackBytes(t, k, rng, f, rows, dim, r0, n)
				}
			}
		}
	})
}

func checkUnpackBytes(t *testing.T, k *Kernels, rng *rand.Rand, f quant.Format, rows, dim, r0,
	n int) {
	t.Helper()
	c := quant.Coding{Format: f}
	packed := randomBytes(rng, c.PackedBytes(rows, dim))
	src := tight(t, packed)
	require.True(t, k.Bytes(f, dim))
	for _, values := range []bool{false, true} {
		tile, check := fencedBytes(t, TileRows*dim)
		var tmp Scratch
		k.UnpackBytes(tile, values, c, src, rows, dim, r0, n, &tmp)
		check()
		for r := range n {
			for i := range dim {
				want := centroid(f, packed, rows, dim, r0+r, i)
				if got := byteOf(tile, values, dim, r, i); got != want {
					t.Fatalf("%s dim %d rows %d+%d of %d, values %t: row %d value %d: got %d, want %d", f,
						dim, r0, n, rows, values, r, i, got, want)
				}
			}
		}
	}
}

func TestBytes_WhichFormats(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		for _, f := range quant.Formats() {
			for dim := 1; dim < 2000; dim++ {
				want := (f.Nested() || f == quant.U8) && dim%64 == 0 && dim <= 512
				require.Equal(t, want, k.Bytes(f, dim), "%s dim %d", f, dim)
			}
		}
	})
	require.False(t, Generic().Bytes(quant.LM3, 64))
}

// A query in digits equals the query, to 2^-24 of its largest value.
func TestCutQuery(t *testing.T) { eachBytes(t, checkCutQuery) }

func checkCutQuery(t *testing.T, k *Kernels) {
	rng := rand.New(rand.NewPCG(23, 24))
	for round := range 200 {
		const dim = 64
		q := make([]float32, dim)
		scale := math.Pow(10, float64(rng.IntN(60)-30))
		largest := 0.0
		for i := range q {
			q[i] = float32(rng.NormFloat64() * scale)
			if round%7 == 0 && i%5 > 0 {
				q[i] = 0
			}
			largest = max(largest, math.Abs(float64(q[i])))
		}
		for i, got := range uncut(k, make([]byte, QueryBytes(dim)), q) {
			require.InDelta(t, float64(q[i]), got, largest*(1.01/(1<<24)+1e-7*math.Abs(got/largest)))
		}
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		q := make([]float32, 64)
		q[3], q[7], q[9] = 1, float32(bad), 2
		for _, x := range uncut(k, make([]byte, QueryBytes(64)), q) {
			require.True(t, math.IsNaN(x))
		}
	}
	for _, x := range uncut(k, make([]byte, QueryBytes(64)), make([]float32, 64)) {
		require.Zero(t, x)
	}
}

// The digits and sums of every set of kernels are those of plain Go, bit by bit.
func TestCutQuery_EqualsGeneric(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(27, 28))
		for round := range 400 {
			q := make([]float32, 64*(1+rng.IntN(8)))
			for i := range q {
				q[i] = float32(rng.NormFloat64() * math.Pow(10, float64(rng.IntN(3))))
				if round%3 == 0 {
					q[i] = float32(rng.IntN(513)-256) / 2 * queryMost / 128 // halves, and the ends
				}
			}
			largest := largestGeneric(q)
			require.Equal(t, largest, k.bytes.largest(q))
			factor := queryMost / float64(math.Float32frombits(largest))
			if round%5 == 0 {
				factor = 0.25
				for i := range q {
					q[i] = float32(4*rng.IntN(queryMost) + rng.IntN(4) - 2*queryMost)
				}
			}
			want := make([]byte, Digits*len(q))
			wantSums := cutGeneric(want, q, factor)
			got, check := fencedBytes(t, len(want))
			sums := k.bytes.cut(got, q, factor)
			check()
			require.Equal(t, want, got)
			require.Equal(t, wantSums, sums)
		}
		q := make([]float32, 64)
		q[17], q[40] = float32(math.Inf(-1)), float32(math.NaN())
		require.Equal(t, largestGeneric(q), k.bytes.largest(q))
	})
}

// uncut joins the digits of a query.
func uncut(k *Kernels, record []byte, q []float32) []float64 {
	k.CutQuery(record, q)
	unit := float64(math.Float32frombits(uint32(record[12]) | uint32(record[13])<<8 |
		uint32(record[14])<<16 | uint32(record[15])<<24))
	x := make([]float64, len(q))
	for i := range x {
		for d := range Digits {
			x[i] += float64(int8(record[recordHead+24*(i/8)+8*d+i%8])) * math.Pow(256, float64(d)) * unit
		}
	}
	return x
}

// Inner products and weighted sums of any number of heads and rows equal those of float64, and do
// not depend on the number of heads.
func TestDotsAndAddBytes(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(25, 26))
		for _, f := range byteFormats {
			for _, dim := range []int{64, 128, 192, 512} {
				for heads := 1; heads <= 9; heads++ {
					n := 1 + rng.IntN(TileRows)
					packed := randomBytes(rng, quant.Coding{Format: f}.PackedBytes(n, dim))
					checkDotBytes(t, k, rng, f, packed, n, dim, heads)
					checkAddBytes(t, k, rng, f, packed, n, dim, heads)
				}
			}
		}
	})
}

func checkDotBytes(t *testing.T, k *Kernels, rng *rand.Rand, f quant.Format, packed []byte, n, dim,
	heads int) {
	t.Helper()
	tile := randomBytes(rng, TileRows*dim)
	var tmp Scratch
	k.UnpackBytes(tile, false, quant.Coding{Format: f}, packed, n, dim, 0, n, &tmp)
	record := QueryBytes(dim)
	q, cut := make([]float32, heads*dim), make([]byte, heads*record)
	for i := range q {
		q[i] = float32(rng.NormFloat64())
	}
	for h := range heads {
		k.CutQuery(cut[h*record:], q[h*dim:(h+1)*dim])
	}
	dots, check := fenced(t, heads*TileRows)
	k.DotBytes(dots, cut, heads, tile, dim, n)
	check()
	one := make([]float32, TileRows)
	for h := range heads {
		k.DotBytes(one, cut[h*record:], 1, tile, dim, n)
		require.Equal(t, one[:n], dots[h*TileRows:][:n], "dots depend on the heads beside")
		for r := range n {
			var want, qq, kk float64
			for i, x := range q[h*dim : (h+1)*dim] {
				c := float64(centroid(f, packed, n, dim, r, i))
				want += float64(x) * c
				qq += float64(x) * float64(x)
				kk += c * c
			}
			// A value of q is off by the 2^-24th part of the largest; then sums of digits round.
			bound := math.Sqrt(qq) * (math.Sqrt(float64(dim)*kk) + 6*math.Sqrt(kk) +
				6*keyBias*math.Sqrt(float64(dim))) / (1 << 24)
			require.InDelta(t, want, float64(dots[h*TileRows+r]), bound)
		}
	}
}

// cutWeights splits weights of heads like SoftmaxCut: scores of 0, with the weights as scales.
func cutWeights(t *testing.T, k *Kernels, w *Weights, weights []float32) {
	t.Helper()
	for i := range w.Units {
		h := Heads{Dots: make([]float32, TileRows), Weights: make([]float32, TileRows),
			Energy: []float32{0}, Tops: []float32{0}, Sums: []float32{0}, Masks: []uint32{^uint32(0)}}
		one := &Weights{w.Digits[i*DigitBytes:], w.Units[i:]}
		scale := (*[TileRows]float32)(weights[i*TileRows:])
		require.True(t, k.SoftmaxCut(one, &h, 0, 1, &Terms{}, scale))
		require.Equal(t, scale[:], h.Weights)
	}
}

func checkAddBytes(t *testing.T, k *Kernels, rng *rand.Rand, f quant.Format, packed []byte, n, dim,
	heads int) {
	t.Helper()
	tile := randomBytes(rng, TileRows*dim)
	var tmp Scratch
	k.UnpackBytes(tile, true, quant.Coding{Format: f}, packed, n, dim, 0, n, &tmp)
	weights := make([]float32, heads*TileRows)
	size := math.Pow(10, float64(rng.IntN(70)-35))
	for i := range weights {
		if i%TileRows < n {
			weights[i] = float32(rng.ExpFloat64() * size)
		}
	}
	w := &Weights{make([]byte, heads*DigitBytes), make([]float32, heads)}
	cutWeights(t, k, w, weights)
	acc, check := fenced(t, heads*dim)
	for i := range acc {
		acc[i] = float32(size)
	}
	k.AddBytes(acc, w, heads, tile, dim, n)
	check()
	alone := make([]float32, dim)
	for i := range heads {
		for d := range alone {
			alone[d] = float32(size)
		}
		one := &Weights{w.Digits[i*DigitBytes:], w.Units[i:]}
		k.AddBytes(alone, one, 1, tile, dim, n)
		require.Equal(t, alone, acc[i*dim:(i+1)*dim], "sums depend on the heads beside")
		for d := range dim {
			want, sum, largest := float64(float32(size)), size, 0.0
			for r := range n {
				x := float64(weights[i*TileRows+r])
				largest = max(largest, x)
				c := float64(centroid(f, packed, n, dim, r, d))
				want += x * c
				sum += x * math.Abs(c)
			}
			bound := (float64(n)*128*largest+4*sum)/(1<<24) + 128*TileRows*0x1p-149
			require.InDelta(t, want, float64(acc[i*dim+d]), bound)
		}
	}
}

// Expanding and multiplying in one step gives the same bits as in two.
func TestDirect(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(29, 30))
		for _, f := range byteFormats[:4] {
			for heads := 1; heads <= 3; heads++ {
				require.True(t, k.Direct(f, 64, TileRows, heads))
				checkDirect(t, k, rng, f, heads)
			}
		}
		require.False(t, k.Direct(quant.U8, 64, 32, 1))
		require.False(t, k.Direct(quant.LM3, 128, 32, 1))
		require.False(t, k.Direct(quant.LM3, 64, 16, 1))
		require.False(t, k.Direct(quant.LM3, 64, 32, 4))
	})
}

func checkDirect(t *testing.T, k *Kernels, rng *rand.Rand, f quant.Format, heads int) {
	t.Helper()
	const dim, n = 64, TileRows
	c := quant.Coding{Format: f}
	rows := n + rng.IntN(40)
	r0 := rng.IntN(rows - n + 1)
	src := tight(t, randomBytes(rng, c.PackedBytes(rows, dim)))
	var tmp Scratch
	tile := make([]byte, TileRows*dim)

	q, cut := make([]float32, heads*dim), make([]byte, heads*QueryBytes(dim))
	for i := range q {
		q[i] = float32(rng.NormFloat64())
	}
	for h := range heads {
		k.CutQuery(cut[h*QueryBytes(dim):], q[h*dim:(h+1)*dim])
	}
	want := make([]float32, heads*TileRows)
	k.UnpackBytes(tile, false, c, src, rows, dim, r0, n, &tmp)
	k.DotBytes(want, cut, heads, tile, dim, n)
	got, check := fenced(t, heads*TileRows)
	k.DotPlanes(got, cut, heads, f, src, rows, r0)
	check()
	for h := range heads {
		sameBits(t, want[h*TileRows:][:n], got[h*TileRows:][:n])
	}

	weights := make([]float32, heads*TileRows)
	for i := range weights {
		if i%TileRows < n {
			weights[i] = rng.Float32()
		}
	}
	w := &Weights{make([]byte, heads*DigitBytes), make([]float32, heads)}
	cutWeights(t, k, w, weights)
	sum := make([]float32, heads*dim)
	k.UnpackBytes(tile, true, c, src, rows, dim, r0, n, &tmp)
	k.AddBytes(sum, w, heads, tile, dim, n)
	acc, checkAcc := fenced(t, heads*dim)
	clear(acc)
	k.AddPlanes(acc, w, heads, f, src, rows, r0)
	checkAcc()
	sameBits(t, sum, acc)
}

// SoftmaxCut equals Softmax, and its digits equal the weights to 2^-24 of the largest.
func TestSoftmaxCut(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		rng := rand.New(rand.NewPCG(27, 28))
		for round := range 200 {
			checkSoftmaxCut(t, k, rng, 1+round%5)
		}
	})
}

func checkSoftmaxCut(t *testing.T, k *Kernels, rng *rand.Rand, heads int) {
	t.Helper()
	var tm Terms
	var scale [TileRows]float32
	for r := range TileRows {
		tm.Mul[r], tm.Noise[r], scale[r] = rng.Float32(), rng.Float32(), rng.Float32()
		tm.Add[r] = float32(rng.NormFloat64())
	}
	n := heads + 1
	h := Heads{Dots: make([]float32, n*TileRows), Weights: make([]float32, n*TileRows),
		Energy: make([]float32, n), Tops: make([]float32, n), Sums: make([]float32, n),
		Masks: make([]uint32, n)}
	for i := range n {
		h.Energy[i], h.Masks[i], h.Tops[i] = rng.Float32(), rng.Uint32(), negInf
	}
	for i := range h.Dots {
		h.Dots[i] = float32(rng.NormFloat64() * 30)
	}
	plain := h
	plain.Weights, plain.Sums = append([]float32(nil), h.Weights...), append([]float32(nil), h.Sums...)
	plain.Tops, plain.Masks = append([]float32(nil), h.Tops...), append([]uint32(nil), h.Masks...)
	w, check := fencedWeights(t, heads)
	require.True(t, k.SoftmaxCut(w, &h, 1, n, &tm, &scale))
	check()
	k.Softmax(&plain, 1, n, &tm, &scale)
	require.Equal(t, plain, h)
	for i := range heads {
		weights := h.Weights[(i+1)*TileRows:][:TileRows]
		largest := float64(slices.Max(weights))
		for r, x := range weights {
			var got float64
			for d := range Digits {
				got += float64(w.Digits[i*DigitBytes+16*(r/4)+4*d+r%4]) * math.Pow(256, float64(d))
			}
			require.InDelta(t, float64(x), got*float64(w.Units[i]), largest/(1<<24))
		}
	}
}

func fencedWeights(t *testing.T, heads int) (w *Weights, check func()) {
	digits, checkDigits := fencedBytes(t, heads*DigitBytes)
	units, checkUnits := fenced(t, heads)
	return &Weights{digits, units}, func() { t.Helper(); checkDigits(); checkUnits() }
}

// A NaN weight reaches the sums of its head and no others.
func TestAddBytes_NaN(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		for _, nan := range []float32{float32(math.NaN()), -float32(math.NaN())} {
			for at := range 3 * TileRows {
				h := Heads{Dots: make([]float32, 3*TileRows), Weights: make([]float32, 3*TileRows),
					Energy: make([]float32, 3), Tops: make([]float32, 3), Sums: make([]float32, 3),
					Masks: []uint32{^uint32(0), ^uint32(0), ^uint32(0)}}
				h.Dots[at] = nan
				tm, scale := Terms{}, [TileRows]float32{}
				for i := range scale {
					tm.Mul[i], scale[i] = 1, 1
				}
				w := &Weights{make([]byte, 3*DigitBytes), make([]float32, 3)}
				require.True(t, k.SoftmaxCut(w, &h, 0, 3, &tm, &scale))
				acc := make([]float32, 3*64)
				k.AddBytes(acc, w, 3, make([]byte, TileRows*64), 64, TileRows)
				for i, x := range acc {
					require.Equal(t, i/64 == at/TileRows, x != x)
				}
			}
		}
	})
}

// SoftmaxCut reports scales whose weights do not fit in digits.
func TestSoftmaxCut_Refuses(t *testing.T) {
	eachBytes(t, func(t *testing.T, k *Kernels) {
		nan, inf := float32(math.NaN()), float32(math.Inf(1))
		for _, bad := range []float32{nan, inf, -inf, -1, float32(math.Copysign(0, -1))} {
			for at := range TileRows {
				h := Heads{Dots: make([]float32, TileRows), Weights: make([]float32, TileRows),
					Energy: []float32{0}, Tops: []float32{0}, Sums: []float32{0}, Masks: []uint32{1}}
				w := &Weights{make([]byte, DigitBytes), make([]float32, 1)}
				var scale [TileRows]float32
				scale[(at+1)%TileRows] = math.MaxFloat32
				require.True(t, k.SoftmaxCut(w, &h, 0, 1, &Terms{}, &scale))
				scale[at] = bad
				require.False(t, k.SoftmaxCut(w, &h, 0, 1, &Terms{}, &scale))
			}
		}
	})
}
