// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

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

// dims are the multiples of 8 up to 304, and a few long rows.
func dims() []int {
	var all []int
	for d := 8; d <= 304; d += 8 {
		if !testing.Short() || d%40 == 0 || d == 64 || d == 128 || d == 8 {
			all = append(all, d)
		}
	}
	return append(all, 576, 1024)
}

// loader provides rows to a Worker.
func loader(x quant.Rows) Loader {
	return func(tile []float32, stride, r0, n int) {
		for i := range n {
			row := tile[i*stride : (i+1)*stride]
			clear(row[copy(row, x.Row(r0+i)):])
		}
	}
}

func tight(t *testing.T, p []byte) []byte {
	g := guarded(t, len(p))
	copy(g, p)
	return g
}

// Every coding, dim, number of rows and family gives the bytes of quant.Encode and the floats of
// quant.Decode. Nothing after the arguments is read or written.
func TestEncodeDecode_EqualOracle(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		w := k.NewWorker() // one for all: what earlier rows left must not matter
		rng := rand.New(rand.NewPCG(1, 2))
		families := quanttest.Finite()
		for _, c := range quanttest.Codings() {
			if !c.Format.Rotated() {
				continue
			}
			for i, dim := range dims() {
				rows := []int{1, 2, 3, 5, 31, 33, 65, rng.IntN(70)}[rng.IntN(8)]
				x := quanttest.Rows(families[(i+int(c.Format))%len(families)], rows, dim, uint64(dim))
				want := make([]byte, c.PackedBytes(rows, dim))
				if quant.Encode(want, c, x, 9) != nil {
					continue // TestEncode_Refuses
				}
				rot, err := NewRotation(dim, 9)
				require.NoError(t, err)
				if Encodes(c) {
					got := tight(t, make([]byte, len(want)))
					for i := range got {
						got[i] = 0xa5
					}
					require.True(t, w.Encode(got, c, rows, rot, loader(x)), "%s dim %d", c, dim)
					require.Equal(t, want, got, "%s dim %d rows %d", c, dim, rows)
				}
				checkDecode(t, w, c, want, rows, dim, rot)
			}
		}
	})
}

func checkDecode(t *testing.T, w *Worker, c quant.Coding, packed []byte, rows, dim int,
	rot *Rotation) {
	t.Helper()
	want := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	require.NoError(t, quant.Decode(want, c, packed, 9))
	src := tight(t, packed)
	for r := 0; r < rows; r += TileRows {
		n := min(TileRows, rows-r)
		all := make([]float32, n*dim+32)
		for i := range all {
			all[i] = 12345.5
		}
		w.Decode(all[16:16+n*dim:16+n*dim], c, src, rows, rot, r, n)
		for i, v := range all {
			if i < 16 || i >= 16+n*dim {
				require.Equal(t, float32(12345.5), v, "value %d of %d was written", i-16, n*dim)
				continue
			}
			if x := want.Data[r*dim+i-16]; math.Float32bits(v) != math.Float32bits(x) {
				t.Fatalf("%s dim %d rows %d: value %d: got %g want %g", c, dim, rows, i-16, v, x)
			}
		}
	}
}

// A row that quant.Encode refuses is reported at every position.
func TestEncode_Refuses(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		w := k.NewWorker()
		const dim, rows = 72, 40
		rot, err := NewRotation(dim, 1)
		require.NoError(t, err)
		for _, name := range []string{"lm1", "lm4+s8", "lm3+ip", "u8", "u8+s8"} {
			c, err := quant.ParseCoding(name)
			require.NoError(t, err)
			for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(-1)), 0x1p112, 1e30} {
				for _, at := range []int{0, dim - 1, 35*dim + 7, rows*dim - 1} {
					x := quanttest.Rows(quanttest.Gaussian, rows, dim, 4)
					x.Data[at] = bad
					packed := make([]byte, c.PackedBytes(rows, dim))
					oracle := quant.Encode(packed, c, x, 1)
					got := make([]byte, len(packed))
					require.Equal(t, oracle == nil, w.Encode(got, c, rows, rot, loader(x)),
						"%s with %g at %d: %v", name, bad, at, oracle)
					if oracle == nil {
						require.Equal(t, packed, got)
					}
				}
			}
		}
	})
}

func TestRotation_EqualsOracle(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		for _, dim := range append(dims(), 4096) {
			const rows = 3
			stride := dim + 5
			rot, err := NewRotation(dim, uint64(dim))
			require.NoError(t, err)
			oracle, err := quant.NewRotation(dim, uint64(dim))
			require.NoError(t, err)
			x := quanttest.Rows(quanttest.HeavyTails, rows, stride, 8)
			for _, inverse := range []bool{false, true} {
				got, want := append([]float32(nil), x.Data...), append([]float32(nil), x.Data...)
				for r := range rows {
					if inverse {
						oracle.Inverse(want[r*stride:][:dim])
					} else {
						oracle.Forward(want[r*stride:][:dim])
					}
				}
				if inverse {
					k.Inverse(rot, got[:(rows-1)*stride+dim], rows, stride)
				} else {
					k.Forward(rot, got[:(rows-1)*stride+dim], rows, stride)
				}
				for i := range want {
					require.Equal(t, math.Float32bits(want[i]), math.Float32bits(got[i]), "dim %d value %d",
						dim, i)
				}
			}
		}
	})
}

// Demotion by counting gives the bytes of quant.Demote, in place and to a copy, for arbitrary
// codes.
func TestDemote_EqualsOracle(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) { checkDemotions(t, k.NewWorker()) })
}

func checkDemotions(t *testing.T, w *Worker) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, from := range quanttest.Codings() {
		for to := quant.LM1; to < from.Format && from.Format.Nested(); to++ {
			c := quant.Coding{Format: to, Rule: from.Rule, Scale: from.Scale}
			for _, dim := range dims() {
				rows := rng.IntN(70)
				src := make([]byte, from.PackedBytes(rows, dim))
				x := quanttest.Rows(quanttest.MixedScales, rows, dim, uint64(dim))
				require.NoError(t, quant.Encode(src, from, x, 1))
				for i := range from.Format.Bits() * layout.PlaneBytes(rows, dim) / 2 {
					src[i] = byte(rng.Uint32()) // codes of anything
				}
				want := make([]byte, c.PackedBytes(rows, dim))
				require.NoError(t, quant.Demote(want, c, src, from, rows, dim))
				got := tight(t, make([]byte, len(want)))
				require.True(t, w.Demote(got, c, src, from, rows, dim))
				require.Equal(t, want, got, "%s to %s rows %d dim %d", from, c, rows, dim)
				require.True(t, w.Demote(src[:len(want)], c, src, from, rows, dim))
				require.Equal(t, want, src[:len(want)], "in place")
			}
		}
	}
}

// The 8-bit logarithm of any scale equals that of the reference, tested with one-row blocks and a
// base.
func TestLog8Code_EqualsOracle(t *testing.T) {
	each(t, checkLog8)
}

func checkLog8(t *testing.T, kern *Kernels) {
	rng := rand.New(rand.NewPCG(5, 6))
	n := 20000
	if testing.Short() {
		n = 2000
	}
	for range n {
		base := math.Float32frombits(rng.Uint32N(0x7f800000-1) + 1)
		s := base * float32(math.Exp2(-20*rng.Float64()))
		if rng.IntN(4) == 0 { // at a bound, or beside it
			b := layout.Log8Bound(base, uint8(rng.IntN(255)))
			s = math.Float32frombits(math.Float32bits(b) + rng.Uint32N(3) - 1)
		}
		if !(s >= 0 && s <= base) {
			continue
		}
		for _, up := range []bool{false, true} {
			k := log8Code(base, s, up)
			if !up {
				var codes [3]byte
				kern.log8(codes[:], []float32{s, base, s, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}[:3], base)
				require.Equal(t, [3]byte{k, 0, k}, codes, "base %g scale %g", base, s)
			}
			if s == 0 {
				require.Equal(t, uint8(255), k)
				continue
			}
			reaches := func(k uint8) bool { // the oracle's condition to stop at k
				bound := layout.Log8Bound(base, k)
				if up {
					bound = layout.Log8Scale(base, k+1)
				}
				return k >= 254 || s > bound || (s == bound && !up)
			}
			require.True(t, reaches(k), "base %g scale %g code %d", base, s, k)
			require.True(t, k == 0 || !reaches(k-1), "base %g scale %g code %d", base, s, k)
		}
	}
}

// Exact formats of any length, with values of every kind.
func TestEncodeExact_EqualsOracle(t *testing.T) {
	each(t, func(t *testing.T, k *Kernels) {
		w := k.NewWorker()
		rng := rand.New(rand.NewPCG(8, 9))
		for dim := 1; dim <= 300; dim += 1 + dim/16 {
			for _, f := range []quant.Format{quant.F16, quant.BF16, quant.F32} {
				c, rows := quant.Coding{Format: f}, 1+rng.IntN(40)
				x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
				wild := rng.IntN(3)
				for i := range x.Data {
					x.Data[i] = float32(rng.NormFloat64() * math.Exp2(float64(rng.IntN(40)-28)))
					if wild > 0 && rng.IntN(50) == 0 {
						x.Data[i] = math.Float32frombits(rng.Uint32())
					}
				}
				want := make([]byte, c.PackedBytes(rows, dim))
				oracle := quant.Encode(want, c, x, 0)
				got := tight(t, make([]byte, len(want)))
				require.Equal(t, oracle == nil, w.EncodeExact(got, f, rows, dim, loader(x)), "%v", oracle)
				if oracle == nil {
					require.Equal(t, want, got, "%s dim %d", f, dim)
				}
			}
		}
	})
}
