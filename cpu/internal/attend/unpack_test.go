// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func sameBits(t *testing.T, want, got []float32) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		if math.Float32bits(want[i]) != math.Float32bits(got[i]) {
			t.Fatalf("value %d: got %g (%#x), want %g (%#x)", i, got[i], math.Float32bits(got[i]),
				want[i], math.Float32bits(want[i]))
		}
	}
}

// Every coding, dim, row count and range of rows gives the bits of quanttest.DecodeRotated.
func TestUnpackScaled_EqualsOracle(t *testing.T) {
	for _, c := range quanttest.Codings() {
		for _, dim := range []int{5, 8, 32, 64, 80, 96, 128, 256} {
			if c.CheckDim(dim) != nil {
				continue
			}
			t.Run(fmt.Sprintf("coding=%s/head_dim=%d", c, dim), func(t *testing.T) {
				for i, rows := range []int{1, 7, 32, 33, 75} {
					fam := quanttest.Finite()[(i+dim/8)%len(quanttest.Finite())]
					checkUnpack(t, c, rows, dim, fam)
				}
			})
		}
	}
}

func checkUnpack(t *testing.T, c quant.Coding, rows, dim int, fam quanttest.Family) {
	t.Helper()
	packed := make([]byte, c.PackedBytes(rows, dim))
	require.NoError(t, quant.Encode(packed, c, quanttest.Rows(fam, rows, dim, 1), 2))
	want := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	require.NoError(t, quanttest.DecodeRotated(want, c, packed))
	scales := make([]float32, rows)
	require.NoError(t, quant.RowScales(scales, c, packed, rows, dim))
	for r0 := 0; r0 < rows; r0 += 1 + rows/4 {
		for _, n := range []int{1, min(3, rows-r0), min(TileRows, rows-r0)} {
			got := make([]float32, n*dim+1)
			got[n*dim] = 77
			UnpackScaled(got, c, packed, rows, dim, r0, n)
			sameBits(t, want.Data[r0*dim:(r0+n)*dim], got[:n*dim])
			require.Equal(t, float32(77), got[n*dim], "wrote past the rows")
		}
	}
	for r := range rows {
		sameBits(t, scales[r:r+1], []float32{rowScale(c, packed, rows, dim, r)})
	}
}

func TestF16ToF32_AllValues(t *testing.T) {
	for h := range 1 << 16 {
		want, got := quant.F16ToF32(uint16(h)), f16ToF32(uint16(h))
		require.Equal(t, math.Float32bits(want), math.Float32bits(got), "%#04x", h)
	}
}

// Every value at each of four positions, with normal and other neighbours.
func TestUnpackF16_AllValuesAllPlaces(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	src, want, got := make([]byte, 14), make([]float32, 7), make([]float32, 7)
	for h := range 1 << 16 {
		for place := range want {
			for i := range want {
				v := uint16(rng.Uint32())
				if h&1 == 0 {
					v = 0x3c00 + v&0xff // normal
				}
				if i == place {
					v = uint16(h)
				}
				binary.LittleEndian.PutUint16(src[2*i:], v)
				want[i] = quant.F16ToF32(v)
			}
			unpackF16(got, src)
			for i := range want {
				if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
					t.Fatalf("%x: value %d: got %g want %g", src, i, got[i], want[i])
				}
			}
		}
	}
}

// FuzzUnpackScaled unpacks arbitrary bytes. It must not panic and must give the bits of the
// reference, except for the payloads of NaNs from arithmetic.
func FuzzUnpackScaled(f *testing.F) {
	f.Add(uint8(3), uint8(7), []byte("any bytes"))
	f.Fuzz(func(t *testing.T, ci, rows uint8, data []byte) {
		all := quanttest.Codings()
		c, dim := all[int(ci)%len(all)], 64
		src := make([]byte, c.PackedBytes(int(rows), dim))
		for i := range src {
			if len(data) > 0 {
				src[i] = data[i%len(data)] ^ byte(i/len(data))
			}
		}
		want := quant.Rows{Dim: dim, Data: make([]float32, int(rows)*dim)}
		require.NoError(t, quanttest.DecodeRotated(want, c, src))
		got := make([]float32, len(want.Data))
		UnpackScaled(got, c, src, int(rows), dim, 0, int(rows))
		for i, w := range want.Data {
			if g := got[i]; math.Float32bits(g) != math.Float32bits(w) && (g == g || w == w) {
				t.Fatalf("%s: value %d: got %g, want %g", c, i, g, w)
			}
		}
	})
}

func BenchmarkUnpackScaled(b *testing.B) {
	const dim, rows = 128, 1024
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range []string{"f16", "bf16", "u8", "lm4", "lm3", "lm2", "lm1", "ggml-q4_0"} {
		b.Run("backend=cpu-generic/format="+name+"/head_dim=128/tokens=1024", func(b *testing.B) {
			c, err := quant.ParseCoding(name)
			require.NoError(b, err)
			src := make([]byte, c.PackedBytes(rows, dim))
			for i := range src {
				src[i] = byte(rng.Uint32())
			}
			dst := make([]float32, TileRows*dim)
			b.SetBytes(rows * dim * 4)
			for b.Loop() {
				for r := 0; r < rows; r += TileRows {
					UnpackScaled(dst, c, src, rows, dim, r, TileRows)
				}
			}
		})
	}
}
